"""The commands over a store, as functions: `embedx.duplicates`, `build_index`, `report` and `export`.

Each is the command of its name (`build_index`: `embedx index`), with the same settings, checks and bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from embedx.api.arguments import config_of
from embedx.api.opened_stores import Location, with_stores
from embedx.api.shown_progress import heartbeat_of
from embedx.heartbeat import SILENT, Heartbeat
from embedx.models.device import resolve_device
from embedx.run.thumbnails import thumbnails
from embedx.store.reading.reader import Store
from embedx.vectors.exporting.export import ExportResult, run_export
from embedx.vectors.exporting.export_config import ExportConfig, FormatName
from embedx.vectors.indexing.ann_build import IndexResult, build_ann_index
from embedx.vectors.indexing.ann_config import IndexConfig
from embedx.vectors.pairs.duplicates import duplicates as find_duplicates
from embedx.vectors.pairs.duplicates_config import DuplicatesConfig
from embedx.vectors.pairs.duplicates_result import DuplicatesResult
from embedx.vectors.reporting.report import ReportResult, write_report
from embedx.vectors.reporting.report_config import ReportConfig
from embedx.vectors.reporting.report_pictures import ReadPicture


def duplicates(
    store: Location | Store, other: Location | Store | None = None, *, progress: bool = True, **settings: Any
) -> DuplicatesResult:
    """Groups the rows of a store that are duplicates, or finds those that two splits or stores have in common.

    Args:
        store: The store, or its path; of one that is not complete, the rows that are committed.
        other: A second store of the same recipe, whose rows are compared with those of the first alone.
        progress: Whether progress is shown, on stderr or in a notebook's cell.
        **settings: The settings, which are the command's options with `_` for `-`: `threshold=0.98`,
            `between=("train", "val")`.

    Returns:
        The groups as a table, and how many rows have neighbours at which similarity. `leaks` are the duplicates that
        splits or stores have in common.

    Raises:
        LeakError: If `fail_on_leak=True`, and there are leaks; the error's `result` has all that was found, and a file
            is written before.
        ConfigError: If the settings are wrong or don't fit the stores, or two stores can't be compared.
        StoreReplacedError: If another store takes its place; one that is given by its path is opened again first.
        StoreError: If it is not a store, or is damaged.
    """
    config = config_of(settings, DuplicatesConfig)
    with heartbeat_of(progress) as heartbeat:
        result = duplicates_by(store, other, config, heartbeat)
    if config.fail_on_leak:
        result.check_leaks()
    return result


def duplicates_by(
    store: Location | Store, other: Location | Store | None, config: DuplicatesConfig, heartbeat: Heartbeat = SILENT
) -> DuplicatesResult:
    """Finds duplicates by a configuration, as `duplicates` does, and returns leaks too."""
    config.validate()
    device = resolve_device(config.device)
    given = [store] if other is None else [store, other]
    return with_stores(
        given, lambda stores: find_duplicates(stores, config, heartbeat, device=device), heartbeat, "compared"
    )


def build_index(store: Location | Store, *, progress: bool = True, **settings: Any) -> IndexResult:
    """Builds an approximate index of a store's vectors by faiss, and measures its recall against exact search.

    `embedx.search(store, …, approximate=True)` uses it. Where it is there already, nothing is done.

    Args:
        store: The store, or its path; it has to be complete.
        progress: Whether progress is shown, on stderr or in a notebook's cell.
        **settings: The settings, which are the command's options: `factory="IVF256,SQ8"`.

    Returns:
        The index's place, size and recall.

    Raises:
        ConfigError: If the settings are wrong or don't fit the store, it is not complete, another index of it is there,
            or faiss is not installed.
        StoreReplacedError: If another store takes its place; one that is given by its path is opened again first.
        StoreError: If it is not a store, is damaged, or the index can't be written.
    """
    with heartbeat_of(progress) as heartbeat:
        return index_by(store, config_of(settings, IndexConfig), heartbeat)


def index_by(store: Location | Store, config: IndexConfig, heartbeat: Heartbeat = SILENT) -> IndexResult:
    """Builds an index by a configuration, as `build_index` does."""
    config.validate()
    device = resolve_device(config.device or "auto")
    return with_stores([store], lambda stores: build_ann_index(stores[0], config, device, heartbeat), heartbeat, None)


def report(store: Location | Store, out: Location, *, progress: bool = True, **settings: Any) -> ReportResult:
    """Writes a report on a store: one HTML file, which opens in any browser without a network.

    The same store, inputs, settings and machine give the same bytes.

    Args:
        store: The store, or its path; of one that is not complete, the rows that are committed.
        out: The HTML file to write.
        progress: Whether progress is shown, on stderr or in a notebook's cell.
        **settings: The further settings, which are the command's options with `_` for `-`: `map="pca"`,
            `no_images=True`, `color=["camera"]`.

    Returns:
        The file, its size, all that it shows, and the seconds of each stage.

    Raises:
        ConfigError: If the settings are wrong or don't fit the store, a library is missing, or the file can't be
            written.
        StoreReplacedError: If another store takes its place; one that is given by its path is opened again first.
        StoreError: If it is not a store, or is damaged, or the disk is full.
    """
    with heartbeat_of(progress) as heartbeat:
        return report_by(store, config_of({"out": out, **settings}, ReportConfig), heartbeat)


def report_by(store: Location | Store, config: ReportConfig, heartbeat: Heartbeat = SILENT) -> ReportResult:
    """Writes a report by a configuration, as `report` does."""
    config.validate()
    device = resolve_device(config.device)

    def write(stores: list[Store]) -> ReportResult:
        return write_report(stores[0], config, _pictures, heartbeat, device=device)

    return with_stores([store], write, heartbeat, None)  # the page says that a store is not complete


def export(
    store: Location | Store, out: Location, to: FormatName = "parquet", *, progress: bool = True, **settings: Any
) -> ExportResult:
    """Writes a store's vectors with their keys to a folder, in the format of another program.

    Args:
        store: The store, or its path; of one that is not complete, the rows committed so far are written.
        out: The folder to write, which appears when it is whole.
        to: The format of the files.
        progress: Whether progress is shown, on stderr or in a notebook's cell.
        **settings: The further settings, which are the command's options: `split`, `name`, `where`, `columns`, `dtype`,
            `normalize`, `list` and `overwrite`.

    Returns:
        The files, and the number of rows. The same store and settings give the same bytes; but for `lance`, which
        draws the names of its files.

    Raises:
        ConfigError: If the settings are wrong or don't fit the store, a library is missing, or `out` is there already.
        StoreReplacedError: If another store takes its place; one that is given by its path is opened again first.
        StoreError: If it is not a store or is damaged, or the disk is full.
    """
    config = config_of({"out": out, "to": to, **settings}, ExportConfig)
    with heartbeat_of(progress) as heartbeat:
        return export_by(store, config, heartbeat)


def export_by(store: Location | Store, config: ExportConfig, heartbeat: Heartbeat = SILENT) -> ExportResult:
    """Writes an export by a configuration, as `export` does."""
    config.validate()
    return with_stores([store], lambda stores: run_export(stores[0], config, heartbeat), heartbeat, "exported")


def _pictures(store: Store, rows: pa.Table) -> Iterator[ReadPicture]:
    """Reads a small picture of each row's input."""
    return itertools.starmap(ReadPicture, thumbnails(store, rows))
