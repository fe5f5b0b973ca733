"""Torch's compiler, and what it reckons with, is imported only where something is compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedx import sample
from tests.runs import OFFLINE


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=os.environ | OFFLINE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WATCHED = """
import os, sys
from embedx.__main__ import main
if __name__ == "__main__":
    end = os._exit
    os._exit = lambda code: end(code or 10 * ("torch._dynamo" in sys.modules or "sympy" in sys.modules))
    main()
"""
"""The command line; its exit code is 10 if the compiler, or what reckons with symbols, has been imported."""


@pytest.mark.parametrize("runtime", ["eager", "openvino"])
def test_a_run_does_without_the_compiler(tmp_path: Path, runtime: str) -> None:
    settings = ["--backbone", sample.BACKBONE, "--weights", "sample", "--device", "cpu", "-j", "1"]
    inputs = ["--data", str(sample.IMAGES / "val"), "--out", str(tmp_path / "out")]
    printed = python(WATCHED, "extract", *settings, *inputs, "--runtime", runtime)
    assert printed.strip() == str(tmp_path / "out/manifest.json")


@pytest.mark.parametrize(
    "command",
    [
        ["layers", "resnet18"],
        ["extract", "--dry-run", "--json", "--backbone", "resnet18", "--weights", "random", "--out", "nowhere"],
    ],
    ids=lambda command: command[0],
)
def test_what_only_describes_does_without_the_compiler(command: list[str]) -> None:
    assert ("layer4" if command[0] == "layers" else "resnet18") in python(WATCHED, *command)


def test_the_compiler_can_be_had_afterwards_and_knows_what_it_is_kept_out_of() -> None:
    code = """
import sys
from embedx.lean import first_without_compiler, import_torchvision, without_compiler
import_torchvision()
import torch
from torch._prims_common import wrappers
marked = []
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
assert str(first_without_compiler(lambda: __import__("sympy").Symbol("x"))) == str(kept.Symbol("x")) == "x"
assert isinstance(kept.Symbol("x"), kept.Basic)
assert torch.compile(torch.nn.Linear(2, 2), backend="eager")(torch.ones(1, 2)).shape == (1, 2)
compiler = sys.modules["torch._dynamo"]
with without_compiler():
    assert sys.modules["torch._dynamo"] is compiler
import torchvision
boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), [boxes], 2).shape == (1, 1, 2, 2)
"""
    assert python(code) == "refused torch._dynamo\n"
