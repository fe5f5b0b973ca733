"""Folders of files for the tests, and their listing."""

from __future__ import annotations

import shutil
from pathlib import Path

from embedx import sample
from embedx.data.sources import parse_data
from embedx.data.sources.base import Source


def touch(root: Path, *names: str) -> Path:
    """Makes files of these names, each with its own name as content."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))
    return root


def folder_source(root: Path) -> Source:
    """The folder as one split."""
    return parse_data([f"all={root}"])["all"]


def draw_folder(root: Path, images: dict[str, int]) -> Path:
    """So many of the sample's images of each class, per split."""
    for split, count in images.items():
        for folder in (sample.IMAGES / split).iterdir():
            (root / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:count]:
                shutil.copy2(image, root / split / folder.name)
    return root
