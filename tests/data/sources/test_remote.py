"""Sources behind URLs, end to end; the reference for embeddings is the folder of the same images."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedx
from embedx import ExtractConfig, sample
from embedx.cli import app
from embedx.data.plan import build_plan
from embedx.data.sources import parse_data
from embedx.data.sources.base import Source
from embedx.data.sources.kinds import SourceOptions
from embedx.errors import ConfigError
from embedx.run.extract import extract
from embedx.store.reading.verify import verify
from embedx.system import remote
from tests.data.sources.test_tar import pack
from tests.runs import run
from tests.servers import HttpServer, gcs_server, no_access, s3_server, upload

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each of three classes, and what is to be left out; a name that URLs would have escaped."""
    root = tmp_path_factory.mktemp("images")
    for folder in sorted((sample.IMAGES / "val").iterdir())[:3]:
        (root / folder.name).mkdir()
        for image in sorted(folder.iterdir())[:2]:
            shutil.copy(image, root / folder.name)
    image = min(root.rglob("*.jpg"))
    image.rename(image.with_name("two words, 50%25 + é.jpg"))
    (root / "notes.txt").write_text("x")
    (root / ".hidden.jpg").write_text("x")
    return root


@pytest.fixture(scope="module")
def names(images: Path) -> list[str]:
    return sorted(str(path.relative_to(images)) for path in images.glob("*/*"))


@pytest.fixture(scope="module")
def reference(images: Path, tmp_path_factory: pytest.TempPathFactory) -> embedx.Embeddings:
    out = tmp_path_factory.mktemp("reference") / "store"
    extract(config(out, str(images)))
    return embedx.open(out).load("all")


@pytest.fixture(scope="module")
def s3(images: Path, names: list[str]) -> Iterator[Any]:
    """A client; the bucket `lake` has the images below `photos/`, and as shards below `shards/`."""
    with s3_server() as client:
        upload(client, "lake", images, "photos/")
        yield client


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.01)


def config(out: Path, *data: str, **settings: Any) -> ExtractConfig:
    defaults: dict[str, Any] = {
        "backbone": sample.BACKBONE,
        "weights": "sample",
        "batch_size": 4,
        "workers": 0,
        "out": out,
    }
    return ExtractConfig(**defaults | {"data": data} | settings)


def stored(out: Path, *data: str, split: str = "all", **settings: Any) -> embedx.Embeddings:
    extract(config(out, *data, **settings))
    assert list(verify(out)) == []
    return embedx.open(out).load(split)


def source(location: str, **options: Any) -> Source:
    (only,) = parse_data([location], SourceOptions(**options)).values()
    return only


def faults(location: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_plan(parse_data([location], SourceOptions(**options)), None)
    return str(caught.value)


@pytest.mark.parametrize("location", ["s3://lake/repo/", "s3://lake/repo/**/*.parquet"])
def test_a_table_of_several_files_behind_urls_is_read_as_on_disk(
    s3: Any, tmp_path: Path, images: Path, names: list[str], location: str
) -> None:
    for number, name in enumerate(names):
        file = tmp_path / "repo" / f"year={2020 + number % 2}" / f"{'test' if number % 3 else 'train'}-{number}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        row = {"bytes": (images / name).read_bytes(), "path": name}
        pq.write_table(pa.table({"image": [row], "number": [number]}), file)
    (tmp_path / "repo" / "_metadata.parquet").touch()
    upload(s3, "lake", tmp_path / "repo", "repo/")
    here = build_plan(parse_data([str(tmp_path / "repo")]), "year").splits
    there = build_plan(parse_data([location]), "year").splits
    assert list(there) == list(here) == ["test", "train"]
    for split, plan in there.items():
        columns = ["key", "offset", "group", "target", "year", "number"]
        assert plan.table.select(columns).equals(here[split].table.select(columns))
        for place in plan.table.select(["path", "offset", "size", "number"]).to_pylist():
            assert plan.reader.read(*list(place.values())[:3]) == (images / names[place["number"]]).read_bytes()


def put(client: Any, key: str, content: bytes | str) -> str:
    client.put_object(Bucket="lake", Key=key, Body=content)
    return f"s3://lake/{key}"


def csv_text(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0])
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def test_a_prefix_in_a_bucket_gives_the_folder_s_embeddings(
    tmp_path: Path, s3: Any, images: Path, reference: embedx.Embeddings
) -> None:
    """By workers, which have the environment from their fork server; hence a run of its own."""
    done = run("extract", "--backbone", sample.BACKBONE, "--weights", "sample", "-j", "1", "-b", "4",
               "--data", "s3://lake/photos", "--group-key", "class", "--out", tmp_path / "store")  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/store/manifest.json\n"), done.stderr
    assert "Unclosed" not in done.stderr and "Traceback" not in done.stderr
    assert list(verify(tmp_path / "store")) == []
    rows = embedx.open(tmp_path / "store").load("all")
    assert rows.keys == reference.keys and np.array_equal(rows.embeddings, reference.embeddings)
    assert rows.targets.tolist() == reference.targets.tolist()
    index = embedx.open(tmp_path / "store").index().sort_by("index").to_pylist()
    assert [row["path"] for row in index] == [f"s3://lake/photos/{key}" for key in rows.keys]
    assert all(row["bytes"] == (images / row["key"]).stat().st_size for row in index)


def test_google_s_storage_gives_the_folder_s_embeddings(
    tmp_path: Path, images: Path, reference: embedx.Embeddings
) -> None:
    with gcs_server("lake") as fs:
        for path in images.glob("*/*"):
            fs.pipe(f"lake/photos/{path.relative_to(images)}", path.read_bytes())
        rows = stored(tmp_path / "store", "gs://lake/photos")
        assert rows.keys == reference.keys and np.array_equal(rows.embeddings, reference.embeddings)
        index = embedx.open(tmp_path / "store").index()
        assert set(index["path"].to_pylist()) == {f"gs://lake/photos/{key}" for key in rows.keys}
        assert "gs://lack/photos: can't be listed (not found); check its name" in faults("gs://lack/photos")


@pytest.mark.parametrize("rows", [1, 2, 1 << 16])
def test_a_listing_has_the_folder_s_columns(s3: Any, images: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("embedx.data.sources.folder_files.CHUNK", rows)
    found, local = source("s3://lake/photos/").scan(), source(str(images)).scan()
    assert found.schema == local.schema
    assert found.drop(["path", "mtime_ns"]).equals(local.drop(["path", "mtime_ns"]))
    assert found["mtime_ns"].null_count == 0


def test_folders_named_as_splits_are_the_splits(s3: Any, tmp_path: Path) -> None:
    for key in ("train/cat/a.jpg", "val/cat/b.jpg", ".cache/c.jpg", "notes.txt"):
        put(s3, f"split/{key}", "x")
    sources = parse_data(["s3://lake/split/"])
    assert list(sources) == ["train", "val"]
    assert sources["val"].scan().select(["key", "class", "path"]).to_pylist() == [
        {"key": "cat/b.jpg", "class": "cat", "path": b"s3://lake/split/val/cat/b.jpg"}
    ]
    assert list(parse_data(["mine=s3://lake/split"])) == ["mine"]
    assert source("mine=s3://lake/split").scan()["key"].to_pylist() == ["train/cat/a.jpg", "val/cat/b.jpg"]
    for key in (
        "d.jpg",
        "labels/e.jpg",
        "__MACOSX/f.jpg",
        "train/store/.embedx.lock",
        "train/store/g.jpg",
        "train/none",
    ):
        put(s3, f"split/{key}", "x")
    plan = build_plan(parse_data(["s3://lake/split"]), None)
    assert {name: split.table["key"].to_pylist() for name, split in plan.splits.items()} == {
        "train": ["cat/a.jpg"],
        "val": ["cat/b.jpg"],
    }
    (notice,) = plan.notices
    assert notice.startswith(
        "--data s3://lake/split: left out: 1 .txt, 1 beside the splits, 1 without an ending, the fol"
    )
    assert notice.endswith("folders __MACOSX, labels and train/store (a store)")


@pytest.mark.parametrize("kind", ["remote table, relative paths", "remote table, root", "local table, URLs"])
def test_tables_give_the_folder_s_embeddings(
    tmp_path: Path, s3: Any, names: list[str], reference: embedx.Embeddings, kind: str
) -> None:
    prefix = {"remote table, relative paths": "../photos/", "remote table, root": ""}.get(kind, "s3://lake/photos/")
    text = csv_text([{"path": f"{prefix}{name}", "id": name, "label": name.split("/")[0]} for name in names])
    table = put(s3, "lists/images.csv", text)
    if kind == "local table, URLs":
        table = str(tmp_path / "images.csv")
        Path(table).write_text(text)
    root = {"root": "s3://lake/photos"} if kind == "remote table, root" else {}
    rows = stored(tmp_path / "store", table, key_column="id", **root)
    assert rows.keys == reference.keys and rows.targets.tolist() == reference.targets.tolist()
    assert np.array_equal(rows.embeddings, reference.embeddings)


def test_images_in_remote_parquet_give_the_folder_s_embeddings(
    tmp_path: Path, s3: Any, images: Path, names: list[str], reference: embedx.Embeddings
) -> None:
    structs = [{"bytes": (images / name).read_bytes(), "path": name} for name in names]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": structs}), buffer, row_group_size=2)
    rows = stored(tmp_path / "store", put(s3, "images.parquet", buffer.getvalue()))
    assert rows.keys == reference.keys and np.array_equal(rows.embeddings, reference.embeddings)


@pytest.fixture(scope="module")
def shards(s3: Any, images: Path, names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for number in range(2):
        members: dict[str, bytes | str] = {}
        for name in names[3 * number : 3 * number + 3]:
            base = name.rpartition(".")[0]
            members |= {name: (images / name).read_bytes(), f"{base}.cls": name.split("/")[0]}
        pack(folder / f"shard-{number:03d}.tar", members)
    upload(s3, "lake", folder, "shards/")
    return folder


@pytest.mark.parametrize("pattern", ["shard-{000..001}.tar", "shard-*.tar", "{shard-000,shard-001}.tar"])
def test_tars_give_the_folder_s_embeddings(
    tmp_path: Path, shards: Path, reference: embedx.Embeddings, pattern: str
) -> None:
    rows = stored(tmp_path / "store", f"train=s3://lake/shards/{pattern}", split="train")
    assert rows.keys == [f"shard-{i // 3:03d}.tar/{key.rpartition('.')[0]}" for i, key in enumerate(reference.keys)]
    assert np.array_equal(rows.embeddings, reference.embeddings)
    assert rows.targets.tolist() == reference.targets.tolist()


def test_feature_files_are_stored_as_they_are(tmp_path: Path, s3: Any) -> None:
    numbers = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    for part in range(2):
        buffer = io.BytesIO()
        np.save(buffer, numbers[3 * part : 3 * part + 3])
        put(s3, f"features/part-{part}.npy", buffer.getvalue())
    settings: dict[str, Any] = {"backbone": "none", "weights": "DEFAULT"}
    rows = stored(tmp_path / "store", "s3://lake/features/part-*.npy", **settings)
    assert np.array_equal(rows.embeddings, numbers) and rows.keys[3] == "part-1.npy/00000000"
    for row, features in enumerate(numbers):
        buffer = io.BytesIO()
        np.save(buffer, features)
        put(s3, f"single/{row}.npy", buffer.getvalue())
    assert np.array_equal(stored(tmp_path / "single", "s3://lake/single", **settings).embeddings, numbers)


def test_urls_on_stdin_are_read_and_those_that_can_not_be_are_rejected(
    tmp_path: Path, s3: Any, names: list[str], reference: embedx.Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = s3.generate_presigned_url("get_object", Params={"Bucket": "lake", "Key": f"photos/{names[0]}"})
    lines = [signed, "s3://lake/photos/gone.jpg", f"s3://lake/photos/{names[1]}", "s3://gone/x.jpg"]
    stdin = SimpleNamespace(buffer=io.BytesIO("\n".join(lines).encode()), isatty=lambda: False)
    monkeypatch.setattr("sys.stdin", stdin)
    rows = stored(tmp_path / "store", "-")
    assert rows.keys == [signed.partition("?")[0], lines[2]] and np.array_equal(
        rows.embeddings, reference.embeddings[:2]
    )
    index = embedx.open(tmp_path / "store").index().sort_by("index").to_pylist()
    assert [row["reason"] for row in index] == [None, "can't be read: not found", None, "can't be read: not found"]


def test_what_access_is_refused_to_is_rejected_at_the_read(tmp_path: Path, s3: Any, names: list[str]) -> None:
    only = source("s3://lake/photos")
    with no_access(), pytest.raises(Exception, match=r"can't be read: no access \(.+\)"):
        only.reader.read(only.scan()["path"][0].as_py(), None, None)


def test_a_bucket_without_access_or_that_is_not_there_is_a_fault(s3: Any) -> None:
    with no_access():
        assert "--data s3://lake/photos: can't be listed (no access (" in faults("s3://lake/photos")
        assert "can't be read (no access (" in faults("s3://lake/images.csv")
        assert "can't be read (no access (" in faults("s3://lake/a.tar")
    assert "--data s3://gone/photos: can't be listed (not found); " in faults("s3://gone/photos")
    assert "no images in s3://lake/none; looked for files named" in faults("s3://lake/none")
    for name in ("gone.csv", "gone.parquet", "gone.tar", "{0..1}.tar"):
        assert "(not found)" in faults(f"s3://lake/{name}"), name
    assert "there is no such file" in faults("s3://lake/gone-*.tar")
    assert "not found" in faults("s3://lake/gone.npy", content="features")


def test_the_command_line_ends_with_2_where_there_is_no_such_bucket_or_scheme(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for location, words in (("s3://gone/x", "can't be listed (not found)"), ("htps://h/x", "did you mean https?")):
        arguments = ["extract", "--backbone", sample.BACKBONE, "--weights", "sample", "--data", location]
        monkeypatch.setattr("sys.argv", ["embedx", *arguments, "--out", str(tmp_path / "store")])
        assert app.run() == 2
        out, err = capfd.readouterr()
        assert out == "" and words in " ".join(err.split())
    assert not (tmp_path / "store").exists()


def test_unknown_schemes_are_faults_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv").write_text("path\na.jpg\nsss://b/c.jpg\n")
    assert "unknown scheme 'sss'" in faults(str(tmp_path / "t.csv"))
    assert "unknown scheme 'sss'" in faults("train=sss://bucket")
    assert "unknown scheme 'sss'" in faults(str(tmp_path / "t.csv"), root="sss://b")
    stdin = SimpleNamespace(buffer=io.BytesIO(b"a.jpg\nsss://b/c.jpg\n"), isatty=lambda: False)
    monkeypatch.setattr("sys.stdin", stdin)
    assert "unknown scheme 'sss'" in faults("-")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x,y\n1,2\n", "none of x, y is named path, image, file, filename"),
        ("", "the table is empty"),
        ("path\n", "the table has no rows"),
        ("path\na.jpg\na.jpg\n", "1 keys occur more than once, such as 'a.jpg'"),
    ],
)
def test_a_bad_remote_table_is_told(s3: Any, content: str, message: str) -> None:
    assert message in faults(put(s3, "lists/bad.csv", content))


@pytest.mark.parametrize("path", ["../x.jpg", "a/../../x.jpg", "s3://other/x.jpg", "/etc/x.jpg"])
def test_no_path_leads_out_of_a_remote_root(s3: Any, path: str) -> None:
    table = put(s3, "lists/bad.csv", f"path\na.jpg\n{path}\n")
    assert f"line 3: the path {path!r} leads out of --root s3://lake/photos" in faults(table, root="s3://lake/photos")


def test_escapes_lead_out_of_no_root_either(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path\n%2e%2e/x.jpg\n")
    assert "'%2e%2e/x.jpg' leads out of --root" in faults(str(tmp_path / "t.csv"), root="https://h/photos")


def test_a_tar_that_is_cut_short_is_told(s3: Any, shards: Path) -> None:
    url = put(s3, "cut.tar", (shards / "shard-000.tar").read_bytes()[:3000])
    assert f"{url} is cut short: it ends at byte 3000" in faults(url)


def test_a_server_s_pages_are_listed_as_folders_and_their_files_read_though_requests_fail(
    tmp_path: Path, images: Path, reference: embedx.Embeddings
) -> None:
    server = HttpServer(images)
    with server as url:
        server.failures = [503, 0]
        rows = stored(tmp_path / "store", url)
    assert rows.keys == reference.keys and np.array_equal(rows.embeddings, reference.embeddings)


def test_tables_and_tars_are_read_by_http(
    tmp_path: Path, images: Path, shards: Path, names: list[str], reference: embedx.Embeddings
) -> None:
    shutil.copytree(images, tmp_path / "www")
    (tmp_path / "www" / "t.csv").write_text(csv_text([{"path": name.replace("%", "%25")} for name in names]))
    shutil.copy(shards / "shard-000.tar", tmp_path / "www" / "t.tar")
    with HttpServer(tmp_path / "www") as url:
        rows = stored(tmp_path / "table", f"{url}/t.csv?token=secret")
        assert np.array_equal(rows.embeddings, reference.embeddings)
        rows = stored(tmp_path / "tar", f"{url}/t.tar?token=secret")
        assert np.array_equal(rows.embeddings, reference.embeddings[:3]) and rows.keys[0].startswith("t.tar/")
    with HttpServer(tmp_path / "www", ranges=False) as url:
        assert np.array_equal(stored(tmp_path / "whole", f"{url}/t.csv").embeddings, reference.embeddings)
        found = faults(f"{url}/t.tar")
        assert "sends no parts of files, only whole ones; download it" in found
