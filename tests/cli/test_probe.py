"""`embedx probe` as a user types it: streams, exit codes, messages, files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from embedx.store.format.layout import MANIFEST
from embedx.store.format.manifest import Manifest
from tests.cli.calls import Embedx
from tests.store.builders import write_features


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that are easily told apart but for one row."""
    targets = [row % 3 for row in range(60)]
    rows = torch.eye(3)[targets] * 9 + torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    wrong = [1, *targets[1:30]]
    out = tmp_path_factory.mktemp("stores") / "store"
    names = ["ant", "bee\n", "[red]cat"]
    return write_features(out, {"train": (rows, targets), "val": (rows[:30], wrong)}, names=names)


def test_the_result_is_a_table_on_stdout_and_talk_stays_on_stderr(call: Embedx, store: Path) -> None:
    code, stdout, stderr = call("probe", store)
    assert code == 0 and "top-1                0.9667" in stdout and "learned on           train, 60 rows" in stdout
    assert "│ bee\\n    │ 20         │ 11        │ 10    │ 0.9091   │ ant" in stdout and "[red]cat" in stdout
    assert "l2 100: test after epoch" in stderr and "l2" not in stdout.replace("linear, l2", "")
    code, stdout, stderr = call("probe", store, "--method", "knn", "-k", "3", "--quiet")
    assert (code, stderr) == (0, "") and "knn, k 3, temperature 0.07" in stdout


def test_of_many_classes_the_most_frequent_mistakes_are_shown(call: Embedx, tmp_path: Path) -> None:
    """Of 1,100 classes in a line, the first two are mistaken for their neighbours by the nearest one."""
    rows, targets = torch.eye(1100), list(range(1100))
    tested = torch.stack([rows[2], rows[2], rows[5], rows[7]]), [1, 1, 4, 7]
    names = [f"class-{number}" for number in targets]
    store = write_features(
        tmp_path / "store", {"train": (rows, targets), "val": tested}, names=names, rows_per_unit=1100
    )
    plot = tmp_path / "plot.png"
    code, stdout, stderr = call("probe", store, "--method", "knn", "-k", "1", "--plot", plot)
    lines = [line.split() for line in stdout.splitlines() if "│ class-" in line]
    assert (code, lines[0][1::2], lines[1][1::2]) == (0, ["class-1", "class-2", "2"], ["class-4", "class-5", "1"])
    assert len(lines) == 2 and "1100, of which these are most often mistaken" in stdout
    with Image.open(plot) as image:
        assert "--json lists each class" in stderr and max(image.size) < 1900
    result = json.loads(call("probe", store, "--method", "knn", "-k", "1", "--json")[1])
    assert result["confusion"] is None and len(result["classes"]) == 1100
    assert result["mistakes"][0] == {"class": "class-1", "predicted": "class-2", "rows": 2}


def test_json_is_one_object_in_one_line(call: Embedx, store: Path) -> None:
    code, stdout, _ = call("probe", store, "--json", "--l2", "0.1")
    result = json.loads(stdout)
    assert code == 0 and stdout.count("\n") == 1
    assert result["top1"] == pytest.approx(29 / 30) and result["settings"]["l2"] == 0.1 and result["head"] is None
    assert result["confusion"] == [[9, 0, 0], [1, 10, 0], [0, 0, 10]] or sum(map(sum, result["confusion"])) == 30
    assert result["classes"][1]["mistaken_for"] == "ant"
    assert {"class": "bee\n", "predicted": "ant", "rows": 1} in result["mistakes"]


def test_head_and_plot_are_written_where_they_are_wanted(call: Embedx, store: Path, tmp_path: Path) -> None:
    code, stdout, _ = call("probe", store, "--out", tmp_path / "out", "--plot", tmp_path / "plot.png", "--l2", "0.1")
    assert code == 0 and f"{tmp_path}/out/head.safetensors" in stdout.replace("\n", "").replace(" ", "")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"
    before = (tmp_path / "out" / "head.safetensors").read_bytes()
    code, _, stderr = call("probe", store, "--out", tmp_path / "out", "--l2", "0.1", "--resume")
    assert code == 0 and "epochs/s" not in stderr
    assert (tmp_path / "out" / "head.safetensors").read_bytes() == before
    code, stdout, stderr = call("probe", store, "--out", tmp_path / "out", "--l2", "0.1", "--resume", "--seed", "1")
    assert (code, stdout) == (2, "") and "is of another fit: seed was 0, and is 1" in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "plot.png"]


def test_settings_can_stand_in_a_file_and_flags_win(call: Embedx, store: Path, tmp_path: Path) -> None:
    (tmp_path / "probe.toml").write_text('method = "knn"\nneighbours = 7\ntemperature = 0.5\n')
    settings = json.loads(call("probe", store, "--config", tmp_path / "probe.toml", "-k", "5", "--json")[1])["settings"]
    assert settings == {"k": 5, "temperature": 0.5}


def test_an_unfinished_store_is_probed_with_a_notice(call: Embedx, store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    manifest = json.loads((store / MANIFEST).read_text())
    assert manifest.pop("complete")
    begun = Manifest.read(store)
    Manifest(begun.recipe, begun.plan, begun.environment).write(tmp_path / "store")
    code, _, stderr = call("probe", tmp_path / "store", "--method", "knn")
    assert code == 0 and "is not complete: the rows committed so far are probed" in stderr


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--test", "tset"), 2, "unknown split 'tset'"),
        (("--test", "train"), 2, "--train and --test are both 'train'"),
        (("--method", "svm"), 2, "svm"),
        (("--l2", "0"), 2, "--l2 is 0; give a number above 0"),
        (("--l2", "nan"), 2, "--l2 is nan"),
        (("--method", "knn", "-k", "61"), 2, "-k is 61, and split 'train' has 60 rows"),
        (("--method", "knn", "-k", "0"), 2, "-k is 0; give a whole number of at least 1"),
        (("--method", "knn", "--temperature", "-1"), 2, "--temperature is -1"),
        (("--method", "knn", "--out", "x"), 2, "knn has no head; leave them out"),
        (("--name", "layer4"), 2, "unknown tensor 'layer4'"),
        (("--memory", "lots"), 2, "'lots' is not a size"),
        (("--plot", "nowhere/plot.png"), 2, "--plot nowhere/plot.png: there is no folder nowhere"),
        (("--plot", "/"), 2, "--plot /: it is a folder; choose another path"),
        (("--out", "/dev/null/x"), 2, "--out /dev/null/x"),
    ],
)
def test_what_can_not_be_done_is_one_message(
    call: Embedx, store: Path, options: tuple[str, ...], code: int, told: str
) -> None:
    found, stdout, stderr = call("probe", store, "--l2", "1", "--quiet", *options)
    assert (found, stdout) == (code, "") and told in stderr and "fault of embedx itself" not in stderr


def test_what_is_no_store_is_one_message(call: Embedx, tmp_path: Path) -> None:
    code, stdout, stderr = call("probe", tmp_path)
    assert (code, stdout) == (2, "") and "is not a store" in stderr and stderr.count("\n") == 1
