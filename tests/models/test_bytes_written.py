from __future__ import annotations

import pytest
import torch
from torch import nn

from embedx.models.bytes_written import BytesWritten


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_written_is_counted_once_and_batch_norms_and_views_are_not(device: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    model = model.to(device).eval()
    with torch.inference_mode(), BytesWritten() as written:
        model(torch.zeros(2, 3, 4, 4, device=device))
    assert written.total == 2 * (2 * 8 * 4 * 4 * 4) + 2 * 3 * 4 * 4 * 4  # convolution, ReLU, and the zeros


def test_numbers_of_half_the_size_are_half_as_many_bytes() -> None:
    images = torch.ones(4, 3, 2, 2)
    with BytesWritten() as written:
        images.half()
        images.view(4, 12).split(6, dim=1)
    assert written.total == images.numel() * 2


def test_products_and_branches_are_counted_as_they_are_run() -> None:
    linear, tokens = nn.Linear(6, 4, bias=False), torch.ones(2, 3, 6)
    with torch.inference_mode(), BytesWritten() as written:
        linear(tokens)
    assert written.total == 2 * 3 * 4 * 4
    with torch.inference_mode(), BytesWritten() as written:
        result = torch.cond(tokens.sum() > 0, lambda x: x + 1, lambda x: x - 1, (tokens,))
    assert torch.equal(result, tokens + 1) and written.total >= tokens.nbytes


def test_tensors_without_a_memory_of_their_own_do_not_hinder() -> None:
    with torch.inference_mode(), BytesWritten() as written:
        torch.eye(4).to_sparse()
    assert written.total > 0
