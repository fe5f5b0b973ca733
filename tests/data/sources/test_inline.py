"""Images in columns of tables, and how paths and texts of other systems are read; Pillow's pixels are the reference."""

from __future__ import annotations

import base64
import io
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from embedx.data.plan import build_plan
from embedx.data.reading.files import RejectedInputError
from embedx.data.sources import parse_data
from embedx.data.sources.base import Source
from embedx.data.sources.kinds import SourceOptions
from embedx.errors import ConfigError
from tests.data.sources.abilities import needs_views


def image(shade: int, form: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), shade, np.uint8)).save(content, form)
    return content.getvalue()


IMAGES = [image(10), image(200, "JPEG"), image(90, "WEBP"), image(30, "TIFF"), image(60, "GIF"), image(80, "BMP")]


def source(location: Path, **options: Any) -> Source:
    (only,) = parse_data([str(location)], SourceOptions(**options)).values()
    return only


def contents(location: Path, **options: Any) -> list[bytes | None]:
    """What a worker process reads for each row, None where it rejects it; the index never holds the images."""
    opened = source(location, **options)
    table = opened.scan()
    assert set(table["path"].to_pylist()) == {bytes(location)} and table["offset"].to_pylist() == list(
        range(len(table))
    )
    assert table["key"].to_pylist() == [f"row-{row:07d}" for row in range(len(table))]
    assert max(len(str(cell)) for row in table.to_pylist() for cell in row.values()) < 300
    reader, found = pickle.loads(pickle.dumps(opened.reader)), []
    for place in table.select(["path", "offset", "size"]).to_pylist():
        try:
            found.append(reader.read(*place.values()))
        except RejectedInputError:
            found.append(None)
    return found


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pytest.param(pa.binary_view(), marks=needs_views)], ids=str
)
@pytest.mark.parametrize(("name", "option"), [("image", None), ("path", None), ("jpg", "jpg")])
def test_a_column_of_bytes_is_the_images(tmp_path: Path, kind: pa.DataType, name: str, option: str | None) -> None:
    table = pa.table({name: pa.array([*IMAGES, None], kind), "label": range(7)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    assert contents(tmp_path / "t.parquet", path_column=option) == [*IMAGES, None]
    assert source(tmp_path / "t.parquet", path_column=option).metadata == ("label",)


def test_a_column_of_bytes_may_be_paths_and_one_of_structs_has_any_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    pq.write_table(pa.table({"path": pa.array([b"a.png"], pa.binary())}), tmp_path / "t.parquet")
    assert source(tmp_path / "t.parquet").scan()["path"].to_pylist() == [bytes(tmp_path / "a.png")]
    pq.write_table(pa.table({"img": [{"bytes": IMAGES[1], "path": None}], "n": [1]}), tmp_path / "s.parquet")
    assert contents(tmp_path / "s.parquet") == [IMAGES[1]]


def spelled(form: str) -> list[str]:
    texts = [base64.b64encode(content).decode() for content in IMAGES]
    if form == "urlsafe":
        return [base64.urlsafe_b64encode(content).decode().rstrip("=") for content in IMAGES]
    if form == "wrapped":
        return ["\n".join(text[at : at + 76] for at in range(0, len(text), 76)) for text in texts]
    return [f"data:image/png;base64,{text}" for text in texts] if form == "data" else texts


@pytest.mark.parametrize("form", ["plain", "urlsafe", "wrapped", "data"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "csv.gz", "parquet"])
def test_a_column_of_base64_is_the_images(tmp_path: Path, suffix: str, form: str) -> None:
    table = tmp_path / f"t.{suffix}"
    frame = pd.DataFrame({"id": range(6), "image": spelled(form)})
    if suffix == "jsonl":
        frame.to_json(table, orient="records", lines=True)  # which escapes each `/`
    elif suffix == "parquet":
        frame.to_parquet(table, row_group_size=4)
    else:
        frame.to_csv(table, index=False, sep="\t" if suffix == "tsv" else ",")
    assert contents(table) == IMAGES


def test_rows_of_base64_that_are_none_are_rejected_and_paths_among_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    rows = ["a.png", "data:image/png;base64,@@", "data:image/svg+xml,<svg/>", spelled("data")[1], "gone.png"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"image": text}) + "\n" for text in rows))
    assert contents(tmp_path / "t.jsonl") == [IMAGES[0], None, None, IMAGES[1], None]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_tables_in_other_encodings_of_unicode(tmp_path: Path, form: str, encoding: str) -> None:
    comma = "\t" if form == "tsv" else ","
    text = '{"file_name": "é.png", "x": "ü"}\n' if form == "jsonl" else f"file_name{comma}x\né.png{comma}ü\n"
    (tmp_path / f"t.{form}").write_bytes(text.encode(encoding))
    (row,) = source(tmp_path / f"t.{form}").scan().to_pylist()
    assert (row["key"], row["path"], row["x"]) == ("é.png", bytes(tmp_path / "é.png"), "ü")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_lists_in_other_encodings_of_unicode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str) -> None:
    content = f"é.png\r\nfile://{tmp_path}/a%20b.png\r\n".encode(encoding)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False))
    table = parse_data(["-"], SourceOptions())["all"].scan()
    assert table["key"].to_pylist() == ["é.png", f"file://{tmp_path}/a%20b.png"]
    assert table["path"].to_pylist()[1] == bytes(tmp_path / "a b.png")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_tables_in_no_encoding_of_unicode_are_refused_with_the_likely_one(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes("path,x\na,b\nb,café au lait\n".encode(encoding))
    with pytest.raises(ConfigError, match="line 3 is not UTF-8 text, but reads 'b,café au lait' as Windows-1252; con"):
        source(tmp_path / "t.csv")


def test_file_urls_and_paths_of_windows(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for name in ("cat/a b.png", "cat/c.png", r"d\e.png"):
        (tmp_path / name).write_bytes(IMAGES[0])
    rows = [f"file://{tmp_path}/cat/a%20b.png", r"cat\c.png", r".\cat\c.png", r"d\e.png", r"C:\gone.png"]
    table = tmp_path / "t.tsv"
    table.write_text("".join(f"{row}\n" for row in ["path", *rows]))
    content = source(table).scan()
    assert content["key"].to_pylist() == rows
    assert [Path(path.decode()).resolve() for path in content["path"].to_pylist()] == [
        tmp_path / name for name in ("cat/a b.png", "cat/c.png", "cat/c.png", r"d\e.png", r"C:\gone.png")
    ]
    assert build_plan(parse_data([str(table)]), None).notices == (
        f"{table}: 2 paths have \\ where the files have /, and are read so",
    )
    table.write_text("path\nfile://server/share/a.png\n")
    with pytest.raises(ConfigError, match=r"line 2: the path file://server/share/a\.png names the machine server"):
        source(table)
    table.write_text("path\n..\\t.tsv\n")
    with pytest.raises(ConfigError, match="leads out of --root"):
        source(table, root=str(tmp_path / "cat"))
