"""SVG for pages of both colour schemes: boxes, arrows, and text that is refused where it would not fit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple
from xml.sax.saxutils import escape

_SANS = "ui-sans-serif,-apple-system,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif"
_MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
_SANS_EM, _BOLD_EM, _MONO_EM = 0.56, 0.62, 0.605
"""The width of a character in ems: about what DejaVu takes, the widest of the usual fonts."""
_ARROW = 9


class Theme(NamedTuple):
    """The colours of a page, those of GitHub's two themes."""

    name: str
    page: str
    ink: str
    muted: str
    line: str
    panel: str
    accent: str
    accent_panel: str
    second: str
    second_panel: str
    grey_bar: str


LIGHT = Theme(
    "light",
    "#ffffff",
    "#1f2328",
    "#59636e",
    "#d1d9e0",
    "#f6f8fa",
    "#0969da",
    "#ddf4ff",
    "#bc4c00",
    "#ffb77c",
    "#afb8c1",
)
DARK = Theme(
    "dark", "#0d1117", "#e6edf3", "#9198a1", "#3d444d", "#151b23", "#4493f8", "#0c2440", "#f0883e", "#9e4c12", "#656c76"
)
THEMES = (LIGHT, DARK)


class Svg:
    """A drawing.

    Args:
        theme: The colours.
        width: The width in pixels; text of 18 pixels is legible on a telephone up to a width of about 720.
        height: The height in pixels.
        title: The description for those who don't see it, also the README's alt text.
    """

    def __init__(self, theme: Theme, width: int, height: int, title: str) -> None:
        self.theme = theme
        self._width = width
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
            f' role="img" font-family="{_SANS}">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" rx="10" fill="{theme.page}"/>',
        ]

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, line: str = "none", *, radius: float = 8
    ) -> None:
        """Draws a rectangle with round corners."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}"'
            f' stroke="{line}" stroke-width="1.5"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        room: float,
        size: float = 18,
        colour: str = "",
        mono: bool = False,
        bold: bool = False,
        anchor: Literal["start", "middle", "end"] = "start",
    ) -> None:
        """Writes a line of text.

        Args:
            x: The place that `anchor` names.
            y: The base line.
            text: The line.
            room: The width in pixels that it may take.
            size: The height of the font in pixels.
            colour: A colour; without it the theme's ink.
            mono: True for a font whose characters are all of one width.
            bold: True for bold type.
            anchor: The part of the text that stands at `x`.

        Raises:
            ValueError: If the text is wider than its room, or reaches over the drawing's edge.
        """
        width = len(text) * size * (_MONO_EM if mono else _BOLD_EM if bold else _SANS_EM)
        left = x - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
        if width > room or left < 0 or left + width > self._width:
            raise ValueError(f"{text!r} takes {width:.0f} pixels from {left:.0f} on, and has {room:.0f}")
        style = f' font-family="{_MONO}"' * mono + ' font-weight="600"' * bold
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour or self.theme.ink}" text-anchor="{anchor}"'
            f'{style} xml:space="preserve">{escape(text)}</text>'
        )

    def arrow(self, *points: tuple[float, float], colour: str = "") -> None:
        """Draws a line through points, each level with or straight above the one before, with a tip at its end."""
        (x0, y0), (x, y) = points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        tip = [(x, y)] + [
            (x - _ARROW * dx + side * _ARROW * 0.6 * dy, y - _ARROW * dy + side * _ARROW * 0.6 * dx) for side in (-1, 1)
        ]
        line = [*points[:-1], (x - _ARROW * dx, y - _ARROW * dy)]
        shade = colour or self.theme.muted
        self._parts += [
            f'<polyline points="{_points(line)}" fill="none" stroke="{shade}" stroke-width="2"/>',
            f'<polygon points="{_points(tip)}" fill="{shade}"/>',
        ]

    def mosaic(self, x: float, y: float, side: float, pixels: Sequence[Sequence[str]]) -> None:
        """Draws rows of pixels, each given by its colour: pages refuse images within an SVG."""
        size = side / len(pixels)
        paths: dict[str, str] = {}
        for line, row in enumerate(pixels):
            column = 0
            for colour, run in itertools.groupby(row):
                length = len(list(run))
                paths[colour] = paths.get(colour, "") + f"M{column} {line}h{length}v1h-{length}z"
                column += length
        self._parts.append(f'<g transform="translate({x:g} {y:g}) scale({size:g})" shape-rendering="crispEdges">')
        self._parts += [f'<path fill="{colour}" d="{path}"/>' for colour, path in paths.items()]
        self._parts.append("</g>")

    def raw(self, part: str) -> None:
        """Adds an element that is written already."""
        self._parts.append(part)

    def encode(self) -> bytes:
        """Returns the bytes of the SVG file."""
        return "\n".join([*self._parts, "</svg>", ""]).encode()


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)
