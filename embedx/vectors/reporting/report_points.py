"""The points of a report's map: which rows they are, where they lie, and what is shown of them.

Shapes: N rows, C compared rows, M points.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from embedx.errors import ConfigError
from embedx.heartbeat import Heartbeat
from embedx.vectors.countdown import Countdown
from embedx.vectors.pairs.nearest_rows import NearestOfAll, nearest_of_all
from embedx.vectors.pairs.tiles import UnitBlocks, pairs_of_blocks
from embedx.vectors.reporting.map_file import read_places
from embedx.vectors.reporting.map_layout import lay_out, require_library
from embedx.vectors.reporting.report_columns import categories, colour_of, is_equal, shown
from embedx.vectors.reporting.report_config import MAPS, ReportConfig
from embedx.vectors.reporting.report_data import SHOWN_NEIGHBOURS, Categories, Numbers, Points
from embedx.vectors.reporting.report_rows import ReportRows
from embedx.vectors.reporting.strata import stratified_sample

_LAST = 2**16 - 1


class MapPlaces(NamedTuple):
    """The rows on the map, and their places."""

    numbers: NDArray[np.int64]
    """The numbers of the rows, ascending, [M] int64."""
    of_compared: NDArray[np.int64]
    """Their places among the compared rows, [M] int64."""
    places: NDArray[np.uint16]
    """Their places on the map, [M, 2] uint16."""
    near: NearestOfAll
    """Their neighbours among the points."""
    name: str
    """The method in words."""


def given_places(report_rows: ReportRows, config: ReportConfig) -> NDArray[np.float64] | None:
    """Reads the places [N, 2] of `--map FILE`; of a method, checks that it can be run, and returns None.

    Raises:
        ConfigError: If the file doesn't fit the rows, or the method's library is missing.
    """
    if config.map in MAPS:
        require_library(config.map)
        return None
    return read_places(Path(config.map), report_rows.rows.table)


def lay_out_points(
    report_rows: ReportRows,
    near: NearestOfAll,
    given: NDArray[np.float64] | None,
    config: ReportConfig,
    device: torch.device,
    heartbeat: Heartbeat,
) -> MapPlaces:
    """Chooses the rows on the map, places them, and finds their neighbours among them.

    Args:
        report_rows: The rows of the report.
        near: The neighbours of the compared rows, as places among them.
        given: The places [N, 2] that the user gave, NaN for a row without one; None lays them out.
        config: The settings of the report.
        device: The device that compares rows.
        heartbeat: The receiver of progress.
    """
    compared = report_rows.compared
    has_place = np.arange(len(compared)) if given is None else np.flatnonzero(np.isfinite(given[compared, 0]))
    chosen = stratified_sample(report_rows.strata[compared[has_place]], config.points, config.seed)
    of_compared = has_place[chosen]
    numbers = compared[of_compared]
    if not len(numbers):
        if given is not None:
            raise ConfigError(f"--map {config.map}: has places for none of the rows that can be shown")
        nothing = NearestOfAll(np.zeros((0, SHOWN_NEIGHBOURS), np.int64), np.zeros((0, SHOWN_NEIGHBOURS), np.float32))
        return MapPlaces(numbers, of_compared, np.zeros((0, 2), np.uint16), nothing, "No row can be placed")
    blocks = UnitBlocks([report_rows.subset(numbers)], device)
    if len(numbers) == len(compared):
        near = NearestOfAll(near.places[:, :SHOWN_NEIGHBOURS], near.similarities[:, :SHOWN_NEIGHBOURS])
    else:
        pairs = sum(len(blocks.blocks[a]) * len(blocks.blocks[b]) for a, b in pairs_of_blocks(blocks))
        near = nearest_of_all(
            blocks, SHOWN_NEIGHBOURS, Countdown(heartbeat, f"comparing {len(numbers):,} points", pairs)
        )
    if given is not None:
        return MapPlaces(numbers, of_compared, _in_steps(given[numbers]), near, f"Places of {Path(config.map).name}")
    countdown = Countdown(heartbeat, f"laying out {len(numbers):,} points", 1.0)
    told = 0.0

    def tell(share: float) -> None:
        nonlocal told
        countdown.add(share - told)
        told = share

    places, name = lay_out(blocks, report_rows.strata[numbers], config.map, config.seed, tell)
    return MapPlaces(numbers, of_compared, _in_steps(places), near, name)


def _in_steps(places: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Brings places [M, 2] to whole numbers from 0 to 65535, in one scale for both axes, and to the middle."""
    low, high = places.min(axis=0), places.max(axis=0)
    extent = float((high - low).max())
    scaled = 0.5 + (places - (low + high) / 2) / (extent or 1.0)
    steps: NDArray[np.uint16] = np.rint(scaled.clip(0, 1) * _LAST).astype(np.uint16)
    return steps


def points_of(
    report_rows: ReportRows,
    on_map: MapPlaces,
    scores: NDArray[np.float32],
    picture_of: NDArray[np.int32],
    config: ReportConfig,
) -> Points:
    """Returns the points with all that is shown of them.

    Args:
        report_rows: The rows of the report.
        on_map: The points and their places.
        scores: The outlier scores of the compared rows, [C] float32.
        picture_of: The number of each row's picture, [N] int32; -1 where it has none.
        config: The settings of the report.
    """
    numbers, labels = on_map.numbers, report_rows.labels
    table = report_rows.subset(numbers).table
    names = report_rows.splits
    colours: dict[str, Categories | Numbers] = {}
    if labels.kind:
        colours[labels.kind] = categories(labels.codes[numbers], labels.names)
    if len(names) > 1 or not labels.kind:
        colours["split"] = categories(report_rows.split_codes[numbers], names)
    colours["outlier score"] = Numbers(scores[on_map.of_compared])
    own = {name: table[name] for name in report_rows.columns if name not in colours}
    if labels.kind != "group" and table["group"].null_count < len(table):
        own = {"group": table["group"], **own}
    if labels.kind:
        same = labels.texts(numbers)
        own = {name: own[name] for name in own if name in config.color or not is_equal(own[name], same)}
    colours |= {name: colour_of(column) for name, column in own.items()}
    metadata = {"path": table["path"], **own}
    return Points(
        total_rows=len(report_rows.rows),
        x=on_map.places[:, 0],
        y=_LAST - on_map.places[:, 1],
        keys=table["key"].to_pylist(),
        splits=report_rows.split_codes[numbers].astype(np.uint16),
        neighbours=on_map.near.places.astype(np.int32),
        similarities=on_map.near.similarities,
        colours=colours,
        picture=picture_of[numbers],
        is_sample=len(numbers) < int(report_rows.has_direction.sum()),
        metadata={name: shown(column) for name, column in metadata.items() if column.null_count < len(column)},
    )
