"""The settings of an extraction.

Each field of `ExtractConfig` is one setting: its flag on the command line, its key in a TOML file and its
help text are derived from it, so that a setting is said once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

from embedx.errors import ConfigError
from embedx.recipe import canonical_json
from embedx.values import (
    MAX_PIXELS,
    DecoderName,
    Interpolation,
    OnError,
    Pooling,
    Precision,
    RuntimeName,
    StoredDtype,
    parse_batch_size,
    parse_channels,
    parse_resize,
    parse_size,
)


def setting(default: Any = dataclasses.MISSING, *, help: str, short: str = "", **extra: Any) -> Any:
    """Declares one field of a configuration, with what the command line and its help need to know of it."""
    return dataclasses.field(default=default, metadata={"help": help, "short": short, **extra})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What one `embedx extract` is asked to do."""

    backbone: str = setting(help="What computes: a name, file or module:factory; `embedx backbones` lists them.")
    backbone_arg: tuple[str, ...] = setting(
        (), help="KEY=VALUE for the factory of --backbone package.module:factory, the value as JSON; repeatable."
    )
    out: Path = setting(help="The store: the output folder, made if it isn't there.")
    data: tuple[str, ...] = setting(
        (),
        help="Inputs as [NAME=]SOURCE: a folder, table, tar or feature file, all also as a URL such as s3://…, "
        "torchvision:DATASET, or - for paths on stdin; repeatable. Without it: the bundled sample.",
    )
    path_column: str | None = setting(
        None, help="Of a table: where each input is. Default: the first of path, image, file, filename."
    )
    key_column: str | None = setting(None, help="Of a table: each input's unique name. Default: its path.")
    target_column: str | None = setting(
        None, help="Of a table or tar: class names or numbers. Default: target or label, in a tar first cls."
    )
    split_column: str | None = setting(None, help="Of a table: the split of each input.")
    root: str | None = setting(
        None, help="Where a table's relative paths begin, as a path or URL. Default: the table's folder."
    )
    null: bool = setting(False, help="Paths on stdin end in NUL, as of `find -print0`.", flag="--null", short="-0")
    weights: str = setting(
        "DEFAULT", help="DEFAULT (pretrained), a torchvision weights name, random, or sample (bundled)."
    )
    checkpoint: Path | None = setting(None, help="Load the backbone's weights from this file instead.")
    checkpoint_key: str | None = setting(
        None, help="Part of the checkpoint to take them from, as dotted keys, such as teacher."
    )
    group_key: str | None = setting(
        None, help="Metadata field that names a sub-folder per value, such as class or parent."
    )
    batch_size: int | Literal["auto"] = setting(
        32,
        help="Images per forward pass; part of the recipe. auto: the store's, or else the largest power of two that "
        "fits into the device's memory, up to 1024 on CUDA, and 32 on the CPU.",
        short="-b",
        parser=parse_batch_size,
        metavar="N|auto",
    )
    workers: int | None = setting(
        None,
        help="Processes that read and decode. Default: one per core, by affinity and the container's limit. 0: none; "
        "--timeout has no effect then, and an input that crashes its decoder ends the run.",
        short="-j",
    )
    threads: int | None = setting(
        None, help="Threads of a forward pass on the CPU. Default: torch's own number, at most one per core."
    )
    device: str = setting("auto", help="auto (CUDA if there is one), cpu, cuda or cuda:N.")
    runtime: RuntimeName = setting("auto", help="How the forward pass is run; auto: by what pays for so many inputs.")
    precision: Precision | None = setting(
        None, help="Precision of the forward pass. Default: fp32 on CPU, tf32 on CUDA."
    )
    dtype: StoredDtype = setting("float32", help="Type of the stored numbers.")
    layer: tuple[str, ...] = setting((), help="Store this layer's output too, as a tensor of its name; repeatable.")
    pool: Pooling = setting("avg", help="How a layer's map or tokens become one vector; none: they don't.")
    normalize: bool = setting(False, help="Scale each vector to unit L2 length.", flag="--normalize")
    image_size: int | None = setting(
        None, help="Height and width fed to the backbone; the share that is cropped stays. Default: its own."
    )
    resize: int | tuple[int, int] | None = setting(
        None, help="Shorter side, or HxW, to resize to. Default: the weights' own.", parser=parse_resize, metavar="SIZE"
    )
    crop: int | None = setting(None, help="Side of the centred square that is cut out. Default: the weights' own.")
    mean: tuple[float, float, float] | None = setting(
        None, help="Subtracted from R,G,B in [0, 1]. Default: the weights' own.", parser=parse_channels, metavar="R,G,B"
    )
    std: tuple[float, float, float] | None = setting(
        None, help="R,G,B are divided by it. Default: the weights' own.", parser=parse_channels, metavar="R,G,B"
    )
    interpolation: Interpolation | None = setting(None, help="Of resizing. Default: the weights' own.")
    exif: bool = setting(True, help="Rotate images as their EXIF orientation says.", flag="--exif/--no-exif")
    decoder: DecoderName = setting(
        "cpu", help="Where JPEGs are decoded; cuda: on the GPU, which takes load off the cores. Part of the recipe."
    )
    max_pixels: int = setting(
        MAX_PIXELS, help="Images that have more, or would once they are resized, are rejected before they are decoded."
    )
    shard_size: int = setting(
        128 * 1024**2, help="Size to aim at per shard.", parser=parse_size, metavar="SIZE", shown="128MiB"
    )
    overwrite: bool = setting(False, help="Replace the store that is there.", flag="--overwrite")
    update: bool = setting(
        False, help="Bring the store to inputs that have changed: compute what is new or changed.", flag="--update"
    )
    retry_rejected: bool = setting(False, help="Try the rejected inputs again.", flag="--retry-rejected")
    on_error: OnError = setting("reject", help="An unreadable input: list it as rejected, or stop.")
    timeout: float = setting(300.0, help="Seconds after which an input that has not been read and decoded is rejected.")
    max_errors: int = setting(0, help="Exit with 3 if more inputs than this were rejected.")
    seed: int = setting(0, help="Seed of --weights random.")

    def faults(self) -> list[str]:
        """Everything wrong with the settings themselves, one message each; empty if nothing is."""
        faults = []
        for name, lowest in (
            *(("batch_size", 1), ("workers", 0), ("threads", 1), ("image_size", 1), ("crop", 1)),
            *(("max_pixels", 1), ("max_errors", 0)),
        ):
            value = getattr(self, name)
            if value not in (None, "auto") and value < lowest:
                flag = "--" + name.replace("_", "-")
                faults.append(f"{flag} is {value}; give a whole number of at least {lowest}")
        for name in ("update", "retry_rejected"):
            if self.overwrite and getattr(self, name):
                flag = "--" + name.replace("_", "-")
                faults.append(f"--overwrite begins a store anew, and {flag} goes on with it; give one of them")
        if not 0 < self.timeout < 1e6:
            faults.append(f"--timeout is {self.timeout:g}; give a number of seconds above 0, and below 1e6")
        if self.checkpoint is not None:
            if self.weights != "DEFAULT":
                faults.append(f"--checkpoint and --weights {self.weights} both name the weights; give one of them")
            if not self.checkpoint.is_file():
                faults.append(f"--checkpoint {self.checkpoint}: there is no such file")
        elif self.checkpoint_key is not None:
            faults.append(f"--checkpoint-key {self.checkpoint_key} is a part of a --checkpoint; give that too")
        if self.image_size is not None and self.crop is not None:
            faults.append("--image-size and --crop both say what the backbone gets; give one of them")
        if self.mean is not None and not all(0 <= value <= 1 for value in self.mean):
            faults.append(f"--mean is {_channels_text(self.mean)}; it is of values in [0, 1]: divide by 255")
        if self.std is not None and not all(0 < value < math.inf for value in self.std):
            faults.append(f"--std is {_channels_text(self.std)}; give three numbers above 0")
        if len(set(self.layer)) < len(self.layer):
            faults.append(f"--layer names a layer twice: {', '.join(self.layer)}")
        return faults + _output_faults(self.out)

    def validate(self) -> None:
        """Raises one ConfigError naming every fault of the settings."""
        ConfigError.check(self.faults())

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values, with the folder in which their relative paths begin."""
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return {**cast(dict[str, Any], json.loads(json.dumps(settings))), "working_directory": os.getcwd()}

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """The settings that `to_json` has stated; of those that it did not know, the defaults.

        Raises:
            ConfigError: If they are no such settings.
        """
        names = {field.name for field in dataclasses.fields(cls)}.intersection(settings)
        values: dict[str, Any] = {name: settings[name] for name in names}
        try:
            for name, value in values.items():
                if isinstance(value, list):
                    values[name] = tuple(value)
                elif name in ("out", "checkpoint") and value is not None:
                    values[name] = Path(value)
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"the settings {canonical_json(settings)} are not those of an extraction") from error


def _channels_text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _output_faults(out: Path) -> list[str]:
    if re.search(r"[\0\n\r\ud800-\udfff]", str(out)):  # stdout is to tell it, in one line of text
        return [f"--out {str(out)!r}: has bytes that are no text, or a line's end; choose another path"]
    existing = out.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        return [f"--out {out}: {existing} is not a folder; choose another path"]
    # Of a folder that is there it may be a store's, whose permission was lost, and of a read-only disk, that it may be
    # mended: both are the run's to find out. So is a path in a system's pseudo file system, of which access() sees
    # nothing.
    is_lasting = existing != out.absolute() and not os.statvfs(existing).f_flag & os.ST_RDONLY
    if is_lasting and not os.access(existing, os.W_OK | os.X_OK):
        return [f"--out {out}: no permission to write in {existing}; choose another path"]
    return []
