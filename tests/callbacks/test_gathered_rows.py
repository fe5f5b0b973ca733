from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embedx.callbacks.finite_rows import FINITE_CHECK, FiniteCheck
from embedx.callbacks.gathered_rows import GatheredRows
from embedx.engine.loop import run_test
from embedx.errors import InputError


class InPlace(nn.Module):
    """Gives its outputs in memory that the next call overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.out = torch.zeros(2, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"embeddings": self.out.copy_(images), "layer": images.int()}


def gathered(*values: float, check: FiniteCheck | None = FINITE_CHECK, **entries: Any) -> GatheredRows:
    callback = GatheredRows(torch.float16, check)
    batches = [
        {"images": torch.full((2, 3), value), "index": torch.tensor([0, 1]), "keys": ["a", "b"], **entries}
        for value in values
    ]
    run_test(InPlace(), {"images": batches}, [callback])
    return callback


def test_the_rows_of_all_batches_are_gathered_in_the_stored_type() -> None:
    callback = gathered(1.5, 2.5)
    assert torch.equal(callback.rows("embeddings"), torch.tensor([[1.5] * 3] * 2 + [[2.5] * 3] * 2).half())
    assert torch.equal(callback.rows("layer"), torch.tensor([[1] * 3] * 2 + [[2] * 3] * 2, dtype=torch.int32))


def test_an_input_without_a_row_ends_the_run_by_its_name() -> None:
    with pytest.raises(InputError, match="b: the file is empty; repair it"):
        gathered(1.0, reasons=[None, "the file is empty"])
    with pytest.raises(InputError, match="a: the forward pass gave NaN"):
        gathered(1.0, float("nan"))
    with pytest.raises(InputError, match="a: beyond float16"):
        gathered(1e6)
    assert gathered(float("nan"), check=None).rows("embeddings").isnan().all()
