"""torchvision is imported without torch's compiler, and with it where it needs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import OFFLINE


def python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | OFFLINE | env, timeout=110
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchvision_is_imported_without_the_compiler_which_can_be_had_afterwards() -> None:
    code = """
import sys
from embedx.system.torch_imports import import_torchvision
import_torchvision()
assert "torchvision" in sys.modules
assert not {"torch._dynamo", "torch._dynamo.utils", "sympy"} & sys.modules.keys()
import torch, torchvision
boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), [boxes], 2).shape == (1, 1, 2, 2)
assert torch.compile(torch.nn.Linear(2, 2), backend="eager")(torch.ones(1, 2)).shape == (1, 2)
real = sys.modules["torch._dynamo.utils"]
import_torchvision()
assert sys.modules["torch._dynamo.utils"] is real
"""
    python(code)


@pytest.mark.soak
def test_a_torchvision_that_asks_for_more_gets_the_compiler(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from torch._dynamo.utils import is_compile_supported, counters\n")
    code = """
import sys
from embedx.system.torch_imports import import_torchvision
import_torchvision()
import torchvision, torch._dynamo.utils
assert torchvision.counters is torch._dynamo.utils.counters
assert sys.modules["torch._dynamo.utils"].__file__
"""
    python(code, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))


def test_commands_that_only_read_names_do_without_the_compiler() -> None:
    code = """
import sys
from embedx.cli.app import run
sys.argv = ["embedx", "backbones"]
assert run() == 0
assert not {"torch._dynamo", "sympy"} & sys.modules.keys()
"""
    assert "resnet50" in python(code)
