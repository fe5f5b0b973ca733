"""The confusion matrix as a picture."""

from __future__ import annotations

import io
import itertools
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from embedx.vectors.probing.probe_result import MOST_IN_MATRIX, ProbeResult

_FONT = 20
_MARGIN = 24
_CELL = 44
_SIDE = 1200
"""The largest side of the matrix in pixels; with more classes the cells get smaller."""
_LEGIBLE = 22
"""The side of a cell in pixels below which neither numbers nor names are drawn."""
_LONGEST = 24
_MOST_CONFUSED = 50
"""The number of classes that are drawn where there are too many for all."""
_WHITE, _BLACK, _GREY = (255, 255, 255), (20, 20, 20), (120, 120, 120)
_DARKEST = (8, 64, 129)


def confusion_png(result: ProbeResult) -> bytes:
    """Draws the confusion matrix: a row per class, a column per predicted class, in each cell the number of rows.

    The larger a cell's share of its row, the darker it is. With more than about 50 classes there is no room for numbers
    and names, and only the cells are drawn; with more than MOST_IN_MATRIX, those of the most frequent mistakes alone.

    Returns:
        The bytes of a PNG file.
    """
    shown = _shown(result)
    count = len(shown)
    side = max(1, min(_CELL, _SIDE // count))
    is_legible = side >= _LEGIBLE
    whole = [result.classes[place].name for place in shown]
    names = [name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…" for name in whole]
    widest = max(_width(name) for name in names) if is_legible else 0
    left, top = _MARGIN + _FONT * 2 + widest, _MARGIN + _FONT * 4
    heading = f"{result.method} probe of {result.test}: top-1 {result.top1:.1%} of {result.test_rows} rows"
    if count < len(result.classes):
        heading += f", {count} most confused of {len(result.classes)} classes"
    below = top + side * count
    width = max(left + side * count, _MARGIN + _width(heading)) + _MARGIN
    image = Image.new("RGB", (width, below + 8 + widest + _MARGIN), _WHITE)
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, _MARGIN), heading, _BLACK, _font())
    for row, numbers in enumerate(result.matrix(shown)):
        total = result.classes[shown[row]].rows
        for column, number in enumerate(numbers):
            share = number / total if total else 0.0
            x, y = left + column * side, top + row * side
            grid = 1 if is_legible else 0
            draw.rectangle((x, y, x + side - 1 - grid, y + side - 1 - grid), _shade(share))
            if number and is_legible:
                font = _font(min(_FONT, int(side * 1.4 / max(2, len(str(number))))))
                draw.text(
                    (x + side / 2, y + side / 2), str(number), _WHITE if share > 0.5 else _BLACK, font, anchor="mm"
                )
    draw.rectangle((left - 1, top - 1, left + side * count, below), outline=_GREY)
    if is_legible:
        size = min(_FONT, side - 4)
        for number, name in enumerate(names):
            middle = number * side + side / 2
            draw.text((left - 8, top + middle), name, _BLACK, _font(size), anchor="rm")
            _write_upwards(image, (int(left + middle), below + 8), name, size)
    draw.text((left + side * count / 2, top - 8), "predicted as", _GREY, _font(), anchor="mb")
    _write_upwards(image, (_MARGIN + _FONT // 2, top), "class", _FONT, _GREY)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _shown(result: ProbeResult) -> list[int]:
    """Returns the places of the classes to draw, in order."""
    if len(result.classes) <= MOST_IN_MATRIX:
        return list(range(len(result.classes)))
    confused = (place for mistake in result.mistakes for place in mistake[:2])
    return sorted(list(dict.fromkeys(itertools.chain(confused, range(len(result.classes)))))[:_MOST_CONFUSED])


def _shade(share: float) -> tuple[int, int, int]:
    """Maps a share in [0, 1] to a colour from white to the darkest; the square root makes rare mistakes visible."""
    red, green, blue = (round(255 + (end - 255) * share**0.5) for end in _DARKEST)
    return red, green, blue


def _write_upwards(
    image: Image.Image, place: tuple[int, int], text: str, size: int, colour: tuple[int, int, int] = _BLACK
) -> None:
    """Writes text upwards; `place` is the middle of the upper edge, where the text ends."""
    width = _width(text, size)
    line = Image.new("L", (width, size * 2), 0)
    ImageDraw.Draw(line).text((width, size), text, 255, _font(size), anchor="rm")
    line = line.rotate(90, expand=True)
    image.paste(colour, (place[0] - line.width // 2, place[1]), line)


def _width(text: str, size: int = _FONT) -> int:
    return int(_font(size).getlength(text)) + 1


@cache
def _font(size: int = _FONT) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
