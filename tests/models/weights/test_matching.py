from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision import models

from embedx.errors import CheckpointError
from embedx.models.weights.matching import CheckpointMatch, fill, match_tensors
from embedx.models.weights.misfit import listed

SOURCE = Path("weights.pth")
PARTS = st.sampled_from(["module", "backbone", "encoder", "model", "_orig_mod", "encoder_q", "teacher", "conv1", "0"])
PREFIXES = st.lists(PARTS, max_size=4).map(lambda parts: "".join(f"{part}." for part in parts))


def model(*widths: int) -> nn.Module:
    """A stem and, in `body`, one layer per width; the names `weight` and `bias` end them all."""
    layers = [nn.Linear(4, width) for width in widths or (8, 8)]
    return nn.ModuleDict({"conv1": nn.Conv2d(3, 4, 1), "bn1": nn.BatchNorm2d(4), "body": nn.ModuleList(layers)})


def tensors(prefix: str = "", *widths: int) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in model(*widths).state_dict().items()}


WANTED = tensors()


def match(state: Mapping[str, Tensor], **options: Any) -> CheckpointMatch:
    return match_tensors(WANTED, state, source=SOURCE, **options)


def refusal(state: Mapping[str, Tensor], **options: Any) -> str:
    with pytest.raises(CheckpointError, match=r"^weights\.pth") as caught:
        match(state, **options)
    return str(caught.value)


@settings(deadline=None)
@given(PREFIXES, st.dictionaries(st.text("ab.", min_size=1), st.just(torch.zeros(3))))
def test_any_prefix_is_found_and_what_is_beside_it_is_ignored(prefix: str, others: dict[str, Tensor]) -> None:
    state = tensors(prefix)
    found = match({**others, **state})
    assert found.prefix == prefix
    assert {prefix + name: tensor for name, tensor in found.tensors.items()} == state
    assert found.ignored == tuple(others)


@settings(deadline=None)
@given(PREFIXES, st.sampled_from([name for name in WANTED if "num_batches" not in name]), st.booleans())
def test_one_tensor_that_is_missing_or_of_another_shape_is_named(prefix: str, name: str, missing: bool) -> None:
    state = tensors(prefix)
    removed = state.pop(prefix + name)
    if not missing:
        state[prefix + name] = torch.zeros(9, 9)
    message = refusal(state)
    assert "does not fit the backbone: " in message
    assert f"{len(WANTED) - 1} of its {len(WANTED)} tensors match\n" in message
    assert (f"under the prefix {prefix!r} " in message) == (prefix != "")
    fault = f"missing: {name}" if missing else f"of another shape: {name} [9, 9] instead of {list(removed.shape)}"
    assert f"  1 {fault}\n" in message and "give the --backbone that it is a checkpoint of" in message


@settings(max_examples=30, deadline=None)
@given(PREFIXES, PREFIXES)
def test_two_sub_models_that_fit_are_chosen_between_by_key(one: str, other: str) -> None:
    one, other = f"one.{one}", f"two.{other}"
    state = tensors(one) | tensors(other)
    message = refusal(state)
    keys = [one.removesuffix("."), other.removesuffix(".")]
    assert message == (
        "weights.pth: 2 sub-models fit the backbone equally well; "
        f"choose with --checkpoint-key {keys[0]} or --checkpoint-key {keys[1]}"
    )
    for prefix, key in zip((one, other), keys, strict=True):
        assert match(state, key=key) == match(state, key=key.partition(".")[0])
        assert match(state, key=key).prefix == prefix
        assert len(match(state, key=key).ignored) == len(WANTED)


def test_the_report_tells_what_matched_under_which_prefix_and_what_is_ignored() -> None:
    heads = {f"module.head.{i}": torch.zeros(1) for i in range(5)}
    assert str(match(tensors())) == f"{len(WANTED)} tensors matched, no prefix stripped, none ignored"
    assert str(match(tensors("module.") | heads)) == (
        f"{len(WANTED)} tensors matched, prefix 'module.' stripped, "
        "5 ignored (module.head.0, module.head.1, module.head.2, …)"
    )


def test_equal_sub_models_are_one() -> None:
    state = tensors("model.")
    twice = state | {name.replace("model.", "copy."): tensor.clone() for name, tensor in state.items()}
    twice["copy.bn1.num_batches_tracked"] += 1  # nothing reads it
    assert match(twice).prefix == "model."
    twice["copy.body.1.bias"] = twice["copy.body.1.bias"].double()
    assert "2 sub-models fit" in refusal(twice)
    twice["copy.body.1.bias"] = state["model.body.1.bias"] + 1
    assert "2 sub-models fit" in refusal(twice)


def test_a_model_around_another_is_chosen_by_its_own_key() -> None:
    state = tensors() | tensors("momentum.") | tensors("x.model.") | tensors("x.model.ema.")
    message = refusal(state)
    assert message.endswith(
        "4 sub-models fit the backbone equally well; choose with --checkpoint-key '' or --checkpoint-key momentum "
        "or --checkpoint-key x.model or --checkpoint-key x.model.ema"
    )
    for key in ("", "momentum", "x.model", "x.model.ema"):
        assert match(state, key=key).prefix == (f"{key}." if key else "")
    assert "2 sub-models fit" in refusal(state, key="x")


@pytest.mark.parametrize("key", ["student", "teach", "teacher.", "conv1"])
def test_a_key_that_is_not_there_is_refused_with_those_that_are(key: str) -> None:
    state = tensors("teacher.") | {"epoch_loss": torch.zeros(1)}
    assert refusal(state, key=key) == (
        f"weights.pth: nothing is under --checkpoint-key {key}; its top-level keys are teacher, epoch_loss"
    )


def test_a_key_of_something_else_does_not_fall_back_to_what_fits() -> None:
    message = refusal(tensors("teacher.") | {"head.weight": torch.zeros(1)}, key="head")
    assert "it holds head.weight, and none of the backbone's tensors, conv1.weight, " in message


def test_names_that_end_alike_make_no_match() -> None:
    """`conv1` and `bn1` are in every block of a ResNet, as they are in its stem."""
    state = {name: tensor for name, tensor in tensors("layer1.0.").items() if "body" not in name}
    state |= {f"x{name}": tensor for name, tensor in tensors().items()}  # no dot between
    state |= {f"optimizer.state.{i}.exp_avg": tensor for i, tensor in enumerate(WANTED.values())}
    message = refusal(state)
    assert f"under the prefix 'layer1.0.' 7 of its {len(WANTED)} tensors match\n  4 missing: body.0.weight, " in message


def test_of_two_that_do_not_fit_the_nearer_one_is_reported() -> None:
    far, near = tensors("far."), tensors("near.")
    for name in ("conv1.weight", "conv1.bias"):
        del far[f"far.{name}"]
    del near["near.body.0.weight"]
    assert "under the prefix 'near.' " in refusal(far | near) and "1 missing: body.0.weight" in refusal(far | near)


def test_more_of_the_backbones_own_modules_are_another_architecture() -> None:
    message = refusal(tensors("m.", 8, 8, 8))
    assert "2 unexpected: body.2.weight, body.2.bias" in message
    assert match(tensors("m.", 8, 8, 8), heads=["body.2"]).prefix == "m."
    assert match(tensors("m.", 8, 8, 8) | tensors("student.")).prefix == "student."
    assert "2 missing: body.1.weight, body.1.bias" in refusal(tensors("m.", 8))


def test_counters_may_be_missing_and_nothing_else() -> None:
    state = {name: tensor for name, tensor in tensors("m.").items() if "num_batches" not in name}
    assert len(match(state).tensors) == len(WANTED) - 1


def test_integers_in_a_weights_place_are_refused() -> None:
    state = tensors() | {"conv1.weight": torch.ones(4, 3, 1, 1, dtype=torch.int8)}
    assert "1 of another shape: conv1.weight [4, 3, 1, 1] torch.int8 instead of [4, 3, 1, 1]" in refusal(state)


def test_long_lists_are_cut_short() -> None:
    assert listed([]) == ""
    assert listed(["a", 1]) == "a, 1"
    assert listed(range(9), 3) == "0, 1, 2, …"


def test_a_model_is_filled_whatever_the_tensors_types_and_strides() -> None:
    original, target = model(), model()
    before = copy.deepcopy(target.state_dict())
    values = {name: tensor.double() for name, tensor in original.state_dict().items()}
    values["conv1.weight"] = values["conv1.weight"].to(memory_format=torch.channels_last)
    found = fill(target, {f"model.{name}": tensor for name, tensor in values.items()}, source=SOURCE)
    assert found.prefix == "model." and not torch.equal(before["conv1.weight"], original.state_dict()["conv1.weight"])
    for name, tensor in target.state_dict().items():
        expected = original.state_dict()[name]
        assert torch.equal(tensor, expected) and tensor.dtype == expected.dtype and tensor.is_contiguous()


def test_densenets_old_names_are_understood_behind_any_prefix() -> None:
    densenet = models.densenet121(weights=None)
    old = {
        "module." + re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): tensor
        for name, tensor in densenet.state_dict().items()
    }
    assert "module.features.denseblock1.denselayer1.norm.1.weight" in old
    assert fill(models.densenet121(weights=None), old, source=SOURCE).prefix == "module."
