"""Commands in odd circumstances: each says what is wrong, and none calls it a fault of embedx itself."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from embedx import sample
from embedx.cli.app import run
from embedx.data.sources import parse_data, table_file
from embedx.errors import ConfigError

EXTRACT = ["extract", "--backbone", "shufflenet_v2_x0_5", "--weights", "sample", "--image-size", "32", "-j", "1"]
DEEP = "[" * 1500


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Runs a command in this process; returns its exit code and what it said."""
    monkeypatch.setattr(sys, "argv", ["embedx", *arguments])
    code = run()
    return code, " ".join(capsys.readouterr().err.split())


def test_a_file_of_settings_that_no_parser_takes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f"data = {DEEP}")
    code, said = told(monkeypatch, capsys, "extract", "--config", str(config))
    assert code == 2 and said.endswith("run.toml: can't be read (its values are nested too deeply)")
    config.write_bytes(b"# " + b"x" * 17_000_000)
    code, said = told(monkeypatch, capsys, "extract", "--config", str(config))
    assert code == 2 and said.endswith("has more than 16.0 MiB, too much for settings; name another file")
    code, said = told(monkeypatch, capsys, "extract", "--config", "/dev/zero")
    assert code == 2 and "too much for settings" in said


@pytest.mark.parametrize(
    "levels", [201, 1_500, 100_000]
)  # beyond our own limit, Python's, and pyarrow's, which crashes
def test_json_that_is_nested_too_deeply_is_named(tmp_path: Path, levels: int) -> None:
    deep = '{"path": "b.jpg", "more": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}"
    table = tmp_path / "images.jsonl"
    table.write_text('{"path": "a.jpg"}\n' + deep + "\n")
    with pytest.raises(ConfigError, match=r"images.jsonl: .*nested too deeply"):
        parse_data([str(table)])["all"].scan()
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for name, content in (("a.jpg", b"x"), ("a.json", deep.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(ConfigError, match=r"a: its .json .*nested too deeply"):
        parse_data([str(tmp_path / "images.tar")])["all"].scan()


def test_brackets_within_texts_and_beside_each_other_are_no_levels(tmp_path: Path) -> None:
    table = tmp_path / "images.jsonl"
    table.write_text(json.dumps({"path": "a.jpg", "text": '\\"[' * 300, "boxes": [[1]] * 300}) + "\n")
    assert parse_data([str(table)])["all"].scan()["text"].to_pylist() == ['\\"[' * 300]


def test_a_table_that_unpacks_beyond_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "images.csv.gz"
    table.write_bytes(gzip.compress(b"path\n" + b"a.jpg\n" * 1_000_000))
    monkeypatch.setattr(table_file, "available_memory", lambda: 8 * 1024**2)
    with pytest.raises(ConfigError, match=r"images.csv.gz: .*KiB unpack to more than 2.0 MiB; make it a .parquet"):
        parse_data([str(table)])["all"].scan()


def test_folders_are_read_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = next(sample.IMAGES.rglob("*.jpg")).read_bytes()
    monkeypatch.chdir(tmp_path)
    try:
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        Path("a.jpg").write_bytes(image)
    finally:
        os.chdir(tmp_path)
    keys = parse_data([str(tmp_path)])["all"].scan()["key"].to_pylist()
    assert keys == ["d/" * 1100 + "a.jpg"]
    with pytest.raises(ConfigError, match=r"\*\*/\*.jpg: folders are nested too deeply for \*\*"):
        parse_data([f"{tmp_path}/**/*.jpg"])
    here = os.open(tmp_path, os.O_RDONLY)  # as shutil.rmtree recurses, it can't remove them
    for _ in range(1100):
        here = os.open("d", os.O_RDONLY, dir_fd=here)
    os.unlink("a.jpg", dir_fd=here)
    for _ in range(1100):
        os.rmdir("../d", dir_fd=here)
        above = os.open("..", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = above


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("mkdir gone && cd gone && rmdir ../gone", "the working directory is gone"),
        ("ulimit -v 1500000", "memory is short"),
        ("ulimit -v 4000000", "memory is short|address space .now 3.8 GiB, set by ulimit"),
        ("ulimit -n 30", "Too many open files: this run may need"),
    ],
)
@pytest.mark.soak
def test_a_limit_of_the_machine_is_named(tmp_path: Path, setting: str, words: str) -> None:
    image = next(sample.IMAGES.rglob("*.jpg"))
    command = [sys.executable, "-m", "embedx", *EXTRACT, "--data", str(image), "--out", str(tmp_path / "out")]
    ran = subprocess.run(
        ["bash", "-c", f'{setting}; exec "$@"', "bash", *command], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode in (1, 2), ran.stderr
    assert re.search(words, ran.stderr) and "a fault of embedx itself" not in ran.stderr


class Run:
    """An extraction of 400 images in a session of its own, with a folder of its own for temporary files."""

    def __init__(self, folder: Path) -> None:
        self.temporary = Path(tempfile.mkdtemp(dir="/tmp"))
        inputs = folder / "inputs"
        inputs.mkdir(exist_ok=True)
        for number in range(400):
            shutil.copy(next(sample.IMAGES.rglob("*.jpg")), inputs / f"{number}.jpg")
        self.command = [sys.executable, "-m", "embedx", *EXTRACT, "-b", "1", "--image-size", "224"]
        self.command += ["--data", str(inputs), "--out", str(folder / "out")]
        self.process = subprocess.Popen(
            self.command,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(self.temporary)},
        )
        self.children: list[psutil.Process] = []
        while not any(self.named("embedx-writer")):
            assert self.process.poll() is None
            time.sleep(0.05)
            self.children = psutil.Process(self.process.pid).children(recursive=True)
        time.sleep(1)

    def left(self) -> list[str]:
        """The names in the folder for temporary files, without torch's own cache."""
        return [name for name in os.listdir(self.temporary) if not name.startswith("torchinductor_")]

    def named(self, name: str) -> list[psutil.Process]:
        """The children with a name, or with that word in their command."""
        alive = (child for child in self.children if child.is_running() and child.status() != "zombie")
        return [child for child in alive if name in (child.name(), *" ".join(child.cmdline()).split())]


@pytest.mark.soak
def test_a_killed_fork_server_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path)
    server = psutil.Process(run.named("embedx-writer")[0].ppid())
    server.kill()
    said = run.process.communicate(timeout=100)[1]
    assert run.process.returncode == 1
    assert "fork server, the process that starts embedx's others, was killed by SIGKILL" in said
    assert subprocess.run(run.command).returncode == 0
    assert psutil.wait_procs(run.children, timeout=20)[1] == []
    shutil.rmtree(run.temporary)


@pytest.mark.soak
@pytest.mark.parametrize("whole_group", [False, True])
def test_a_killed_run_leaves_no_process_and_the_next_one_removes_its_files(tmp_path: Path, whole_group: bool) -> None:
    run = Run(tmp_path)
    if whole_group:
        os.killpg(run.process.pid, signal.SIGKILL)
    else:
        run.process.kill()
    run.process.communicate(timeout=30)
    assert psutil.wait_procs(run.children, timeout=20)[1] == []
    assert len(run.left()) == 1 and run.left()[0].startswith("embedx-run-")
    environment = {**os.environ, "TMPDIR": str(run.temporary)}
    assert subprocess.run(run.command, env=environment).returncode == 0
    assert run.left() == []
    assert not list(Path("/dev/shm").glob(f"*{run.process.pid}*"))
    shutil.rmtree(run.temporary)
