"""Images that a program gives: paths are loaded as a run's inputs are, pictures in memory become batches here.

Shapes: N images, B batch size, H and W height and width.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from embedx.data.decoding.images import ImageDecoder
from embedx.data.decoding.pictures import pixels_in_memory
from embedx.data.plan import PLAN_COLUMNS, SplitPlan
from embedx.data.reading.files import FileReader, RejectedInputError, absolute, check_urls
from embedx.data.sources.base import COMMON_SCHEMA, sizes_and_times
from embedx.errors import ConfigError
from embedx.paths import expand_path

Picture = Image.Image | np.ndarray[Any, Any] | Tensor
Images = str | os.PathLike[str] | Picture | Iterable[str | os.PathLike[str] | Picture]

_SCHEMA = pa.schema([*COMMON_SCHEMA, ("group", pa.string()), ("target", pa.int64())])


def as_list(images: Images) -> list[Any]:
    """Returns images one by one: a single one is a list of one, and an array [N, H, W, 3] is one of N.

    Raises:
        ConfigError: If they are neither all paths nor all pictures, or an array is no picture.
    """
    given: Any = images
    # An array of another shape is one that is refused, unless it is of objects: such as paths.
    is_one = isinstance(images, str | os.PathLike | Image.Image) or (
        _is_array(images) and len(given.shape) != 4 and getattr(given.dtype, "kind", "") not in ("O", "U")
    )
    if not is_one and (isinstance(images, bytes | bytearray | memoryview) or not isinstance(images, Iterable)):
        raise ConfigError(
            f"images is of type {type(images).__name__}; give paths, Pillow's images or arrays. The bytes of a file "
            "are opened by PIL.Image.open(io.BytesIO(…))"
        )
    each = [given] if is_one else list(given)
    for position, image in enumerate(each):
        if _is_array(image):
            _check_array(image, position)
        elif not isinstance(image, str | os.PathLike | Image.Image):
            raise ConfigError(
                f"images[{position}] is of type {type(image).__name__}; give paths, Pillow's images or arrays "
                "[H, W, 3] of uint8. The bytes of a file are opened by PIL.Image.open(io.BytesIO(…))"
            )
    if len({isinstance(image, str | os.PathLike) for image in each}) > 1:
        raise ConfigError("images has paths and pictures; give them one after the other")
    return each


def split_of_paths(paths: Sequence[str | os.PathLike[str]]) -> SplitPlan:
    """Returns the plan of images in files or behind URLs, each named by its position and path.

    Raises:
        ConfigError: If a path can't be expanded, or the scheme of a URL can't be read.
    """
    try:
        locations = [absolute(expand_path(os.fspath(path))) for path in paths]
    except ValueError as error:
        raise ConfigError(f"images: {error}") from error
    check_urls(locations)
    column = pa.chunked_array([[os.fsencode(location) for location in locations]], pa.binary())
    sizes, times = sizes_and_times(column)
    columns = {
        "key": [f"images[{position}] ({os.fspath(path)})" for position, path in enumerate(paths)],
        "path": column,
        "size": sizes,
        "mtime_ns": times,
    }
    nothing = pa.nulls(len(paths))
    table = pa.table({name: columns.get(name, nothing) for name in PLAN_COLUMNS}, schema=_SCHEMA)
    return SplitPlan("images", table, FileReader())


class PictureBatches:
    """The batches of pictures that are in memory, as a loader's: `images`, `index`, `keys` and `reasons`.

    Args:
        pictures: Images of Pillow's, which are turned as their EXIF says, and arrays [H, W, 3] uint8.
        decoder: The decoder, whose steps follow the decoding.
        batch_size: The rows of each batch; those of the last one that are left over are zero.
    """

    def __init__(self, pictures: Sequence[Picture], decoder: ImageDecoder, batch_size: int) -> None:
        self.inputs = len(pictures)
        self._pictures = pictures
        self._decoder = decoder
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-self.inputs // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, self.inputs, self._batch_size):
            rows = self._decoder.empty(self._batch_size).zero_()
            index = range(start, min(start + self._batch_size, self.inputs))
            yield {
                self._decoder.entry: rows,
                "index": torch.tensor(index),
                "keys": [f"images[{position}]" for position in index],
                "reasons": [self._fill(rows[position - start], self._pictures[position]) for position in index],
            }

    def _fill(self, row: Tensor, picture: Picture) -> str | None:
        """Fills a row; returns the reason if it can't."""
        steps = self._decoder.preprocessing
        try:
            if isinstance(picture, Image.Image):
                if 0 in picture.size:
                    return "it has no pixels: {}x{}".format(*picture.size)
                pixels = pixels_in_memory(picture, exif=steps.exif, options=steps.pixels)
            else:
                pixels = _pixels_of_array(picture)
            self._decoder.fill(row, pixels)
        except RejectedInputError as error:
            return str(error)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  (Pillow reads a file when its pixels are asked for, as in `decode`)
            is_closed = isinstance(error, AttributeError) or not str(error)  # as one or another version of Pillow says
            return f"can't be decoded: {'its file was closed before its pixels were read' if is_closed else error}"
        return None


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor)


def _check_array(array: np.ndarray[Any, Any] | Tensor, position: int) -> None:
    kind = str(array.dtype).removeprefix("torch.")
    if kind != "uint8" or len(array.shape) != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ConfigError(
            f"images[{position}] has the shape {list(array.shape)} and the type {kind}; an image is [H, W, 3] of "
            "uint8: red, green and blue from 0 to 255, with the channels last"
        )
    if isinstance(array, Tensor) and (array.is_meta or array.layout is not torch.strided):
        kind = "on the meta device" if array.is_meta else f"of the layout {array.layout}"
        raise ConfigError(f"images[{position}] is {kind}; give a tensor that holds its values")


def _pixels_of_array(array: np.ndarray[Any, Any] | Tensor) -> Tensor:
    """Returns an array [H, W, 3] as [3, H, W], with the layout in memory that decoders give."""
    if isinstance(array, np.ndarray):
        own = np.ascontiguousarray(array)
        array = torch.from_numpy(own if own.flags.writeable else own.copy())
    return array.detach().cpu().contiguous().permute(2, 0, 1)
