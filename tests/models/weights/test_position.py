"""Position embeddings of another size; timm's own resampling is the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm.layers
import torch
from torch import Size, nn

from embedx.models.weights.matching import fill
from embedx.models.weights.position import grids, is_position, position_change, resampled


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(("old", "new"), [(14, 16), (24, 14), (4, 5), (37, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_they_are_resampled_as_timm_does(old: int, new: int, prefix: int, dtype: torch.dtype) -> None:
    tokens = torch.randn(1, old**2 + prefix, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = timm.layers.resample_abs_pos_embed(tokens, [new, new], num_prefix_tokens=prefix)
    assert torch.equal(resampled(tokens, expected.shape), expected)
    assert torch.equal(resampled(tokens[0], expected.shape[1:]), expected[0])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((1, 197, 8), (1, 257, 8), (14, 16, 1)),
        ((1, 196, 8), (1, 256, 8), (14, 16, 0)),
        ((1, 198, 8), (1, 258, 8), (14, 16, 2)),
        ((197, 8), (50, 8), (14, 7, 1)),
        ((1, 197, 8), (1, 257, 9), None),
        ((1, 197, 8), (1, 196, 8), None),
        ((1, 197, 8), (257, 8), None),
        ((77, 8), (64, 8), None),
        ((1, 197, 8), (1, 197, 8), None),
        ((1, 4, 4, 8), (1, 8, 8, 8), None),
    ],
)
def test_only_squares_of_patches_of_one_width_are(
    old: tuple[int, ...], new: tuple[int, ...], expected: tuple[int, int, int] | None
) -> None:
    assert grids(Size(old), Size(new)) == expected


def test_they_are_known_by_their_name() -> None:
    for name in ("pos_embed", "m.encoder.pos_embedding", "embeddings.position_embedding.weight", "T/x/pos_embedding"):
        assert is_position(name)
    for name in ("decoder_pos_embed", "pos_embed.proj", "weight"):
        assert not is_position(name)


def test_the_change_is_told_and_noted() -> None:
    class Model(nn.Module):
        def __init__(self, side: int) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.randn(1, side * side + 1, 4))

    small, state = Model(2), {"module.pos_embed": Model(3).pos_embed.detach()}
    match = fill(small, state, source=Path("x"))
    assert str(match).endswith("; position embeddings resampled from 3x3 to 2x2 patches")
    assert torch.equal(small.pos_embed, timm.layers.resample_abs_pos_embed(state["module.pos_embed"], [2, 2]))
    assert position_change(state, small.pos_embed.shape) == "3x3 to 2x2"
    assert position_change({"pos_embed": small.pos_embed, **state}, small.pos_embed.shape) is None
