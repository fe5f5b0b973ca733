"""Consoles on which a text can't steer the terminal: names, values and libraries' messages are shown with escapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.text import Text
from rich.theme import Theme

from embedx.credentials import credentials_hidden
from embedx.terminal import one_line, without_controls

_LEGIBLE = Theme(
    {
        "bar.back": "bright_black",
        "bar.pulse": "bright_black",
        "progress.percentage": "bold",
        "progress.download": "none",
        "progress.elapsed": "none",
        "progress.remaining": "none",
    }
)
"""The styles in place of Rich's: yellow and green can't be read on white, and a dark bar's rest looks like the done."""


class GuardedConsole(Console):
    """A console on which only Rich's own styles steer the terminal: text is shown with escapes for its controls.

    URLs in it are shown without their credentials.

    A string is one line. What has several is a list of strings, each printed, or a renderable made of them.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        # No markup: a name that looks like it is a name.
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, theme=_LEGIBLE)

    def render_str(self, text: str, **options: Any) -> Text:
        """Makes the text of a string, wherever Rich takes one: in a cell, a title, or alone."""
        return super().render_str(one_line(credentials_hidden(text)), **options)

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Renders anything; what is no string keeps its line ends."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=without_controls(segment.text))


class NoticeConsole(GuardedConsole):
    """The console of notices and progress, on stderr or in a notebook's cell.

    If its reader goes away or its disk is full, it turns quiet, and the run goes on.
    """

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints, or turns quiet where stderr can't be written."""
        try:
            super().print(*objects, **options)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Turns quiet; Rich itself would end the process, and close stdout."""
        self.quiet = True
