"""The packages and the machine on which the check runs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scripts.gpu.runner import CheckFailedError, Runner

MISSING = "missing"
"""The state of a package that is not installed."""
OF_TESTS = ("pytest>=8.3", "psutil>=7", "scikit-image>=0.25")
"""The packages without which no test of the project runs."""


def add_packages(runner: Runner, found: dict[str, Any]) -> None:
    """Unpacks the wheels of `.whl/` whose packages are not installed, and has all commands import them and this code.

    Raises:
        CheckFailedError: If packages are missing, or too old, of those that embedx needs.
    """
    site = runner.work / "site"
    project = tomllib.loads((runner.root / "pyproject.toml").read_text())["project"]
    site.mkdir(exist_ok=True)
    found["wheels unpacked"], found["wheels left"] = _unpack(sorted((runner.root / ".whl").glob("*.whl")), site)
    info = site / f"embedx-{project['version']}.dist-info"  # read by embedx itself, where it is not installed
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: embedx\nVersion: {project['version']}\n")
    runner.environment["PYTHONPATH"] = os.pathsep.join(
        [str(runner.root), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    sys.path.insert(0, str(site))
    optional = project["optional-dependencies"]
    found["unmet"] = unmet(project["dependencies"])
    found["unmet by tests"] = unmet(OF_TESTS)
    found["unmet by extras"] = {name: unmet(optional[name]) for name in ("timm", "hf", "openvino", "formats")}
    if found["unmet"]:
        told = ", ".join(f"{name} ({state})" for name, state in found["unmet"].items())
        raise CheckFailedError(f"embedx lacks {told}; put the wheels into .whl/ in {runner.root}")


def unmet(requirements: Iterable[str]) -> dict[str, str]:
    """Returns what is not installed as required, by requirement: missing, or the version that is there."""
    states = {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(?:\[.*\])?>=([\d.]+)$", requirement)
        assert match is not None, requirement
        try:
            version = importlib.metadata.version(match[1])
        except importlib.metadata.PackageNotFoundError:
            states[requirement] = MISSING
        else:
            if _numbers(version) < _numbers(match[2]):
                states[requirement] = f"{version} is there"
    return states


def obstacle_of_tests(runner: Runner) -> str:
    """Returns the reason why no test can be run, or an empty text."""
    unmet_by_tests = runner.found("packages").get("unmet by tests", {})
    missing = [name for name, state in unmet_by_tests.items() if state == MISSING]
    return f"packages of tests are missing: {', '.join(missing)}" if missing else ""


def _numbers(version: str) -> tuple[int, ...]:
    """Returns the leading numbers of a version, as in 2.11.0 of `2.11.0+cu130`."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _unpack(wheels: Iterable[Path], site: Path) -> tuple[list[str], dict[str, str]]:
    unpacked, left = [], {}
    for wheel in wheels:
        name, version, *_ = wheel.name.split("-")
        if not _fits(wheel.name):
            left[wheel.name] = f"is not for Python {platform.python_version()} on {platform.machine()}"
        elif _is_installed(name):
            left[wheel.name] = f"{name} {importlib.metadata.version(name)} is installed"
        else:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
            unpacked.append(f"{name} {version}")
    return unpacked, left


def _fits(wheel: str) -> bool:
    """Tells by the tags in a wheel's name whether this interpreter and this processor take it."""
    python, abi, machine = wheel.removesuffix(".whl").split("-")[-3:]
    is_ours = {f"cp{sys.version_info.major}{sys.version_info.minor}", "py3"} & set(python.split(".")) or abi == "abi3"
    return bool(is_ours) and (machine == "any" or machine.endswith(platform.machine()))


def _is_installed(name: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(name))
    return False


def tell_facts(runner: Runner, found: dict[str, Any], *, needs_card: bool) -> None:
    """Notes the card, the processor, the versions, and the code that is checked.

    Raises:
        CheckFailedError: If a card is needed and torch sees none, or commands import an embedx of elsewhere.
    """
    found |= {
        "python": f"{platform.python_version()}, {sys.executable}",
        "cores": len(os.sched_getaffinity(0)),
        "processor": _first_match(r"model name\s*: *(.+)", "/proc/cpuinfo") or platform.machine(),
        "memory, GiB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "shared memory free, GiB": _free_shared_memory(),
        "commit": _output("git", "-C", str(runner.root), "describe", "--always", "--dirty", "--abbrev=40"),
        "nvidia-smi": _output(
            "nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"
        ),
    }
    found |= runner.call(sys.executable, Path(__file__).with_name("versions.py")).json
    if Path(found["embedx"]).parent.parent != runner.root:
        raise CheckFailedError(f"commands import embedx from {found['embedx']}, and not from {runner.root}")
    if needs_card and not found["cards"]:
        raise CheckFailedError("torch sees no CUDA device; --cpu tries the check without one")


def _free_shared_memory() -> float | None:
    with contextlib.suppress(OSError):
        disk = os.statvfs("/dev/shm")
        return round(disk.f_bavail * disk.f_frsize / 2**30, 1)
    return None


def _first_match(pattern: str, path: str) -> str | None:
    with contextlib.suppress(OSError):
        if match := re.search(pattern, Path(path).read_text(errors="replace")):
            return match[1].strip()
    return None


def _output(*command: str) -> str | None:
    """Returns what a command prints, or None if it is not there or fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=20)
        return done.stdout.strip() or None if done.returncode == 0 else None
    return None
