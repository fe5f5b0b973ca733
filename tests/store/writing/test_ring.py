from __future__ import annotations

import pytest
import torch

from embedx.store.writing.ring import SlotRing, bytes_needed
from embedx.system.processes import CHILDREN

TENSORS = {
    "embeddings": torch.arange(15, dtype=torch.float32).view(5, 3),
    "map": torch.arange(40, dtype=torch.bfloat16).view(5, 2, 2, 2).transpose(1, 3),
    "flags": torch.tensor([True, False, True, True, False]),
}


@pytest.fixture
def ring() -> SlotRing:
    return SlotRing(CHILDREN, bytes_needed(TENSORS), queue_length=2)


def test_tensors_of_any_type_and_layout_come_out_as_they_went_in(ring: SlotRing) -> None:
    for item in range(9):
        places = ring.write(item, TENSORS)
        for name, tensor in TENSORS.items():
            assert torch.equal(ring.read(places[name]), tensor) and ring.read(places[name]).dtype == tensor.dtype


def test_an_item_lasts_until_as_many_as_there_are_slots_have_followed(ring: SlotRing) -> None:
    """Two waiting, one being read, one being written."""
    places = [ring.write(item, {"embeddings": torch.full((5, 3), float(item))}) for item in range(4)]
    assert [ring.read(place["embeddings"])[0, 0].item() for place in places] == [0, 1, 2, 3]
    ring.write(4, {"embeddings": torch.full((5, 3), 4.0)})
    assert [ring.read(place["embeddings"])[0, 0].item() for place in places] == [4, 1, 2, 3]


def test_writing_works_inside_and_outside_of_inference_mode(ring: SlotRing) -> None:
    with torch.inference_mode():
        inside = ring.write(0, {"embeddings": TENSORS["embeddings"] + 1})
    outside = ring.write(4, TENSORS)
    assert torch.equal(ring.read(inside["embeddings"]), ring.read(outside["embeddings"]))


def test_a_slot_has_room_for_the_rows_that_later_items_have() -> None:
    few = {"embeddings": TENSORS["embeddings"][:1]}
    assert bytes_needed(few) == 64 and bytes_needed(few, 5) == bytes_needed({"embeddings": TENSORS["embeddings"]})
    assert bytes_needed({"embeddings": TENSORS["embeddings"]}, 2) == bytes_needed({"embeddings": TENSORS["embeddings"]})
    assert bytes_needed(few, 100) == 1216  # 100 rows of 12 bytes, to the next 64
