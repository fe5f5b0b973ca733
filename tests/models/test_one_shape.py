"""Several batches at once give the bits of each alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embedx.models.one_shape import OneShape


class Reused(nn.Module):
    """Returns memory that the next call overwrites, as a recorded graph does, and notes the shapes that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self._memory = torch.empty(4, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.seen.append(len(images))
        self._memory.copy_(images * 2)
        return {"embeddings": self._memory, "sums": images.sum(1)}


def test_each_forward_pass_sees_one_shape_and_its_outputs_are_kept() -> None:
    model = Reused()
    images = torch.randn(12, 3)
    outputs = OneShape(model, 4)(images=images)
    assert model.seen == [4, 4, 4]
    assert torch.equal(outputs["embeddings"], images * 2) and torch.equal(outputs["sums"], images.sum(1))
    assert torch.equal(OneShape(model, 4)(images=images[:4])["embeddings"], images[:4] * 2)
    assert model.seen == [4] * 4
