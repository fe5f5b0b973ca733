"""Names and texts that others chose, on every command: none steers the terminal, and none begins a line of its own."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import re
import shutil
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from embedx import sample
from embedx.cli.app import run
from embedx.recipe import fingerprint
from tests.cli.calls import COMMANDS, Embedx
from tests.servers import HttpServer
from tests.store.builders import write_features

FORGED = "FAKE: demo is whole"
HOSTILE = f"a\x1b]0;owned\x07\x1b[2J\r\n{FORGED}\u2028{FORGED}\u202eb\x85\x9b3m\x7f"
HOSTILE_NAME = HOSTILE + "\udcff"
"""A file's name, which may also have a byte that is no text."""

MINUTES = {"extract": pytest.mark.soak}
"""The command that has 60 options."""
FAST = ("--backbone", sample.BACKBONE, "--weights", "sample", "--image-size", "32", "-j", "0")

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_RICH = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[lh]|\d*[AGK])|\r(?!FAKE)")
"""What Rich itself writes on a terminal: styles, the cursor shown and hidden, and moves of it."""


def faults_of(text: str, *, terminal: bool = False) -> list[str]:
    """The raw controls, and the lines that begin with the forged text."""
    text = _RICH.sub("", text) if terminal else text
    controls = [repr(text[max(0, found.start() - 60) : found.end() + 20]) for found in _CONTROLS.finditer(text)]
    return controls + [line for line in text.splitlines() if line.lstrip().startswith("FAKE")]


@contextlib.contextmanager
def on_terminal() -> Iterator[Callable[[], str]]:
    """Both streams on a pseudo-terminal; what it yields puts them back, and tells what was written there."""
    ours, theirs = pty.openpty()
    kept = os.dup(1), os.dup(2)
    streams = sys.stdout, sys.stderr
    written = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 65536):
                written.extend(piece)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for number in (1, 2):
        os.dup2(theirs, number)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(theirs), "w", errors="backslashreplace") for _ in range(2))

    def end() -> str:
        if sys.stdout is not streams[0]:
            sys.stdout.close()
            sys.stderr.close()
            sys.stdout, sys.stderr = streams
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.close(theirs)
            reader.join(5)  # a fork server that was started meanwhile keeps the terminal open
            if not reader.is_alive():
                os.close(ours)
        return written.decode()

    try:
        yield end
    finally:
        end()


@pytest.fixture
def shown(embedx: Embedx, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Calls a command with pipes, and then with a terminal; returns its text, in which nothing is wrong."""
    monkeypatch.chdir(tmp_path)  # a command may write where it stands
    monkeypatch.setenv("COLUMNS", "2000")
    monkeypatch.setenv("TERM", "xterm-256color")

    def call(*arguments: str | Path, terminal: bool = True) -> str:
        ended = embedx(*arguments)
        faults = faults_of(ended.stdout) + faults_of(ended.stderr)
        if terminal:
            with on_terminal() as end:
                monkeypatch.setattr(sys, "argv", ["embedx", *map(str, arguments)])
                run()
                faults += faults_of(end(), terminal=True)
        assert faults == []
        return ended.stdout + ended.stderr

    return call


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of a class each, and an image that is none, all of hostile names."""
    root = tmp_path_factory.mktemp("images") / "in"
    for kind in ("star", "ring"):
        folder = root / f"{HOSTILE}{kind}"
        folder.mkdir(parents=True)
        shutil.copy(min((sample.IMAGES / "val" / kind).iterdir()), folder / f"{HOSTILE}.png")
    (folder / f"{HOSTILE_NAME}.jpg").write_bytes(b"\xff\xd8\xff no image")
    return root


def strangers_manifest(store: Path, *, sound: bool) -> None:
    """Puts hostile texts into a manifest; its checksums fit if it is to be `sound`."""
    manifest = store / "manifest.json"
    contents = json.loads(manifest.read_text())
    for part in ("recipe", "environment", "settings"):
        told = contents[part]
        contents[part] = {key: HOSTILE if isinstance(value, str | None) else value for key, value in told.items()}
    contents["recipe"]["backbone"] = contents["environment"]["cpu"] = f"\n{FORGED}"
    if sound:
        contents["fingerprint"] = fingerprint(contents["recipe"])
        checksum = "sha256" if "sha256" in contents else "checksum"
        del contents[checksum]
        contents[checksum] = fingerprint(contents)
    manifest.write_text(json.dumps(contents))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores with hostile names: a whole one, a damaged one, and those of strangers."""
    root = tmp_path_factory.mktemp("stores")
    stores = {name: root / name for name in ("whole", "damaged", "littered", "strange", "changed", "empty")}
    rows = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    parts = {"train": (rows, [0, 1] * 6), "val": (rows, [0, 1] * 6)}
    write_features(stores["whole"], parts, names=[HOSTILE, f"b{HOSTILE}"])
    for name in ("damaged", "littered", "strange", "changed"):
        shutil.copytree(stores["whole"], stores[name])
    for shard in stores["damaged"].rglob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    for folder in ("", "index", "train"):
        (stores["littered"] / folder / f"\n{FORGED}{HOSTILE_NAME}").touch()
    stores["empty"].mkdir()
    for name in ("strange", "changed"):
        strangers_manifest(stores[name], sound=name == "strange")
    return stores


def _name(parameter: Any) -> str:
    return parameter.opts[-1] if parameter.param_type_name == "option" else parameter.metavar or parameter.name or ""


@pytest.mark.parametrize("command", [pytest.param(name, marks=MINUTES.get(name, ())) for name in COMMANDS])
def test_a_value_of_any_argument_and_option(
    shown: Callable[..., str], stores: dict[str, Path], tmp_path: Path, command: str
) -> None:
    """Each argument and option of a command gets a hostile value, while the required ones beside it can be parsed."""
    sound: dict[str, str | Path] = dict.fromkeys(("STORE", "A", "B"), stores["whole"])
    sound |= {
        "BACKBONE": "no_such:thing",
        "--backbone": "no_such:thing",
        "--out": tmp_path / "out",
        "-o": tmp_path / "out",
    }
    parameters = [each for each in COMMANDS[command].params if not getattr(each, "is_flag", False)]
    for hostile in parameters:
        given: list[str | Path] = []
        for each in parameters:
            if each is hostile or each.required:
                given += [each.opts[-1]] if each.param_type_name == "option" else []
                given += [HOSTILE if each is hostile else sound[_name(each)]]
        shown(command, *given, terminal=False)
    shown(command, f"--{HOSTILE}")
    shown(command, *[HOSTILE] * 4, "--debug", terminal=False)
    shown(HOSTILE, terminal=False)


OF_STORES: dict[str, list[list[str]]] = {
    "info": [[], ["--rejected"]],
    "verify": [[], ["--recompute", "1", "--trust"]],
    "search": [["--row", "train:key-1", "--html", "{tmp}/sheet.html", "--overwrite"], ["--row", f"train:{HOSTILE}"]],
    "probe": [["--plot", "{tmp}/plot.png"], ["--train", HOSTILE]],
}
"""Options with which a command reads a store."""
READERS = [name for name, one in COMMANDS.items() if {"STORE", "A"} & {each.metavar for each in one.params}]


@pytest.mark.parametrize("store", ["whole", "damaged", "littered", "strange", "changed", "empty"])
@pytest.mark.parametrize("command", READERS)
def test_a_stranger_s_store(
    shown: Callable[..., str], stores: dict[str, Path], one_thread: None, tmp_path: Path, command: str, store: str
) -> None:
    count = sum(each.param_type_name == "argument" for each in COMMANDS[command].params)
    paths = [stores[store], *[stores["strange"]] * (count - 1)]
    for options in OF_STORES.get(command, [[]]):
        shown(command, *paths, *(option.format(tmp=tmp_path) for option in options))
    debugged = shown(command, *paths, "--debug", terminal=False)
    assert "error:" not in debugged or "Traceback" in debugged


def test_the_names_of_images_groups_and_splits(
    shown: Callable[..., str], images: Path, one_thread: None, tmp_path: Path
) -> None:
    """A run, its plan, its rerun, its rejected inputs, and an input that ends a run."""
    out = tmp_path / "store"
    extract = ("extract", *FAST, "--data", f"{HOSTILE[:6]}={images}", "--group-key", "class", "--out", out)
    assert "\\x1b" in shown(*extract, "--dry-run")
    text = shown(*extract, "--profile")
    assert "1 rejected" in text and "\\x1b" in text
    assert "\\x1b]0;owned" in shown("info", out, "--rejected")
    shown(*extract, "--layer", HOSTILE, "--group-key", HOSTILE, "--weights", HOSTILE, terminal=False)
    for command in ("info", "verify", "compare"):
        shown(command, out, *([out] if command == "compare" else []), terminal=False)


@pytest.mark.soak
def test_tables_archives_and_lists(shown: Callable[..., str], images: Path, one_thread: None, tmp_path: Path) -> None:
    table, lines, archive = tmp_path / "t.csv", tmp_path / "t.jsonl", tmp_path / "t.tar"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["path", HOSTILE, f"\n{FORGED}"], [HOSTILE, HOSTILE, "1"], [f"\n{FORGED}", "", ""]])
    lines.write_text("".join(json.dumps({"path": HOSTILE, HOSTILE: {HOSTILE: 1}}) + "\n" for _ in range(2)) + "{]\n")
    with tarfile.open(archive, "w") as tar:
        for name in (f"{HOSTILE}.png", f"\n{FORGED}.jpg", f"../{HOSTILE}.png"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"none"))
    for source in (table, lines, archive):
        for options in ([], ["--group-key", HOSTILE]):
            shown("extract", *FAST, "--data", source, "--out", tmp_path / "s", *options, "--dry-run", terminal=False)
    shown("extract", *FAST, "--data", archive, "--out", tmp_path / "s", terminal=False)


def test_checkpoints_and_settings_files(shown: Callable[..., str], images: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / f"{HOSTILE}.safetensors"
    save_file({HOSTILE: torch.zeros(3), f"\n{FORGED}": torch.zeros(3), f"conv1.{HOSTILE}": torch.zeros(1)}, checkpoint)
    garbage = tmp_path / f"{HOSTILE}.pth"
    garbage.write_bytes(f"\n{FORGED}".encode())
    common = ("extract", "--backbone", "resnet18", "--data", images, "--out", tmp_path / "s", "--debug")
    for path, key in ((checkpoint, None), (checkpoint, HOSTILE), (garbage, None)):
        shown(*common, "--checkpoint", path, *(["--checkpoint-key", key] if key else []), terminal=False)
    settings = tmp_path / f"{HOSTILE}.toml"
    for text in (f"{json.dumps(HOSTILE)} = 1\n", f"workers = {json.dumps(HOSTILE)}\n", f"= \n{FORGED}"):
        settings.write_text(text)
        shown(*common, "--config", settings, terminal=False)


@pytest.mark.soak
def test_names_of_hubs_programs_and_servers(shown: Callable[..., str], images: Path, tmp_path: Path) -> None:
    program = tmp_path / f"{HOSTILE}.pt"
    program.write_bytes(f"\n{FORGED}".encode())
    for backbone in (f"timm:{HOSTILE}", f"{HOSTILE}:build", str(program), f"sys:{HOSTILE}"):
        shown("layers", backbone, terminal=False)
        common = ("extract", "--backbone", backbone, "--data", images, "--out", tmp_path / "s", "--trust")
        shown(*common, "--debug", terminal=False)
    with HttpServer(images) as server:
        for url in (f"{server}/{HOSTILE}", f"evil://{HOSTILE}", f"file://{HOSTILE}/x"):
            shown("extract", *FAST, "--data", url, "--out", tmp_path / "s", "--dry-run", terminal=False)


def test_what_libraries_print(shown: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings, logs and prints keep their lines, but steer nothing; bars of progress are drawn."""
    (tmp_path / "talker.py").write_text(
        "import sys, warnings\n"
        f"text = {HOSTILE.replace(FORGED, 'a line')!r}\n"
        "def build():\n"
        "    print(warnings.formatwarning(text, UserWarning, 'talker.py', 1), file=sys.stderr)\n"
        "    print(text)\n"
        "    print('\\n 10 %|#', end='', file=sys.stderr)\n"
        f"    raise ValueError({HOSTILE!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = shown("layers", "talker:build", "--image-size", "32", terminal=False)
    assert text.count("\\x1b]0;owned") == 2 and "\n 10 %|#" in text
