from __future__ import annotations

from typing import Any

import pytest
import torch

from embedx.errors import ConfigError
from embedx.models.outputs import main_tensor

ONE, OTHER = torch.ones(2, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    "output",
    [
        ONE,
        (ONE, OTHER),
        [ONE],
        {"anything": ONE, "count": 3},
        {"last_hidden_state": OTHER, "pooler_output": ONE},
        {"maps": OTHER, "features": ONE},
    ],
)
def test_one_tensor_stands_for_the_output(output: Any) -> None:
    assert main_tensor(output) is ONE


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"a": ONE, "b": OTHER}, "returns a dict of a, b; name the entry to be stored 'embeddings'"),
        ({}, "returns a dict of nothing"),
        ((3, ONE), "returns a int, no tensor"),
        (None, "returns a NoneType, no tensor"),
    ],
)
def test_an_output_that_leaves_it_open_is_a_fault(output: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main_tensor(output)
