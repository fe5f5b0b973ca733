"""The check of all that needs a GPU: its steps do not stop one another, and what they compare and count is right."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from scripts.gpu import __main__ as check
from scripts.gpu import correctness, machine, rates
from scripts.gpu.runner import Runner, Step
from scripts.gpu.settings import CARD, CPU
from tests.runs import assert_gone

ROOT = Path(__file__).parent.parent


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    (tmp_path / "work").mkdir()
    runner = Runner(tmp_path / "out", tmp_path / "work", tmp_path, 60)
    yield runner
    runner.close()


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def assert_ended(process: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        assert_gone([psutil.Process(process)])


def result(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "out/result.json").read_text())


def test_a_step_that_fails_stops_no_other(runner: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(found: dict[str, Any]) -> None:
        found["half"] = 1
        runner.call(*python("import sys; sys.exit('a fault')"))

    def well(found: dict[str, Any]) -> None:
        found["answer"] = runner.call(*python("print('talk'); print({})".format('"[42]"'))).json

    steps = [
        Step("broken", lambda found: found["none"], 5),
        Step("failing", failing, 5),
        Step("well", well, 5),
        Step("hindered", well, 5, obstacle=lambda: "there is no card"),
        Step("long", well, 500, least=61),
    ]
    assert not runner.run(steps)
    found = result(tmp_path)
    assert found["finished"]
    assert [entry["status"] for entry in found["steps"].values()] == ["FAILED", "FAILED", "ok", "skipped", "no time"]
    assert found["steps"]["broken"]["why"] == "KeyError: 'none'"
    assert (
        "exit code 1: a fault" in found["steps"]["failing"]["why"] and found["steps"]["failing"]["found"]["half"] == 1
    )
    assert found["steps"]["well"]["found"] == {"answer": [42]}
    assert found["steps"]["hindered"]["why"] == "there is no card"
    assert all(text in (tmp_path / "out/log.txt").read_text() for text in ("Traceback", "a fault", "talk"))
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == ["FAILED", "FAILED", "ok", "skipped", "no"]


def test_a_command_that_takes_too_long_is_ended_with_its_children(runner: Runner, tmp_path: Path) -> None:
    code = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
    assert not runner.run([Step("slow", lambda found: found.update(code=runner.call(*python(code)).code), 2, least=0)])
    assert "not done after" in result(tmp_path)["steps"]["slow"]["why"]
    assert_ended(int((tmp_path / "work/command-0.out").read_text()))


def test_a_step_that_the_end_of_all_time_cuts_off_has_not_failed(tmp_path: Path) -> None:
    runner = Runner(tmp_path / "out", tmp_path, tmp_path, 2)
    with contextlib.closing(runner):
        sleep = python("import time; time.sleep(60)")
        assert runner.run([Step("slow", lambda found: found.update(code=runner.call(*sleep).code), 60, least=0)])
    assert result(tmp_path)["steps"]["slow"]["status"] == "no time"


CHECK = """
import sys, time
from pathlib import Path
from scripts.gpu.runner import Runner, Step
out = Path(sys.argv[1])
runner = Runner(out, out, out, 60)
runner.stop_at_signals()
sleep = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
runner.run([Step("first", lambda found: found.update(a=1), 5), Step("second", lambda found: runner.call(*sleep), 50)])
"""


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGKILL, "not reached"), (signal.SIGTERM, "interrupted"), (signal.SIGINT, "interrupted")],
)
def test_what_was_found_before_a_kill_is_kept(tmp_path: Path, number: int, status: str) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen([*python(CHECK), out], cwd=ROOT, stdout=subprocess.DEVNULL)
    path = out / "command-0.out"
    while not path.exists() or not path.read_text().endswith("\n"):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(30) == (-9 if number == signal.SIGKILL else 128 + number)
    found = result(tmp_path)
    assert found["steps"]["first"] == {"status": "ok", "found": {"a": 1}, "seconds": 0.0} and not found["finished"]
    assert found["steps"]["second"]["status"] == status
    sleeper = int(path.read_text())
    if number == signal.SIGKILL:
        os.kill(sleeper, signal.SIGKILL)
    else:
        assert_ended(sleeper)


def write_wheel(path: Path, module: str) -> None:
    path.parent.mkdir(exist_ok=True)
    name, version, *_ = path.name.split("-")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}.py", "VALUE = 7")
        archive.writestr(
            f"{name}-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"
        )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that needs a package which is not installed, and one that never is as new."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    extras = "\n".join(f"{name} = []" for name in ("timm", "hf", "openvino", "formats"))
    needed = 'dependencies = ["loky>=1.0", "embedx-made-up>=2.1"]'
    text = f'[project]\nname = "embedx"\nversion = "9.9"\n{needed}\n[project.optional-dependencies]\n{extras}\n'
    (tmp_path / "pyproject.toml").write_text(text)
    return tmp_path


def test_packages_are_taken_from_wheels(project: Path, runner: Runner) -> None:
    write_wheel(project / ".whl/embedx_made_up-2.1-py3-none-any.whl", "embedx_made_up")
    write_wheel(project / ".whl/loky-9.0-py3-none-any.whl", "loky")
    write_wheel(project / ".whl/embedx_other-1.0-cp27-cp27m-linux_x86_64.whl", "embedx_other")
    assert runner.run([Step("packages", partial(machine.add_packages, runner), 9)])
    found = runner.found("packages")
    assert found["wheels unpacked"] == ["embedx_made_up 2.1"] and found["unmet"] == {}
    assert [name.split("-")[0] for name in found["wheels left"]] == ["embedx_other", "loky"]
    code = (
        "import embedx_made_up, importlib.metadata; print([embedx_made_up.VALUE, importlib.metadata.version('embedx')])"
    )
    assert runner.call(*python(code)).stdout == "[7, '9.9']\n"


@pytest.mark.parametrize(("version", "state"), [(None, "missing"), ("2.0.9", "2.0.9 is there")])
def test_packages_that_are_missing_or_old_are_named(
    project: Path, runner: Runner, version: str | None, state: str
) -> None:
    if version is not None:
        write_wheel(project / f".whl/embedx_made_up-{version}-py3-none-any.whl", "embedx_made_up")
    assert not runner.run([Step("packages", partial(machine.add_packages, runner), 9)])
    assert runner.found("packages")["unmet"] == {"embedx-made-up>=2.1": state}
    assert check.obstacle(runner, CPU) == ("" if version else "packages are missing: embedx-made-up>=2.1")


def test_every_measurement_is_one_step_and_some_can_be_chosen(runner: Runner) -> None:
    for sizes in (CARD, CPU):
        steps = [*check.steps_of(runner, sizes)]
        once = check.chosen(steps, [])
        names = [step.name for step in steps]
        assert [step.name for step in once] == sorted(set(names), key=names.index)
        assert {rates.name_of(kind, bench) for bench in sizes.benches for kind in "abde"} < {each.name for each in once}
        assert {step.name for step in check.chosen(steps, ["bytes"])} - {step.name for step in once if step.always} == {
            step.name for step in once if "bytes" in step.name
        }


def test_without_time_every_step_is_named(tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "scripts/gpu.sh"), "out", "--cpu", "--seconds", "0"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    *others, last = result(tmp_path)["steps"].values()
    assert {entry["status"] for entry in others} == {"no time"} and len(others) > 12
    assert last["found"] == {bench.name: "not measured" for bench in CPU.benches}


def test_rows_are_as_far_apart_as_they_are() -> None:
    rows = np.array([[1.0, 2.0, 4.0], [0.0, 3.0, 4.0]], np.float32)
    limit = correctness.Limit(0.01, 0.999)
    found = correctness.distance(rows + np.array([[0, 0, 0], [0, 0.02, 0]], np.float32), rows, limit)
    assert found["ok"] and found["largest difference / row's largest"] == pytest.approx(0.005, rel=1e-3)
    assert not correctness.distance(rows + np.array([[0, 0.05, 0], [0, 0, 0]], np.float32), rows, limit)["ok"]
    assert not correctness.distance(rows[::-1], rows, limit)["ok"]
    assert not correctness.distance(rows * np.nan, rows, limit)["ok"]
    assert not correctness.distance(rows[:1], rows, limit)["ok"]


def test_the_advice_of_a_message_about_memory_is_found() -> None:
    told = "error: CUDA is out of memory with --batch-size 60000; 7500 fits (tried): give --batch-size 7500, or auto"
    assert correctness.advised_batch_size(told) == 7500
    assert correctness.advised_batch_size("error: CUDA is out of memory with --batch-size 60000") is None


def test_what_tests_come_to_is_read_from_what_pytest_says(runner: Runner, tmp_path: Path) -> None:
    tests = ("a(): pass", "b(): assert 0", "c(): __import__('pytest').skip('no')", "d(x): pass")
    (tmp_path / "test_some.py").write_text("".join(f"def test_{test}\n" for test in tests))
    done = runner.call(*python("import pytest; raise SystemExit(pytest.main(['-rA', '-q']))"), codes=[1])
    found = correctness.outcomes(done.stdout)
    names = {kind: [text.split(" ")[0] for text in found[kind]] for kind in ("PASSED", "FAILED", "ERROR")}
    assert names == {
        "PASSED": ["test_some.py::test_a"],
        "FAILED": ["test_some.py::test_b"],
        "ERROR": ["test_some.py::test_d"],
    }
    assert len(found["SKIPPED"]) == 1 and "1 failed, 1 passed, 1 skipped, 1 error" in found["summary"][0]


def test_what_nvidia_smi_writes_is_read_as_columns() -> None:
    found = rates.samples("0, 500, 80.5, 345\n90, 9000, [N/A], 1980\n80, 7000, 300.1, 1980\n60, 7", 1.0)
    assert found["samples"] == 3 and found["MiB"] == "500 9000 7000" and found["W"] == "80.5 [N/A] 300.1"
    assert found["mean % while not 0"] == 85
    assert rates.samples("", 1.0) == {"samples": 0}


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_the_whole_check_passes_on_the_cpu(tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "scripts/gpu.sh"), str(tmp_path / "out"), "--cpu"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, timeout=590
    )
    assert done.returncode == 0, done.stdout
    assert {entry["status"] for entry in result(tmp_path)["steps"].values()} == {"ok"}
