"""Arrays that a user gives in a file of numpy."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from embedx.errors import ConfigError
from embedx.vectors.npy_file import read_npy


def saved(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def zipped(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array=array)
    return buffer.getvalue()


WHOLE = saved(np.ones((3, 2)))


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f8", "i8", "U3"])
@pytest.mark.parametrize("shape", [(2,), (3, 2), (0, 2), ()])
def test_an_array_is_read_as_it_was_saved(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    (tmp_path / "array").write_bytes(saved(array))
    found = read_npy(tmp_path / "array", "--map")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        b"PK\x03\x04 no zip at all",
        zipped(np.ones((3, 2))),
        b"key,x,y\na,1,2\n",
        WHOLE[:5],
        WHOLE[:40],
        WHOLE[:-1],
        WHOLE.replace(b"(3, 2)", b"(((((("),
        WHOLE.replace(b"{'descr'", b"{[1]: 1}"),
        WHOLE.replace(b"(3, 2), }              ", b"(99999999999, 99999), }"),
        saved(np.array([["a", None]], dtype=object), allow_pickle=True),
    ],
    ids=range(12),
)
def test_a_file_that_is_no_array_is_told_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "places.npy").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^--map .*places\.npy: can't be read \(.+\); give a \.npy file"):
        read_npy(tmp_path / "places.npy", "--map")


def test_no_file_and_a_folder_are_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.npy"):
        with pytest.raises(ConfigError, match=r"--vector .*can't be read"):
            read_npy(path, "--vector")
