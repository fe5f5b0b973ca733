"""A run, fully determined: from a `Job` come the decoder, loaders, model, recipe and manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.console import Console
from torch import nn

from embedx.callbacks.finite_rows import FiniteCheck
from embedx.config import ExtractConfig
from embedx.data.decoding import extra
from embedx.data.decoding.batch_rows import Decoder, DenseDecoder
from embedx.data.decoding.features import FeatureDecoder
from embedx.data.decoding.images import ImageDecoder
from embedx.data.decoding.nvjpeg import CopyToDevice, DecodeOnDevice, PartialDecoder
from embedx.data.loading.loaders import SplitLoader, batches_at_once
from embedx.data.plan import Plan, SplitPlan
from embedx.engine.callback import Callback
from embedx.engine.connectors import DataConnector
from embedx.engine.loop import run_test
from embedx.engine.state import Batch
from embedx.errors import DeviceMemoryError
from embedx.models.backbones import BackboneSpec
from embedx.models.device import hardware_of
from embedx.models.one_shape import OneShape
from embedx.models.runtimes import choice as runtimes
from embedx.models.runtimes.base import Runtime
from embedx.names import EMBEDDINGS
from embedx.recipe import Recipe
from embedx.store.format.contents import Environment, PlanTerms, StoredRecipe, StoredSettings
from embedx.store.format.manifest import Manifest
from embedx.system.machine import cores
from embedx.values import Precision, rows_per_unit

_PACKAGES = ("embedx", "torch", "torchvision", "pillow", "numpy", "pyarrow", "safetensors")
_NICENESS = 7
"""The steps of priority by which decoding comes after a forward pass on the same cores, whose threads wait for one
another. On two cores of an AMD EPYC, mobilenet_v3_small came to 350 images/s with it, to 305 without; 10 gave no more.
"""
_INDEX_BYTES = 8  # a row's number in the shard's `index`


@dataclasses.dataclass(frozen=True)
class Job:
    """A run, fully determined; nothing of it has been written."""

    config: ExtractConfig
    plan: Plan
    spec: BackboneSpec
    device: torch.device
    precision: Precision
    batch_size: int
    runtimes: tuple[str, ...]
    """The runtimes to try, in this order; the first is the recipe's."""
    rivals: tuple[str, ...] = ()
    """The runtimes that are tried beside the first one where that pays (see `settle`)."""
    may_take_bf16: bool = False
    """True if bf16 is tried, and taken if it changes little (see `settle`)."""
    store: Manifest | None = None
    """The manifest of the store that was there when the run was determined."""

    @cached_property
    def decoder(self) -> DenseDecoder:
        """The decoder that turns an input's bytes into a row of the backbone's input."""
        if self.spec.preprocessing is None:
            return FeatureDecoder(self.spec.input_shape)
        return ImageDecoder(self.spec.preprocessing, self.config.max_pixels)

    @property
    def worker_decoder(self) -> Decoder:
        """The decoder that the workers run; with `--decoder cuda` it leaves JPEGs to the device."""
        if self.config.decoder == "cuda" and isinstance(self.decoder, ImageDecoder):
            return PartialDecoder(self.decoder)
        return self.decoder

    @property
    def workers(self) -> int:
        """The number of processes that read and decode: one per core, unless another number is given."""
        return cores() if self.config.workers is None else self.config.workers

    @property
    def precision_text(self) -> str:
        """The precision, or `auto` where it is not settled yet."""
        return "auto" if self.may_take_bf16 else self.precision

    @property
    def runtime_text(self) -> str:
        """The name of the runtime, or `auto` where it is not settled yet."""
        return "auto" if self.rivals else self.runtimes[0]

    @property
    def row_bytes(self) -> int:
        """The bytes of one input's row over all stored tensors."""
        item_bytes: int = getattr(torch, self.config.dtype).itemsize
        return sum(map(math.prod, self.spec.shapes.values())) * item_bytes + _INDEX_BYTES

    @property
    def rows_per_unit(self) -> int:
        """The number of rows in a unit, so that its shard has about `--shard-size` bytes."""
        return rows_per_unit(self.config.shard_size, self.row_bytes, self.batch_size)

    @property
    def rows_at_once(self) -> int:
        """The most rows of a loader's batch: those of a forward pass, or of several of them (see `batches_at_once`)."""
        decoder, splits = self.worker_decoder, self.plan.splits.values()
        return self.batch_size * max((batches_at_once(one, decoder, self.batch_size) for one in splits), default=1)

    @property
    def _keeps_features(self) -> bool:
        """True if the outputs are the inputs, as these are features which are neither pooled nor scaled."""
        return self.spec.shapes == {EMBEDDINGS: self.spec.input_shape} and not self.spec.normalize

    @property
    def finite_check(self) -> FiniteCheck:
        """The check of computed rows."""
        origin = "the forward pass" if self.spec.preprocessing is not None else "the input"
        return FiniteCheck(origin, unit_length=self.spec.normalize)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe: all that determines the embeddings' values."""
        return Recipe(
            backbone=self.spec.architecture.name,
            backbone_args=dict(self.spec.architecture.arguments),
            weights=self.spec.architecture.weights.to_json(),
            preprocessing=self.spec.preprocessing,
            layers=self.spec.layers,
            pooling=self.config.pool,
            normalize=self.spec.normalize,
            precision=self.precision,
            runtime=self.runtimes[0],
            device=self.device.type,
            decoder=self.config.decoder,
            batch_size=self.batch_size,
            dtype=self.config.dtype,
        )

    @cached_property
    def environment(self) -> Environment:
        """The versions and the hardware that the run uses, as the manifest states them."""
        libraries = (*self.spec.architecture.libraries, *runtimes.libraries(self.runtimes[0]))
        device = hardware_of(self.device)["device"] if self.device.type == "cuda" else platform.machine()
        packages = {package: version(package) for package in (*_PACKAGES, *libraries)}
        if isinstance(self.decoder, ImageDecoder):
            packages |= _installed(extra.PACKAGES)
        machine = {"device": device, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
        return Environment.from_json({"python": platform.python_version(), **packages, **machine})

    @cached_property
    def unit_environment(self) -> dict[str, str | int]:
        """The hardware and the libraries that compute, as the index tables state them."""
        libraries = ("torch", *runtimes.libraries(self.runtimes[0]))
        return {**hardware_of(self.device), **{library: version(library) for library in libraries}}

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest of the store that the run begins."""
        return Manifest(
            StoredRecipe.from_json(self.recipe.to_json()),
            PlanTerms.from_json(self.plan.to_json(self.rows_per_unit)),
            self.environment,
            StoredSettings.from_json(self.config.to_json()),
        )

    def loader(
        self,
        split: SplitPlan,
        runs: Iterable[Sequence[int]],
        decoder: Decoder | None = None,
        again: Collection[int] = (),
    ) -> SplitLoader:
        """Makes a loader of rows of a split's plan, in runs; no batch holds rows of two runs."""
        return SplitLoader(
            split,
            runs,
            decoder or self.worker_decoder,
            batch_size=self.batch_size,
            workers=self.workers,
            pin_memory=self.device.type == "cuda",
            again=again,
            unique_keys=self.config.key_column is not None,
            timeout=self.config.timeout,
            max_bytes=self.config.max_bytes,
            reads=self.config.reads,
            niceness=_NICENESS if self.device.type == "cpu" and self.spec.preprocessing is not None else 0,
        )

    def build_model(self, console: Console) -> Runtime:
        """Loads the backbone and builds the first of the runtimes that takes it; prints why another one does not."""
        images = self.decoder.empty(self.batch_size).zero_()
        notice = partial(console.print, markup=False)
        return runtimes.build(self.runtimes, self.spec.load, self.device, self.precision, images, notice)

    def transfer(self) -> Callable[[Batch], Batch]:
        """Returns the function that brings a batch to the device, and decodes there what the workers left encoded."""
        if self.config.decoder == "cuda" and isinstance(self.decoder, ImageDecoder):
            return DecodeOnDevice(self.decoder, self.batch_size, self.device)
        return CopyToDevice(self.device, self.decoder.entry)

    def run(
        self,
        model: nn.Module,
        loaders: Mapping[str, Iterable[Batch]],
        callbacks: Sequence[Callback],
    ) -> None:
        """Runs the model over the loaders' batches, and gives the outputs to the callbacks."""
        if isinstance(self.decoder, FeatureDecoder) and not self._keeps_features:
            model = OneShape(model, self.batch_size)
        try:
            run_test(model, loaders, callbacks, DataConnector({"images": self.decoder.entry}), self.transfer())
        except torch.OutOfMemoryError as error:  # the forward pass raises a DeviceMemoryError by itself
            raise DeviceMemoryError(
                f"{self.device.type.upper()} ran out of memory copying batches and results with --batch-size "
                f"{self.batch_size}; give a smaller one, or --decoder cpu"
            ) from error

    def decisions(self) -> list[str]:
        """Returns what was decided for the run, in words: versions, device, and how many of what."""
        environment = self.environment.to_json().items()
        inputs = ", ".join(f"{name} {len(split)}" for name, split in self.plan.splits.items())
        return [
            ", ".join(f"{name} {value}" for name, value in environment),
            f"on {self.device} in {self.precision_text} by {self.runtime_text}: batches of {self.batch_size}, "
            f"{self.workers} workers, {torch.get_num_threads()} threads",
            f"inputs: {inputs}; {self.rows_per_unit} rows a unit, stored as {self.config.dtype}",
        ]

    def describe(self) -> dict[str, Any]:
        """Returns the plan of the run as plain JSON values, for `--dry-run`."""
        return {
            "backbone": self.spec.architecture.name,
            "weights": self.spec.architecture.weights.to_json(),
            "preprocessing": self.manifest.recipe.preprocessing,
            "tensors": {name: list(shape) for name, shape in self.spec.shapes.items()},
            "device": str(self.device),
            "precision": self.precision_text,
            "runtime": self.runtime_text,
            "dtype": self.config.dtype,
            "batch_size": self.batch_size,
            "rows_per_unit": self.rows_per_unit,
            "group_key": self.plan.group_key,
            "out": str(self.config.out),
            "splits": {name: self._describe_split(one) for name, one in self.plan.splits.items() if one.kept is None},
        }

    def _describe_split(self, split: SplitPlan) -> dict[str, Any]:
        groups = split.inputs_per_group().items() if self.plan.group_key else ()
        return {
            "inputs": len(split),
            "groups": [{"group": group, "inputs": inputs} for group, inputs in groups],
            "units": len(split.unit_rows(self.rows_per_unit)),
            "input_bytes": sum(size or 0 for size in split.table["size"].to_pylist()),
            "output_bytes": len(split) * self.row_bytes,
        }


def _installed(packages: Sequence[str]) -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    versions = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
