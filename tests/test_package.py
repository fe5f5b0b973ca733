"""What a user installs, and what builds and tests it: distributions, versions, platforms, the image, CI."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import embedx

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def test_the_version_is_the_distribution_s() -> None:
    assert embedx.__version__ == PROJECT["version"]


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("import embedx.__main__ as entry; entry.main()", 2), ("from embedx import Store", 1), ("import embedx", 0)],
)
def test_windows_is_told_of_wsl(code: str, exit_code: int) -> None:
    """Without the modules that Windows lacks, and by the name of its platform."""
    lacks = "import sys; sys.platform = 'win32'; sys.modules.update(dict.fromkeys(['fcntl', 'resource', 'termios']))"
    ended = subprocess.run([sys.executable, "-c", f"{lacks}; {code}"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (exit_code, "")
    assert ("install and run it in WSL, the Windows Subsystem for Linux\n" in ended.stderr) == (exit_code != 0)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build = "import sys; from hatchling import build as b; b.build_wheel(sys.argv[1]); b.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder


def tracked(*folders: str) -> set[str]:
    """The files of the repository in these folders, without what running them left."""
    files = {path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {str(path) for path in files if "__pycache__" not in path.parts}


def test_the_wheel_has_the_package_and_all_its_data(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if ".dist-info/" not in name}
    assert package == tracked("embedx")
    assert {"embedx/py.typed", "embedx/docs/store.md", "embedx/sample/shufflenet_v2_x0_5.safetensors"} <= package
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_sdist_has_all_that_its_tests_need(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked("embedx", "tests", "scripts") | {"pyproject.toml", "README.md", "LICENSE", "Makefile"} <= names


def requirements() -> list[Requirement]:
    lines = PROJECT["dependencies"] + [line for name, extra in EXTRAS.items() if name != "dist" for line in extra]
    return [each for each in map(Requirement, lines) if each.name != "embedx"]


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / "scripts" / name).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("required", requirements(), ids=lambda each: each.name)
def test_lowest_versions_are_those_that_are_tested(required: Requirement) -> None:
    lowest, (bound,) = pins("constraints-lowest.txt")[canonicalize_name(required.name)], required.specifier
    assert required.specifier.contains(lowest) and lowest.startswith(bound.version)
    assert required.specifier.contains(pins("constraints.txt")[canonicalize_name(required.name)])


def test_ci_runs_targets_of_the_makefile_on_every_python() -> None:
    yaml: Any = importlib.import_module("yaml")
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    hook = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"][0]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step] + [hook["entry"]]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {f"make {name}" for name in ("check", "test", "dist", "soak", "gpu")} == set(commands)
    assert {command.removeprefix("make ") for command in commands} <= targets
    matrix = jobs["test"]["strategy"]["matrix"]
    assert [f"Programming Language :: Python :: {version}" for version in matrix["python"]] == [
        line for line in PROJECT["classifiers"] if "Python :: 3." in line
    ]
    for constraints in matrix["constraints"] + [each["constraints"] for each in matrix["include"]]:
        assert not constraints or (ROOT / constraints).is_file()


def test_the_image_copies_what_is_there_and_its_example_is_parsed() -> None:
    text = (ROOT / "scripts/Dockerfile").read_text()
    copied = [name for names in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in names.split()]
    assert copied and all((ROOT / name).exists() for name in copied)
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)
    assert set(extras.split(",")) <= set(EXTRAS)
    assert re.findall(r"^(FROM|USER|ENTRYPOINT) (.*)$", text, re.MULTILINE) == [
        ("FROM", "${BASE}"),
        ("USER", "1000"),
        ("ENTRYPOINT", '["embedx"]'),
    ]
    (example,) = re.findall(r"^# +(extract .*)$", text, re.MULTILINE)
    command = [sys.executable, "-m", "embedx", *example.split(), "--help"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
