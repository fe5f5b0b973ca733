"""Folders of files for the tests, and their listing."""

from __future__ import annotations

from pathlib import Path

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
