"""Appends to the journal of the unit under way, so that a run that is killed loses only its last seconds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from embedx.store.format.atomic import sync_folder
from embedx.store.format.creation import new_token
from embedx.store.format.journal import encode_record
from embedx.store.format.layout import StoreTerms, Unit, journal_path
from embedx.store.format.no_follow import path_inside
from embedx.store.format.object_folder import ObjectFolder

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
        self._parts: list[str] = []
        """The files in a bucket, each with the records of one call, as nothing can be appended to an object."""
        self._token = terms.writer.token
        self._recipe = terms.recipe
        self._unit = unit
        self._end = end

    def append(self, tensors: Mapping[str, Tensor], rows: pa.Table) -> None:
        """Appends n rows, and returns once they are on disk, power cuts included.

        Args:
            tensors: The tensors [n, ...] by name.
            rows: The identities of the n inputs.

        Raises:
            OSError: If they can't be written; the journal then ends where it did before.
        """
        if isinstance(self._root, ObjectFolder):
            self._parts.append(journal_path(self._unit, new_token()))
            self._root.put(self._parts[-1], [part for record in self._encoded(tensors, rows) for part in record])
            return
        is_new, path = not self._end, path_inside(self._root, journal_path(self._unit, self._token))
        try:
            with open(path, "wb" if is_new else "r+b") as file:
                file.truncate(self._end)  # the rest of a record that was cut off would hide those behind it
                file.seek(self._end)
                for record in self._encoded(tensors, rows):
                    file.writelines(record)
                file.flush()
                os.fsync(file.fileno())
                end = file.tell()
            if is_new:
                sync_folder(self._root)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, self._end)
            raise
        self._end = end

    def remove(self) -> None:
        """Removes the journal, if there is one, as the unit is committed."""
        if isinstance(self._root, ObjectFolder):
            for part in self._parts:
                self._root.remove(part)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path_inside(self._root, journal_path(self._unit, self._token)))
            sync_folder(self._root)  # else a power cut could bring it back beside a complete store

    def _encoded(self, tensors: Mapping[str, Tensor], rows: pa.Table) -> Iterator[list[bytes | memoryview]]:
        """Yields the records of rows."""
        for start, stop in _parts(tensors, len(rows)):
            part = {name: tensor[start:stop] for name, tensor in tensors.items()}
            yield encode_record(self._unit, self._recipe, part, rows.slice(start, stop - start))


def _parts(tensors: Mapping[str, Tensor], count: int) -> list[tuple[int, int]]:
    """Cuts rows into the parts that become records, as (first row, row behind)."""
    row_bytes = sum(tensor[:1].nbytes for tensor in tensors.values())
    step = max(1, _RECORD_BYTES // max(1, row_bytes))
    return [(start, min(start + step, count)) for start in range(0, count, step)]
