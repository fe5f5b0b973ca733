"""The flow of a run: its processes, and the writer beside the loop."""

from __future__ import annotations

from scripts.pictures.svg import Svg, Theme

TITLE = (
    "The flow of a run: worker processes decode, the main process computes, and the writer process beside it "
    "takes rows from a ring of shared memory to the store."
)
_SLOTS, _FULL = 8, 3


def draw(theme: Theme) -> bytes:
    """Draws boxes for processes, cells for shared memory, and a page for what is on disk."""
    svg = Svg(theme, 720, 452, TITLE)

    def process(x: float, y: float, width: float, height: float, *lines: str) -> None:
        svg.box(x, y, width, height, theme.accent_panel, theme.accent)
        words(x, y, width, *lines)

    def words(x: float, y: float, width: float, heading: str, *lines: str) -> None:
        svg.text(x + width / 2, y + 30, heading, room=width - 8, bold=True, anchor="middle")
        for number, line in enumerate(lines):
            svg.text(x + width / 2, y + 56 + 23 * number, line, room=width - 8, size=16, anchor="middle")

    svg.box(16, 60, 152, 118, theme.panel, theme.line)
    words(16, 60, 152, "images", "folders, tables", "tars, URLs", "stdin, datasets")
    svg.arrow((168, 119), (204, 119))

    for shift in (16, 8):
        svg.box(208 + shift, 60 - shift, 180, 118, theme.accent_panel, theme.accent)
    process(208, 60, 180, 118, "loader workers", "read, hash", "decode, resize", "one per core")
    svg.arrow((404, 119), (464, 119))
    svg.text(434, 106, "batches", room=64, size=15, colour=theme.muted, anchor="middle")

    process(468, 28, 236, 166, "main process", "the loop")
    svg.box(492, 100, 188, 42, theme.page, theme.accent)
    svg.text(586, 127, "frozen backbone", room=184, bold=True, anchor="middle")
    svg.text(586, 172, "progress, rejects, rates", room=228, size=16, anchor="middle")

    svg.arrow((586, 194), (586, 258))
    svg.text(574, 232, "rows, and the keys of their inputs", room=320, size=15, colour=theme.muted, anchor="end")
    for slot in range(_SLOTS):
        full = slot < _FULL
        svg.box(468 + 29.5 * slot, 262, 29.5, 44, theme.second_panel if full else theme.page, theme.second, radius=2)
    svg.text(586, 330, "ring of shared memory", room=236, size=16, anchor="middle")
    svg.arrow((468, 284), (392, 284))

    process(208, 232 + 14, 180, 96, "writer process", "shards, sha256", "index last")
    svg.arrow((208, 284), (172, 284))
    svg.box(16, 246, 152, 96, theme.panel, theme.line)
    words(16, 246, 152, "store", "shards", "index tables")

    svg.box(16, 382, 26, 18, theme.accent_panel, theme.accent, radius=4)
    svg.text(52, 397, "a process", room=120, size=16, colour=theme.muted)
    svg.box(176, 382, 26, 18, theme.second_panel, theme.second, radius=2)
    svg.text(212, 397, "a batch's rows, read where they lie", room=330, size=16, colour=theme.muted)
    last = "The disk never blocks the backbone. A kill at any moment costs at most 30 s and a batch."
    svg.text(16, 432, last, room=690, size=14)
    return svg.encode()
