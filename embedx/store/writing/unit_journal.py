"""Appends to the journal of the unit under way, so that a run that is killed loses only its last seconds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from embedx.store.format.atomic import sync_folder
from embedx.store.format.journal import encode_record
from embedx.store.format.layout import StoreTerms, Unit, journal_path
from embedx.store.format.no_follow import path_inside

if TYPE_CHECKING:  # a store that is up to date is recognised without torch
    from torch import Tensor

JOURNAL_SECONDS = 25.0
"""The age at which rows go to the journal. With the time that they wait for the writer, and that of writing them, at
most 30 seconds of computing are lost."""

_RECORD_BYTES = 32 * 1024**2
"""The number of bytes of tensors in one record, so that reading one takes little memory."""


class UnitJournal:
    """The journal of one unit, as the writer process sees it.

    Args:
        terms: The terms of the store.
        unit: The unit under way.
        end: The length of the whole records that an earlier run has left, and that stay; 0 begins a new journal.
    """

    def __init__(self, terms: StoreTerms, unit: Unit, end: int = 0) -> None:
        self._root = terms.root
        self._token = terms.writer.token
        self._recipe = terms.recipe
        self._unit = unit
        self._end = end

    @property
    def _path(self) -> Path:
        return Path(path_inside(self._root, journal_path(self._unit, self._token)))

    def append(self, tensors: Mapping[str, Tensor], rows: pa.Table) -> None:
        """Appends n rows, and returns once they are on disk, power cuts included.

        Args:
            tensors: The tensors [n, ...] by name.
            rows: The identities of the n inputs.

        Raises:
            OSError: If they can't be written; the journal then ends where it did before.
        """
        is_new = not self._end
        try:
            with open(self._path, "wb" if is_new else "r+b") as file:
                file.truncate(self._end)  # the rest of a record that was cut off would hide those behind it
                file.seek(self._end)
                for start, stop in _parts(tensors, len(rows)):
                    part = {name: tensor[start:stop] for name, tensor in tensors.items()}
                    file.writelines(encode_record(self._unit, self._recipe, part, rows.slice(start, stop - start)))
                file.flush()
                os.fsync(file.fileno())
                end = file.tell()
            if is_new:
                sync_folder(self._root)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self._path, self._end)
            raise
        self._end = end

    def remove(self) -> None:
        """Removes the journal, if there is one, as the unit is committed."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
            sync_folder(self._root)  # else a power cut could bring it back beside a complete store


def _parts(tensors: Mapping[str, Tensor], count: int) -> list[tuple[int, int]]:
    """Cuts rows into the parts that become records, as (first row, row behind)."""
    row_bytes = sum(tensor[:1].nbytes for tensor in tensors.values())
    step = max(1, _RECORD_BYTES // max(1, row_bytes))
    return [(start, min(start + step, count)) for start in range(0, count, step)]
