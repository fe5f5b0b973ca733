"""The map of a report: a place in the plane for each row, near those of its neighbours.

Shapes: M rows, L landmarks, D embedding dimension, P principal components.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedx.errors import ConfigError
from embedx.system.machine import cores
from embedx.vectors.pairs.tiles import UnitBlocks
from embedx.vectors.reporting.strata import stratified_sample

LANDMARKS = 8_000
"""The most rows that t-SNE or UMAP lays out; its time is in proportion to them."""
FEWEST = 8
"""The rows below which there are too few neighbours for t-SNE and UMAP."""
METHODS = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}
"""The methods, and their names."""

Places = NDArray[np.float64]
"""Places in the plane, [M, 2] float64."""

_COMPONENTS = 50
_CHUNK = 2048
_PERPLEXITY = 30.0
_EARLY, _LATE = 250, 500
"""The iterations with exaggerated attraction and those after them: openTSNE's own numbers."""
_EXAGGERATION, _FEW = 12, 100
"""The exaggeration, and the rows below which it would draw all of them to one place."""
_LATER = 100
"""The iterations for the rows that are no landmarks."""
_WEIGHTS = (0.7, 0.2, 0.1)
"""The shares of a row's closest landmarks in its place; equal ones would draw all rows to the middle of a cluster."""
_SAID_EVERY = 25


def lay_out(
    vectors: UnitBlocks,
    strata: NDArray[np.int64],
    method: str,
    seed: int,
    told: Callable[[float], None] = lambda _: None,
) -> tuple[Places, str]:
    """Lays out rows by a method: landmarks first, and every other row among its nearest landmarks.

    Args:
        vectors: The M rows.
        strata: The stratum of each row [M] int64, by which landmarks are chosen.
        method: The name of the method: `tsne`, `umap` or `pca`.
        seed: The seed of the choice and of the method.
        told: The receiver of the part of the work that is done, from 0 to 1.

    Returns:
        The places, the same ones for the same rows, seed and machine; and the method in words.

    Raises:
        ConfigError: If the method's library is not installed.
    """
    require_library(method)
    if not vectors.count:
        return np.zeros((0, 2)), "no rows"
    landmarks = stratified_sample(strata, LANDMARKS, seed)
    reduced = _principal_components(vectors, landmarks)
    if method == "pca" or vectors.count < FEWEST:
        few = "" if method == "pca" else f", as {vectors.count} rows are too few for {METHODS[method]}"
        return _plane(reduced), f"PCA{few}"
    run = _tsne if method == "tsne" else _umap
    rest = np.setdiff1d(np.arange(vectors.count), landmarks)
    places = np.empty((vectors.count, 2))
    places[landmarks], places[rest] = run(reduced[landmarks], reduced[rest], seed, told)
    words = METHODS[method]
    return places, f"{words} of {len(landmarks):,} rows, the others placed among them" if len(rest) else words


def require_library(method: str) -> None:
    """Raises a ConfigError if the library of a method is not installed."""
    if method != "pca":
        _library(method)


def _library(method: str) -> Any:
    """Imports the library of a method."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if method == "umap":
                import umap

                return umap
            import openTSNE

            return openTSNE
    except ImportError as error:
        extra = "umap" if method == "umap" else "report"
        raise ConfigError(
            f'--map {method} needs a library that is not installed ({error}); run pip install "embedx[{extra}]", or '
            "give --map pca, which needs none"
        ) from error


def _principal_components(vectors: UnitBlocks, landmarks: NDArray[np.int64]) -> Tensor:
    """Returns all rows [M, P] float32 on the CPU, projected on the principal components of the landmarks."""
    marks = torch.cat(
        [unit[torch.from_numpy(_within(landmarks, start, start + len(unit)))] for start, unit in _units(vectors)]
    )
    mean = marks.mean(dim=0)
    centred = marks - mean
    if len(marks) < vectors.dim:
        axes = torch.linalg.svd(centred, full_matrices=False).Vh
    else:
        axes = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors.T.flip(0).float()
    axes = axes[:_COMPONENTS]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    axes = axes * torch.where(largest < 0, -1, 1)  # an axis' direction is the library's whim
    return torch.cat([(unit - mean) @ axes.T for _, unit in _units(vectors)])


def _units(vectors: UnitBlocks) -> Iterator[tuple[int, Tensor]]:
    """Yields the number of the first row of each block, and its vectors [n, D] float32 on the CPU."""
    for number, start in enumerate(vectors.starts):
        yield start, vectors.unit(number).cpu()


def _within(places: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    first, last = np.searchsorted(places, [start, stop])
    return places[first:last] - start


def _plane(reduced: Tensor) -> Places:
    plane = np.zeros((len(reduced), 2))
    plane[:, : reduced.shape[1]] = reduced[:, :2].numpy()
    return plane


def _tsne(marks: Tensor, rest: Tensor, seed: int, told: Callable[[float], None]) -> tuple[Places, Places]:
    """Runs openTSNE on landmarks [L, P], and then on further rows [M - L, P] among them, which stay where they are.

    It is given exact neighbours, so that no approximate index adds its own chance.
    """
    opentsne = _library("tsne")
    start = opentsne.initialization.rescale(_plane(marks)) if (marks != marks[0]).any() else None
    if start is None:  # all rows are equal
        return np.zeros((len(marks), 2)), np.zeros((len(rest), 2))
    perplexity = min(_PERPLEXITY, (len(marks) - 1) / 3)
    own = {"n_jobs": cores(), "random_state": seed % 2**32}
    affinities = opentsne.affinity.PerplexityBasedNN(
        perplexity=perplexity, knn_index=_exact_index(marks, int(3 * perplexity)), **own
    )
    done, total = 0, _EARLY + _LATE + (_LATER if len(rest) else 0)

    def say(iteration: int, *_: object) -> None:
        told((done + iteration) / total)

    embedding = opentsne.TSNEEmbedding(start, affinities, callbacks=[say], callbacks_every_iters=_SAID_EVERY, **own)
    embedding = embedding.optimize(_EARLY, exaggeration=_EXAGGERATION if len(marks) >= _FEW else 1, momentum=0.5)
    done = _EARLY
    embedding = embedding.optimize(_LATE, momentum=0.8)
    if not len(rest):
        return np.array(embedding), np.zeros((0, 2))
    done += _LATE
    placed = embedding.prepare_partial(rest.double().numpy(), initialization="weighted", k=10, perplexity=5)
    placed = placed.optimize(_LATER, learning_rate=0.1, exaggeration=1.5, momentum=0.8)
    return np.array(embedding), np.array(placed)


def _exact_index(marks: Tensor, k: int) -> Any:
    """Returns landmarks [L, P] and their k nearest ones in the form in which openTSNE looks for neighbours."""
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    class ExactIndex(PrecomputedNeighbors):  # type: ignore[misc]
        def query(self, rows: Places, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
            """Returns the places and distances [n, k] of the landmarks that are closest to rows [n, P]."""
            distances, places = _closest(torch.from_numpy(rows).float(), marks, k)
            return places.numpy(), distances.double().numpy()

    distances, places = _closest(marks, marks, k, others_only=True)
    return ExactIndex(places.numpy(), distances.double().numpy())


def _umap(marks: Tensor, rest: Tensor, seed: int, told: Callable[[float], None]) -> tuple[Places, Places]:
    """Runs UMAP on landmarks [L, P]; puts further rows [M - L, P] at weighted means of their closest landmarks."""
    neighbours = min(15, len(marks) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _library("umap").UMAP(n_neighbors=neighbours, random_state=seed % 2**32, n_jobs=1)
        laid_out = np.asarray(model.fit_transform(marks.numpy()), np.float64)
    places = _closest(rest, marks, len(_WEIGHTS))[1]
    told(1.0)
    return laid_out, (laid_out[places.numpy()] * np.array(_WEIGHTS)[None, :, None]).sum(axis=1)


def _closest(rows: Tensor, marks: Tensor, k: int, *, others_only: bool = False) -> tuple[Tensor, Tensor]:
    """Returns the Euclidean distances and places [n, k] of the landmarks that are closest to rows [n, P]."""
    distances, places = torch.empty(len(rows), k), torch.empty(len(rows), k, dtype=torch.int64)
    for start in range(0, len(rows), _CHUNK):
        own = torch.cdist(rows[start : start + _CHUNK], marks)
        if others_only:
            own[:, start : start + _CHUNK].fill_diagonal_(torch.inf)
        found = own.topk(k, dim=1, largest=False)
        distances[start : start + _CHUNK], places[start : start + _CHUNK] = found
    return distances, places
