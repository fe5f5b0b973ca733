"""The README's pictures: each is drawn for light and dark pages, is what its script draws, and is described."""

from __future__ import annotations

import hashlib
import html
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from embedx import sample
from scripts.pictures import draw, flow, neighbours, progress, report, speed, store
from scripts.pictures.svg import LIGHT, Svg

ROOT = Path(__file__).parent.parent
PICTURES = {"flow": flow, "store": store, "speed": speed, "progress": progress, "neighbours": neighbours}
SCREENS = {"report": report.TITLE, "report-duplicates": report.DUPLICATES}
"""Pictures of a browser, which are taken and not drawn."""
BASE = "https://raw.githubusercontent.com/embedx/embedx/main/"
SHOWN: list[tuple[str, str, str]] = re.findall(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">\s*'
    r'<img alt="([^"]+)" src="([^"]+)"[^>]*>\s*</picture>',
    (ROOT / "README.md").read_text(),
)
"""The README's pictures: for dark pages, described, and for light pages."""


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    return draw.drawn()


def test_the_readme_shows_and_describes_each_for_light_and_for_dark_pages(drawn: dict[str, bytes]) -> None:
    assert (ROOT / "README.md").read_text().count("<picture>") == len(SHOWN)
    titles = {name: module.TITLE for name, module in PICTURES.items()}
    names = [check_shown(*shown, titles=titles | SCREENS) for shown in SHOWN]
    assert len(set(names)) == len(names) and set(names) - SCREENS.keys() == PICTURES.keys()
    assert {f"{name}-{theme}" for name in PICTURES for theme in ("light", "dark")} == {
        Path(name).stem for name in drawn
    }


def check_shown(dark: str, description: str, light: str, titles: dict[str, str]) -> str:
    """Checks one picture of a page, and returns its name."""
    name = re.sub(rf"^{re.escape(BASE)}scripts/pictures/([\w-]+)-light\.\w+$", r"\1", light)
    assert dark == light.replace("-light.", "-dark.")
    assert all((draw.FOLDER / Path(each).name).is_file() for each in (dark, light))
    assert " ".join(html.unescape(description).split()) == titles[name]
    return name


def test_the_manual_shows_a_report_in_a_browser_light_and_dark() -> None:
    text = (ROOT / "embedx" / "docs" / "report.md").read_text()
    shown: list[tuple[str, str, str]] = re.findall(
        r'srcset=\s*"([^"]+)">\s*<img alt="([^"]+)"\s*src=\s*"([^"]+)">\s*</picture>', text
    )
    assert [check_shown(*each, titles=SCREENS) for each in shown] == list(SCREENS)
    for name in SCREENS:
        files = [draw.FOLDER / f"{name}-{theme}.jpg" for theme in ("light", "dark")]
        light, dark = (np.asarray(Image.open(file).convert("L")) for file in files)
        assert light.shape == dark.shape and light.mean() > 200 and dark.mean() < 80
        assert max(file.stat().st_size for file in files) < 300_000


def test_each_is_the_one_that_its_script_draws(drawn: dict[str, bytes]) -> None:
    for name, content in drawn.items():
        stored = (draw.FOLDER / name).read_bytes()
        assert len(stored) < 200_000
        if name.startswith("progress"):  # Rich writes the SVG, each version in its way
            texts = [[*filter(str.strip, ElementTree.fromstring(data).itertext())] for data in (stored, content)]
            assert texts[0] == texts[1]
        elif name.endswith(".svg"):
            assert stored == content, f"{name}: draw it anew by `make pictures`"
        else:  # another version of the font's renderer, or of JPEG's, may draw it otherwise
            shown, now = (np.asarray(Image.open(io.BytesIO(data)), dtype=int) for data in (stored, content))
            assert shown.shape == now.shape and np.abs(shown - now).mean() < 2


def test_an_svg_is_whole_and_asks_for_nothing_else(drawn: dict[str, bytes]) -> None:
    """A page shows it as an image, in which scripts, images and fonts from elsewhere are refused."""
    for name, content in drawn.items():
        if not name.endswith(".svg"):
            continue
        root = ElementTree.fromstring(content)
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert tags.isdisjoint({"script", "image", "foreignObject", "a"}), name
        assert re.findall(rb"(?:https?|data):[^\s\"]+", content) == [b"http://www.w3.org/2000/svg"], name
        assert root.findtext("{http://www.w3.org/2000/svg}title") == PICTURES[name.partition("-")[0]].TITLE


def test_text_that_would_leave_its_box_or_the_page_is_refused() -> None:
    svg = Svg(LIGHT, 200, 100, "a drawing")
    svg.text(10, 20, "fits", room=60)
    for x, text, room in ((10, "too long for its box", 60), (180, "over the edge", 400)):
        with pytest.raises(ValueError, match=text):
            svg.text(x, 20, text, room=room)


def test_the_row_that_is_traced_is_the_image_s() -> None:
    row = draw.measured("store")["row"]
    content = (sample.IMAGES / "val" / row["key"]).read_bytes()
    assert (row["bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
