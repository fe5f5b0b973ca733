"""The progress bar, as it stood on a terminal of 80 columns."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.sax.saxutils import escape

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from scripts.bench import make_photographs
from scripts.pictures.svg import LIGHT, Theme

TITLE = (
    "embedx extract on a terminal: a bar for each split, with the inputs that are done, images per second, and "
    "the time left."
)
_COMMAND = "embedx extract --backbone shufflenet_v2_x0_5 --weights sample \\\n    --data photos --out store"
_SPLITS = {"train": 1200, "val": 300}
_HALF = re.compile(r"train .* [67]\d\d/1200 ")
_COLUMNS = 80
_LIGHT_COLOURS = ("#1f2328", "#cf222e", "#116329", "#4d2d00", "#0969da", "#8250df", "#1b7c83", "#6e7781")
_DARK_COLOURS = ("#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4")
_GREYS = ("#afb8c1", "#6e7681")
"""The bright black of each page, in which a bar's rest is drawn."""
_FORMAT = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"
 role="img">
<title>%s</title>
<style>
.{unique_id}-matrix {{ font: {char_height}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace; }}
{styles}
</style>
<defs>{lines}</defs>
{chrome}
<g transform="translate({terminal_x} {terminal_y})">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def measure() -> str:
    """Runs a command on a real terminal, tmux's, and returns with its colours what stands there half way."""
    with TemporaryDirectory() as folder:
        for split, count in _SPLITS.items():
            make_photographs(Path(folder) / "photos" / split, count)
        tmux = ["tmux", "-S", f"{folder}/socket", "-f", os.devnull]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        shell = ["env", f"PATH={path}", f"PYTHONPATH={Path(__file__).parents[2]}", "PS1=$ ", "bash", "--norc"]
        subprocess.run([*tmux, "new-session", "-d", "-x", str(_COLUMNS), "-y", "24", "-c", folder, *shell], check=True)
        try:
            time.sleep(1)
            subprocess.run([*tmux, "send-keys", _COMMAND, "Enter"], check=True)
            screen = ""
            while not _HALF.search(re.sub(r"\x1b\[[\d;]*m", "", screen)):
                time.sleep(0.1)
                capture = [*tmux, "capture-pane", "-e", "-p"]
                screen = subprocess.run(capture, stdout=subprocess.PIPE, text=True, check=True).stdout
        finally:
            subprocess.run([*tmux, "kill-server"], check=True)
    return screen.rstrip() + "\n"


def draw(theme: Theme, found: str) -> bytes:
    """Draws the terminal in the colours that are usual on such a page."""
    console = Console(width=_COLUMNS, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(found), end="", soft_wrap=True)
    is_light = theme is LIGHT
    colours = [_rgb(colour) for colour in (_LIGHT_COLOURS if is_light else _DARK_COLOURS)]
    bright = [_rgb(_GREYS[0 if is_light else 1]), *colours[1:]]
    terminal = TerminalTheme(_rgb(theme.panel), _rgb(theme.ink), colours, bright)
    form = _FORMAT % escape(TITLE)
    return console.export_svg(title="", theme=terminal, code_format=form, unique_id="bar").encode()


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue
