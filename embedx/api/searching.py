"""`embedx.search`: the rows of a store that are most similar to images, rows, vectors or texts.

Shapes: Q queries, N images, D embedding dimension.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from embedx.api.arguments import config_of
from embedx.api.embedding import Embedder
from embedx.api.opened_stores import Location, with_stores
from embedx.api.shown_progress import heartbeat_of
from embedx.credentials import without_credentials
from embedx.data.loading.given_images import Images, as_list
from embedx.errors import ConfigError, StoreError
from embedx.heartbeat import SILENT, Heartbeat
from embedx.models.device import resolve_device
from embedx.store.reading.reader import Store
from embedx.system.machine import cores
from embedx.vectors.searching.search import Search
from embedx.vectors.searching.search_config import FEW_PATHS, SearchConfig
from embedx.vectors.searching.search_queries import (
    Queries,
    check,
    joined,
    queries_of_array,
    queries_of_file,
    queries_of_rows,
)
from embedx.vectors.searching.search_result import SearchResult

_PATHS_OF_WORKER = 16
"""The number of images in files that one worker process decodes, where there are cores for more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """The queries of a search, as they are given."""

    images: Images = ()
    """The images, as `Embedder` takes them."""
    rows: Sequence[str] = ()
    """The rows of the store, each as `split:key`; in a store of one split also as the key alone."""
    arrays: Sequence[np.ndarray[Any, Any] | Tensor] = ()
    """The vectors in memory, each array [D] or [Q, D]."""
    files: Sequence[Path] = ()
    """The files of vectors, as numpy.save writes them."""
    texts: Sequence[str] = ()
    """The texts, for a store of a text-image model."""


def search(
    store: Location | Store,
    queries: Images | np.ndarray[Any, Any] | Tensor = (),
    *,
    rows: str | Sequence[str] = (),
    texts: str | Sequence[str] = (),
    k: int = 10,
    split: str | Sequence[str] = (),
    name: str = "embeddings",
    where: str | None = None,
    approximate: bool = False,
    index: Location | None = None,
    with_self: bool = False,
    device: str | None = None,
    trust: bool = False,
    progress: bool = True,
) -> SearchResult:
    """Finds the k rows of a store with the largest cosine similarity to each query, exactly unless `approximate`.

    Rows of zeros, or with NaN or infinity, are similar to nothing. Of rows that are equally similar, those that come
    first in the store come first.

    Args:
        store: The store, or its path; of one that is not complete, the rows that are committed are searched.
        queries: The images, as `Embedder` takes them: paths, Pillow's images, or arrays of uint8. Or vectors: an array
            [D] or [Q, D] of a float type, of numpy or torch. Of more than four paths the images are decoded in worker
            processes; up to four in this process, in which an image that makes a decoder crash ends the program.
        rows: The rows of the store to search for, each as `split:key`; in a store of one split also as the key alone.
        texts: The texts to search for, if the store's backbone is a text-image model.
        k: The number of neighbours of each query; where there are fewer rows, all of them are neighbours.
        split: The names of the splits to search; none searches all of them.
        name: The name of the tensor to compare: `embeddings`, or an extra layer's.
        where: A condition in SQL on the columns of the index that rows have to meet, such as `group = 'cat'`.
        approximate: Whether to search by the index that `build_index` has built, which may miss rows.
        index: The folder of that index, if it is not in the store.
        with_self: Whether a row of `rows` is listed among its own neighbours.
        device: The device to embed and to compare on; None embeds on the recipe's, and compares on CUDA if there is a
            device. The neighbours of a vector don't depend on it.
        trust: Whether to run a backbone that is code, or a program, although the store names it.
        progress: Whether progress is shown, on stderr or in a notebook's cell.

    Returns:
        The answers, first those to `queries`, then to `rows` and to `texts`: of each neighbour the similarity, with its
        split, key, path, group and target.

    Raises:
        ConfigError: If a setting or a query does not fit the store, or there is no query.
        InputError: If an image can't be read or decoded.
        StoreError: If it is not a store, or is damaged.
    """
    settings = {"k": k, "split": split, "name": name, "where": where, "approximate": approximate, "index": index}
    config = config_of({**settings, "with_self": with_self, "device": device}, SearchConfig)
    config.validate()
    asked = Asked(arrays=[queries]) if _are_vectors(queries) else Asked(images=queries)
    asked = dataclasses.replace(asked, rows=_texts("rows", rows), texts=_texts("texts", texts))

    def find(stores: list[Store]) -> SearchResult:
        (opened,) = stores
        searched = Search.open(opened, config)
        given = queries_of(searched, asked, trust=trust, heartbeat=heartbeat)
        answers = tuple(searched.answers(given, device=compares_on(config), heartbeat=heartbeat))
        recall = None if searched.index is None else searched.index.facts.recall
        return SearchResult(opened.path, opened.manifest.fingerprint, name, len(searched.rows), answers, recall)

    with heartbeat_of(progress) as heartbeat:
        return with_stores([store], find, heartbeat, "searched")


def compares_on(config: SearchConfig) -> torch.device:
    """Returns the device to compare on: the one that is given, or else CUDA if there is a device."""
    return resolve_device(config.device or "auto")


def queries_of(searched: Search, asked: Asked, *, trust: bool = False, heartbeat: Heartbeat = SILENT) -> Queries:
    """Returns all queries as vectors [Q, D]: images first, then rows, arrays, files and texts.

    Images are embedded by the store's own recipe, and texts by its backbone's text encoder; the weights are checked.

    Args:
        searched: The rows that are searched.
        asked: The queries, as they are given.
        trust: Whether to run a backbone that is code, or a program, although the store names it.
        heartbeat: The receiver of progress.

    Raises:
        ConfigError: If a query does not fit the store, or there is none.
        InputError: If an image can't be read or decoded.
        StoreError: If a file is damaged.
    """
    store, config, dim = searched.rows.store, searched.config, searched.rows.dim
    parts = [queries_of_rows(store, asked.rows, config.name)]
    parts += [queries_of_array(array, "the array of vectors") for array in asked.arrays]
    parts += [queries_of_file(path) for path in asked.files]
    check(parts, dim)  # before a model is loaded
    if asked.texts:
        heartbeat.say("embedding the texts")
        parts.append(_queries_of_texts(store, asked.texts, config, trust, heartbeat))
    if images := as_list(asked.images):
        heartbeat.say("embedding the images")
        parts.insert(0, _queries_of_images(store, images, config, trust, heartbeat))
    return joined(parts, dim)


def _queries_of_texts(
    store: Store, texts: Sequence[str], config: SearchConfig, trust: bool, heartbeat: Heartbeat
) -> Queries:
    from embedx.api.text_queries import embed_texts

    vectors = embed_texts(store, texts, name=config.name, device=config.device, trust=trust, notice=heartbeat.tell)
    return Queries(list(texts), vectors)


def _queries_of_images(
    store: Store, images: list[Any], config: SearchConfig, trust: bool, heartbeat: Heartbeat
) -> Queries:
    device = config.device
    if device is None and store.manifest.recipe.device is not None:
        try:
            resolve_device(store.manifest.recipe.device)
        except ConfigError:
            device = "auto"
            told = f"the store was made on {store.manifest.recipe.device}, which this machine lacks: the images' "
            heartbeat.tell(f"{told}embeddings are close to what it would give, and not the same")
    is_paths = isinstance(images[0], str | os.PathLike)
    workers = min(cores(), math.ceil(len(images) / _PATHS_OF_WORKER)) if is_paths and len(images) > FEW_PATHS else 0
    with Embedder(store, device=device, workers=workers, framework="torch", trust=trust) as embedder:
        vectors = embedder(images, name=config.name)
    if vectors.ndim != 2:
        raise StoreError(f"{store.path}: {config.name!r} of an image has the shape {list(vectors.shape[1:])}")
    paths = [os.fspath(image) for image in images] if is_paths else []
    names = [without_credentials(path) for path in paths] or [f"images[{place}]" for place in range(len(images))]
    return Queries(names, vectors.float(), paths=paths)


def _texts(name: str, given: str | Sequence[str]) -> tuple[str, ...]:
    several: Any = (given,) if isinstance(given, str) else given
    if not (isinstance(several, Sequence) and all(isinstance(each, str) for each in several)):
        raise ConfigError(f"{name}: {given!r} is not what it takes; give a text, or a list of texts")
    return tuple(several)


def _are_vectors(queries: Images | np.ndarray[Any, Any] | Tensor) -> TypeGuard[np.ndarray[Any, Any] | Tensor]:
    """Tells arrays of numbers from those of images, which are of uint8, and of paths."""
    if isinstance(queries, np.ndarray):
        return queries.dtype != np.uint8 and queries.dtype.kind not in "OU"
    return isinstance(queries, Tensor) and queries.dtype != torch.uint8
