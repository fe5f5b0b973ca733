"""Rows that somebody should look at: outliers, contradicted labels, degenerate rows, and bad pictures.

Shapes: N rows, k neighbours, n rows of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedx.vectors.pairs.nearest_rows import NearestOfAll
from embedx.vectors.reporting.labels import NONE, Labels
from embedx.vectors.vector_rows import VectorRows

MOST = 100
"""The most rows of each list."""
NEIGHBOURS = 10
"""The neighbours by which rows are judged."""
DARK = 0.15
"""The brightness below which an image is dark.

Of 25 photographs in scikit-image and scikit-learn, 2 are below (the night sky, and a scan on black), and 22 once their
values are quartered."""
BLURRY = 25.0
"""The sharpness below which an image is blurry, or empty.

Of the same 25, 3 are below (a clock in motion, a cell by microscope, a smooth gradient), and 23 once they are blurred
by a Gaussian of 2 pixels, at 256 pixels for the shorter side; the others are chessboards."""
TINY = 64
"""The pixels of the shorter side below which an image may be tiny."""
ODD = 0.35
"""The shorter side in parts of the longer one below which an image is odd-shaped: the default of CleanVision."""

_FINE, _CONSTANT, _NOT_FINITE = range(3)
_BLOCK = 8192
_FENCE = 1.5
"""The multiple of the interquartile range beyond the third quartile from which on Tukey calls a value outside."""
_FEWEST_VOTES, _SHARE = 3, 0.8


class Found(NamedTuple):
    """Rows that were found for one reason."""

    total: int
    looked_at: int
    rows: tuple[int, ...]
    """The numbers of the first ones, the most striking first."""
    texts: tuple[str, ...]
    """The reason for each of them."""
    rule: str


class Measured(NamedTuple):
    """An image that has been looked at."""

    row: int
    """The number of its row."""
    width: int
    height: int
    brightness: float
    """The mean luma, from 0 (black) to 1 (white)."""
    sharpness: float
    """The variance of the Laplacian of luma, with the shorter side shrunk to 256 pixels."""


def degenerate(rows: VectorRows) -> tuple[Found, NDArray[np.bool_]]:
    """Reads every vector once; finds those that are constant or not finite.

    Returns:
        The rows that were found; and which rows [N] have a direction, so that they can be compared.
    """
    kinds = np.zeros(len(rows), np.uint8)
    has_direction = np.zeros(len(rows), np.bool_)
    for start, block in rows.blocks(_BLOCK):
        low, high = block.aminmax(dim=1)
        own = slice(start, start + len(block))
        is_finite = (low.isfinite() & high.isfinite()).numpy()  # NaN makes both NaN
        kinds[own] = np.where(is_finite, np.where((low == high).numpy(), _CONSTANT, _FINE), _NOT_FINITE)
        has_direction[own] = is_finite & ((low != 0) | (high != 0)).numpy()
    order = np.lexsort((np.arange(len(kinds)), -kinds.astype(np.int64)))[:MOST]
    chosen = order[kinds[order] != _FINE]
    words = {_CONSTANT: "all numbers are equal", _NOT_FINITE: "has NaN or infinity"}
    rule = "Vectors whose numbers are all equal, or that have NaN or infinity; they tell nothing of their input."
    texts = tuple(words[kind] for kind in kinds[chosen].tolist())
    found = Found(int((kinds != _FINE).sum()), len(rows), tuple(chosen.tolist()), texts, rule)
    return found, has_direction


def outlier_scores(near: NearestOfAll) -> NDArray[np.float32]:
    """Returns the mean cosine distance [N] float32 of each row to its nearest ones; NaN where it has none."""
    there = near.places >= 0
    count = there.sum(axis=1)
    total = np.where(there, 1 - near.similarities.astype(np.float64), 0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        scores: NDArray[np.float32] = (total / count).astype(np.float32)
    return scores


def outliers(scores: NDArray[np.float32], numbers: NDArray[np.int64]) -> Found:
    """Finds the rows that are far from all others.

    Args:
        scores: The score of each row that was compared, [N] float32.
        numbers: The numbers of these rows [N] int64.
    """
    known = scores[np.isfinite(scores)].astype(np.float64)
    low, high = np.quantile(known, [0.25, 0.75]) if len(known) else (0.0, 0.0)
    fence = high + _FENCE * (high - low) + 1e-6
    places = np.flatnonzero(scores > fence)
    places = places[np.lexsort((places, -scores[places]))]
    texts = tuple(f"mean cosine distance {scores[place]:.3f}" for place in places[:MOST])
    rule = (
        f"Rows whose mean cosine distance to their {NEIGHBOURS} nearest rows is above {fence:.3f}: the third quartile "
        f"of all rows and {_FENCE:g} times the interquartile range (Tukey's fence)."
    )
    return Found(len(places), len(scores), tuple(numbers[places[:MOST]].tolist()), texts, rule)


def contradicted(near: NearestOfAll, labels: Labels, numbers: NDArray[np.int64]) -> Found:
    """Finds the rows whose nearest rows clearly have another label.

    A label with few rows could never win among ten neighbours, so no more of them vote than the row's label has other
    rows.

    Args:
        near: The neighbours of each row that was compared, as places among them.
        labels: The labels of these rows.
        numbers: The numbers of these rows [N] int64.
    """
    own = labels.codes
    size = np.bincount(own[own != NONE], minlength=len(labels.names) + 1)
    votes = np.where(near.places >= 0, own[near.places], NONE)
    most = np.minimum(near.places.shape[1], np.where(own == NONE, 0, size[own] - 1))
    votes[np.arange(votes.shape[1]) >= most[:, None]] = NONE
    voters = (votes != NONE).sum(axis=1)
    winner, count = _majority(votes)
    against = (winner != own) & (voters >= _FEWEST_VOTES) & (count >= _SHARE * voters) & (own != NONE)
    places = np.flatnonzero(against)
    closeness = near.similarities[places].mean(axis=1)
    places = places[np.lexsort((places, -closeness, -count[places], -(count[places] / voters[places])))]
    texts = tuple(
        f"{count[place]} of {voters[place]} neighbours are {labels.names[winner[place]]}" for place in places[:MOST]
    )
    rule = (
        f"Rows for which at least {_SHARE:.0%} of their nearest rows have one other {labels.kind}. "
        f"{NEIGHBOURS} rows vote, or fewer where the row's own {labels.kind} has fewer others; at least "
        f"{_FEWEST_VOTES}."
    )
    judged = int(((own != NONE) & (voters >= _FEWEST_VOTES)).sum())
    return Found(len(places), judged, tuple(numbers[places[:MOST]].tolist()), texts, rule)


def _majority(votes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the most frequent label of each row of votes [N, k], NONE aside, and how frequent it is."""
    counts = np.stack([((votes == column[:, None]) & (votes != NONE)).sum(axis=1) for column in votes.T], axis=1)
    first = counts.argmax(axis=1)
    every = np.arange(len(votes))
    return votes[every, first], counts[every, first]


def dark(images: Sequence[Measured]) -> Found:
    """Finds dark images."""
    chosen = sorted((image.brightness, image.row) for image in images if image.brightness < DARK)
    rule = f"Images whose mean brightness is below {DARK:g}, where 0 is black and 1 is white."
    return _found([(row, f"brightness {value:.2f}") for value, row in chosen], images, rule)


def blurry(images: Sequence[Measured]) -> Found:
    """Finds images that are blurred, or that show nothing."""
    judged = [image for image in images if image.brightness >= DARK]
    chosen = sorted((image.sharpness, image.row) for image in judged if image.sharpness < BLURRY)
    rule = (
        f"Images whose sharpness is below {BLURRY:g}: the variance of the Laplacian of their luma, at 256 pixels for "
        "the shorter side. Smooth or empty images have as little as blurred ones; dark ones are not judged."
    )
    return _found([(row, f"sharpness {value:.1f}") for value, row in chosen], judged, rule)


def tiny(images: Sequence[Measured]) -> Found:
    """Finds images that are small, and smaller than the others."""
    sides = [min(image.width, image.height) for image in images]
    limit = min(TINY, float(np.median(sides)) / 2) if sides else TINY
    chosen = sorted((side, image) for side, image in zip(sides, images, strict=True) if side < limit)
    rule = f"Images whose shorter side is below {TINY} pixels, and below half of the median."
    return _found([(image.row, f"{image.width} x {image.height} pixels") for _, image in chosen], images, rule)


def odd_shaped(images: Sequence[Measured]) -> Found:
    """Finds images that are far from square."""
    shapes = [min(image.width, image.height) / max(image.width, image.height) for image in images]
    chosen = sorted((shape, image) for shape, image in zip(shapes, images, strict=True) if shape < ODD)
    rule = f"Images whose shorter side is below {ODD:g} of the longer one."
    return _found([(image.row, f"{image.width} x {image.height} pixels") for _, image in chosen], images, rule)


def _found(chosen: Sequence[tuple[int, str]], images: Sequence[Measured], rule: str) -> Found:
    rows, texts = zip(*chosen[:MOST], strict=True) if chosen else ((), ())
    return Found(len(chosen), len(images), rows, texts, rule)
