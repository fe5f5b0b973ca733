"""Memory that is lent for one batch after the other, and never while somebody looks at it."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from embedx.data.decoding.features import FeatureDecoder
from embedx.data.loading.loaders import SplitLoader
from embedx.data.loading.slots import Slots, SlotTensor
from embedx.data.plan import build_plan
from embedx.data.sources import parse_data
from embedx.data.sources.kinds import SourceOptions
from embedx.system.processes import CHILDREN

SHAPE = (2, 3, 4, 4)


class Numbered(Dataset[object]):
    """Tensors in channels-last layout, each full of its number."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots

    def __getitems__(self, numbers: list[int]) -> dict[str, object]:
        tensor, sent = self.slots.take(torch.empty(SHAPE).to(memory_format=torch.channels_last))
        tensor.fill_(numbers[0])
        return {"own": sent, "number": numbers[0]}


def as_is(batch: object) -> object:
    return batch


@pytest.mark.timeout(90)
def test_a_slot_is_lent_again_once_nothing_refers_to_its_memory() -> None:
    slots = Slots(1, 2, 2 * 3 * 4 * 4 * 4)
    loader = DataLoader(
        Numbered(slots), batch_sampler=[[n] for n in range(20)], num_workers=1, collate_fn=as_is, prefetch_factor=1,
        multiprocessing_context=CHILDREN,
    )  # fmt: skip  # the worker is asked for a batch when the one before is taken, and all others are free again
    kept: list[tuple[int, torch.Tensor]] = []
    lent = 0
    for batch in loader:
        lent += isinstance(batch["own"], SlotTensor)
        tensor = slots.unpacked(batch)["own"]
        assert tensor.shape == SHAPE and tensor.is_contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            view = tensor[1:].detach()
        if batch["number"] in (3, 4):
            kept.append((batch["number"], view))  # a view holds the memory, though its tensor is gone
        assert bool((view == batch["number"]).all())
        del tensor, view, batch
        assert all(bool((view == number).all()) for number, view in kept)
    assert len(kept) == 2 and lent == 5, "with both slots kept, others have memory of their own"


def test_in_the_parent_and_without_slots_a_tensor_has_memory_of_its_own() -> None:
    for slots in (Slots(), Slots(1, 2, 0), Slots(1, 2, 100)):
        own = torch.empty(3)
        assert pickle.loads(pickle.dumps(Slots())).take(own) == (own, own)
        assert slots.take(own)[1] is own


@pytest.mark.timeout(90)
def test_batches_that_are_kept_stay_as_they_were(tmp_path: Path) -> None:
    numbers = np.arange(60_000, dtype=np.float32).reshape(-1, 4)
    np.save(tmp_path / "rows.npy", numbers)
    source = parse_data([f"all={tmp_path}/rows.npy"], SourceOptions(content="features"))
    split = build_plan(source, None).splits["all"]
    units = split.unit_rows(500)
    batches = list(SplitLoader(split, units, FeatureDecoder((4,)), batch_size=4, workers=2))
    rows = [batch["features"][: len(batch["index"])] for batch in batches]
    assert len(batches) == 30 and np.array_equal(torch.cat(rows).numpy(), numbers)
