from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from embedx.errors import StoreError
from embedx.store.format.shards import _DTYPES, FORMAT, HEADER_KEY, ShardHeader, encode_shard, open_shard, read_header

HEADER = ShardHeader(FORMAT, "train", 'a "group", \N{SNOWMAN} and \udce9', 3, "0" * 64)
NUMBERS = {"index": torch.arange(5), "targets": torch.tensor([1, -1, 0, 2, 2])}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 7)])
def test_a_shard_is_what_the_library_makes_of_it_byte_for_byte(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    layer = torch.randn(5, 2, 1).to(torch.float16)
    tensors = {"embeddings": torch.randn(shape).to(dtype), "layer4": layer, **NUMBERS}
    if dtype == torch.float64:
        del tensors["index"], tensors["targets"]  # the library writes whole numbers first, and embedx by their names
        tensors["index"] = torch.arange(5, dtype=torch.int32)
    entry, parts = encode_shard("train/shard-00003.safetensors", tensors, HEADER)
    data = b"".join(parts)
    assert data == save(tensors, metadata={HEADER_KEY: HEADER.encode()})
    assert (entry.bytes, entry.sha256, entry.rows) == (len(data), hashlib.sha256(data).hexdigest(), 5)


def library_has(dtype: torch.dtype) -> bool:
    try:
        save({"a": torch.zeros(1, dtype=dtype)})
    except KeyError:
        return False
    return True


@pytest.mark.parametrize("dtype", sorted(_DTYPES if library_has(torch.complex64) else _DTYPES.keys() - {"complex64"}))
def test_the_library_reads_a_shard_of_any_type(tmp_path: Path, dtype: str) -> None:
    layer = torch.tensor([[0, 1, 0, 2], [1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).to(
        getattr(torch, dtype)
    )
    tensors = {"embeddings": torch.randn(9, 6)[2:7], "layer": layer[:, 1:], **NUMBERS}
    (tmp_path / "shard").write_bytes(b"".join(encode_shard("shard", tensors, HEADER)[1]))
    read = load_file(tmp_path / "shard")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].view(torch.uint8), tensor.contiguous().view(torch.uint8))
    with open_shard(tmp_path / "shard") as shard:
        assert read_header(shard) == HEADER


def test_a_type_that_safetensors_lacks_is_refused_by_name() -> None:
    tensors = {"embeddings": torch.zeros(5, 2, dtype=torch.complex128), **NUMBERS}
    with pytest.raises(
        StoreError, match="'embeddings' is complex128, and a shard can't hold that; give one of float64"
    ):
        encode_shard("shard", tensors, HEADER)
