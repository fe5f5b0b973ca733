"""Rules about the package itself."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import embedx

PACKAGE = Path(embedx.__file__).parent
MODULES = {path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", "."): path
           for path in sorted(PACKAGE.rglob("*.py"))}  # fmt: skip

GROUND = {"errors", "names", "values", "sample"}
MIDDLE = GROUND | {"recipe", "config", "heartbeat", "system"}
MAY_IMPORT = {
    "errors": set(),
    "names": set(),
    "sample": set(),
    "values": {"errors"},
    "recipe": GROUND,
    "config": GROUND | {"recipe"},
    "heartbeat": GROUND,
    "system": GROUND,
    "engine": MIDDLE,
    "data": MIDDLE | {"engine"},
    "models": MIDDLE | {"engine"},
    "store": MIDDLE,
    "callbacks": MIDDLE | {"engine", "data", "models", "store"},
    "run": MIDDLE | {"engine", "data", "models", "store", "callbacks"},
    "vectors": MIDDLE | {"engine", "store", "callbacks"},
    "cli": MIDDLE | {"engine", "data", "models", "store", "callbacks", "run", "vectors"},
    "__init__": MIDDLE | {"engine", "data", "models", "store", "callbacks", "run", "vectors"},
    "__main__": {"cli", "errors", "system"},
}
"""Rooms, and what each may import besides itself: one way, from the ground up (DESIGN.md, section 3)."""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    room = module.split(".")[1] if "." in module else "__init__"
    for imported in imports(MODULES[module]):
        assert not imported.startswith("embedx.cli") or room in ("cli", "__main__")
        if not imported.startswith("embedx."):
            continue
        target = imported.removeprefix("embedx.")
        allowed = MAY_IMPORT[room] | {room}
        assert any(target == name or target.startswith(f"{name}.") for name in allowed), f"{module} → {imported}"


@pytest.mark.parametrize("room", ["store", "engine", "data", "models", "vectors"])
def test_only_callbacks_and_the_command_line_know_rich(room: str) -> None:
    for module, path in MODULES.items():
        if module.startswith(f"embedx.{room}"):
            assert not any(name.split(".")[0] in ("rich", "typer") for name in imports(path)), module


def test_a_file_holds_one_idea() -> None:
    assert not {
        module: lines for module, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > 400
    }


def test_public_names_are_all_there_and_documented() -> None:
    for name in embedx.__all__:
        assert inspect.getdoc(getattr(embedx, name)), name
    assert dir(embedx) == sorted(embedx.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = embedx.nothing


@pytest.mark.parametrize("code", ["import embedx", "import embedx.cli.app", "from embedx import ExtractConfig"])
def test_importing_is_quick_because_nothing_heavy_is_imported(code: str) -> None:
    heavy = "{'torch', 'torchvision', 'numpy', 'pyarrow', 'PIL', 'safetensors', 'timm', 'transformers', 'fsspec'}"
    check = f"{code}; import sys; heavy = {heavy} & set(sys.modules); sys.exit(', '.join(heavy) or 0)"
    subprocess.run([sys.executable, "-c", check], check=True)
