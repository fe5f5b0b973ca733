"""`embedx report`: one page that shows what a store is, and which of its rows somebody should look at.

Shapes: N rows, C compared rows.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedx.errors import output_error
from embedx.heartbeat import SILENT, Heartbeat
from embedx.store.format.atomic import write_atomic
from embedx.store.reading.reader import Store
from embedx.vectors.output_place import check_outside
from embedx.vectors.pairs.duplicates import duplicates_among
from embedx.vectors.pairs.duplicates_result import DuplicatesResult
from embedx.vectors.pairs.nearest_rows import NearestOfAll, NearestRows
from embedx.vectors.reporting import findings
from embedx.vectors.reporting.report_config import MAPS, ReportConfig
from embedx.vectors.reporting.report_data import Picture, ReportData
from embedx.vectors.reporting.report_facts import classes_of, facts_of, rejects_of, splits_of
from embedx.vectors.reporting.report_lists import Copies, Members, copies_of, duplicate_facts, leak_matrix
from embedx.vectors.reporting.report_page import render
from embedx.vectors.reporting.report_pictures import ReadPictures, read_pictures, rows_to_show
from embedx.vectors.reporting.report_points import MapPlaces, given_places, lay_out_points, points_of
from embedx.vectors.reporting.report_rows import ReportRows, open_report_rows

_NO_ROW = -1


@dataclasses.dataclass(frozen=True)
class ReportResult:
    """A report that was written."""

    out: Path
    """The HTML file."""
    bytes: int
    """The size of the file."""
    data: ReportData
    """All that it shows."""
    seconds: dict[str, float]
    """The seconds of each stage."""

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers of the report as plain JSON values."""
        data = self.data
        lists = ("outliers", "contradicted", "degenerate", "dark", "blurry", "tiny", "odd_shaped")
        facts = data.duplicate_facts
        return {
            "out": str(self.out),
            "bytes": self.bytes,
            "rows": data.points.total_rows,
            "compared": facts.rows_looked_at,
            "points": len(data.points.keys),
            "pictures": sum(picture.data is not None for picture in data.pictures),
            "map": data.map_name,
            "duplicates": {"threshold": facts.threshold, "groups": facts.groups, "rows": facts.rows},
            "leaks": [
                {"of": a, "in": b, "rows": int(data.leaks.counts[i, j])}
                for i, a in enumerate(data.leaks.splits)
                for j, b in enumerate(data.leaks.splits)
                if i != j
            ],
            "leaked": data.leaks.rows,
            **{name: getattr(data, name).count for name in lists},
            "looked_at": {name: getattr(data, name).looked_at for name in lists},
            "notices": list(data.notices),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


def write_report(
    store: Store,
    config: ReportConfig,
    read: ReadPictures,
    heartbeat: Heartbeat = SILENT,
    *,
    device: torch.device,
) -> ReportResult:
    """Writes a report on a store: the same bytes for the same store, inputs, settings and machine.

    Args:
        store: The store; of one that is not complete, the rows that are committed.
        config: The settings of the report.
        read: The function that reads a picture of each row's input.
        heartbeat: The receiver of progress.
        device: The device that compares rows.

    Raises:
        ConfigError: If the settings are wrong or don't fit the store, a library is missing, or the file can't be
            written.
        StoreReplacedError: If another store takes this one's place.
        StoreError: If a file is damaged, or the disk is full.
    """
    config.validate()
    check_outside("--out", config.out, store)
    stages = Stages()
    data = gather(store, config, read, heartbeat, device=device, stages=stages)
    heartbeat.say("writing the page")
    page = render(data)
    try:
        write_atomic(config.out.absolute(), page)
    except OSError as error:
        raise output_error(config.out, "can't be written", error, is_store=False) from error
    stages.end("page")
    return ReportResult(config.out, len(page), data, stages.seconds)


class Stages:
    """The seconds of each stage of a report."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    def end(self, stage: str) -> None:
        """Notes that a stage has ended, and the next one begins."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._begun
        self._begun = now


def gather(
    store: Store,
    config: ReportConfig,
    read: ReadPictures,
    heartbeat: Heartbeat = SILENT,
    *,
    device: torch.device,
    stages: Stages,
) -> ReportData:
    """Finds out all that a report shows; arguments and errors are those of `write_report`."""
    heartbeat.say("reading every vector")
    rows = open_report_rows(store, config)
    given = given_places(rows, config)
    stages.end("reading vectors")
    near, result = _compare(rows, config, heartbeat, device)
    scores = findings.outlier_scores(near)
    copies = copies_of(result, rows)
    labels = rows.labels._replace(codes=rows.labels.codes[rows.compared])
    found = {
        "outliers": findings.outliers(scores, rows.compared),
        "contradicted": findings.contradicted(near, labels, rows.compared),
        "degenerate": rows.degenerate,
    }
    stages.end("comparing rows")
    on_map = lay_out_points(rows, near, given, config, device, heartbeat)
    stages.end("map")
    pictures, measured, picture_of = _pictures(rows, copies, found, on_map, config, read, heartbeat)
    stages.end("pictures")
    found |= {
        "dark": findings.dark(measured),
        "blurry": findings.blurry(measured),
        "tiny": findings.tiny(measured),
        "odd_shaped": findings.odd_shaped(measured),
    }
    members = Members(rows, picture_of, _places_of(on_map.numbers, len(rows.rows)))
    return ReportData(
        title=config.title or store.path.absolute().name,
        facts=facts_of(rows.rows),
        notices=tuple(_notices(rows, on_map, config)),
        splits=splits_of(store, rows.splits),
        classes=classes_of(rows.labels, rows.split_codes, len(rows.splits)),
        label_name=rows.labels.kind,
        rejects=rejects_of(store, rows.splits),
        points=points_of(rows, on_map, scores, picture_of, config),
        map_name=on_map.name,
        pictures=pictures,
        images_shown=not config.no_images,
        duplicates=members.groups(copies),
        duplicate_facts=duplicate_facts(result, near, config.threshold),
        leaks=leak_matrix(result, rows.splits),
        leak_pairs=members.pairs(copies),
        **{name: members.findings(each) for name, each in found.items()},
    )


def _compare(
    rows: ReportRows, config: ReportConfig, heartbeat: Heartbeat, device: torch.device
) -> tuple[NearestOfAll, DuplicatesResult | None]:
    """Finds neighbours and duplicates among the rows to compare, in one pass over all pairs."""
    near = NearestRows(len(rows.compared), findings.NEIGHBOURS, device)
    if not len(rows.compared):
        return near.finish(), None
    chosen = rows.subset(rows.compared)
    result = duplicates_among(chosen, config.threshold, heartbeat, device=device, see=near.see)
    return near.finish(), result


def _pictures(
    rows: ReportRows,
    copies: Copies,
    found: dict[str, findings.Found],
    on_map: MapPlaces,
    config: ReportConfig,
    read: ReadPictures,
    heartbeat: Heartbeat,
) -> tuple[tuple[Picture, ...], list[findings.Measured], NDArray[np.int32]]:
    """Reads the pictures; returns them, what was measured, and the number of each row's picture [N] int32."""
    if config.no_images:
        return (), [], np.full(len(rows.rows), _NO_ROW, np.int32)
    listed = [*(row for each in found.values() for row in each.rows), *copies.rows()]
    numbers = rows_to_show(listed, on_map.numbers, on_map.places, config.seed)
    pictures, measured = read_pictures(rows.rows.store, rows.rows.table, numbers, read, heartbeat)
    return pictures, measured, _places_of(numbers, len(rows.rows))


def _places_of(numbers: NDArray[np.int64], count: int) -> NDArray[np.int32]:
    """Returns the place of each of so many rows among some of their numbers; -1 for one that is not there."""
    places = np.full(count, _NO_ROW, np.int32)
    places[numbers] = np.arange(len(numbers))
    return places


def _notices(rows: ReportRows, on_map: MapPlaces, config: ReportConfig) -> list[str]:
    """Returns sentences about the limits of a report."""
    notices = []
    count, usable = len(rows.rows), int(rows.has_direction.sum())
    if not rows.rows.store.complete:
        notices.append("The store is not complete; this report is on the rows committed so far.")
    if config.where is not None:
        notices.append(f"Only rows where {config.where}; the counts by split are of all rows.")
    if len(rows.compared) < usable:
        notices.append(
            f"{len(rows.compared):,} of {usable:,} rows, a sample of each split and class, were compared for "
            "neighbours, outliers, labels and duplicates; --compare takes more."
        )
    if usable < count:
        notices.append(
            f"{count - usable:,} rows are zeros or not finite; they have no neighbours and no place on the map."
        )
    if config.map not in MAPS and len(on_map.numbers) < min(len(rows.compared), config.points):
        notices.append("Rows without a place in the file of --map are not on the map.")
    if config.no_images:
        notices.append("No pictures were read (--no-images), so dark, blurry, tiny and odd-shaped ones are not known.")
    return notices
