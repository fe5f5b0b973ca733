"""Rules about the package itself: which room may import which, and what a file holds."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import embedx

PACKAGE = Path(embedx.__file__).parent
MODULES = {path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
           for path in sorted(PACKAGE.rglob("*.py"))}  # fmt: skip

GROUND = {"errors", "names", "credentials", "terminal", "console", "paths", "values", "settings", "arrow", "sample"}
MIDDLE = GROUND | {"recipe", "config", "heartbeat", "system"}
MIDDLE_ROOMS = {"data", "models", "store"}
MAY_IMPORT = {
    "credentials": set(),
    "errors": {"credentials"},
    "names": set(),
    "arrow": set(),
    "sample": set(),
    "terminal": {"credentials"},
    "console": {"credentials", "terminal"},
    "paths": {"credentials", "errors", "terminal"},
    "values": {"errors"},
    "recipe": GROUND - {"settings"},
    "settings": {"credentials", "errors", "paths", "recipe", "values"},
    "config": GROUND | {"recipe"},
    "heartbeat": GROUND,
    "system": GROUND,
    "engine": MIDDLE,
    "data": MIDDLE | {"engine"},
    "models": MIDDLE | {"engine"},
    "store": MIDDLE,
    "callbacks": MIDDLE | {"engine"} | MIDDLE_ROOMS,
    "run": MIDDLE | {"engine", "callbacks"} | MIDDLE_ROOMS,
    "distribute": MIDDLE | {"engine", "callbacks", "run"} | MIDDLE_ROOMS,
    "vectors": MIDDLE | {"engine", "store", "callbacks"},
    "api": MIDDLE | {"engine", "callbacks", "run", "distribute", "vectors"} | MIDDLE_ROOMS,
    "cli": MIDDLE | {"engine", "callbacks", "run", "distribute", "vectors", "api"} | MIDDLE_ROOMS,
    "__init__": MIDDLE | {"engine", "callbacks", "run", "api", "vectors"} | MIDDLE_ROOMS,
    "__main__": {"cli", "errors", "system"},
}
"""Rooms, and what each may import besides itself: one way, from the ground up (DESIGN.md, section 3)."""

LONG_FILES: set[str] = set()
"""Files above 300 lines: none needs to be."""
SHARED_NAMES = {"base": "the interface that the files beside it implement"}
"""File names that stand for one idea in several rooms. A command has the name of the module that does its work."""


def imports(path: Path) -> set[str]:
    """All that a module imports, at its top, in functions and for types alone, by full names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: a relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    room = module.split(".")[1] if "." in module else "__init__"
    own = {name for name in imports(MODULES[module]) if name.split(".")[0] == "embedx"}
    assert {name.split(".")[1] if "." in name else name for name in own} <= MAY_IMPORT[room] | {room}


@pytest.mark.parametrize("room", ["engine", "data", "models", "store", "vectors"])
def test_only_callbacks_runs_and_the_command_line_know_the_terminal(room: str) -> None:
    for module, path in MODULES.items():
        if module.split(".")[1:2] == [room]:
            assert not any(name.split(".")[0] in ("rich", "typer") for name in imports(path)), module


def test_the_design_s_walls_stand() -> None:
    """That is, the table above does not allow what the design forbids."""
    for room in MIDDLE_ROOMS:
        assert not MAY_IMPORT[room] & (MIDDLE_ROOMS - {room})
    assert "engine" not in MAY_IMPORT["store"]
    assert [room for room, others in MAY_IMPORT.items() if "cli" in others] == ["__main__"]
    order = list(MAY_IMPORT)
    assert all(order.index(other) < order.index(room) for room, others in MAY_IMPORT.items() for other in others)
    rooms = {path.stem if path.suffix else path.name for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert rooms - {"__pycache__", "docs"} == set(MAY_IMPORT)


ZYGOTE = """
import gc, importlib, json, os, sys, traceback, warnings
import numpy, PIL.Image, pyarrow.compute, pyarrow.csv, pyarrow.dataset, pyarrow.json, pyarrow.parquet, rich.progress
import safetensors.torch, torch.export, torchvision, typer
PIL.Image.init()
gc.freeze()
warnings.simplefilter("ignore", DeprecationWarning)  # of forks: the threads of the libraries wait, and hold no lock

assert not any(name.split(".")[0] == "embedx" for name in sys.modules)
running = []

def collect():
    module, child, read_end = running.pop(0)
    with open(read_end) as reader:
        print(json.dumps([module, reader.read()]), flush=True)
    os.waitpid(child, 0)

for module in sys.argv[1:]:
    read_end, write_end = os.pipe()
    if (child := os.fork()) == 0:
        try:
            importlib.import_module(module)
        except BaseException:
            os.write(write_end, traceback.format_exc().encode())
        os._exit(0)
    os.close(write_end)
    running.append((module, child, read_end))
    if len(running) > 2:
        collect()
while running:
    collect()
os._exit(0)
"""


@pytest.fixture(scope="module")
def faults_of_imports() -> dict[str, str]:
    """The traceback of each module's import, or nothing.

    Every module is imported by a process of its own that has imported nothing else of embedx: by a fork of one that has
    imported the libraries, as torch alone takes seconds.
    """
    command = [sys.executable, "-c", ZYGOTE, *(module for module in MODULES if module != "embedx.__main__")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("module", [module for module in MODULES if module != "embedx.__main__"])
def test_a_module_can_be_imported_by_itself(module: str, faults_of_imports: dict[str, str]) -> None:
    assert faults_of_imports[module] == ""


def test_a_file_holds_one_idea() -> None:
    lines = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module for module, count in lines.items() if count > 300} == LONG_FILES


def test_a_name_means_one_idea() -> None:
    places = defaultdict(list)
    for module, path in MODULES.items():
        if path.name != "__init__.py":
            places[path.stem].append(module)
    twice = {
        name: modules
        for name, modules in places.items()
        if name not in SHARED_NAMES and len([one for one in modules if one.split(".")[1] != "cli"]) > 1
    }
    assert not twice


def test_public_names_are_all_there_and_documented() -> None:
    for name in embedx.__all__:
        assert inspect.getdoc(getattr(embedx, name)), name
    assert dir(embedx) == sorted([*embedx.__all__, "__version__"])
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = embedx.nothing


HEAVY = {"torch", "torchvision", "numpy", "pyarrow", "PIL", "safetensors", "timm", "transformers", "fsspec"}


@pytest.mark.parametrize("code", ["import embedx", "import embedx.cli.app", "from embedx import ExtractConfig"])
def test_importing_is_quick_because_nothing_heavy_is_imported(code: str) -> None:
    check = f"{code}; import sys; heavy = {HEAVY} & set(sys.modules); sys.exit(', '.join(heavy) or 0)"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize("module", ["inputs", "summary", "up_to_date"])
def test_an_up_to_date_run_needs_no_torch(module: str) -> None:
    check = f"import embedx.run.{module}, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_help_page_is_quick_because_nothing_heavy_is_imported() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "embedx", "extract", "--help"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    imported = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    assert "embedx.cli.extract" in imported
    assert not imported & HEAVY
