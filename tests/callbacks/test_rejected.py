"""Bookkeeping of rejected inputs."""

from typing import Any

import pytest
import torch
from torch import nn

from embedx.callbacks.rejected import RejectedInputs
from embedx.engine import loop
from embedx.errors import InputError


class Echo(nn.Module):
    """Returns what it is given."""

    def forward(self, images: Any) -> Any:
        return images


def batch(*reasons: str | None) -> dict[str, Any]:
    count = len(reasons)
    return {
        "images": torch.zeros(count, 1),
        "index": torch.arange(count),
        "keys": [f"image-{row}" for row in range(count)],
        "reasons": list(reasons),
    }


def test_rejected_inputs_are_counted_by_dataloader() -> None:
    callback = RejectedInputs()
    loaders = {
        "train": [batch(None, "truncated"), batch("empty", "not an image")],
        "val": [batch(None)],
        "test": [batch("")],
    }
    state = loop.run_test(Echo(), loaders, [callback])
    assert callback.counts == {0: 3, 2: 1}
    assert state["metrics"] == {"test/rejected": 4}


@pytest.mark.parametrize("on_error", ["reject", "fail"])
def test_no_reasons_means_nothing_is_rejected(on_error: Any) -> None:
    without = {name: value for name, value in batch(None).items() if name != "reasons"}
    state = loop.run_test(Echo(), {"all": [batch(None, None), without]}, [RejectedInputs(on_error)])
    assert state["metrics"] == {"test/rejected": 0}


def test_fail_ends_the_run_at_the_first_one_naming_input_and_reason() -> None:
    callback = RejectedInputs("fail")
    seen: list[int] = []

    def loader() -> Any:
        for number in range(3):
            seen.append(number)
            yield batch(None, "truncated", "empty") if number == 1 else batch(None)

    with pytest.raises(InputError, match="image-1: truncated") as caught:
        loop.run_test(Echo(), {"all": loader()}, [callback])
    assert seen == [0, 1]
    assert callback.counts.total() == 1
    assert caught.value.exit_code == 1
    assert "--on-error reject" in str(caught.value)
