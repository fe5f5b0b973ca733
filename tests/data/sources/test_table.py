"""Tables as sources and end to end; the reference for embeddings is the folder of the same images."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import os
import pickle
import shutil
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedx
from embedx import ExtractConfig, sample
from embedx.data.plan import build_plan
from embedx.data.reading.files import RejectedInputError
from embedx.data.sources import parse_data
from embedx.data.sources import table as table_module
from embedx.data.sources.base import COMMON_SCHEMA, Source
from embedx.data.sources.kinds import SourceOptions
from embedx.data.sources.root import Root
from embedx.data.sources.table import EmbeddedReader
from embedx.data.sources.table_file import TableFile
from embedx.errors import ConfigError
from embedx.run.extract import extract
from embedx.store.reading.verify import verify
from tests.data.sources.abilities import needs_views

pytestmark = pytest.mark.usefixtures("one_thread")

TAKEN = datetime.date(2024, 1, 31)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each of four classes."""
    root = tmp_path_factory.mktemp("images")
    for folder in sorted((sample.IMAGES / "val").iterdir())[:4]:
        (root / folder.name).mkdir()
        for image in sorted(folder.iterdir())[:2]:
            shutil.copy(image, root / folder.name)
    return root


@pytest.fixture(scope="module")
def reference(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Each image's embedding, by its path below the folder."""
    out = tmp_path_factory.mktemp("reference") / "store"
    extract(config(out, str(images)))
    rows = embedx.open(out).load("all")
    return dict(zip(rows.keys, rows.embeddings, strict=True))


def config(out: Path, *data: str, **settings: Any) -> ExtractConfig:
    defaults: dict[str, Any] = {
        "backbone": sample.BACKBONE,
        "weights": "sample",
        "batch_size": 4,
        "workers": 0,
        "out": out,
    }
    return ExtractConfig(**defaults | {"data": data} | settings)


def names(images: Path) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in sorted(images.rglob("*.*"))]


def described(images: Path) -> list[dict[str, Any]]:
    """A row per image, in an order that is not that of the names; train has every other one."""
    rows = [
        {
            "image": name,
            "id": f"{number:03d}",
            "species": name.split("/")[0],
            "part": ("train", "val")[number % 2],
            "age": 30 + number,
            "weight": number / 4,
            "seen": number % 3 == 0,
            "taken": TAKEN + datetime.timedelta(number),
        }
        for number, name in enumerate(names(images))
    ]
    return rows[::-1]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as a table of the format that the name says."""
    name = path.name.removesuffix(".gz")
    plain = path.with_name(name)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), plain)
    elif name.endswith(".jsonl"):
        plain.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
    else:
        with plain.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0], delimiter="\t" if name.endswith(".tsv") else ",")
            table.writeheader()
            table.writerows(rows)
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def source(location: str | Path, **options: Any) -> Source:
    (only,) = parse_data([str(location)], SourceOptions(**options)).values()
    return only


def column(location: str | Path, name: str, **options: Any) -> list[Any]:
    return source(location, **options).scan()[name].to_pylist()


def faults(location: str | Path, group_key: str | None = None, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_plan(parse_data([str(location)], SourceOptions(**options)), group_key)
    return str(caught.value)


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.tsv.gz", "t.jsonl", "t.jsonl.gz", "t.parquet", "t.parquet.gz"])
def test_a_table_of_any_format_gives_the_folder_s_embeddings_with_targets_groups_and_typed_metadata(
    tmp_path: Path, images: Path, reference: dict[str, np.ndarray], name: str
) -> None:
    rows = described(images)
    table = write(tmp_path / name, rows)
    columns = {"key_column": "id", "target_column": "species", "split_column": "part", "root": str(images)}
    workers = 2 if name == "t.parquet" else 0
    extract(config(tmp_path / "store", str(table), **columns, group_key="species", workers=workers))
    assert list(verify(tmp_path / "store")) == []
    store = embedx.open(tmp_path / "store")
    assert sorted(store.splits) == ["train", "val"]
    classes = sorted({row["species"] for row in rows})
    assert store.manifest.plan.classes == tuple(classes)
    by_id = {row["id"]: row for row in rows}
    for split in store.splits:
        loaded = store.load(split)
        assert sorted(loaded.keys) == sorted(row["id"] for row in rows if row["part"] == split)
        for key, target, embedding in zip(loaded.keys, loaded.targets.tolist(), loaded.embeddings, strict=True):
            assert np.array_equal(embedding, reference[by_id[key]["image"]])
            assert target == classes.index(by_id[key]["species"])
    index = store.index()
    as_read = datetime.datetime.combine if name.startswith("t.jsonl") else lambda day, _: day
    for row in index.to_pylist():
        given = by_id[row["key"]]
        assert {name: row[name] for name in ("species", "age", "weight", "seen")} == {
            name: given[name] for name in ("species", "age", "weight", "seen")
        }
        assert row["group"] == given["species"]
        assert row["taken"] == as_read(given["taken"], datetime.time())
    types = {field.name: field.type for field in index.schema}
    assert (types["age"], types["weight"], types["seen"]) == (pa.int64(), pa.float64(), pa.bool_())


def test_the_first_usual_name_is_the_path_and_relative_paths_begin_beside_the_table(
    tmp_path: Path, images: Path
) -> None:
    shutil.copytree(images, tmp_path / "images")
    rows = [{"file": f"images/{name}", "filename": "?", "label": number} for number, name in enumerate(names(images))]
    table = write(tmp_path / "list.CSV", rows)
    content = source(table).scan()
    assert content.column_names == [*COMMON_SCHEMA.names, "target", "filename", "label"]
    first = content.to_pylist()[1]
    path = tmp_path / "images" / names(images)[1]
    assert (first["key"], first["path"]) == (rows[1]["file"], os.fsencode(path))
    assert (first["size"], first["mtime_ns"]) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert content["target"].to_pylist() == list(range(8)) and content["target"].type == pa.int64()
    assert set(parse_data([f"mine={table}"])) == {"mine"} and set(parse_data([str(table)])) == {"all"}


def test_absolute_paths_urls_and_files_that_are_gone(tmp_path: Path) -> None:
    table = text(tmp_path / "t.csv", "path\n/somewhere/a.jpg\nhttps://host/b.jpg\n../c.jpg\n")
    assert column(table, "path") == [b"/somewhere/a.jpg", b"https://host/b.jpg", b"%s/../c.jpg" % bytes(tmp_path)]
    assert column(table, "size") == column(table, "mtime_ns") == [None] * 3


def test_cells_are_text_where_text_is_meant_and_typed_elsewhere(tmp_path: Path) -> None:
    table = text(
        tmp_path / "t.csv",
        'path,id,part,n,word,mixed\n007,01,1,NA,NA,1\n008,02,1,4,,x\n"two\nlines, ""quoted""",03,1,5,"b, c",2.5\n',
    )
    content = source(table, key_column="id", split_column="part").scan().to_pylist()
    assert [row["key"] for row in content] == ["01", "02", "03"]
    assert os.path.basename(content[0]["path"]) == b"007"
    assert content[2]["path"].endswith(b'/two\nlines, "quoted"')
    assert [row["n"] for row in content] == [None, 4, 5]
    assert [row["word"] for row in content] == ["NA", None, "b, c"]
    assert [row["mixed"] for row in content] == ["1", "x", "2.5"]
    dates = text(tmp_path / "t.jsonl", '{"path": "2024-01-31", "id": 5}\n{"path": "2024-02-01", "id": 6}')
    assert column(dates, "key", key_column="id") == ["5", "6"]
    assert os.path.basename(column(dates, "path")[0]) == b"2024-01-31"


def test_nested_metadata_of_json_lines_goes_through_to_the_index(tmp_path: Path, images: Path) -> None:
    boxes = [{"box": [number, 2, 3], "by": {"name": "ann", "sure": number % 2 == 0}} for number in range(8)]
    rows = [{"path": name} | box for name, box in zip(names(images), boxes, strict=True)]
    table = write(tmp_path / "t.jsonl", rows)
    extract(config(tmp_path / "store", str(table), root=str(images)))
    index = embedx.open(tmp_path / "store").index().sort_by("index")
    assert [{"box": row["box"], "by": row["by"]} for row in index.to_pylist()] == boxes
    assert index["target"].null_count == 8


def test_half_a_surrogate_pair_is_escaped_and_a_whole_one_is_a_character(tmp_path: Path) -> None:
    lines = '{"path": "a", "note": "\\ud800x", "n": {"a": "\\udc00"}}\n{"path": "b", "note": "\\ud83d\\ude00"}\n'
    table = text(tmp_path / "a.jsonl", lines)
    assert column(table, "note") == ["\\ud800x", "\N{GRINNING FACE}"]
    assert column(table, "n") == ['{"a": "\\udc00"}', None]


def test_only_the_named_split_is_taken_and_splits_stand_in_the_order_of_the_table(tmp_path: Path) -> None:
    table = text(tmp_path / "t.csv", "path,part\na,val\nb,train\nc,val\n")
    options = SourceOptions(split_column="part")
    assert list(parse_data([str(table)], options)) == ["val", "train"]
    named = parse_data([f"val={table}"], options)
    assert list(named) == ["val"] and named["val"].scan()["key"].to_pylist() == ["a", "c"]
    with pytest.raises(ConfigError, match="'part' names no such split; it has val, train"):
        parse_data([f"test={table}"], options)


@pytest.mark.parametrize(
    ("values", "targets"),
    [
        (pa.array(["b", None, "a"]), ["b", None, "a"]),
        (pa.array(["b", "b", "a"], pa.large_string()), ["b", "b", "a"]),
        (pa.array(["b", "b", "a"]).dictionary_encode(), ["b", "b", "a"]),
        (pa.array([3, None, 0], pa.uint8()), [3, None, 0]),
        (pa.nulls(3), [None] * 3),
        pytest.param(pa.array(["b", None, "a"], pa.string_view()), ["b", None, "a"], marks=needs_views),
        pytest.param(pa.array([b"b", b"caf\xe9", None], pa.binary_view()), ["b", r"caf\xe9", None], marks=needs_views),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array([1.0, float("nan"), -2.0]), [1, None, -2]),
        (pa.array([Decimal("1.00"), None, Decimal("7.00")]), [1, None, 7]),
        (pa.array([datetime.date(2024, 1, 31), None, datetime.date(2023, 1, 1)]), ["2024-01-31", None, "2023-01-01"]),
        (pa.array([2**64 - 1, 0, 0], pa.uint64()), ["18446744073709551615", "0", "0"]),
        (pa.array([0.5, 1, 2]), "double with fractions"),
        (pa.array([1.0, 2.0**53, 1e300]), ["1", "9.007199254740992e+15", "1e+300"]),
        (pa.array([Decimal("0.50"), None, Decimal("1.00")]), "decimal128(3, 2) with fractions"),
        (pa.array([[1], [2], None]), "list<element: int64>"),
        (pa.array([{"a": 1}] * 3), "struct<a: int64>"),
    ],
)
def test_targets_are_names_or_whole_numbers_or_it_is_told_why_not(
    tmp_path: Path, values: pa.Array, targets: list[Any] | str
) -> None:
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"path": ["x", "y", "z"], "label": values}), table)
    told = source(table)
    if isinstance(targets, str):
        assert column(table, "target") == [None] * 3
        (notice,) = told.notices
        assert notice.startswith(f"{table}: the column 'label' is {targets}, and no target; give a column of class")
        message = faults(table, target_column="label")
        assert f"--target-column 'label' is {targets}; give one of class names or whole numbers" in message
    else:
        assert column(table, "target") == targets and told.notices == ()


def embed(path: Path, structs: Iterable[dict[str, Any] | None], **columns: Any) -> Path:
    """The layout of Hugging Face's image datasets, in row groups of three."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(list(structs), kind), **columns})
    pq.write_table(table, path, row_group_size=3)
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_images_embedded_in_parquet_give_the_folder_s_embeddings(
    tmp_path: Path, images: Path, reference: dict[str, np.ndarray], workers: int
) -> None:
    listed = names(images)
    structs = [{"bytes": (images / name).read_bytes(), "path": name} for name in listed]
    labels = [index // 2 for index in range(8)]
    extra = [{"bytes": b"a mask", "path": "mask.png"}] * 8
    table = embed(tmp_path / "train.parquet", structs, label=labels, mask=extra)
    out = tmp_path / "store"
    extract(config(out, f"train={table}", group_key="label", workers=workers, batch_size=3))
    assert list(verify(out)) == []
    rows = embedx.open(out).load("train")
    assert rows.keys == listed and rows.targets.tolist() == labels
    assert all(np.array_equal(row, reference[key]) for key, row in zip(rows.keys, rows.embeddings, strict=True))
    index = embedx.open(out).index().to_pylist()
    assert {row["path"] for row in index} == {str(table)} and {row["mask"] for row in index} == {"mask.png"}
    assert [row["group"] for row in index] == [str(label) for label in labels]


def test_rows_without_bytes_name_a_file_or_are_rejected(tmp_path: Path, images: Path) -> None:
    first, second, *_ = names(images)
    shutil.copytree(images, tmp_path / "images")
    data = (images / first).read_bytes()
    structs: list[dict[str, Any] | None] = [
        {"bytes": data, "path": None},
        {"bytes": None, "path": f"images/{second}"},
        {"bytes": None, "path": None},
        None,
        {"bytes": None, "path": "../x.png"},
    ]
    table = embed(tmp_path / "t.parquet", structs)
    content = source(table).scan()
    assert content["key"].to_pylist() == [f"row-000000{number}" for number in range(5)]
    assert content["offset"].to_pylist() == list(range(5)) and content["size"].null_count == 5
    assert set(content["mtime_ns"].to_pylist()) == {table.stat().st_mtime_ns}
    reader = pickle.loads(pickle.dumps(source(table).reader))
    assert reader.read(bytes(table), 0, None) == data
    assert reader.read(bytes(table), 1, None) == (images / second).read_bytes()
    for row in (2, 3):
        with pytest.raises(RejectedInputError, match="neither bytes nor a path"):
            reader.read(bytes(table), row, None)
    with pytest.raises(RejectedInputError, match="leads out of --root"):
        EmbeddedReader(SourceOptions(root=str(tmp_path))).read(bytes(table), 4, None)
    with pytest.raises(RejectedInputError, match="can't be read"):
        reader.read(bytes(table), 5, None)
    with pytest.raises(RejectedInputError, match="No such file"):
        reader.read(bytes(tmp_path / "gone.parquet"), 0, None)
    extract(config(tmp_path / "store", str(table)))
    assert embedx.open(tmp_path / "store").load("all").keys == ["row-0000000", "row-0000001"]


def test_bytes_alone_are_enough(tmp_path: Path, images: Path) -> None:
    data = (images / names(images)[0]).read_bytes()
    pq.write_table(pa.table({"picture": [{"bytes": data}]}), tmp_path / "t.parquet.tmp")
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress((tmp_path / "t.parquet.tmp").read_bytes()))
    only = source(tmp_path / "t.parquet.gz", path_column="picture")
    assert only.scan()["key"].to_pylist() == ["row-0000000"]
    assert only.reader.read(bytes(tmp_path / "t.parquet.gz"), 0, None) == data


BAD: dict[str, tuple[str, str | bytes, dict[str, Any], str]] = {
    "missing path column": ("a.csv", "x,y\n1,2\n", {}, "none of x, y is named path, image, file, filename"),
    "missing columns": (
        "a.csv",
        "path,y\n1,2\n",
        {"key_column": "id", "split_column": "part"},
        "there is no --key-column 'id'; its columns are path, y",
    ),
    "nothing at all": ("a.csv", "", {}, "the table is empty"),
    "header alone": ("a.csv", "path,y\n", {}, "the table has no rows"),
    "no json": ("a.jsonl", "", {}, "the table is empty"),
    "blank lines": ("a.jsonl", "\n\n", {}, "the table is empty"),
    "short line": ("a.csv", 'path,y\n"a\nb",1\n\nc\nd,2\n', {}, "line 5 has 1 cells, and the header 2"),
    "long line": ("a.tsv", "path\ty\na\t1\tx\n", {}, "line 2 has 3 cells, and the header 2"),
    "open quote": ("a.csv", 'path,y\na,1\n"b,2\n' + "c,3\n" * 60000, {}, "line 3 has "),
    "broken json": ("a.jsonl", '{"path": "a"}\n\n{"path": "b"}\n{"path": \n', {}, "line 4: "),
    "no json at all": ("a.jsonl", '{"path": "a"}\nnope\n', {}, "line 2: Invalid value"),
    "json array": ("a.jsonl", '{"path": "a"}\n["b"]\n', {}, "line 2: "),
    "no text": ("a.csv", b"path,y\na,1\n\xff,2\n", {}, "line 3 is not UTF-8"),
    "no text in json": ("a.jsonl", b'{"path": "a"}\n{"path": "\xff"}\n', {}, "line 2 is not UTF-8"),
    "no gzip": ("a.csv.gz", "path\na\n", {}, "can't be read (Not a gzipped file"),
    "no parquet": ("a.parquet", "path\na\n", {}, "can't be read as Parquet"),
    "no path": ("a.csv", "path,y\na,1\n\n,2\n", {}, "line 4 has no value in the column 'path'"),
    "null path": ("a.jsonl", '{"path": "a"}\n{"path": null}\n', {}, "line 2 has no value in the column 'path'"),
    "null split": (
        "a.csv",
        "path,part\na,train\nb,\n",
        {"split_column": "part"},
        "line 3 has no value in the column 'part'",
    ),
    "null key": ("a.csv", "path,id\na,\nb,2\n", {"key_column": "id"}, "line 2 has no value in the column 'id'"),
    "duplicate keys": ("a.csv", "path\na\nb\na\n", {}, "1 keys occur more than once, such as 'a'"),
    "two columns, one name": ("a.csv", "path,x,x\na,1,2\n", {}, "two columns are named 'x'"),
    "reserved name": ("a.csv", "path,split\na,train\n", {}, "columns can't be named split"),
    "another path": ("a.csv", "path,image\na,b\n", {"path_column": "image"}, "columns can't be named path"),
    "path that is no text": ("a.jsonl", '{"path": ["a"]}\n', {}, "'path' is list<item: string>"),
    "NUL in a path": ("a.jsonl", '{"path": "a"}\n{"path": "a\\u0000b"}\n', {}, r"line 2: the path 'a\x00b' has a NUL"),
    "no such root": ("a.csv", "path\na\n", {"root": "/no/where"}, "--root /no/where: there is no such folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_told_by_what_is_wrong_and_where(tmp_path: Path, case: str) -> None:
    name, content, options, message = BAD[case]
    assert message in faults(text(tmp_path / name, content), **options)


def test_missing_rows_of_parquet_are_named_by_their_number(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a", None, None]}), tmp_path / "a.parquet")
    assert "row 1, counting from 0 has no value in the column 'path' (2 in all); fill it in" in faults(
        tmp_path / "a.parquet"
    )


def test_a_table_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    assert "a.csv: can't be read (No such file or directory)" in faults(tmp_path / "a.csv")
    assert "can't be read as Parquet (No such file or directory)" in faults(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "path", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "{root}-other/x.jpg", "https://h/x.jpg", "."]
)
def test_no_path_leads_out_of_a_root_that_was_given(tmp_path: Path, path: str) -> None:
    (tmp_path / "root").mkdir()
    path = path.format(root=tmp_path / "root")
    table = text(tmp_path / "t.csv", f"path\na.jpg\n{path}\n")
    assert f"line 3: the path {path!r} leads out of --root" in faults(table, root=str(tmp_path / "root"))


def test_a_root_may_be_named_in_full_or_be_a_url(tmp_path: Path) -> None:
    table = text(tmp_path / "t.csv", f"path\na/../b.jpg\n{tmp_path}/c.jpg\n")
    here = bytes(tmp_path)
    assert column(table, "path", root=str(tmp_path)) == [here + b"/b.jpg", here + b"/c.jpg"]
    assert Root("s3://bucket/images", closed=True).locate("./a.jpg") == "s3://bucket/images/a.jpg"
    assert Root.of("https://host/list/t.csv", None).locate("a.jpg") == "https://host/list/a.jpg"
    with pytest.raises(ValueError, match="leads out of"):
        Root("s3://bucket/images", closed=True).locate("../a.jpg")


def test_options_of_tables_without_a_table_are_refused(images: Path) -> None:
    message = faults(images, path_column="path", root="/")
    assert "--path-column is for tables, and no source is of that kind" in message and "--root is for tables" in message


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("folder", ["photos", "https://host/photos"])
def test_paths_are_located_as_they_are_singly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, closed: bool
) -> None:
    """Most are not looked at singly; chunks are of two rows here."""
    monkeypatch.setattr(table_module, "_CHUNK", 2)
    root = Root(folder if "://" in folder else str(tmp_path / folder), closed=closed)
    inside = [
        "a.jpg",
        "a/b.jpg",
        ".a/..b/c..",
        "a/./b",
        "a//b",
        "./a",
        "a/../b",
        "é\n/a",
        "%41",
        "a?b#c",
        "x:/y",
        "...",
    ]
    outside = [] if closed else ["/etc/a", "https://other/a", "../a", "a/../../b"]
    paths = [*inside, *outside]
    (tmp_path / "list.csv").write_text("path\na\n")
    file = TableFile(str(tmp_path / "list.csv"))
    located = table_module._located(file, pa.chunked_array([paths[:3], paths[3:]], pa.string()), root)
    assert located.to_pylist() == [root.locate(path).encode() for path in paths]
