"""Refuses to compare the vectors of stores that different recipes made."""

from __future__ import annotations

from collections.abc import Sequence

from embedx.errors import ConfigError
from embedx.store.format.differences import difference_text, leaves_that_differ
from embedx.store.reading.reader import Store

_ROUNDING = frozenset({"batch_size", "decoder", "device", "dtype", "normalize", "precision", "runtime"})
"""The entries of a recipe that change no more than the last digits of a cosine similarity."""


def check_comparable(stores: Sequence[Store]) -> list[str]:
    """Checks that stores have one recipe, but for entries that change no more than roundings.

    Returns:
        A phrase for each entry that differs.

    Raises:
        ConfigError: If another backbone, other weights or another preprocessing made the vectors of one of them.
    """
    first, *others = stores
    leaves = [leaf for other in others for leaf in leaves_that_differ("", first.recipe, other.recipe)]
    if wrong := [difference_text(*leaf) for leaf in leaves if leaf[0].partition(".")[0] not in _ROUNDING]:
        raise ConfigError(
            f"{first.path} and {others[0].path} have other recipes, so that their vectors can't be compared "
            f"({'; '.join(wrong)}); extract both by one recipe"
        )
    return [difference_text(*leaf) for leaf in leaves]
