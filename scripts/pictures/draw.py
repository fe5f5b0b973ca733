"""Draws the README's pictures, each for light and for dark pages.

python -m scripts.pictures.draw                  # all, of values that were measured before
python -m scripts.pictures.draw --measure speed  # measures first
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from scripts.pictures import flow, neighbours, progress, report, speed, store
from scripts.pictures.svg import THEMES

FOLDER = Path(__file__).parent
_SCREEN = FOLDER / "progress.ansi"


def drawn() -> dict[str, bytes]:
    """Draws all pictures, and returns the bytes of each by the name of its file."""
    files = {}
    for theme in THEMES:
        files[f"flow-{theme.name}.svg"] = flow.draw(theme)
        files[f"store-{theme.name}.svg"] = store.draw(theme, measured("store"))
        files[f"speed-{theme.name}.svg"] = speed.draw(theme, measured("speed"))
        files[f"progress-{theme.name}.svg"] = progress.draw(theme, _SCREEN.read_text())
        files[f"neighbours-{theme.name}.jpg"] = neighbours.draw(theme, measured("neighbours"))
    return files


def measured(name: str) -> Any:
    """Returns the values that were measured for a picture."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def _write(name: str, values: dict[str, Any]) -> None:
    (FOLDER / f"{name}.json").write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def main(
    measure: Annotated[
        Literal["store", "speed", "progress", "neighbours", "report"] | None,
        typer.Option(help="The picture to measure for first."),
    ] = None,
    photographs: Annotated[Path, typer.Option(help="The animals among Tux Paint's stamps.")] = Path(
        "/usr/share/tuxpaint/stamps/animals"
    ),
) -> None:
    """Draws the README's pictures."""
    match measure:
        case "store":
            _write("store", store.measure())
        case "speed":
            _write("speed", speed.measure())
        case "progress":
            _SCREEN.write_text(progress.measure())
        case "neighbours":
            _write("neighbours", neighbours.measure(photographs))
        case "report":
            report.measure(photographs.parent)
    for file, content in drawn().items():
        (FOLDER / file).write_bytes(content)


if __name__ == "__main__":
    typer.run(main)
