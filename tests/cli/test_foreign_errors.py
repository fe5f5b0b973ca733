"""Errors of libraries, really raised, become words for users."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest
import torch

from embedx.cli.foreign_errors import words_for
from embedx.data.loading.torch_workers import BatchError


def raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def of_a_batch() -> None:
    try:
        torch.empty(10**15)
    except RuntimeError as error:
        raise BatchError("RuntimeError: unable to allocate shared memory(shm) for file </t>: No space left") from error


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: torch.empty(10**15), "memory is short"),
        (lambda: bytearray(10**15), "memory is short"),
        (lambda: pa.array([1]).cast(pa.binary()), "a table can't be read or written"),
        (lambda: pa.array(["x"]).cast(pa.int64()), "a table can't be read or written"),
        (of_a_batch, "shared memory (/dev/shm) is full"),
        (lambda: "ž".encode("ascii"), "a text has no form"),
        (lambda: int("9" * 5000), "a number is too large"),
    ],
)
def test_an_error_of_a_library_s_becomes_words(call: Callable[[], object], words: str) -> None:
    told = words_for(raised(call))
    assert told is not None and told.startswith(words) and "\n" not in told


def test_a_fault_of_embedx_itself_stays_one() -> None:
    assert words_for(raised(lambda: {"y": 1}["x"])) is None
    assert words_for(RuntimeError()) is None
    assert words_for(raised(lambda: torch.ones(2) @ torch.ones(3))) is None
