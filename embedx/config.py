"""The settings of an extraction.

Each field of `ExtractConfig` is a setting, said once: its flag, its key in a TOML file and its help come from it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from embedx import paths, settings
from embedx.errors import ConfigError
from embedx.recipe import pixel_faults, pixels_text
from embedx.values import (
    MAX_BYTES,
    MAX_PIXELS,
    MOST_READS,
    DecoderName,
    EngineName,
    Interpolation,
    OnError,
    Pooling,
    PrecisionName,
    RuntimeName,
    StoredDtype,
    channel_faults,
    out_of_range,
    parse_allowed,
    parse_batch_size,
    parse_resize,
    parse_share,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig(settings.Settings):
    """The settings of one `embedx extract`."""

    backbone: str = settings.backbone(
        path=paths.expand_backbone,
        help="Model to run: a name that `embedx backbones` lists, timm:NAME, hf:NAME or hf:FOLDER, "
        "openclip:NAME/TAG, a program's file, module:factory, or none if the inputs are features.",
    )
    backbone_arg: tuple[str, ...] = settings.backbone(
        (), metavar="KEY=VALUE", help="Argument of the factory in --backbone module:factory; VALUE is JSON; repeatable."
    )
    out: paths.StorePath = settings.output(
        short="-o", help="Folder of the store, or s3://BUCKET/NAME; made if missing.", **settings.STORE
    )
    data: tuple[str, ...] = settings.inputs(
        (),
        metavar="[NAME=]SOURCE",
        positional=True,
        help="Inputs; NAME is their split. SOURCE is a folder, an image, a table, a tar, a feature file, a pattern or "
        "URL of these (s3://…), torchvision:NAME, or - for paths on stdin; repeatable, and --data can be left out. "
        "Default: the bundled sample images.",
    )
    path_column: str | None = settings.inputs(
        None, help="Table column with the inputs' paths. Default: the first of path, image, file, filename, file_name."
    )
    key_column: str | None = settings.inputs(
        None, help="Table column with a unique name for each input. Default: its path."
    )
    target_column: str | None = settings.inputs(
        None, help="Column of a table or tar with class names or numbers. Default: target or label; tars: cls first."
    )
    split_column: str | None = settings.inputs(None, help="Table column with the split of each input.")
    root: str | None = settings.inputs(
        None,
        help="Where a table's relative paths start. Default: its own folder.",
        path=paths.expand_path,
        metavar="PATH|URL",
    )
    include: tuple[str, ...] = settings.inputs(
        (),
        metavar="GLOB",
        help="Take only files of folders and tars that match, as in .gitignore: *.png, 2024/**/thumb_?.jpg, cats/; "
        "endings in any case; repeatable.",
    )
    exclude: tuple[str, ...] = settings.inputs(
        (), metavar="GLOB", help="Leave out files and folders of folders and tars that match; repeatable."
    )
    null: bool = settings.inputs(False, help="Paths on stdin end in NUL, as from `find -print0`.", short="-0")
    weights: str = settings.backbone(
        "DEFAULT", help="Weights: DEFAULT (pretrained), a torchvision weights name, random, or sample (bundled)."
    )
    checkpoint: str | None = settings.backbone(
        None,
        help="File, folder or URL to load the backbone's weights from, instead of --weights.",
        path=paths.expand_path,
        metavar="PATH|URL",
    )
    checkpoint_key: str | None = settings.backbone(
        None, help="Part of the checkpoint with the weights, as dotted keys (teacher.vit). Default: the part that fits."
    )
    group_key: str | None = settings.output(
        None, help="Metadata field, such as class or parent, whose values each get a sub-folder of shards."
    )
    batch_size: int | Literal["auto"] | None = settings.machine(
        None,
        short="-b",
        parser=parse_batch_size,
        metavar="N|auto",
        lowest=1,
        help="Images per forward pass; part of the recipe. auto takes the store's size, or else the largest power of "
        "two that fits into the device's memory: on CUDA up to 1024, and a 32nd of the inputs; on the CPU 32. "
        "Default: 32 on CPU, auto on CUDA.",
    )
    workers: int | None = settings.machine(
        None,
        help="Processes that read and decode. Default: one per available core. 0 decodes in this process: a crashing "
        "image ends the run, and a hanging one stalls it, as --timeout has no effect.",
        short="-j",
        lowest=0,
    )
    reads: int | None = settings.machine(
        None,
        help="Reads of inputs at URLs that each worker has in flight, ahead of decoding. Default: by the latency.",
        lowest=1,
        highest=MOST_READS,
    )
    threads: int | None = settings.machine(
        None, help="CPU threads of the forward pass. Default: torch's choice, at most one per available core.", lowest=1
    )
    device: str = settings.machine(
        "auto", help="Device of the forward pass: auto (CUDA if available), cpu, cuda or cuda:N."
    )
    devices: str = settings.machine(
        "auto",
        metavar="all|N,N,…",
        help="Devices that get a process each: all, or GPUs as 0,1. auto takes all GPUs, unless --device names one.",
    )
    engine: EngineName = settings.machine(
        "local", help="What starts and watches the processes that compute: local, or ray on all nodes of a cluster."
    )
    address: str | None = settings.machine(
        None,
        metavar="HOST:PORT",
        help="Cluster of --engine ray. Default: RAY_ADDRESS, the one that runs on this machine, or a new one on it.",
    )
    same_hardware: bool = settings.machine(
        False, help="Refuse units of other hardware or libraries, whose last bits may differ. Default: tell them."
    )
    runtime: RuntimeName = settings.machine(
        "auto", help="Engine of the forward pass. auto tries them on the first images, where that pays."
    )
    precision: PrecisionName | None = settings.machine(
        None,
        help="Number format of the forward pass. auto takes bf16 where the processor multiplies in it and the run's "
        "first rows hardly change. Default: fp32 on CPU, tf32 on CUDA.",
    )
    dtype: StoredDtype = settings.output("float32", help="Number format of the stored embeddings.")
    layer: tuple[str, ...] = settings.backbone(
        (), help="Layer whose output is stored too, under its name; `embedx layers` lists them; repeatable."
    )
    pool: Pooling = settings.backbone(
        "avg", help="How to pool feature maps or tokens into one vector; none keeps them as they are."
    )
    normalize: bool = settings.output(False, help="Scale each embedding to unit L2 length.")
    image_size: int | None = settings.preprocessing(
        None,
        help="Height and width of the backbone's input; resizing is scaled along. Default: the weights'.",
        lowest=1,
    )
    resize: int | tuple[int, int] | None = settings.preprocessing(
        None,
        help="Shorter side, or height x width, to resize to. Default: the weights'.",
        parser=parse_resize,
        metavar="N|HxW",
    )
    crop: int | None = settings.preprocessing(
        None, help="Side of the centred square to cut out after resizing. Default: the weights'.", lowest=1
    )
    crop_pct: float | None = settings.preprocessing(
        None,
        metavar="SHARE",
        help="Share of the shorter side that the crop keeps: resizes to crop / share, as timm does.",
    )
    crop_first: bool = settings.preprocessing(
        False, help="Cut out the centred square, of the crop's share of the shorter side, before resizing (TensorFlow)."
    )
    mean: tuple[float, float, float] | None = settings.preprocessing(
        None,
        help="Mean per channel, or one for all, in [0, 1], as 127/255. Default: the weights'.",
        **settings.CHANNELS,
    )
    std: tuple[float, float, float] | None = settings.preprocessing(
        None,
        help="Standard deviation per channel, or one for all, to divide by. Default: the weights'.",
        **settings.CHANNELS,
    )
    interpolation: Interpolation | None = settings.preprocessing(
        None, help="Filter of resizing. Default: the weights'."
    )
    exif: bool = settings.preprocessing(True, help="Rotate images by their EXIF orientation.", flag="--exif/--no-exif")
    pixels: str = settings.preprocessing(
        "",
        parser=pixels_text,
        metavar="KEY=VALUE,…",
        shown=False,
        help="Reading of pixels, in the recipe: bits=12 of a camera in files of 16; channels=0:1:2, or one as gray; "
        "range=0:1, black and white of floats and numbers with a sign; background=white under alpha; color=srgb by the "
        "colour profile. Default: as the file states; in doubt a reject; alpha and profiles are left out.",
    )
    decoder: DecoderName = settings.machine("cpu", help="Device that decodes JPEGs; part of the recipe.")
    max_pixels: int = settings.inputs(
        MAX_PIXELS,
        help="Pixels above which an image, as it is or once resized, is rejected undecoded.",
        lowest=1,
        highest=2**63 - 1,
    )
    max_bytes: int = settings.inputs(
        MAX_BYTES, help="Size above which an input is rejected.", shown="1GiB", **settings.SIZE
    )
    shard_size: int = settings.output(
        128 * 1024**2, help="Approximate size of a shard.", shown="128MiB", **settings.SIZE
    )
    overwrite: bool = settings.running_again(False, help="Begin the store anew, and replace the old one at the end.")
    update: bool = settings.running_again(
        False,
        help="Embed inputs that are new or have changed, drop those that are gone, and bring in other labels, metadata "
        "and paths. A split of the store that --data does not name stays as it is.",
    )
    drop_split: tuple[str, ...] = settings.running_again((), help="Split to drop by --update; repeatable.")
    max_gone: float = settings.running_again(
        0.1,
        parser=parse_share,
        metavar="SHARE",
        shown="10%",
        help="Share of a split's inputs that may be gone in an --update, as 60% or 0.6; above it nothing is changed.",
    )
    verify_kept: bool = settings.running_again(
        False,
        help="Compare all shards that stay with their sha256, and compute damaged ones again. Default: their sizes, "
        "and by sha256 at most 1 GiB of those last checked 30 days ago, as reading a large store takes long.",
    )
    retry_rejected: bool = settings.running_again(False, help="Try the rejected inputs again.")
    on_error: OnError = settings.inputs("reject", help="Reject an unreadable input and go on, or fail at once.")
    allow_nonfinite: bool = settings.output(False, help="Store rows with NaN or infinity too; else they are rejected.")
    timeout: float = settings.inputs(300.0, metavar="SECONDS", help="Longest time to read and decode an input.")
    max_errors: int = settings.inputs(
        0, help="Rejected inputs above which the exit code is 3.", lowest=0, highest=2**63 - 1
    )
    max_unavailable: str = settings.inputs(
        "1%",
        help="Inputs that disk or network may fail to give before the run fails; up to then its exit code is 3.",
        parser=parse_allowed,
        metavar="N|P%",
    )
    seed: int = settings.backbone(0, help="Random seed of --weights random.", lowest=-(2**63), highest=2**63 - 1)

    def faults(self) -> list[str]:
        """Returns everything that is wrong with the settings themselves, one message each."""
        twice = "--{} and --{} both set the size of {}; give one of them"
        again = "--overwrite begins a store anew, and {} goes on with it; give one of them"
        checks = [
            (self.overwrite and self.update, again.format("--update")),
            (self.overwrite and self.retry_rejected, again.format("--retry-rejected")),
            (self.drop_split and not self.update, "--drop-split changes a store that is there; give --update too"),
            (not 0 < self.timeout < 1e6, f"--timeout is {self.timeout:g}; give seconds above 0 and below 1e6"),
            (
                self.checkpoint is not None and self.weights != "DEFAULT",
                f"--checkpoint and --weights {self.weights} both name the weights; give one of them",
            ),
            (
                self.checkpoint is not None and not (paths.is_url(self.checkpoint) or Path(self.checkpoint).exists()),
                f"--checkpoint {self.checkpoint}: there is no such file or folder",
            ),
            (
                self.checkpoint is None and self.checkpoint_key is not None,
                f"--checkpoint-key {self.checkpoint_key} is a part of a --checkpoint; give that too",
            ),
            (None not in (self.image_size, self.crop), twice.format("image-size", "crop", "the backbone's input")),
            (None not in (self.resize, self.crop_pct), twice.format("resize", "crop-pct", "what is cropped")),
            (
                self.crop_pct is not None and not 0 < self.crop_pct <= 1,
                f"--crop-pct is {self.crop_pct}; give a share above 0, and at most 1, such as 0.875",
            ),
            (
                self.address is not None and self.engine != "ray",
                f"--address {self.address} names a cluster of --engine ray; give that too",
            ),
            (
                self.engine == "ray" and self.devices != "auto",
                f"--devices {self.devices} names devices of this machine, and --engine ray takes those of the cluster; "
                "leave it out",
            ),
            (len(set(self.layer)) < len(self.layer), f"--layer names a layer twice: {', '.join(self.layer)}"),
        ]
        found = [*out_of_range(self), *(message for wrong, message in checks if wrong)]
        found += channel_faults(self.mean or (), self.std or ())
        return [*found, *pixel_faults(self.pixels), *paths.output_faults(self.out)]

    def validate(self) -> None:
        """Raises one ConfigError that names every fault of the settings."""
        ConfigError.check(self.faults())
