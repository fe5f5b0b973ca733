"""Torch's compiler, and what it reckons with, is imported only where something is compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from embedx import sample
from tests.runs import OFFLINE


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=os.environ | OFFLINE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WATCHED = """
import json, sys
from embedx.cli.app import run
if __name__ == "__main__":
    for call in json.loads(sys.argv[1]):
        sys.argv = ["embedx", *call]
        assert run() == 0
        assert not {"torch._dynamo", "sympy"} & sys.modules.keys(), call
"""
"""Command lines, one after the other, none of which imports the compiler, or what it reckons with."""


def test_runs_do_without_the_compiler(tmp_path: Path) -> None:
    settings = ["--backbone", sample.BACKBONE, "--weights", "sample", "--device", "cpu", "-j", "1"]
    inputs = ["--data", str(sample.IMAGES / "val")]
    outs = [str(tmp_path / runtime) for runtime in ("eager", "openvino")]
    calls = [["extract", *settings, *inputs, "--runtime", Path(out).name, "--out", out] for out in outs]
    assert python(WATCHED, json.dumps(calls)).split() == [f"{out}/manifest.json" for out in outs]


def test_what_only_describes_does_without_the_compiler() -> None:
    settings = ["--backbone", "resnet18", "--weights", "random", "--out", "nowhere"]
    calls = [["layers", "resnet18"], ["extract", "--dry-run", "--json", *settings]]
    layers, plan = python(WATCHED, json.dumps(calls)).split("{", maxsplit=1)
    assert "layer4" in layers and "resnet18" in plan


def test_the_compiler_can_be_had_afterwards_and_knows_what_it_is_kept_out_of() -> None:
    code = """
import sys
from embedx.system.torch_imports import first_without_compiler, import_torchvision, without_compiler
import_torchvision()
import torch
with without_compiler() as missed:
    torch.zeros(2, device="meta", dtype=torch.uint8) - torch.ones(2, device="meta")
    assert not missed
    try:
        torch.compile(torch.nn.Identity())(torch.ones(1))
    except Exception as error:
        print("refused", *missed)
assert not {"torch._dynamo", "sympy", "torch.fx.experimental.symbolic_shapes"} & sys.modules.keys()
with without_compiler():
    import sympy as kept
    from importlib.util import find_spec
    from torch.fx.experimental.symbolic_shapes import guard_or_false
    assert find_spec("sympy") and guard_or_false(False) is False
def probe():
    try:
        from sympy import Symbol
    except ImportError:
        return False
    return True
assert first_without_compiler(probe)
assert str(first_without_compiler(lambda: __import__("sympy").Symbol("x"))) == str(kept.Symbol("x")) == "x"
assert isinstance(kept.Symbol("x"), kept.Basic)
from torch.fx.experimental.symbolic_shapes import ShapeEnv, guard_or_false as real
assert real is not guard_or_false
symbol = ShapeEnv().create_unbacked_symint()
assert guard_or_false(symbol == 3) is False is real(symbol == 3)
assert torch.compile(torch.nn.Linear(2, 2), backend="eager")(torch.ones(1, 2)).shape == (1, 2)
compiler = sys.modules["torch._dynamo"]
with without_compiler():
    assert sys.modules["torch._dynamo"] is compiler
import torchvision
boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), [boxes], 2).shape == (1, 1, 2, 2)
"""
    assert python(code) == "refused torch._dynamo\n"
