"""Small pictures of a store's inputs, which are read again and checked by their sha256."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from embedx.config import ExtractConfig
from embedx.data.decoding.thumbnail_rows import Picture, ThumbnailDecoder, unpack
from embedx.data.loading.loaders import SplitLoader
from embedx.data.sources import LocationReader
from embedx.data.sources.kinds import SourceOptions
from embedx.heartbeat import SILENT
from embedx.paths import is_url
from embedx.recipe import parse_pixels
from embedx.run.stored_inputs import plan_of_rows
from embedx.run.stored_job import working_directory
from embedx.store.format.index import INPUT_COLUMNS
from embedx.store.reading.reader import Store
from embedx.system.machine import cores

COLUMNS = INPUT_COLUMNS
"""The columns of the index that tell where the inputs are, and what they were."""
_BATCH = 16
_PER_WORKER = 2000
"""The pictures from which on another process reads, as each takes some 0.4 GB of memory; one reads 200 a second."""
_QUALITY = 70


class Thumbnail(NamedTuple):
    """A small picture of an input."""

    data: bytes | None
    """The picture in WebP; None if there is none."""
    fault: str | None
    """The reason why there is none: the input can't be read, or has changed since."""
    width: int = 0
    """The width of the input's image in pixels."""
    height: int = 0
    """The height of the input's image in pixels."""
    brightness: float = 0.0
    """The mean luma of the image, from 0 (black) to 1 (white)."""
    sharpness: float = 0.0
    """The variance of the Laplacian of its luma, as `embedx.data.decoding.thumbnail_rows.Picture` defines it."""


def thumbnails(store: Store, rows: pa.Table, pixels: int = 96) -> Iterator[Thumbnail]:
    """Yields a picture of each row's input, in the order of the rows; worker processes read and decode ahead.

    An input whose sha256 is no longer that of the index gives no picture, so that no other file is ever shown.

    Args:
        store: The store with the rows.
        rows: The rows of the index, with COLUMNS.
        pixels: The length of a picture's longer side; images that are smaller keep their size.

    Raises:
        LoaderError: If the processes that decode images die again and again.
    """
    # A size that is known would mean that this run has seen the file; one that has gone would be waited for then.
    sizes = pc.if_else(rows["offset"].is_valid(), rows["bytes"], pa.scalar(None, pa.int64()))
    rows = rows.set_column(rows.column_names.index("bytes"), "bytes", sizes)
    has_path = rows["path"].is_valid()
    found = _read(store, rows.filter(has_path), pixels)
    for is_there in has_path.to_pylist():
        yield next(found) if is_there else Thumbnail(None, "the store has no path of it")


def _read(store: Store, rows: pa.Table, pixels: int) -> Iterator[Thumbnail]:
    """Yields a picture of each row's input, all of which have a path."""
    if not len(rows):
        return
    stated = store.manifest.settings.stated
    config = ExtractConfig.from_json({"backbone": "unknown", **stated, "out": store.path})
    with contextlib.chdir(working_directory(store, SILENT.console)):
        loader = SplitLoader(
            plan_of_rows("", rows, LocationReader(SourceOptions.of(config))),
            [range(len(rows))],
            ThumbnailDecoder(pixels, config.max_pixels, parse_pixels(config.pixels)),
            batch_size=_BATCH,
            workers=min(cores(), -(-len(rows) // _PER_WORKER)),
            timeout=config.timeout,
            max_bytes=config.max_bytes,
        )
        loader.start()
    expected = iter(rows["sha256"].to_pylist())
    with contextlib.closing(loader):
        for batch in loader:
            columns = (batch[name] for name in ("reasons", "sha256", "paths"))
            filled = batch["thumbnails"][: len(batch["reasons"])]
            for row, reason, sha256, path in zip(filled, *columns, strict=True):
                if sha256 != next(expected) and sha256 is not None:
                    reason = "the file has changed since"
                elif sha256 is None and is_url(path or ""):
                    reason = f"{reason}; a store keeps no credentials"
                yield Thumbnail(None, reason) if reason else _thumbnail(unpack(row))


def _thumbnail(picture: Picture) -> Thumbnail:
    file = io.BytesIO()
    Image.fromarray(picture.pixels.permute(1, 2, 0).numpy()).save(file, "WEBP", quality=_QUALITY)
    return Thumbnail(file.getvalue(), None, *picture[1:])
