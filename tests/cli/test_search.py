"""`embedx search` as a user types it: streams, exit codes, messages, files."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import embedx
from embedx import sample
from embedx.store.format.manifest import Manifest
from tests.cli.calls import Embedx
from tests.disks import fill, small_disk
from tests.servers import HttpServer
from tests.store.builders import write_features

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(60, 5, generator=GENERATOR)
STAR = sample.IMAGES / "val" / "star" / "star_00.jpg"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of vectors alone, in which two rows have no direction; the classes have odd names."""
    rows = ROWS.clone()
    rows[7], rows[8, 0] = 0, torch.nan
    splits: dict[str, Any] = {"train": (rows, [row % 3 for row in range(60)]), "val": (ROWS[:9] * 2, [0] * 9)}
    return write_features(tmp_path_factory.mktemp("stores") / "store", splits, names=["ant", "bee\n", "[red]cat"])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's images of val, embedded."""
    out = tmp_path_factory.mktemp("stores") / "images"
    settings: dict[str, Any] = {"backbone": sample.BACKBONE, "weights": "sample", "image_size": 32, "threads": 1}
    data = sample.IMAGES / "val"
    embedx.extract(f"val={data}", out=out, group_key="class", workers=0, progress=False, **settings)
    return out


@pytest.fixture
def query(tmp_path: Path) -> Path:
    np.save(tmp_path / "query.npy", ROWS[:3].numpy())
    return tmp_path / "query.npy"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_an_image_finds_itself_first_and_keys_stand_beside_similarities(call: Embedx, images: Path) -> None:
    code, stdout, stderr = call("search", images, STAR, "-k", "3")
    assert code == 0 and stdout.startswith(f"{STAR}\n") and "error" not in stderr
    first, second, third = (line.split("│")[1:-1] for line in stdout.splitlines() if line.startswith("│"))
    assert [cell.strip() for cell in first] == ["1.0000", "val", "star/star_00.jpg", "star", str(int(first[4]))]
    assert 1 >= float(second[0]) >= float(third[0])
    with embedx.open(images) as store:
        (answer,) = embedx.search(store, STAR, k=3).answers
    assert [cell.strip() for cell in (first[2], second[2], third[2])] == [each.key for each in answer.neighbours]


def test_json_is_one_line_per_neighbour(call: Embedx, features: Path, query: Path) -> None:
    code, stdout, _ = call("search", features, "--vector", query, "--row", "val:key-4", "-k", "4", "--json")
    found = lines(stdout)
    assert code == 0 and len(found) == 16 and [each["rank"] for each in found] == [1, 2, 3, 4] * 4
    queries = ["val:key-4", *(f"--vector {query}[{number}]" for number in range(3))]
    assert list(dict.fromkeys(each["query"] for each in found)) == queries
    keys = {"query", "rank", "split", "key", "path", "group", "target", "similarity", "number"}
    assert all(set(each) == keys for each in found)
    assert (found[0]["split"], found[0]["key"], found[0]["target"]) == ("train", "key-4", 1)
    assert [(each["split"], each["key"]) for each in found[4:6]] == [("train", "key-0"), ("val", "key-0")]
    assert found[4]["similarity"] == pytest.approx(1, abs=1e-15) and found[4]["path"] is None


def test_paths_on_stdin(call: Embedx, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted((sample.IMAGES / "val" / "ring").iterdir())[:3]
    for separator, encoding in (("\n", "utf-8"), ("\r\n", "utf-8-sig"), ("\n", "utf-16"), ("\0", "utf-8")):
        piped = separator.join([*map(str, paths), ""]).encode(encoding)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
        code, stdout, _ = call("search", images, "-", "-k", "1", "--json")
        assert code == 0 and [each["query"] for each in lines(stdout)] == list(map(str, paths))
        assert [each["key"] for each in lines(stdout)] == [f"ring/{path.name}" for path in paths]


def test_a_pipe_that_is_closed_early_is_no_error(features: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", ROWS.repeat(40, 1).numpy())
    command = f"{sys.executable} -m embedx search {features} --vector {tmp_path}/many.npy --json | head -n 2"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert len(lines(done.stdout)) == 2 and "Traceback" not in done.stderr and "fault of embedx" not in done.stderr


def test_settings_of_a_file_a_condition_and_a_split(call: Embedx, features: Path, query: Path, tmp_path: Path) -> None:
    (tmp_path / "search.toml").write_text('neighbours = 50\nsplit = ["train"]\nwhere = "target = 2"\n')
    found = lines(call("search", features, "--vector", query, "--config", tmp_path / "search.toml", "--json")[1])
    assert len(found) == 3 * 19 and {(each["split"], each["target"]) for each in found} == {("train", 2)}
    code, stdout, _ = call("search", features, "--row", "train:key-3", "--where", "class = '[red]cat'", "--json")
    assert code == 0 and {each["target"] for each in lines(stdout)} == {2}


def test_k_above_the_rows_lists_all_and_says_so(call: Embedx, features: Path) -> None:
    code, stdout, stderr = call("search", features, "--row", "val:key-1", "-k", "1000", "--json")
    assert code == 0 and "-k is 1000, and 69 rows are searched: all are listed" in stderr
    assert len(lines(stdout)) == 66  # all but itself, one of zeros, and one with NaN


def test_rows_that_are_similar_to_nothing(call: Embedx, features: Path) -> None:
    code, stdout, _ = call("search", features, "--row", "val:key-1", "--where", "split = 'val' and key = 'key-1'")
    assert code == 0 and "no row is similar to it" in stdout
    for key, fault in (("key-7", "is all zeros"), ("key-8", "has NaN or infinity")):
        code, stdout, stderr = call("search", features, "--row", f"train:{key}")
        assert (code, stdout) == (2, "") and f"train:{key} {fault}" in stderr


def test_the_contact_sheet_is_written_beside_the_table(call: Embedx, images: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "found.html"
    code, stdout, stderr = call("search", images, STAR, "-k", "2", "--html", sheet)
    assert code == 0 and "star/star_00.jpg" in stdout and f"contact sheet: {sheet}" in stderr
    page = sheet.read_text()
    assert page.count("data:image/webp;base64,") == 3 and "star/star_00.jpg" in page
    code, stdout, stderr = call("search", images, STAR, "--html", sheet)
    assert (code, stdout) == (
        2,
        "",
    ) and "is there already; choose another path, or give --overwrite to replace it" in stderr
    assert sheet.read_text() == page
    assert call("search", images, "--row", "star/star_01.jpg", "--html", sheet, "--overwrite", "--quiet").code == 0
    assert sheet.read_text() != page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.html"]


def test_credentials_of_a_query_are_used_and_shown_nowhere(call: Embedx, images: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "found.html"
    with HttpServer(STAR.parent, password="proof") as url:
        signed = f"{url}/?id={STAR.name}&sig=proof-of-access"
        code, stdout, stderr = call("search", images, signed, "-k", "1", "--html", sheet, "--json")
    assert code == 0 and {each["query"] for each in lines(stdout)} == {f"{url}/?id={STAR.name}"}
    assert [each["key"] for each in lines(stdout)] == [f"star/{STAR.name}"]
    assert "proof" not in stdout + stderr + sheet.read_text() and f"{url}/?id={STAR.name}" in sheet.read_text()


def test_a_sheet_that_can_not_be_written_leaves_nothing(call: Embedx, images: Path, tmp_path: Path) -> None:
    for sheet, told in (("none/f.html", "there is no folder"), (".", "it is a folder"), ("/dev/full/f", "no folder")):
        code, stdout, stderr = call("search", images, "--row", "star/star_01.jpg", "--html", tmp_path / sheet)
        assert (code, stdout) == (2, "") and told in stderr
    assert list(tmp_path.iterdir()) == []
    code, stdout, stderr = call("search", images, "--row", "star/star_01.jpg", "--html", images / "f.html")
    assert (code, stdout) == (2, "") and f"is in the store {images}; choose a path outside of it" in stderr
    assert not (images / "f.html").exists()
    code, stdout, stderr = call("search", images, "--row", "star/star_01.jpg", "--html", f"{tmp_path}/{'x' * 250}.html")
    assert code == 2 and "can't be written (File name too long" in stderr and list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_half_under_the_sheet_s_name(call: Embedx, images: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk, leave=4096)
        code, stdout, stderr = call("search", images, "--row", "star/star_01.jpg", "--html", disk / "f.html", "--json")
        assert code == 1 and len(lines(stdout)) == 10 and "can't be written (No space left on device: " in stderr
        assert [path.name for path in disk.iterdir()] == ["ballast"]


def test_a_store_whose_inputs_are_gone(call: Embedx, tmp_path: Path) -> None:
    data = tmp_path / "star"
    shutil.copytree(STAR.parent, data)
    settings: dict[str, Any] = {"backbone": sample.BACKBONE, "weights": "sample", "image_size": 32, "workers": 0}
    out = embedx.extract(data, out=tmp_path / "store", progress=False, **settings).path
    shutil.rmtree(data)
    code, stdout, _ = call("search", out, "--row", "star_01.jpg", "-k", "2", "--html", tmp_path / "f.html", "--json")
    page = (tmp_path / "f.html").read_text()
    assert code == 0 and len(lines(stdout)) == 2
    assert "data:image" not in page and page.count("No such file") == 3


def test_an_unfinished_store_is_searched_with_a_notice(call: Embedx, features: Path, tmp_path: Path) -> None:
    shutil.copytree(features, tmp_path / "store")
    begun = Manifest.read(features)
    Manifest(begun.recipe, begun.plan, begun.environment).write(tmp_path / "store")
    code, stdout, stderr = call("search", tmp_path / "store", "--row", "val:key-1", "-k", "1", "--json")
    assert code == 0 and len(lines(stdout)) == 1
    assert "is not complete: the rows committed so far are searched" in stderr


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ((), 2, "there is no query; give images, --row, --vector or --text"),
        (("--row", "val:key-1", "--overwrite"), 2, "--overwrite is for --html; give that too"),
        (("--row", "key-1"), 2, "--row key-1: names no split; give SPLIT:KEY"),
        (("--row", "train:no"), 2, "no key 'no' in split 'train'"),
        (("--row", "val:key-1", "-k", "0"), 2, "-k is 0; give a whole number of at least 1"),
        (("--row", "val:key-1", "-k", "many"), 2, "'-k'"),
        (("--row", "val:key-1", "--split", "vall"), 2, "unknown split 'vall'; did you mean val?"),
        (("--row", "val:key-1", "--name", "layer4"), 2, "unknown tensor 'layer4'"),
        (("--row", "val:key-1", "--where", "klass = 'ant'"), 2, "klass"),
        (("--row", "val:key-1", "--where", "class = "), 2, "--where class ="),
        (("--row", "val:key-1", "--where", "target = 9"), 2, "has no rows where target = 9"),
        (("--row", "val:key-1", "--device", "tpu"), 2, "--device 'tpu'"),
        (("--vector", os.devnull), 2, f"--vector {os.devnull}: can't be read ("),
        (("--vector", "none.npy"), 2, "--vector none.npy: can't be read (No such file or directory)"),
        (("--text", "a cat"), 2, "text"),
        (("photo.jpg",), 2, "does not say how it was made"),
    ],
)
def test_what_can_not_be_done_is_one_message(
    call: Embedx, features: Path, options: tuple[str, ...], code: int, told: str
) -> None:
    found, stdout, stderr = call("search", features, "--quiet", *options)
    assert (found, stdout) == (code, "") and told in stderr and "fault of embedx itself" not in stderr


def test_images_that_are_none_and_paths_that_are_not_piped(
    call: Embedx, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.png").write_text("no image")
    for name in ("text.png", "gone.png"):
        code, stdout, stderr = call("search", images, STAR, tmp_path / name)
        assert (code, stdout) == (1, "") and name in stderr and stderr.count("\n") == 1
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\n")))
    code, _, stderr = call("search", images, "-")
    assert code == 2 and "there are no paths on stdin" in stderr


def test_vectors_of_another_backbone(call: Embedx, features: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "long.npy", np.ones(7))
    code, stdout, stderr = call("search", features, "--vector", tmp_path / "long.npy")
    assert (code, stdout) == (2, "") and "has 7 numbers, and the store's vectors have 5" in stderr


def test_files_that_are_no_array_of_numpy(call: Embedx, features: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "several.npz", ROWS.numpy())
    for content in (b"", b"PK\x03\x04 broken", (tmp_path / "several.npz").read_bytes(), b"\x93NUMPY\x01\x00"):
        (tmp_path / "query.npy").write_bytes(content)
        code, stdout, stderr = call("search", features, "--vector", tmp_path / "query.npy")
        assert (code, stdout) == (2, "") and "query.npy: can't be read (" in stderr and "fault of embedx" not in stderr


def test_what_is_no_store_is_one_message(call: Embedx, tmp_path: Path) -> None:
    code, stdout, stderr = call("search", tmp_path, "--row", "val:key-1")
    assert (code, stdout) == (2, "") and "is not a store" in stderr and stderr.count("\n") == 1
