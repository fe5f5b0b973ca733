"""Files that name classes and functions of any kind: nothing of them is run, and the tensors beside them are read."""

from __future__ import annotations

import argparse
import builtins
import dataclasses
import io
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from embedx.errors import CheckpointError
from embedx.models.weights import inert
from embedx.models.weights.read import read_state_dict

STATE = {"conv.weight": torch.arange(6.0).view(2, 3), "conv.bias": torch.ones(2, dtype=torch.float16)}
SAVE: dict[str, Callable[[Any, Path], object]] = {
    "zip": torch.save,
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "protocol 4": lambda content, path: torch.save(content, path, pickle_protocol=4),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content)),
    "pickle 2": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList([nn.BatchNorm2d(4), nn.Linear(4, 4)])
        self.token = nn.Parameter(torch.ones(1))
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("unkept", torch.zeros(2), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


class Call:
    """What pickle turns into a call when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package of classes as training libraries have them; it is gone when what it saved is read."""
    module = types.ModuleType("lost_library")
    source = """
import dataclasses, enum
class Dict(dict): pass
class List(list): pass
class Attributes:
    def __init__(self, **values): self.__dict__.update(values)
class Slots:
    __slots__ = ("size", "__dict__")
class Stage(enum.Enum):
    LAST = "last"
@dataclasses.dataclass(frozen=True)
class Frozen:
    rate: float
class State:
    def __getstate__(self): return {"a": 1}
    def __setstate__(self, state): raise SystemExit("run")
"""
    monkeypatch.setitem(sys.modules, "lost_library", module)
    exec(source, module.__dict__)
    for value in vars(module).values():
        if isinstance(value, type):
            value.__module__ = "lost_library"
    return module


@pytest.mark.parametrize("form", SAVE)
def test_classes_of_packages_that_are_not_there_stand_beside_the_weights(form: str, tmp_path: Path, lost: Any) -> None:
    slots = lost.Slots()
    slots.size = 3
    content = {
        "hyper_parameters": lost.Dict(lr=0.1, stages=lost.List([lost.Stage.LAST, lost.Frozen(0.1), lost.State()])),
        lost.Stage.LAST: slots,
        "args": argparse.Namespace(out=tmp_path, seen={1, 2}, rate=np.float32(0.5)),
        "state_dict": STATE,
        "ema": lost.Dict(STATE),
        "trainer": lost.Attributes(model=lost.Attributes(weights=STATE)),
    }
    SAVE[form](content, path := tmp_path / "last.ckpt")
    del sys.modules["lost_library"]
    read = read_state_dict(path)
    places = ("state_dict", "ema", "trainer.model.weights")
    assert same(read, {f"{place}.{name}": tensor for place in places for name, tensor in STATE.items()})


@pytest.mark.parametrize("form", SAVE)
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"model": net}, lambda net: nn.DataParallel(net)])
def test_a_whole_model_gives_its_state_dict(form: str, wrap: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    net = Net()
    content = wrap(net)
    SAVE[form](content, path := tmp_path / "model.pth")
    prefix = {Net: "", dict: "model.", nn.DataParallel: "module."}[type(content)]
    assert same(read_state_dict(path), {f"{prefix}{name}": value for name, value in net.state_dict().items()})


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_archive_gives_its_tensors_and_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.jit.load would run the archive's `__setstate__`, and torch's operators can write files."""
    torch.jit.save(torch.jit.trace(net := Net().eval(), torch.zeros(1, 3, 2, 2)), tmp_path / "model.pt")
    monkeypatch.delattr(torch.jit, "load")
    read = read_state_dict(tmp_path / "model.pt")
    assert all(
        torch.equal(read[name], tensor) for name, tensor in net.state_dict().items() if "num_batches" not in name
    )


@pytest.mark.parametrize("form", SAVE)
def test_no_call_in_a_file_is_made(form: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    calls = [
        Call(os.mkdir, str(made)),
        Call(os.system, f"mkdir {made}"),
        Call(eval, f"__import__('os').mkdir({str(made)!r})"),
        Call(exec, f"__import__('os').mkdir({str(made)!r})"),
        Call(getattr, dict, "fromkeys"),
        Call(torch.load, str(made)),
        Call(torch.hub.load, str(made), "x"),
        Call(builtins.__import__, "antigravity"),
        Call(torch.save, {}, str(made)),
    ]
    path = tmp_path / "calls.pth"
    SAVE[form]({"state_dict": STATE, "calls": calls, **{str(i): call for i, call in enumerate(calls)}}, path)
    assert same(read_state_dict(path), {f"state_dict.{name}": STATE[name] for name in STATE})
    assert not made.exists() and "antigravity" not in sys.modules


def test_a_pickle_inside_a_tensor_s_pickle_is_inert_too(tmp_path: Path) -> None:
    inner = io.BytesIO()
    torch.save(Call(os.mkdir, str(tmp_path / "made")), inner)
    content = {"a": Call(torch.storage._load_from_bytes, inner.getvalue()), "b": torch.ones(1)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    assert list(read_state_dict(tmp_path / "a.pkl")) == ["b"] and not (tmp_path / "made").exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8", "?"])
def test_numpy_s_arrays_are_weights_too(protocol: int, dtype: str, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "a": np.arange(6).reshape(2, 3).astype(dtype),
        "b": np.asfortranarray(np.ones((2, 3), dtype)),
    }
    content = {"model": arrays | {"names": np.array(["x"]), "objects": np.array([None])}}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol))
    read = read_state_dict(tmp_path / "model.pkl")
    assert sorted(read) == ["model.a", "model.b"]
    assert all(np.array_equal(read[f"model.{name}"].numpy(), array) for name, array in arrays.items())
    np.savez(tmp_path / "model.npz", **arrays)
    assert same(read_state_dict(tmp_path / "model.npz"), {name: read[f"model.{name}"] for name in arrays})


def test_what_holds_itself_or_nests_without_end_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"weight": torch.ones(1)}
    content["self"] = content
    torch.save(content, tmp_path / "self.pth")
    assert list(read_state_dict(tmp_path / "self.pth")) == ["weight"]
    for _ in range(60):
        content = {"a": content, "b": content}
    torch.save(content, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError, match="it nests more than 1,000,000 tensors"):
        read_state_dict(tmp_path / "bomb.pth")


def test_an_inert_object_is_what_pickle_needs_it_to_be() -> None:
    one = inert.Inert({"a": 1}, 2, key=3)
    one.append(1)
    one.extend([2])
    one.add(3)
    one.__setstate__(({"b": 2}, {"slot": 3}))
    assert dict(one) == {"a": 1, "b": 2, "slot": 3}
    assert {one: 1}[one] == 1 and one != inert.Inert({"a": 1}) and isinstance(one("x"), inert.Inert)
    assert dataclasses.is_dataclass(one) is False
