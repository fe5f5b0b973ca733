from __future__ import annotations

import pytest
import torch
from torch import nn

from embedx.models.traffic import WrittenBytes


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_written_is_counted_once_and_batch_norms_and_views_are_not(device: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    model = model.to(device).eval()
    with torch.inference_mode(), WrittenBytes() as written:
        model(torch.zeros(2, 3, 4, 4, device=device))
    assert written.total == 2 * (2 * 8 * 4 * 4 * 4) + 2 * 3 * 4 * 4 * 4  # convolution, ReLU, and the zeros


def test_numbers_of_half_the_size_are_half_as_many_bytes() -> None:
    images = torch.ones(4, 3, 2, 2)
    with WrittenBytes() as written:
        images.half()
        images.view(4, 12).split(6, dim=1)
    assert written.total == images.numel() * 2
