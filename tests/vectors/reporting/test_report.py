"""The numbers of a report, on a store with one of every fault."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity

import embedx
from embedx.errors import ConfigError
from embedx.store.reading.reader import Store
from embedx.vectors.reporting.report_data import Categories, Member, Numbers, ReportData
from tests.store.builders import write_features
from tests.vectors import picture_store as planted


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.write_picture_store(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def data(store: Path) -> ReportData:
    return report(store, store.parent / "report.html")


def report(store: Path | Store, out: Path, **settings: Any) -> ReportData:
    settings = {"map": "pca", "overwrite": True, **settings}
    return embedx.report(store, out=out, progress=False, **settings).data


def keys(members: Any) -> list[str]:
    return [finding.member.key for finding in members.shown]


def test_counts_by_split_class_and_reason(data: ReportData) -> None:
    assert [(each.name, each.inputs, each.rows, each.rejected) for each in data.splits] == [
        ("train", 60, 59, 1),
        ("val", 30, 30, 0),
    ]
    assert {each.name: each.rows for each in data.classes} == {"bee": (21, 10), "ant": (19, 10), "cat": (19, 10)}
    assert data.label_name == "class" and data.title == "store"
    (reject,) = data.rejects
    assert (reject.reason, reject.status, reject.count, reject.keys) == ("not an image", "rejected", 1, ("train/20",))
    facts = {fact.name: fact.value for fact in data.facts}
    assert facts["backbone"] == "two_layers" and facts["tensor"] == "embeddings, 16 numbers a row"


def test_the_neighbours_of_each_point_are_those_of_brute_force(data: ReportData) -> None:
    points = data.points
    rows = torch.cat([planted.embeddings()[: planted.REJECTED], planted.embeddings()[planted.REJECTED + 1 :]])
    usable = [row for row in range(len(rows)) if row not in (planted.NAN, planted.CONSTANT)]
    similarities = cosine_similarity(rows[usable].double().numpy())
    np.fill_diagonal(similarities, -2)
    assert points.keys == [key for row, key in enumerate(all_keys()) if row in usable]
    assert (points.neighbours == np.argsort(-similarities, axis=1, kind="stable")[:, :8]).all()
    assert np.abs(points.similarities - -np.sort(-similarities, axis=1)[:, :8]).max() < 1e-6
    assert points.total_rows == 89 and not points.is_sample and points.x.dtype == points.y.dtype == np.uint16
    assert max(np.ptp(points.x), np.ptp(points.y)) == 65535


def all_keys() -> list[str]:
    train = [f"train/{number}" for number in range(planted.TRAIN) if number != planted.REJECTED]
    return [*train, *(f"val/{number}" for number in range(planted.VAL))]


def test_the_planted_faults_are_found_and_no_others(data: ReportData) -> None:
    assert keys(data.dark) == [f"train/{planted.DARK}"]
    assert keys(data.blurry) == [f"train/{planted.BLURRY}"]
    assert keys(data.tiny) == [f"train/{planted.TINY}"]
    assert keys(data.odd_shaped) == [f"train/{planted.ODD}"]
    assert keys(data.degenerate) == [f"train/{planted.NAN}", f"train/{planted.CONSTANT}"]
    assert f"train/{planted.MISLABELLED}" in keys(data.contradicted)
    assert {*keys(data.contradicted)} <= {f"train/{planted.MISLABELLED}", f"train/{planted.OUTLIER}"}
    assert keys(data.outliers)[0] == f"train/{planted.OUTLIER}"
    assert data.dark.looked_at == 87 == sum(picture.data is not None for picture in data.pictures)


def test_the_copy_in_two_splits_is_a_group_and_a_leak(data: ReportData) -> None:
    (group,) = data.duplicates
    assert [(each.key, each.split, each.equal) for each in group.members] == [
        ("train/5", "train", True),
        ("val/5", "val", True),
    ]
    (pair,) = data.leak_pairs
    assert (pair.a.key, pair.b.key, pair.b.similarity) == ("train/5", "val/5", 1.0)
    assert data.leaks.counts.tolist() == [[0, 1], [1, 0]] and data.leaks.rows == 2
    facts = data.duplicate_facts
    assert (facts.groups, facts.rows, facts.equal, facts.rows_looked_at) == (1, 1, 1, 87)
    assert sum(facts.histogram) == 87 and dict(facts.at_thresholds)[0.999] == 2


def test_pictures_are_those_of_the_inputs_and_what_has_gone_or_changed_says_so(store: Path, data: ReportData) -> None:
    assert len(data.pictures) == 89
    faults = {key: data.pictures[number].fault for key, number in picture_of(data).items()}
    assert "has changed" in (faults[f"train/{planted.CHANGED}"] or "")
    assert faults[f"train/{planted.GONE}"] and data.pictures[picture_of(data)[f"train/{planted.GONE}"]].data is None
    assert sum(fault is not None for fault in faults.values()) == 2
    shown = data.pictures[picture_of(data)["train/1"]]
    assert shown.data is not None and (shown.width, shown.height) == (240, 240)
    with Image.open(io.BytesIO(shown.data)) as small, Image.open(store.parent / "images" / "train-1.jpg") as whole:
        difference = np.asarray(small.convert("RGB"), float) - np.asarray(whole.resize(small.size), float)
        assert small.size == (96, 96) and np.abs(difference).mean() < 15


def picture_of(data: ReportData) -> dict[str, int]:
    return dict(zip(data.points.keys, data.points.picture.tolist(), strict=True))


def test_columns_of_the_source_colour_the_map_and_are_shown(data: ReportData) -> None:
    points = data.points
    assert list(points.colours) == ["class", "split", "outlier score", "camera", "height_m"]
    assert list(points.metadata) == ["path", "camera", "height_m"]
    camera, height = points.colours["camera"], points.colours["height_m"]
    assert isinstance(camera, Categories) and isinstance(height, Numbers)
    numbers = [int(key.partition("/")[2]) for key in points.keys]
    assert [camera.names[code] for code in camera.codes] == [f"camera-{number % 2}" for number in numbers]
    assert height.values.tolist() == [number / 2 for number in numbers]
    assert points.metadata["camera"] == [f"camera-{number % 2}" for number in numbers]
    scores = points.colours["outlier score"]
    assert isinstance(scores, Numbers) and np.isfinite(scores.values).all()


def test_a_column_that_says_the_class_again_is_shown_only_if_asked_for(store: Path, tmp_path: Path) -> None:
    assert "species" in Store.open(store).column_names()
    for column in ("species", "camera"):
        points = report(store, tmp_path / "report.html", color=[column], no_images=True).points
        assert list(points.colours) == ["class", "split", "outlier score", column]


def test_members_point_to_their_points_and_pictures(data: ReportData) -> None:
    def check(member: Member) -> None:
        if member.point >= 0:
            assert data.points.keys[member.point] == member.key
            assert data.points.picture[member.point] == member.picture

    for group in data.duplicates:
        for member in group.members:
            check(member)
    for name in ("outliers", "contradicted", "dark"):
        for finding in getattr(data, name).shown:
            check(finding.member)
    assert all(finding.member.point == -1 for finding in data.degenerate.shown)


def test_the_same_store_gives_the_same_bytes(store: Path, tmp_path: Path) -> None:
    pages = [tmp_path / name for name in ("one.html", "two.html")]
    for page in pages:
        report(store, page, map="tsne", points=60)
    assert pages[0].read_bytes() == pages[1].read_bytes()
    report(store, pages[1], map="tsne", points=60, seed=1)
    assert pages[0].read_bytes() != pages[1].read_bytes()


def test_samples_have_every_class_of_every_split_and_are_told(store: Path, tmp_path: Path) -> None:
    data = report(store, tmp_path / "report.html", compare=40, points=10, no_images=True)
    points, classes = data.points, data.points.colours["class"]
    assert isinstance(classes, Categories)
    assert {*zip(points.splits.tolist(), classes.codes.tolist(), strict=True)} == {
        (a, b) for a in (0, 1) for b in range(3)
    }
    assert len(points.keys) == 10 and points.total_rows == 89 and data.duplicate_facts.rows_looked_at == 40
    assert any("40 of 87 rows" in notice for notice in data.notices) and points.is_sample
    assert points.neighbours.max() < 10 and (points.neighbours != np.arange(10)[:, None]).all()


def test_no_pictures_are_read_where_none_may_leave(store: Path, tmp_path: Path) -> None:
    data = report(store, tmp_path / "report.html", no_images=True)
    assert data.pictures == () and not data.images_shown and (data.points.picture == -1).all()
    assert data.dark.looked_at == 0 and any("--no-images" in notice for notice in data.notices)


def test_splits_and_conditions_choose_the_rows(store: Path, tmp_path: Path) -> None:
    data = report(store, tmp_path / "report.html", split="val", where="camera = 'camera-0'", no_images=True)
    assert data.points.keys == [f"val/{number}" for number in range(0, 30, 2)]
    assert [each.name for each in data.splits] == ["val"] and data.leaks.counts.tolist() == [[0]]
    assert any("camera = 'camera-0'" in notice for notice in data.notices)


def test_places_of_one_s_own(store: Path, tmp_path: Path) -> None:
    places = np.random.default_rng(0).random((89, 2))
    np.save(tmp_path / "places.npy", places)
    by_array = report(store, tmp_path / "report.html", map=tmp_path / "places.npy", no_images=True)
    usable = [row for row in range(89) if row not in (planted.NAN, planted.CONSTANT)]
    x = by_array.points.x.astype(float)
    assert np.corrcoef(x, places[usable, 0])[0, 1] > 0.999999
    table = pa.table({"key": all_keys()[::-1], "x": places[::-1, 0], "y": places[::-1, 1]}).slice(9)
    pa.parquet.write_table(table, tmp_path / "places.parquet")
    by_key = report(store, tmp_path / "report.html", map=str(tmp_path / "places.parquet"), no_images=True)
    assert by_key.points.keys == by_array.points.keys[:-9]
    assert any("without a place" in notice for notice in by_key.notices)


@pytest.mark.parametrize("rows", [1, 2, 3, 10])
@pytest.mark.parametrize("kind", ["different", "equal", "nan"])
def test_few_equal_and_broken_rows_make_a_page(rows: int, kind: str, tmp_path: Path) -> None:
    values = {"different": torch.eye(rows, 12), "equal": torch.ones(rows, 12), "nan": torch.full((rows, 12), torch.nan)}
    path = write_features(tmp_path / "store", {"train": (values[kind], [None] * rows)})
    data = report(path, tmp_path / "report.html", map="tsne")
    assert len(data.points.keys) == (0 if kind == "nan" else rows)
    assert data.degenerate.total == (0 if kind == "different" else rows)
    assert data.label_name == "" and data.contradicted.total == 0
    assert data.duplicate_facts.groups == (1 if kind == "equal" and rows > 1 else 0)
    assert all(picture.fault and picture.data is None for picture in data.pictures)


def test_a_store_whose_inputs_have_gone_is_reported_without_pictures(tmp_path: Path) -> None:
    store = planted.write_picture_store(tmp_path)
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    data = report(store, tmp_path / "report.html")
    assert len(data.pictures) == 89 and all(picture.data is None and picture.fault for picture in data.pictures)
    assert data.dark.looked_at == 0 and len(data.points.keys) == 87


def test_a_setting_that_is_not_there_is_told(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown setting 'colour'; did you mean color"):
        report(store, tmp_path / "report.html", colour=["camera"])


@pytest.mark.parametrize("column", ["status", "camra"])
def test_a_column_that_can_not_be_shown_is_told(store: Path, tmp_path: Path, column: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown column '{column}'; did you mean"):
        report(store, tmp_path / "report.html", color=[column], no_images=True)


def test_a_row_with_duplicates_in_two_splits_is_one_that_leaks(tmp_path: Path) -> None:
    rows = torch.eye(9, 12)
    splits = {"train": (rows[:4], [None] * 4), "val": (rows[3:6], [None] * 3), "test": (rows[3:4], [None])}
    data = report(write_features(tmp_path / "store", splits), tmp_path / "report.html")
    assert data.leaks.counts.sum() == 6 and data.leaks.rows == 3
    assert "3 rows have a duplicate in another split" in (tmp_path / "report.html").read_text()


def test_a_reading_that_ends_leaves_the_other_pictures(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedx.errors import LoaderError
    from embedx.vectors.reporting.report import Stages, gather
    from embedx.vectors.reporting.report_config import ReportConfig
    from embedx.vectors.reporting.report_pictures import ReadPicture

    def read(_: Store, rows: pa.Table) -> Iterator[ReadPicture]:
        for _row in range(3):
            yield ReadPicture(b"picture", None, 100, 100, 0.5, 100.0)
        raise LoaderError("two processes have died")

    config = ReportConfig(out=store.parent / "x.html", map="pca")
    data = gather(Store.open(store), config, read, device=torch.device("cpu"), stages=Stages())
    assert [picture.data for picture in data.pictures[:4]] == [b"picture"] * 3 + [None]
    assert "two processes have died" in (data.pictures[-1].fault or "")
