"""Samples in which every stratum is there."""

from __future__ import annotations

import numpy as np
import pytest

from embedx.vectors.reporting.strata import strata_of, stratified_sample


def test_each_stratum_has_its_share_and_at_least_one() -> None:
    strata = np.repeat(np.arange(4), [7000, 2000, 999, 1])
    chosen = stratified_sample(strata, 100, 0)
    assert len(chosen) == 100 and (np.diff(chosen) > 0).all()
    counts = np.bincount(strata[chosen])
    assert counts[3] == 1 and np.abs(counts - [70, 20, 10, 1]).max() <= 1


@pytest.mark.parametrize("size", [3, 1])
def test_of_more_strata_than_rows_the_largest_are_there(size: int) -> None:
    strata = np.repeat(np.arange(5), [10, 50, 20, 40, 30])
    assert set(strata[stratified_sample(strata, size, 0)].tolist()) == set([1, 3, 4][:size])


def test_a_seed_gives_the_same_rows_and_another_one_gives_others() -> None:
    strata = np.zeros(1000, np.int64)
    assert (stratified_sample(strata, 50, 1) == stratified_sample(strata, 50, 1)).all()
    assert (stratified_sample(strata, 50, 1) != stratified_sample(strata, 50, 2)).any()
    assert stratified_sample(strata, 1000, 0).tolist() == list(range(1000))
    assert stratified_sample(strata[:0], 10, 0).tolist() == []


def test_strata_are_the_combinations_of_columns() -> None:
    a, b = np.array([0, 0, 1, 1, 0]), np.array([-1, 5, -1, 5, -1])
    found = strata_of(a, b)
    assert len(set(found.tolist())) == 4 and found[0] == found[4]
