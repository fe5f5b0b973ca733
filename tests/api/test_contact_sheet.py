"""The contact sheet: its pictures are those of the rows, and keys that strangers chose are text."""

from __future__ import annotations

import base64
import io
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import embedx
from embedx import sample
from embedx.api import contact_sheet as module
from embedx.api.contact_sheet import contact_sheet
from embedx.run.thumbnails import COLUMNS
from embedx.vectors.searching.search import Search
from embedx.vectors.searching.search_config import SearchConfig
from embedx.vectors.searching.search_queries import Queries, queries_of_array, queries_of_rows
from tests.store.builders import write_features

pytestmark = pytest.mark.usefixtures("one_thread")
HOSTILE = "<img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}\u202egpj.\x00\udcff"


class Page(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def images(self) -> list[str]:
        return [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]


def sheet(store: embedx.Store, queries: Queries, **settings: Any) -> Page:
    searched = Search.open(store, SearchConfig(**settings), COLUMNS)
    return Page(contact_sheet(searched, queries, list(searched.answers(queries))))


def picture(uri: str) -> np.ndarray[Any, Any]:
    data = base64.b64decode(uri.removeprefix("data:image/webp;base64,"), validate=True)
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((16, 16))).astype(float)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images of one colour each."""
    (tmp_path / "images").mkdir()
    for name, colour in {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "dark": (90, 0, 0)}.items():
        Image.new("RGB", (70, 50), colour).save(tmp_path / "images" / f"{name}.png")
    return tmp_path / "images"


@pytest.fixture
def store(images: Path, tmp_path: Path) -> embedx.Store:
    settings: dict[str, Any] = {"backbone": sample.BACKBONE, "weights": "sample", "image_size": 32}
    return embedx.extract(images, out=tmp_path / "store", workers=0, progress=False, **settings)


def test_the_pictures_are_those_of_the_query_and_its_neighbours(store: embedx.Store, images: Path) -> None:
    path = str(images / "red.png")
    query = Queries([path], torch.from_numpy(store.load("all")["red.png"])[None], paths=[path])
    searched = Search.open(store, SearchConfig(k=4), COLUMNS)
    (answer,) = searched.answers(query)
    page = Page(contact_sheet(searched, query, [answer]))
    names = ["red.png", *(each.key for each in answer.neighbours)]
    assert len(page.images) == 5 and names[:2] == ["red.png", "red.png"]
    for uri, name in zip(page.images, names, strict=True):
        with Image.open(images / name) as image:
            expected = np.asarray(image.resize((16, 16))).astype(float)
        assert np.abs(picture(uri) - expected).max() < 12
    assert all(each.key in page.text and f"{each.similarity:.4f}" in page.text for each in answer.neighbours)


def test_nothing_is_loaded_from_elsewhere(store: embedx.Store) -> None:
    page = sheet(store, queries_of_rows(store, ["red.png"], "embeddings"))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "form"})
    (policy,) = (each["content"] for _, each in page.tags if each.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;") and "http" not in policy
    assert all(uri.startswith("data:image/webp;base64,") for uri in page.images) and len(page.images) == 4


def test_inputs_that_are_gone_or_have_changed_are_grey_and_say_so(store: embedx.Store, images: Path) -> None:
    (images / "red.png").unlink()
    Image.new("RGB", (70, 50), (1, 2, 3)).save(images / "green.png")
    page = sheet(store, queries_of_array(store.load("all").embeddings, "vectors"), k=1)
    assert len(page.images) == 2
    assert "the file has changed since" in page.text and "No such file" in page.text


def test_what_strangers_chose_is_text(images: Path, tmp_path: Path) -> None:
    """A key, a class and a query that are HTML, a template, and controls."""
    hostile = HOSTILE.replace("\x00", "\x01")  # which a file's name can have
    folder = tmp_path / "hostile" / hostile.replace("/", "")
    folder.mkdir(parents=True)
    shutil.copy(images / "red.png", folder / f"{hostile}.png")
    settings: dict[str, Any] = {"backbone": sample.BACKBONE, "weights": "sample", "image_size": 32}
    store = embedx.extract(
        tmp_path / "hostile", out=tmp_path / "store", group_key="class", workers=0, progress=False, **settings
    )
    vectors = torch.from_numpy(store.load("all").embeddings)
    file = str(folder / f"{hostile}.png")
    page = sheet(store, Queries([HOSTILE, file, file], vectors.repeat(3, 1), paths=[HOSTILE, file, None]))
    assert {name for tag, each in page.tags if tag == "img" for name in each} == {"src", "alt", "loading", "decoding"}
    assert page.text.count("<img src=x onerror=alert(1)>") == 14 and "49" not in page.text
    assert not {"\u202e", "\x00", "\x01", "\udcff"} & set(page.text) and "\\u202e" in page.text
    assert len(page.images) == 4  # only the second query is a file of an image


def test_rows_without_inputs_and_queries_without_neighbours(tmp_path: Path) -> None:
    store = embedx.open(write_features(tmp_path / "store", {"train": (torch.eye(3), [0, 1, 2])}))
    page = sheet(store, queries_of_rows(store, ["key-1"], "embeddings"))
    assert page.images == [] and "key-0" in page.text and page.text.count("the store has no path of it") == 3
    page = sheet(store, queries_of_rows(store, ["key-1"], "embeddings"), where="key = 'key-1'")
    assert "No row is similar to it." in page.text


def test_of_very_many_pictures_the_first_are_shown(store: embedx.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PICTURES", 3)
    page = sheet(store, queries_of_array(store.load("all").embeddings, "vectors"), k=2)
    assert 3 <= len(page.images) < 8 and "only 3 pictures are shown" in page.text


def test_the_title_names_the_store_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_features(tmp_path / "flowers", {"train": (torch.eye(3), [0, 1, 2])})
    monkeypatch.chdir(tmp_path / "flowers")
    page = sheet(embedx.open("."), queries_of_array(np.ones(3), "query"))
    assert "search in flowers" in page.text
