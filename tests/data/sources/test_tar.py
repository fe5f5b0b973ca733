"""Tars as sources and end to end; the reference for embeddings is the folder of the same images."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import embedx
from embedx import ExtractConfig, sample
from embedx.data.plan import build_plan
from embedx.data.reading.files import RejectedInputError
from embedx.data.sources import parse_data
from embedx.data.sources.base import COMMON_SCHEMA, Source
from embedx.data.sources.kinds import SourceOptions
from embedx.data.sources.written import WRITTEN
from embedx.errors import ConfigError
from embedx.run.extract import extract
from embedx.store.reading.verify import verify

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each of some classes."""
    root = tmp_path_factory.mktemp("images")
    for folder in sorted((sample.IMAGES / "val").iterdir())[:CLASSES]:
        (root / folder.name).mkdir()
        for image in sorted(folder.iterdir())[:2]:
            shutil.copy(image, root / folder.name)
    return root


def config(out: Path, *data: str, **settings: Any) -> ExtractConfig:
    defaults: dict[str, Any] = {
        "backbone": sample.BACKBONE,
        "weights": "sample",
        "batch_size": 4,
        "workers": 0,
        "out": out,
    }
    return ExtractConfig(**defaults | {"data": data} | settings)


def pack(path: Path, members: Mapping[str, bytes | str] | Sequence[tuple[str, bytes | str]], **options: Any) -> Path:
    """Writes a tar; text is a file's content too."""
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def source(location: str | Path, **options: Any) -> Source:
    (only,) = parse_data([str(location)], SourceOptions(**options)).values()
    return only


def column(location: str | Path, name: str, **options: Any) -> list[Any]:
    values: list[Any] = source(location, **options).scan()[name].to_pylist()
    return values


def contents(location: str | Path) -> dict[str, bytes]:
    """What the reader of a source gives for each key that it can read."""
    only = source(location)
    found = {}
    for row in only.scan().to_pylist():
        if row["offset"] is not None:
            found[row["key"]] = only.reader.read(row["path"], row["offset"], row["size"])
    return found


def faults(location: str | Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_plan(parse_data([str(location)], SourceOptions(**options)), None)
    return str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_give_the_folder_s_embeddings_with_targets_groups_and_metadata(
    tmp_path: Path, images: Path, workers: int
) -> None:
    extract(config(tmp_path / "folder", str(images)))
    expected = embedx.open(tmp_path / "folder").load("all")
    reference = dict(zip(expected.keys, expected.embeddings, strict=True))
    found: dict[str, str] = {}
    for number, folder in enumerate(sorted(images.iterdir(), reverse=True)):
        members: dict[str, bytes | str] = {}
        for image in sorted(folder.iterdir()):
            base = f"{folder.name}/{image.stem}"
            members |= {
                f"{base}.json": json.dumps({"width": number, "key": image.stem, "from": {"path": str(image)}}),
                f"{base}{image.suffix.upper()}": image.read_bytes(),
                f"{base}.cls": folder.name,
            }
            found[f"shard-{number:06d}.tar/{base}"] = f"{folder.name}/{image.name}"
        pack(tmp_path / f"shard-{number:06d}.tar", members)
    out = tmp_path / "store"
    data = f"train={tmp_path}/shard-{{000000..{CLASSES - 1:06d}}}.tar"
    extract(config(out, data, workers=workers, group_key="tar"))
    assert list(verify(out)) == []
    rows = embedx.open(out).load("train")
    assert rows.keys == list(found)
    assert all(np.array_equal(row, reference[found[key]]) for key, row in zip(rows.keys, rows.embeddings, strict=True))
    classes = sorted(folder.name for folder in images.iterdir())
    assert embedx.open(out).manifest.plan.classes == tuple(classes)
    assert [classes[target] for target in rows.targets] == [name.split("/")[0] for name in found.values()]
    index = embedx.open(out).index().sort_by("index")
    assert index.schema.field("width").type == pa.int64()
    for row, (key, name) in zip(index.to_pylist(), found.items(), strict=True):
        shard, base = key.split("/", 1)
        assert row["path"] == str(tmp_path / shard) and row["tar"] == row["group"] == shard
        assert row["parent"] == row["cls"] == name.split("/")[0]
        assert row["json.key"] == base.split("/")[1] and row["from"] == {"path": str(images / name)}
        assert row["bytes"] == (images / name).stat().st_size


def test_members_that_share_their_base_name_are_a_sample_wherever_they_stand(tmp_path: Path) -> None:
    tar = pack(
        tmp_path / "t.tar",
        {
            "./b/2.cls": "7\n",
            "a.1.jpg": "not whole",
            "./b/1.PNG": "one",
            "./b/2.jpg": "two",
            "b/.hidden.jpg": "",
            "b/README": "",
            "b/3.npy": "",
            "a.jpg": "whole",
            "c.left.jpg": "left",
            "d.txt": " a text\nof two lines\n",
        },
    )
    content = source(tar).scan()
    assert content.column_names == [*COMMON_SCHEMA.names, "target", "tar", "parent", "cls", "txt"]
    assert content["key"].to_pylist() == ["t.tar/b/2", "t.tar/a", "t.tar/b/1", "t.tar/c", "t.tar/d"]
    assert content["parent"].to_pylist() == ["b", None, "b", None, None]
    assert content["target"].to_pylist() == content["cls"].to_pylist() == [7, None, None, None, None]
    assert content["txt"].to_pylist()[4] == "a text\nof two lines"
    assert set(content["mtime_ns"].to_pylist()) == {tar.stat().st_mtime_ns}
    assert contents(tar) == {"t.tar/b/2": b"two", "t.tar/a": b"whole", "t.tar/b/1": b"one", "t.tar/c": b"left"}
    reader = pickle.loads(pickle.dumps(source(tar).reader))
    with pytest.raises(RejectedInputError, match="the sample has no image"):
        reader.read(bytes(tar), None, None)


def test_a_sample_without_an_image_is_rejected_and_moves_no_other(tmp_path: Path, images: Path) -> None:
    first, second, *_ = sorted(images.rglob("*.*"))
    members: dict[str, bytes | str] = {
        "a.png": first.read_bytes(),
        "b.cls": "1",
        "c.png": second.read_bytes()[:99],
        "d.png": b"",
    }
    tar = pack(tmp_path / "t.tar", members)
    summary = extract(config(tmp_path / "store", str(tar)))
    assert (summary.rows, summary.rejected) == (1, 3)
    rows = embedx.open(tmp_path / "store").index().sort_by("index").to_pylist()
    assert [row["status"] for row in rows] == ["ok", "rejected", "rejected", "rejected"]
    assert "the sample has no image" in rows[1]["reason"] and rows[3]["reason"] == "the file is empty"


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_headers_is_read(tmp_path: Path, kind: int) -> None:
    long = f"{'d' * 60}/{'e' * 90}.jpg" if kind == tarfile.USTAR_FORMAT else f"{'d' * 200}/{'é' * 100}.jpg"
    tar = pack(tmp_path / "t.tar", {long: "long", "x.jpg": "short"}, format=kind)
    assert contents(tar) == {f"t.tar/{long[:-4]}": b"long", "t.tar/x": b"short"}


def test_names_that_are_not_utf8_become_readable_keys(tmp_path: Path) -> None:
    tar = pack(tmp_path / "t.tar", {os.fsdecode(b"caf\xe9.jpg"): "x"}, format=tarfile.GNU_FORMAT)
    assert contents(tar) == {r"t.tar/caf\xe9": b"x"}


def test_no_follow_within_the_tar_are_followed_and_what_is_no_file_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name, kind, target in (
            ("d.jpg", tarfile.DIRTYPE, ""),
            ("s/early.jpg", tarfile.SYMTYPE, "../a.jpg"),
            ("fifo.jpg", tarfile.FIFOTYPE, ""),
            ("a.jpg", tarfile.REGTYPE, ""),
            ("hard.jpg", tarfile.LNKTYPE, "./a.jpg"),
            ("out.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, target, 5 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"image"))
    assert contents(tmp_path / "t.tar") == dict.fromkeys(["t.tar/s/early", "t.tar/a", "t.tar/hard"], b"image")
    assert column(tmp_path / "t.tar", "key") == ["t.tar/s/early", "t.tar/a", "t.tar/hard", "t.tar/out"]


def test_tars_are_named_below_the_folder_that_all_share(tmp_path: Path) -> None:
    for name in ("x/1", "y/1", "y/2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pack(tmp_path / f"{name}.tar", {"a.jpg": name})
    assert column(f"{tmp_path}/{{y,x}}/*.tar", "key") == ["y/1.tar/a", "y/2.tar/a", "x/1.tar/a"]
    assert column(f"{tmp_path}/y/{{2,1}}.tar", "tar") == ["2.tar", "1.tar"]
    assert set(parse_data([f"train={tmp_path}/x/1.tar"])) == {"train"}


@pytest.mark.parametrize(
    ("members", "target_column", "targets"),
    [
        ({"a.cls": "10", "b.cls": "-1"}, None, [10, -1]),
        ({"a.cls": "10", "b.cls": "cat"}, None, ["10", "cat"]),
        ({"a.json": '{"label": true}', "b.json": '{"label": "x"}'}, None, ["true", "x"]),
        ({"a.json": '{"label": 1.0}', "b.json": '{"label": 2.0}'}, None, [1, 2]),
        ({"a.cls": "", "b.cls": "cat"}, None, [None, "cat"]),
        ({"a.json": '{"label": 3}', "b.json": "{}"}, None, [3, None]),
        ({"a.json": '{"target": "x"}'}, None, ["x", None]),
        ({"a.json": '{"label": 3}', "b.cls": "5"}, None, [None, 5]),
        ({"a.json": '{"label": 3}', "b.cls": "5"}, "label", [3, None]),
        ({"a.json": '{"label": 0.5, "other": []}'}, None, [None, None]),
        ({"a.json": '{"cls": "x"}', "b.cls": "5"}, "json.cls", ["x", None]),
        ({"a.txt": "cat", "b.txt": "dog"}, "txt", ["cat", "dog"]),
    ],
)
def test_targets(tmp_path: Path, members: dict[str, str], target_column: str | None, targets: list[Any]) -> None:
    tar = pack(tmp_path / "t.tar", {"a.jpg": "", "b.jpg": "", **members})
    assert column(tar, "target", target_column=target_column) == targets


def test_json_entries_have_the_types_of_json_lines(tmp_path: Path) -> None:
    one = {"n": 1, "text": "a\nb", "at": "2024-01-31", "box": [1, 2], "path": "p", "tar": "t"}
    tar = pack(tmp_path / "t.tar", {"a.jpg": "", "a.json": json.dumps(one, indent=1), "b.jpg": ""})
    content = source(tar).scan()
    assert content.column_names[8:] == ["n", "text", "at", "box", "json.path", "json.tar", f"at{WRITTEN}"]
    assert content.schema.field("at").type == pa.timestamp("s") and content.schema.field("n").type == pa.int64()
    row = content.to_pylist()[0]
    assert (row["text"], row["box"], row["json.path"], row["json.tar"]) == ("a\nb", [1, 2], "p", "t")
    build_plan(parse_data([str(tar)]), "json.path")


def test_features_in_tars_are_stored_as_they_are(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    members: dict[str, bytes | str] = {}
    for row, features in enumerate(numbers):
        buffer = io.BytesIO()
        np.save(buffer, features)
        members |= {f"{row}.npy": buffer.getvalue(), f"{row}.cls": str(row), f"{row}.jpg": b"no feature"}
    tar = pack(tmp_path / "t.tar", members)
    extract(config(tmp_path / "store", str(tar), backbone="none", weights="DEFAULT"))
    rows = embedx.open(tmp_path / "store").load("all")
    assert np.array_equal(rows.embeddings, numbers) and rows.targets.tolist() == list(range(5))


WHOLE = {"a/1.jpg": b"1" * 2000, "a/1.cls": b"0", "a/2.jpg": b"2" * 700}
HEADER = 512

BAD: dict[str, tuple[Any, str]] = {
    "cut in an image": (lambda data: data[: 2 * HEADER + 700], "is cut short: it ends at byte 1724, in or behind 'a/1"),
    "cut in padding": (lambda data: data[: HEADER + 2000], "is cut short: it ends at byte 2512, in or behind 'a/1.jpg"),
    "cut between members": (
        lambda data: data[: HEADER + 2048],
        "is cut short: it ends at byte 2560, in or behind 'a/1",
    ),
    "cut in a header": (lambda data: data[: HEADER + 2048 + 100], "is cut short: it ends at byte 2660"),
    "no end mark": (lambda data: data[: -(len(data) // 512 - 10) * 512], "is cut short: it ends at byte 5120"),
    "damaged header": (lambda data: data[:2570] + b"!" * 300 + data[2870:], "is damaged or cut short at byte 2560"),
    "joined": (lambda data: data + data, "continues after its end, as tars joined by cat do"),
    "empty file": (lambda data: b"", "is no tar (empty file)"),
    "no tar": (lambda data: b"\xff\xd8\xff" + b"x" * 4000, "is no tar ("),
    "text": (lambda data: b"path\na.jpg\n", "is no tar: it is shorter than a header"),
    "gzip": (gzip.compress, "is compressed, and can't be read in place; decompress it by gzip -d first"),
    "no members": (lambda data: bytes(10240), "no images in it; looked for members named .apng"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_tar_is_told_by_what_is_wrong_and_where(tmp_path: Path, case: str) -> None:
    damage, message = BAD[case]
    tar = pack(tmp_path / "t.tar", WHOLE)
    tar.write_bytes(damage(tar.read_bytes()))
    found = faults(tar)
    assert message in found and str(tar) in found


def test_a_cut_pax_header_and_any_other_cut_are_found(tmp_path: Path) -> None:
    tar = pack(tmp_path / "t.tar", {"é" * 150 + ".jpg": "x", "y.jpg": "y"}, format=tarfile.PAX_FORMAT)
    data = tar.read_bytes()
    end = data.rindex(b"y") // 512 * 512 + 512
    for length in range(0, end + 1, 256):
        tar.write_bytes(data[:length])
        assert "cut short" in (found := faults(tar)) or "is no tar" in found, length


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a/1.jpg", "x"), ("b.jpg", ""), ("a/1.jpg", "y")], "'a/1.jpg' stands in it twice; take one out"),
        ([("a.jpg", "x"), ("a.png", "y")], "'a.jpg' and 'a.png' are two images of one sample"),
        ([("a.jpg", "x"), ("./a.JPG", "y")], "'a.jpg' and './a.JPG' are two images of one sample"),
        ([("a.l.jpg", "x"), ("a.r.jpg", "y")], "'a.l.jpg' and 'a.r.jpg' are two images of one sample"),
        ([("a.jpg", "x"), ("a.cls", "0"), ("a.CLS", "0")], "'a.CLS' is the second .cls of its sample"),
        ([("a.cls", "0"), ("b.txt", "0")], "no images in it"),
        ([("a.jpg", "x"), ("a.json", "{")], "t.tar/a: its .json can't be read (Expecting property name"),
        ([("a.jpg", "x"), ("a.json", "[1]")], "t.tar/a: its .json holds no object"),
    ],
)  # fmt: skip
def test_bad_samples_are_named(tmp_path: Path, members: list[tuple[str, str | bytes]], message: str) -> None:
    assert message in faults(pack(tmp_path / "t.tar", members))


def test_holes_are_told(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.jpg")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(bytes(512)))
    assert "'a.jpg' is stored with holes; make the tar again without --sparse" in faults(tmp_path / "t.tar")


def test_faults_of_all_shards_are_told_at_once_and_a_missing_one_by_its_name(tmp_path: Path) -> None:
    for number in range(3):
        pack(tmp_path / f"{number}.tar", WHOLE)
    (tmp_path / "0.tar").write_bytes(b"")
    (tmp_path / "2.tar").write_bytes((tmp_path / "2.tar").read_bytes()[:1000])
    found = faults(f"{tmp_path}/{{0..2}}.tar").splitlines()
    assert [line.split(" ")[0] for line in found] == [f"{tmp_path}/0.tar", f"{tmp_path}/2.tar"]
    assert f"there is no file {tmp_path}/3.tar" in faults(f"{tmp_path}/{{0..9}}.tar")
    assert "there is no such file" in faults(tmp_path / "gone.tgz")


def test_target_columns_that_are_not_there_or_can_not_be(tmp_path: Path) -> None:
    tar = pack(tmp_path / "t.tar", {"a.jpg": "", "a.json": '{"weight": 0.5}'})
    found = faults(tar, target_column="species")
    assert "there is no --target-column 'species'; its columns are weight, tar, parent" in found
    assert "--target-column 'weight' is double with fractions; give one of class names" in faults(
        tar, target_column="weight"
    )


def test_a_folder_may_be_named_like_a_tar(tmp_path: Path, images: Path) -> None:
    shutil.copytree(images, tmp_path / "photos.tar")
    assert len(column(tmp_path / "photos.tar", "key")) == 2 * CLASSES
