"""Bookkeeping of rejected inputs."""

from typing import Any

import pytest
import torch
from torch import nn

from embedx.callbacks.finite_rows import Cause, NotFinite
from embedx.callbacks.rejected import RejectedInputs
from embedx.engine import loop
from embedx.engine.state import new_state
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
    assert state["metrics"] == {"test/rejected": 4, "test/unavailable": 0}


@pytest.mark.parametrize("on_error", ["reject", "fail"])
def test_no_reasons_means_nothing_is_rejected(on_error: Any) -> None:
    without = {name: value for name, value in batch(None).items() if name != "reasons"}
    state = loop.run_test(Echo(), {"all": [batch(None, None), without]}, [RejectedInputs(on_error)])
    assert state["metrics"] == {"test/rejected": 0, "test/unavailable": 0}


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


def test_rows_that_are_not_finite_count_and_a_batch_of_nothing_else_is_told_once() -> None:
    said: list[str] = []
    callback = RejectedInputs(say=said.append)
    bad = [NotFinite(f"image-{row}", Cause.FORWARD, "NaN came") for row in range(4)]
    for rows, found in ((4, bad[:1]), (1, bad[:1])):  # most rows so far are finite
        callback.add_rows(rows, found)
    assert said == [] and callback.on_test_epoch_end(new_state(), Echo()) == {"rejected": 2, "unavailable": 0}
    for _ in range(2):
        callback.add_rows(4, bad)
    assert len(said) == 1 and said[0].startswith("none of 4 rows is finite (image-0: NaN came): check the weights")
    callback.on_test_epoch_start(new_state(), Echo())
    callback.add_rows(4, bad)
    assert len(said) == 2 and said[1].startswith("none of the first 4 rows is finite")
    with pytest.raises(InputError, match=r"image-0: NaN came; check the weights.*or store it as it is by --allow-nonf"):
        RejectedInputs("fail").add_rows(4, bad)
