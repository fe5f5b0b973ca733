"""The terms in which a kind of source describes itself: its options, its suffixes.

To add a kind of source: write a module in this folder that ends in `KIND = SourceKind(…)`, and add that to the list of
kinds in `embedx/data/sources/__init__.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Self

from embedx.config import ExtractConfig
from embedx.data.sources.base import Reader, Source
from embedx.names import NO_BACKBONE

Content = Literal["images", "features"]

SUFFIXES: dict[Content, frozenset[str]] = {
    "images": frozenset(
        {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
        | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".hif", ".jxl", ".jp2", ".tga"}
    ),
    "features": frozenset({".npy", ".safetensors"}),
}
"""The suffixes of files, in lower case, by the content of the files."""


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """The settings of an extraction that say how sources are read; all but `content` are fields of ExtractConfig."""

    path_column: str | None = None
    key_column: str | None = None
    target_column: str | None = None
    split_column: str | None = None
    group_key: str | None = None
    root: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    null: bool = False
    content: Content = "images"
    """The content of the inputs: images for a backbone, or features that need none."""

    @classmethod
    def of(cls, config: ExtractConfig) -> Self:
        """Takes the options from the settings of an extraction."""
        names = {field.name for field in dataclasses.fields(cls)} - {"content"}
        content: Content = "features" if config.backbone == NO_BACKBONE else "images"
        return cls(**{name: getattr(config, name) for name in names}, content=content)

    @property
    def suffixes(self) -> frozenset[str]:
        """The suffixes of the files that are inputs."""
        return SUFFIXES[self.content]


class SourceKind(NamedTuple):
    """One kind of source, as `parse_data` uses it."""

    matches: Callable[[str], bool]
    """Tells whether a location, the part of `--data` behind `[NAME=]`, is of this kind."""
    open: Callable[[str | None, str, SourceOptions], Mapping[str, Source]]
    """Opens a location, given the name of its split (or None) and the options, as one source per split.

    Raises a ConfigError that says what to do if the location can't be opened."""
    plural: str = ""
    """The name of several sources of this kind in messages; needed where `options` is not empty."""
    options: frozenset[str] = frozenset()
    """The fields of SourceOptions that only this kind reads; giving one without such a source is a fault."""
    once: bool = False
    """True if only one source of this kind can be read."""
    open_many: Callable[[str | None, Sequence[str], SourceOptions], Mapping[str, Source]] | None = None
    """Opens several locations, given for the same split, as one source; None if each is a source of its own."""
    reader: Callable[[str, SourceOptions], Reader] | None = None
    """Returns the reader of inputs that lie in a file of this kind, without listing them; None for whole files.

    Raises a ConfigError if the location, as it stands in an index table, can't be read any more."""
