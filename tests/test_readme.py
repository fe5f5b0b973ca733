"""The README's commands and programs, run as they stand there."""

from __future__ import annotations

import configparser
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import csv, parquet
from torchvision import models
from transformers import ViTConfig, ViTImageProcessor, ViTModel

import embedx
from embedx import sample
from embedx.cli.app import run
from tests.servers import s3_server, upload

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shell(command: str, folder: Path) -> str:
    """What a user sees of it: both streams, in the order in which they are written."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "110"}
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Runs the session's commands in an empty folder; returns it with all that was seen, prompts included."""
    folder = tmp_path_factory.mktemp("session")
    commands = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(commands) >= 3
    return folder, "".join(f"$ {command}\n{shell(command, folder)}" for command in commands)


def without_rates(text: str) -> list[str]:
    """With N for all that differs from one machine to the next, and without what only a log or a slow machine has."""
    lines = [re.sub(r"^\d{4}-\d\d-\d\d [\d:]{8} ", "", line.rstrip()) for line in text.splitlines()]
    return [
        re.sub(r"[\d.]+ (s|images/s|thread|worker)s?\b", r"N \1", line).replace("on cuda", "on cpu, N thread")
        for line in lines
        if not re.search(r": (begins|ends with exit code 0|\d+ s so far)$", line)
    ]


def test_the_session_is_what_the_readme_shows(session: tuple[Path, str]) -> None:
    assert without_rates(session[1]) == without_rates("".join(blocks("console")))


def test_the_programs_run(
    session: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process, but for the one whose file the writer process imports."""
    *programs, with_processes = blocks("python")
    assert len(programs) == 4
    monkeypatch.chdir(session[0])
    for program in programs:
        exec(program, {})
        assert capfd.readouterr().out.strip(), program
    Path("program.py").write_text(with_processes)
    assert shell("python program.py", session[0]).strip()


def test_the_usual_call_runs_on_folders_of_one_s_own(
    session: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    usual, profiled = (
        line for block in blocks("sh") for line in block.splitlines() if line.startswith("embedx extract")
    )
    folder = session[0]
    (folder / "photos").symlink_to(Path(__file__).parent.parent / "embedx" / "sample" / "images")
    monkeypatch.chdir(folder)
    for command, groups in ((usual, 2), (profiled, 0)):
        monkeypatch.setattr(sys, "argv", [*shlex.split(command), "--dry-run"])
        assert run() == 0 and capfd.readouterr().out.count("star") == groups


def test_the_checks_of_a_store_run(
    session: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line for line in lines if re.match("embedx (verify|compare|repair) ", line)]
    assert len(commands) == 4
    monkeypatch.chdir(session[0])
    for name in ("before", "after"):
        Path(name).symlink_to("demo")
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
        assert run() == 0, command
    stdout, stderr = capfd.readouterr()
    # Not to the bit, as this process may compute in another number of threads than that of the session.
    assert re.search(r"20 rows recomputed: largest difference \S+ \(allowed 0.0001\)", stderr), stderr
    assert "A → B" in stdout and "median" in stdout


def test_the_picture_is_the_one_that_the_session_draws(session: tuple[Path, str]) -> None:
    (name,) = re.findall(r"^!\[[^\]]+\]\((\S+)\)$", README, re.MULTILINE)
    shown, drawn = (np.asarray(Image.open(path)) for path in (ROOT / name, session[0] / Path(name).name))
    assert shown.shape == drawn.shape
    assert np.abs(shown.astype(int) - drawn).mean() < 2  # another version of the font's renderer may draw it otherwise


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs that the commands of the README's tables name."""
    folder = tmp_path_factory.mktemp("workplace")
    for split in ("train", "val"):
        for source in sorted((sample.IMAGES / split).iterdir())[:2]:
            place = folder / "photos" / split / source.name
            place.mkdir(parents=True)
            for image in sorted(source.iterdir())[:2]:
                (place / image.name).write_bytes(image.read_bytes())
    images = sorted((folder / "photos").rglob("*.*"))
    species = [image.parent.name for image in images]
    names = [str(image.relative_to(folder)) for image in images]
    csv.write_csv(pa.table({"id": range(len(names)), "file": names, "species": species}), folder / "images.csv")
    embedded = [{"bytes": image.read_bytes(), "path": name} for image, name in zip(images, names, strict=True)]
    parquet.write_table(pa.table({"image": embedded, "label": species}), folder / "images.parquet")
    (folder / "parts").mkdir()
    for number in range(2):
        half = pa.table({"image": embedded[number::2], "label": species[number::2]})
        parquet.write_table(half, folder / "parts" / f"train-{number:05d}-of-00002.parquet")
    for number, split in enumerate(("train", "val")):
        with tarfile.open(folder / f"shard-{number:06d}.tar", "w") as archive:
            archive.add(folder / "photos" / split, split)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**small)).save_pretrained(folder / "vit")
    ViTImageProcessor().save_pretrained(folder / "vit")
    resnet = models.resnet18(weights=None).eval()
    state = {f"model.{name}": tensor for name, tensor in resnet.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / "last.ckpt")
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(resnet, (torch.zeros(2, 3, 64, 64),), dynamic_shapes=(batch,))
    torch.export.save(program, folder / "model.pt2")
    (folder / "mine.py").write_text(FACTORY)
    return folder


FACTORY = """
from torch import nn

def build(width):
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.preprocessing = {"resize": 72, "crop": 64, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    return model
"""
COMMANDS = [
    command.replace(r"\|", "|")
    for command in re.findall(r"^\|.*\| `([^`]*embedx extract [^`]*)` \|$", README, re.MULTILINE)
]
"""Of the tables of sources and backbones, in order: some take up what those before them wrote."""


@pytest.fixture
def s3() -> Iterator[Any]:
    with s3_server() as client:
        yield client


def test_the_commands_of_the_tables_run(workplace: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has torch imported already; a pipe's last command gets what the others print."""
    monkeypatch.chdir(workplace)
    assert len(COMMANDS) >= 17
    upload(s3, "lake", workplace / "photos", "photos/")
    for command in COMMANDS:
        *others, last = command.split(" | ")
        program, *arguments = shlex.split(last)
        assert program == "embedx"
        piped = subprocess.run(" | ".join(others), shell=True, check=True, capture_output=True).stdout
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
        monkeypatch.setattr(sys, "argv", [program, *arguments, "--workers", "0", "--batch-size", "2"])
        assert run() == 0, command
        out = arguments[arguments.index("--out") + 1]
        assert list(embedx.verify(out)) == [] and embedx.open(out).complete, command


def test_the_crontab_s_command_runs_and_then_finds_nothing_to_do(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (line,), (settings,) = blocks("crontab"), blocks("toml")
    schedule = r"(?:[\d*,/-]+ +){5}"
    match = re.fullmatch(rf"{schedule}cd /srv/photos && /opt/embedx/bin/(.*) >>runs\.jsonl 2>>runs\.log\n", line)
    assert match is not None and "%" not in line
    (workplace / "embedx.toml").write_text(settings)
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "argv", [*shlex.split(match[1]), "--weights", "random", "--workers", "0"])
    for up_to_date in (False, True):
        assert run() == 0
        assert json.loads(capfd.readouterr().out)["up_to_date"] is up_to_date


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    service, timer = blocks("ini")
    service = service.replace("/opt/embedx/bin/embedx", sys.executable)
    for name, text in (("embedx.service", service), ("embedx.timer", timer)):
        (tmp_path / name).write_text(text)
        configparser.ConfigParser(interpolation=None).read_string(text)
    if shutil.which("systemd-analyze"):
        files = [str(tmp_path / name) for name in ("embedx.service", "embedx.timer")]
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_make_knows_the_readme_s_targets() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_room_is_named() -> None:
    package = Path(__file__).parent.parent / "embedx"
    for room in package.iterdir():
        if room.is_dir() and room.name != "__pycache__":
            assert f"`embedx/{room.name}/`" in README, room.name
