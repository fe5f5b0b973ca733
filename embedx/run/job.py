"""The parts of a run, by its settings: what `extract` and `recompute` are put together from."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

import torch

from embedx.config import ExtractConfig
from embedx.data.decoding.batch_rows import Decoder, DenseDecoder
from embedx.data.decoding.features import FeatureDecoder, features_shape
from embedx.data.decoding.images import ImageDecoder
from embedx.data.decoding.nvjpeg import DeviceDecoder, EncodedDecoder, Upload, try_to_decode
from embedx.data.loading.loaders import SplitLoader
from embedx.data.plan import Plan, SplitPlan
from embedx.engine.state import Batch
from embedx.errors import ConfigError
from embedx.models.backbones import BackboneSpec, describe_backbone
from embedx.models.backbones.none import NONE, FeatureSpec, describe_features
from embedx.recipe import Recipe
from embedx.system.machine import cores
from embedx.values import Precision

_PACKAGES = ("embedx", "torch", "torchvision", "pillow", "numpy", "pyarrow", "safetensors")

_THREADS = torch.get_num_threads()
"""As many as torch would use."""

T = TypeVar("T")


def describe_spec(config: ExtractConfig, plan: Plan | None, *, download: bool) -> BackboneSpec:
    """The backbone that was asked for, or, without one, what is made of the plan's features."""
    if config.backbone != NONE:
        return describe_backbone(config, download=download)
    return describe_features(config, features_shape(plan) if plan is not None else (1,))


def decoder_for(spec: BackboneSpec, config: ExtractConfig) -> DenseDecoder:
    """What turns inputs into what the backbone takes."""
    if isinstance(spec, FeatureSpec):
        return FeatureDecoder(spec.input_shape)
    return ImageDecoder(required(spec.preprocessing), config.max_pixels)


def loading(decoder: DenseDecoder, config: ExtractConfig) -> Decoder:
    """What workers do of the decoding."""
    return EncodedDecoder(decoder) if config.decoder == "cuda" and isinstance(decoder, ImageDecoder) else decoder


def check_decoder(config: ExtractConfig, device: torch.device) -> None:
    """Checks that images can be decoded where they should be.

    Raises:
        ConfigError: If not.
    """
    if config.decoder == "cpu":
        return
    if config.backbone == NONE:
        raise ConfigError("--decoder cuda is for images, and --backbone none takes features; leave it out")
    if device.type != "cuda":
        raise ConfigError(f"--decoder cuda decodes where the model runs, and that is the {device}; give --decoder cpu")
    try_to_decode(device)


def placing(
    decoder: DenseDecoder, config: ExtractConfig, batch_size: int, device: torch.device
) -> Callable[[Batch], Batch]:
    """What brings a batch that workers have made to the device."""
    if config.decoder == "cuda" and isinstance(decoder, ImageDecoder):
        return DeviceDecoder(decoder, batch_size, device)
    return Upload(device, decoder.entry)


def recipe_of(
    config: ExtractConfig,
    spec: BackboneSpec,
    device: torch.device,
    precision: Precision,
    batch_size: int,
    runtime: str,
) -> Recipe:
    """All that determines what will be computed."""
    return Recipe(
        backbone=spec.name,
        backbone_args=dict(spec.architecture.arguments),
        weights=spec.weights.to_json(),
        preprocessing=spec.preprocessing,
        layers=spec.layers,
        pooling=config.pool,
        normalize=spec.normalize,
        precision=precision,
        runtime=runtime,
        device=device.type,
        decoder=config.decoder,
        batch_size=batch_size,
        dtype=config.dtype,
    )


def environment_of(device: torch.device, libraries: tuple[str, ...]) -> dict[str, Any]:
    """Versions and hardware, as the manifest has them."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in (*_PACKAGES, *libraries)},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def workers_of(config: ExtractConfig) -> int:
    """Processes that read and decode: one for each core, unless another number is given."""
    return cores() if config.workers is None else config.workers


def split_loader(
    plan: SplitPlan,
    runs: Sequence[Sequence[int]],
    decoder: Decoder,
    config: ExtractConfig,
    batch_size: int,
    device: torch.device,
) -> SplitLoader:
    """A loader of some of a split's inputs, as the settings have it."""
    return SplitLoader(
        plan,
        runs,
        decoder,
        batch_size=batch_size,
        workers=workers_of(config),
        pin_memory=device.type == "cuda",
        timeout=config.timeout,
    )


def use_machine(config: ExtractConfig, device: torch.device) -> None:
    """Has torch compute on a device, and with as many threads as are given, or as it would, but no more than cores."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    threads = config.threads or min(_THREADS, cores())
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def required(value: T | None) -> T:
    """A value that is there, as no fault was found on the way to it."""
    if value is None:
        raise RuntimeError("a step failed without saying why")
    return value
