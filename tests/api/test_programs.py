"""Programs as people write them, each in a process of its own: children must not import the caller's `__main__`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from PIL import Image

import embedx

PROGRAM = """
import torch
import embedx

print("begins")

class Double(torch.nn.Module):
    def forward(self, images):
        return 2 * images

def work():
    settings = {"backbone": "shufflenet_v2_x0_5", "weights": "sample", "image_size": 32, "batch_size": 2}
    store = embedx.extract("photos", out=NAME, workers=1, progress=False, **settings)
    rows = store.load("all")
    print((embedx.embed(rows.table["path"].to_pylist(), store, workers=1) == rows.embeddings).all())
    batch = {"images": torch.ones(2, 4), "index": torch.arange(2), "keys": ["a", "b"]}
    embedx.run_test(Double(), {"all": [batch]}, [embedx.EmbeddingsWriter(NAME + "-doubled")])
    print(embedx.open(NAME + "-doubled").load("all").embeddings.tolist())
"""
PRINTED = "begins\nTrue\n[[2.0, 2.0, 2.0, 2.0], [2.0, 2.0, 2.0, 2.0]]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 36), (80 * number, 20, 200)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (["plain.py"], "work()"),
        pytest.param(["guarded.py"], "if __name__ == '__main__':\n    work()", marks=pytest.mark.soak),
        (["-"], "work()"),
    ],
    ids=["a script", "a script with a guard", "a program on stdin"],
)
def test_a_program_works_with_and_without_a_guard(folder: Path, arguments: list[str], call: str) -> None:
    program = f"NAME = 'store'\n{PROGRAM}\n{call}\n"
    (folder / arguments[0]).write_text(program)
    done = subprocess.run(
        [sys.executable, *arguments], input=program, cwd=folder, capture_output=True, text=True, timeout=110
    )
    assert (done.stdout, done.stderr) == (PRINTED, "")


def test_the_notebook_runs(tmp_path: Path) -> None:
    """With extraction, writer and workers started from a kernel; its last cell tells the neighbours of a photograph."""
    notebook: Any = nbformat.read(Path(__file__).parents[2] / "scripts" / "embedx.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=110, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    texts = [
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output["output_type"] == "stream" and output["name"] == "stdout"
    ]
    assert texts == ["True\n", "star star star star star\n"]
    assert embedx.open(tmp_path / "store").complete
