"""Checkpoints whose names are not the backbone's: the tensors are those of the same modules, in their order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from embedx.errors import CheckpointError
from embedx.models.weights.matching import CheckpointMatch, fill

SOURCE = Path("weights.pth")


@functools.cache
def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = models.get_model(name, weights=None)
    return model


def children(model: nn.Module) -> list[nn.Module]:
    return [*model.children()]


BUILD: dict[str, Callable[[nn.Module], nn.Module]] = {
    "without the head": lambda model: nn.Sequential(*children(model)[:-1]),
    "with a flatten": lambda model: nn.Sequential(*children(model)[:-1], nn.Flatten()),
    "whole": lambda model: nn.Sequential(*children(model)),
    "with another head": lambda model: nn.Sequential(*children(model)[:-1], nn.Flatten(), nn.Linear(512, 7)),
    "in two": lambda model: nn.Sequential(nn.Sequential(*children(model)[:4]), *children(model)[4:-2]),
    "nested": lambda model: nn.Sequential(nn.Sequential(*children(model)[:-1]), nn.Linear(512, 7)),
    "without what has no weights": lambda model: nn.Sequential(
        *(child for child in model.children() if any(True for _ in child.parameters()))
    ),
}


def filled(name: str, state: dict[str, Tensor], head: str = "fc") -> tuple[dict[str, Tensor], CheckpointMatch]:
    with torch.device("meta"):
        empty = models.get_model(name, weights=None)
    empty.set_submodule(head, nn.Identity())
    match = fill(empty, state, source=SOURCE, heads=[head])
    return empty.state_dict(), match


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.encoder."])
@pytest.mark.parametrize("built", BUILD)
def test_children_by_number_are_the_modules_in_their_order(built: str, prefix: str) -> None:
    model = network("resnet18")
    state = {f"{prefix}{name}": tensor for name, tensor in BUILD[built](model).state_dict().items()}
    own, match = filled("resnet18", state)
    assert len(own) == 120 and all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in own.items())
    assert str(match).endswith("; names: modules by number, in their order")
    assert match.prefix.startswith(prefix)


@pytest.mark.parametrize(("name", "head"), [("mobilenet_v3_small", "classifier.3"), ("alexnet", "classifier.6")])
def test_children_by_number_may_have_the_head_inside_a_part(name: str, head: str) -> None:
    model = network(name)
    own, match = filled(name, nn.Sequential(*children(model)).state_dict(), head)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in own.items())
    assert match.ignored == tuple(f"2.{head.partition('.')[2]}.{kind}" for kind in ("weight", "bias"))


def test_a_part_that_holds_all_may_be_a_checkpoint_by_itself() -> None:
    model = network("squeezenet1_1")
    own, match = filled("squeezenet1_1", dict(model.get_submodule("features").state_dict()), head="classifier.1")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in own.items())
    assert match.changes == ("names: those of the part features",)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda state: state.pop("4.0.conv1.weight"), "missing"),
        (lambda state: state.update({"7.2.conv1.weight": torch.zeros(1)}), "missing"),
        (lambda state: state.update({"4.1.conv2.weight": torch.zeros(64, 64, 1, 1)}), "missing"),
    ],
)
def test_numbers_of_something_else_are_refused(change: Callable[[dict[str, Tensor]], object], fault: str) -> None:
    state = dict(BUILD["without the head"](network("resnet18")).state_dict())
    change(state)
    with pytest.raises(CheckpointError, match="does not fit the backbone"):
        filled("resnet18", state)


def test_a_deeper_or_shuffled_network_by_number_is_refused() -> None:
    with torch.device("meta"):
        deeper = models.resnet34().state_dict()
    with pytest.raises(CheckpointError, match="does not fit the backbone"):
        filled("resnet18", {name: torch.zeros(tensor.shape) for name, tensor in deeper.items()})
    parts = children(network("resnet18"))
    parts[5:7] = parts[6:4:-1]
    with pytest.raises(CheckpointError, match="does not fit the backbone"):
        filled("resnet18", dict(nn.Sequential(*parts).state_dict()))


def test_a_skipped_number_is_a_tensor_too_many() -> None:
    """Of three alike, two could be any; nothing is guessed."""
    three = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    two = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    with pytest.raises(CheckpointError, match="does not fit"):
        fill(two, {f"{i}.{j}": three[k].state_dict()[j] for i, k in ((0, 0), (1, 1), (2, 2)) for j in ("weight",)},
             source=SOURCE)  # fmt: skip
    own = dict(three[:2].state_dict())
    assert fill(two, own, source=SOURCE).changes == ("names: modules by number, in their order",)
    assert torch.equal(two.state_dict()["b.weight"], own["1.weight"])


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))


@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
def test_blocks_in_chunks_are_the_blocks_by_their_own_number(prefix: str) -> None:
    model, empty = Blocks(), Blocks()
    state = {}
    for name, tensor in model.state_dict().items():
        first, _, rest = name.partition(".")
        state[f"{prefix}{first}.{int(rest[0]) // 2}.{rest}" if rest else f"{prefix}{name}"] = tensor
    assert f"{prefix}blocks.1.3.weight" in state
    match = fill(empty, state, source=SOURCE)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in empty.state_dict().items())
    assert match.changes == ("names: blocks in chunks",) and match.prefix == prefix


def test_buffers_that_are_no_longer_saved_are_passed_over() -> None:
    class Attention(nn.Module):
        relative_position_index: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(2, 2)
            self.register_buffer("relative_position_index", torch.zeros(3), persistent=False)

    model = nn.ModuleDict({"layers": nn.ModuleList([attention := Attention()])})
    state = dict(model.state_dict()) | {"layers.0.relative_position_index": torch.ones(3)}
    assert len(fill(model, state, source=SOURCE).tensors) == 2
    assert attention.relative_position_index.sum() == 0
