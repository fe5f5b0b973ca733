"""Duplicates in stores, beside a comparison of all pairs by numpy and stars that are drawn by hand."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import embedx
from embedx import ConfigError, DuplicatesResult, StoreError
from embedx.store.reading.reader import Store
from embedx.vectors.pairs import tiles
from embedx.vectors.pairs.close_pairs import close_pairs
from embedx.vectors.pairs.duplicates import duplicates
from embedx.vectors.pairs.duplicates_config import DuplicatesConfig
from embedx.vectors.pairs.neighbour_facts import best_of
from embedx.vectors.vector_rows import open_rows
from tests.store.builders import write_features

CPU = torch.device("cpu")
Sums = list[str | None]


def clustered(rows: int, dim: int = 24, seed: int = 0) -> torch.Tensor:
    """Rows around centres, near and far, so that many pairs are on either side of any threshold."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(rows // 8 + 1, dim, generator=generator)
    spread = 10 ** (-2.5 * torch.rand(rows, 1, generator=generator))
    chosen = torch.randint(len(centres), (rows,), generator=generator)
    return (centres[chosen] + spread * torch.randn(rows, dim, generator=generator)) * 10 ** (4 * spread - 2)


def store_of(out: Path, splits: dict[str, torch.Tensor], sums: dict[str, Sums] | None = None, **more: Any) -> Path:
    columns: dict[str, dict[str, Sequence[Any]]] = {split: {"sha256": each} for split, each in (sums or {}).items()}
    return write_features(out, {split: (rows, [0] * len(rows)) for split, rows in splits.items()}, more=columns, **more)


def duplicates_of(
    store: Path, other: Path | None = None, config: DuplicatesConfig | None = None, device: torch.device = CPU
) -> DuplicatesResult:
    stores = [Store.open(path) for path in (store, other) if path is not None]
    return duplicates(stores, config or DuplicatesConfig(), device=device)


def similarities_of(rows: torch.Tensor) -> NDArray[np.float64]:
    """All similarities [N, N] by numpy, in float64; rows without a direction have none to any."""
    values = rows.double().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.nan_to_num(values / np.linalg.norm(values, axis=1, keepdims=True), posinf=0, neginf=0)
    unit[~np.isfinite(values).all(axis=1)] = 0
    return np.asarray(unit @ unit.T)


def stars_of(is_close: NDArray[np.bool_]) -> list[int]:
    """The representative of each row, by going through the rows as the definition says."""
    representative = np.full(len(is_close), -1)
    for row in range(len(is_close)):
        if representative[row] == -1:
            representative[row] = row
            is_later = np.arange(len(is_close)) > row
            representative[is_close[row] & is_later & (representative == -1)] = row
    return representative.tolist()


def groups_in(result: DuplicatesResult) -> list[list[str]]:
    """The rows of each group as `split/key`, the representative first."""
    groups: dict[int, list[str]] = {}
    for row in result.table.to_pylist():
        groups.setdefault(row["group"], []).append(f"{row['split']}/{row['key'].removeprefix('key-')}")
    return list(groups.values())


ROWS = clustered(2000)
SIZES = {"train": 1100, "val": 600, "test": 300}
PARTS = dict(zip(SIZES, ROWS.split([*SIZES.values()]), strict=True))
NAMES = [f"{split}/{row}" for split, count in SIZES.items() for row in range(count)]
PART_OF = np.repeat(range(3), [*SIZES.values()])
SUMS = [f"{row % 700:064}" if row % 9 == 0 else None for row in range(2000)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "store"
    sums = {split: SUMS[at : at + count] for (split, count), at in zip(SIZES.items(), (0, 1100, 1700), strict=True)}
    return store_of(out, PARTS, sums)


def equal_bytes() -> NDArray[np.bool_]:
    sums = np.array([each or f"none-{row}" for row, each in enumerate(SUMS)])
    return np.asarray(sums[:, None] == sums)


@pytest.mark.parametrize("block_rows", [100, 4096])
@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.98, 0.9999, 1.0])
def test_pairs_are_those_of_a_comparison_by_numpy(store: Path, threshold: float, block_rows: int) -> None:
    rows = open_rows(embedx.open(store))
    blocks = tiles.UnitBlocks([rows], CPU, block_rows=block_rows)
    found = np.zeros((2000, 2000), dtype=bool)
    for tile in tiles.tiles(blocks, tiles.pairs_of_blocks(blocks)):
        if close := close_pairs(tile, threshold, blocks.dim, blocks.exact, best_of(tile.similarities)):
            assert not found[np.ix_(close.rows, close.columns)].any()
            found[np.ix_(close.rows, close.columns)] = close.is_close
    expected = similarities_of(ROWS) >= threshold - 1e-9
    above = np.triu(np.ones_like(found), 1)
    assert np.array_equal(found & above, expected & above)


@pytest.mark.parametrize("block_rows", [100, 700, 4096])
@pytest.mark.parametrize("threshold", [0.6, 0.95, 0.999])
def test_groups_are_the_stars_of_a_comparison_by_numpy(
    store: Path, threshold: float, block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "BLOCK_ROWS", block_rows)
    result = duplicates_of(store, config=DuplicatesConfig(threshold=threshold), device=CPU)
    similarities, is_equal = similarities_of(ROWS), equal_bytes()
    is_close = (similarities >= threshold - 1e-9) | is_equal
    representative = stars_of(is_close)
    expected = [
        [NAMES[row] for row, other in enumerate(representative) if other == centre]
        for centre in sorted({*representative})
    ]
    assert groups_in(result) == [group for group in expected if len(group) > 1]
    number = {name: row for row, name in enumerate(NAMES)}
    for row in result.table.to_pylist():
        own = number[f"{row['split']}/{row['key'].removeprefix('key-')}"]
        centre = representative[own]
        assert (row["representative"], row["equal"]) == (f"key-{NAMES[centre].split('/')[1]}", is_equal[own, centre])
        assert row["similarity"] == pytest.approx(1 if is_equal[own, centre] else similarities[own, centre], abs=1e-12)
        assert is_close[own, centre] and row["keep"] == (own == centre)
    np.fill_diagonal(is_close, False)
    pairs = {(pair.part.split, pair.other.split): pair.duplicates for pair in result.pairs}
    for a, split in enumerate(SIZES):
        for b, other in enumerate(SIZES):
            assert pairs[split, other] == is_close[a == PART_OF][:, b == PART_OF].any(axis=1).sum()
    nearest = np.where(is_equal, 1, similarities)
    np.fill_diagonal(nearest, -2)
    for at in result.at_thresholds:
        assert at.rows == (nearest.max(axis=1) >= at.threshold).sum()
    assert sum(each.rows for each in result.histogram) == 2000


@pytest.mark.parametrize("between", [("train", "val"), ("val", "train")])
def test_two_splits_are_compared_with_each_other_alone(store: Path, between: tuple[str, str]) -> None:
    result = duplicates_of(store, config=DuplicatesConfig(threshold=0.97, between=between), device=CPU)
    first, second = (np.flatnonzero([name.startswith(f"{split}/") for name in NAMES]) for split in between)
    is_close = ((similarities_of(ROWS) >= 0.97 - 1e-9) | equal_bytes())[np.ix_(first, second)]
    members = {int(second[place]): int(first[is_close[:, place].argmax()]) for place in np.flatnonzero(is_close.any(0))}
    centres = sorted({*members.values()})
    expected = [[centre, *(row for row in sorted(members) if members[row] == centre)] for centre in centres]
    assert groups_in(result) == [[NAMES[row] for row in group] for group in expected]
    found = [(pair.part.split, pair.other.split, pair.duplicates) for pair in result.pairs]
    a, b = between
    assert found == [(a, b, is_close.any(axis=1).sum()), (b, a, is_close.any(axis=0).sum())]
    assert len(result.leaks) == 2 and result.members == len(members) > 20


def test_two_stores_are_compared_with_each_other_alone(store: Path, tmp_path: Path) -> None:
    other = store_of(tmp_path / "other", {"web": torch.cat([ROWS[[5, 1500]] * 3, -ROWS[:2]])})
    result = duplicates_of(store, other, DuplicatesConfig(threshold=0.9999999), device=CPU)
    rows = result.table.to_pylist()
    stars = [(row["store"], row["split"], row["key"], row["representative"]) for row in rows]
    assert (0, "train", "key-5", "key-5") in stars and (1, "web", "key-0", "key-5") in stars
    assert (0, "val", "key-400", "key-400") in stars and (1, "web", "key-1", "key-400") in stars
    assert result.members == 2 and {pair.other.store for pair in result.leaks} == {0, 1}
    narrowed = duplicates_of(store, other, DuplicatesConfig(threshold=0.9999999, between=("val", "web")), device=CPU)
    assert [part.split for part in narrowed.parts] == ["val", "web"] and narrowed.members == 1


def test_a_threshold_that_float32_can_not_tell_from_a_similarity(store: Path) -> None:
    similarities = similarities_of(ROWS)
    for row, column in [(0, 1), (7, 1999), (1200, 30), (901, 900)]:
        exact = float(abs(similarities[row, column]))
        pair = torch.stack([ROWS[row], ROWS[column] * (1 if similarities[row, column] > 0 else -1)])
        rows = tiles.UnitBlocks([open_rows(embedx.open(store_of(store.parent / f"{row}", {"a": pair})))], CPU)
        (tile,) = tiles.tiles(rows, [(0, 0)])
        for threshold, is_close in ((exact - 1e-8, True), (exact, True), (exact + 1e-8, False)):
            close = close_pairs(tile, threshold, rows.dim, rows.exact, best_of(tile.similarities))
            assert close is not None and close.is_close.any() == is_close


def at_angles(*degrees: float) -> torch.Tensor:
    return torch.tensor([[np.cos(np.radians(each)), np.sin(np.radians(each))] for each in degrees]).float()


def test_a_chain_is_no_group(tmp_path: Path) -> None:
    """10 degrees are close, 20 are not: each row is close to the next one, and the groups stay stars."""
    store = store_of(tmp_path / "store", {"train": at_angles(0, 10, 20, 30, 40)})
    result = duplicates_of(store, config=DuplicatesConfig(threshold=0.98), device=CPU)
    assert groups_in(result) == [["train/0", "train/1"], ["train/2", "train/3"]]
    assert result.table["similarity"].to_pylist() == pytest.approx([1, np.cos(np.pi / 18)] * 2)
    assert [each.rows for each in result.histogram if each.rows] == [5]


def test_the_order_of_the_splits_decides_who_represents(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"train": at_angles(0, 50), "val": at_angles(51, 90)})
    for splits in (("train", "val"), ("val", "train")):
        result = duplicates_of(store, config=DuplicatesConfig(split=splits), device=CPU)
        assert groups_in(result) == [["train/1", "val/0"] if splits[0] == "train" else ["val/0", "train/1"]]


def test_equal_bytes_are_duplicates_whatever_the_vectors(tmp_path: Path) -> None:
    rows = torch.cat([at_angles(0, 90), torch.full((1, 2), torch.nan), torch.zeros(1, 2), at_angles(1, 180)])
    sums: Sums = [letter * 64 if letter else None for letter in ["a", "b", "b", "a", None, None]]
    result = duplicates_of(store_of(tmp_path / "store", {"all": rows}, {"all": sums}), device=CPU)
    assert groups_in(result) == [["all/0", "all/3", "all/4"], ["all/1", "all/2"]]
    assert result.table["equal"].to_pylist() == [True, True, False, True, True]
    assert (result.groups, result.members, result.equal, result.without_direction) == (2, 3, 2, 2)
    assert result.at_thresholds[-1].rows == 5


def test_rows_without_a_direction_are_similar_to_nothing(tmp_path: Path) -> None:
    rows = torch.tensor([[0, 0], [0, 0], [torch.nan, 1], [torch.nan, 1], [torch.inf, 0], [1, 0], [-1, 0]])
    store = store_of(tmp_path / "store", {"all": rows})
    result = duplicates_of(store, config=DuplicatesConfig(threshold=1e-6), device=CPU)
    assert (result.groups, result.without_direction, len(result.table)) == (0, 5, 0)
    assert sum(each.rows for each in result.histogram) == 2


def test_thousands_of_identical_rows_are_quick_and_one_group(tmp_path: Path) -> None:
    rows = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)).repeat(5000, 1)
    store = store_of(tmp_path / "store", {"train": rows[:3000], "val": rows[3000:]}, rows_per_unit=4096)
    for threshold in (0.5, 1.0):
        begun = time.perf_counter()
        result = duplicates_of(store, config=DuplicatesConfig(threshold=threshold), device=CPU)
        assert (result.groups, result.members) == (1, 4999) and time.perf_counter() - begun < 15
        assert [pair.duplicates for pair in result.pairs] == [3000, 3000, 2000, 2000]


def test_one_row_has_no_duplicate(tmp_path: Path) -> None:
    result = duplicates_of(store_of(tmp_path / "store", {"train": at_angles(3)}), device=CPU)
    assert (result.rows, result.groups, len(result.table)) == (1, 0, 0)
    assert sum(each.rows for each in result.histogram) == 0 and not result.leaks


def test_the_largest_file_can_be_kept(tmp_path: Path) -> None:
    rows = {"all": (at_angles(0, 1, 90, 2, 91), [0] * 5)}
    more = {"all": {"bytes": [10, 30, 5, 30, None]}}
    store = write_features(tmp_path / "store", rows, more=more)
    result = duplicates_of(store, config=DuplicatesConfig(keep="largest"), device=CPU)
    kept = [(row["key"], row["keep"]) for row in result.table.to_pylist()]
    assert kept == [("key-0", False), ("key-1", True), ("key-3", False), ("key-2", True), ("key-4", False)]


def test_memory_may_be_too_small_to_keep_any_vector(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DuplicatesConfig(threshold=0.9)
    kept = duplicates_of(store, config=config, device=CPU)
    monkeypatch.setattr(tiles, "KEPT_BYTES", 0)
    assert duplicates_of(store, config=config, device=CPU).table.equals(kept.table)


def test_a_program_s_shorter_products_change_nothing(store: Path) -> None:
    config = DuplicatesConfig(threshold=0.9999)
    expected = duplicates_of(store, config=config, device=CPU)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert duplicates_of(store, config=config, device=CPU).table.equals(expected.table)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, float("nan"), 1.0001, float("inf")])
def test_thresholds_that_mean_nothing(store: Path, threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"--threshold is .*; give a number above 0 and up to 1"):
        duplicates_of(store, config=DuplicatesConfig(threshold=threshold))


def test_stores_of_other_vectors_are_refused(store: Path, tmp_path: Path) -> None:
    other = store_of(tmp_path / "other", {"train": at_angles(1)})
    with pytest.raises(ConfigError, match=r"vectors of 24 numbers, and .* vectors of 2 numbers"):
        duplicates_of(store, other)


def test_a_damaged_shard_is_told_before_anything_is_compared(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", {"train": ROWS[:200]})
    shard = sorted((store / "train").iterdir())[-1]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=shard.name):
        duplicates_of(store, device=CPU)
