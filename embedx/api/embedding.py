"""`embedx.embed` and `embedx.Embedder`: embeddings of images in memory, by a store's recipe or by settings.

Shapes: N images, D embedding dimension, T tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

import torch

from embedx.api.arguments import config_of, values_of
from embedx.api.opened_stores import opened
from embedx.callbacks.gathered_rows import GatheredRows
from embedx.config import ExtractConfig
from embedx.data.decoding.images import ImageDecoder
from embedx.data.loading.given_images import Images, PictureBatches, as_list, split_of_paths
from embedx.data.plan import Plan
from embedx.errors import ConfigError, unknown
from embedx.heartbeat import SILENT
from embedx.models.device import resolve_device
from embedx.models.runtimes.base import Runtime
from embedx.models.threads import ONE_AT_A_TIME
from embedx.names import EMBEDDINGS, NO_BACKBONE
from embedx.run.job import Job
from embedx.run.prepare import check_memory, check_not_forked, prepare, use_machine
from embedx.run.stored_job import check_recipe, stored_config, stored_job, working_directory
from embedx.run.torch_settings import torch_settings_kept
from embedx.store.reading.embeddings import Framework, as_arrays
from embedx.store.reading.reader import Store
from embedx.system.machine import cores
from embedx.values import out_of_range

Recipe = str | os.PathLike[str] | Store | ExtractConfig | Mapping[str, Any]

_NO_INPUTS = Plan({}, [], None)


class Embedder:
    """A model that is loaded once, and gives the embeddings of images as often as it is called; it writes nothing.

    By a store it computes what `embedx extract` stored, to the bit: the same weights (by their sha256), preprocessing,
    layers, pooling, scaling, precision, runtime, batch shape, type and number of threads. Each call computes whole
    batches; what images are missing from the last one is zeros. On another device, with another batch size, or with
    another version of torch the numbers are close, and not the same. Calls from several threads take turns.

    Args:
        recipe: A store or its path; or settings, as an ExtractConfig or a mapping of its names, such as
            `{"backbone": "resnet50"}`. Of settings, those of inputs and of the store are not used.
        device: The device to compute on; None takes the recipe's, and fails where that is not there.
        batch_size: The images per forward pass; None takes the recipe's. With 1 a single image takes less time.
        workers: The number of processes that read and decode paths. 0 does it in this process, in which an image that
            makes a decoder crash ends the program.
        framework: The kind of arrays to return, as in `Store.load`: `numpy` or `torch`.
        trust: Whether to run a backbone that is code, or a program, although a store names it.

    Raises:
        NotAStoreError: If there is no store at the path.
        StoreMismatchError: If backbone, weights or preprocessing are no longer those of the store's recipe.
        ConfigError: If the recipe can't be met here, or the settings can't be.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        device: str | None = None,
        batch_size: int | None = None,
        workers: int = 0,
        framework: Framework = "numpy",
        trust: bool = False,
    ) -> None:
        self._framework = framework
        given = {"device": device, "batch_size": batch_size, "workers": workers}
        changes = values_of({name: value for name, value in given.items() if value is not None}, ExtractConfig)
        as_arrays(framework, torch.empty(0))  # which checks its name
        check_not_forked()
        with ONE_AT_A_TIME, torch_settings_kept():
            if isinstance(recipe, ExtractConfig | Mapping):
                self._job = _job_of_settings(recipe, changes)
                self._model: Runtime | None = self._job.build_model(SILENT.console)
            elif not isinstance(recipe, str | os.PathLike | Store):
                kind = type(recipe).__name__
                raise ConfigError(f"recipe is of type {kind}; give a store, its path, or settings")
            else:
                store = opened(recipe)
                with contextlib.chdir(working_directory(store, SILENT.console)):
                    self._job = _job_of_store(store, changes, trust=trust)
                    self._model = self._job.build_model(SILENT.console)

        assert self._job.spec.preprocessing is not None  # as its inputs are images
        self._decoder = ImageDecoder(self._job.spec.preprocessing, self._job.config.max_pixels)
        # No JPEG is left for the device to decode.
        self._of_pictures = dataclasses.replace(self._job, config=dataclasses.replace(self._job.config, decoder="cpu"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> NoReturn:
        raise TypeError("an Embedder can't be copied or pickled; make one in each process, of the same recipe")

    def close(self) -> None:
        """Lets go of the model."""
        self._model = None

    def __call__(self, images: Images, *, name: str = EMBEDDINGS) -> Any:
        """Returns the embeddings [N, D] of images, in their order.

        Args:
            images: Paths or URLs, or pictures in memory: Pillow's images, or arrays [H, W, 3] uint8, of numpy or torch.
                An array may also be of all images [N, H, W, 3]. Files and Pillow's images are turned as their EXIF
                says, if the recipe does so.
            name: The name of the tensor to return: `embeddings`, or an extra layer's.

        Returns:
            A numpy array or torch tensor [N, D] ([N, T, D] where the recipe does not pool), of the recipe's type;
            numpy has no bfloat16, which becomes float32 there.

        Raises:
            InputError: If an image can't be read or decoded, or its row is not finite; it names the image's position.
            ConfigError: If the images are of another kind, or there is no such tensor.
        """
        job, given = self._job, as_list(images)
        if name not in job.spec.shapes:
            raise ConfigError(unknown("tensor", name, job.spec.shapes))
        dtype = getattr(torch, job.config.dtype)
        if not given:
            return as_arrays(self._framework, torch.empty(0, *job.spec.shapes[name], dtype=dtype))
        gathered = GatheredRows(dtype, None if job.config.allow_nonfinite else job.finite_check)
        check_not_forked()  # before it waits for a lock that the other process may have held
        with ONE_AT_A_TIME, torch_settings_kept():
            if self._model is None:
                raise ConfigError("this Embedder is closed; make another one")
            use_machine(job.device, job.config.threads)
            self._model.set_tf32()
            if isinstance(given[0], str | os.PathLike):
                split = split_of_paths(given)
                with contextlib.closing(job.loader(split, [range(len(split))])) as loader:
                    job.run(self._model, {"images": loader}, [gathered])
            else:
                batches = PictureBatches(given, self._decoder, job.batch_size)
                self._of_pictures.run(self._model, {"images": batches}, [gathered])
        return as_arrays(self._framework, gathered.rows(name))


def embed(images: Images, recipe: Recipe, *, name: str = EMBEDDINGS, **options: Any) -> Any:
    """Returns the embeddings [N, D] of images, in their order; the model is loaded for this call alone.

    Args:
        images: The images, as for `Embedder`: paths, Pillow's images or arrays.
        recipe: A store, its path, or settings, as for `Embedder`.
        name: The name of the tensor to return: `embeddings`, or an extra layer's.
        **options: The other arguments of `Embedder`.

    Returns:
        A numpy array [N, D], or by `framework="torch"` a tensor, as `Embedder` returns it.

    Raises:
        EmbedxError: As `Embedder` and its call do.
    """
    with Embedder(recipe, **options) as embedder:
        return embedder(images, name=name)


def _job_of_settings(settings: ExtractConfig | Mapping[str, Any], changes: Mapping[str, Any]) -> Job:
    # No store is looked at or written; a setting of such a name has to be there.
    nowhere = Path(tempfile.gettempdir(), f"embedx-no-store-{os.getpid()}")
    if isinstance(settings, Mapping):
        settings = config_of({**settings, "out": nowhere}, ExtractConfig)
    given = {} if settings.workers is None else {"workers": settings.workers}
    config = dataclasses.replace(settings, out=nowhere, update=False, drop_split=(), **{**changes, **given})
    _check_takes_images(config)
    return prepare(config, plan=_NO_INPUTS)


def _job_of_store(store: Store, changes: Mapping[str, Any], *, trust: bool) -> Job:
    config = stored_config(store, trust=trust)
    _check_takes_images(config)
    recipe_device = config.device
    threads = [store.manifest.environment, *store.manifest.later_environments][-1].stated.get("threads")
    known = threads if isinstance(threads, int) and 1 <= threads <= cores() else None
    config = dataclasses.replace(config, threads=known, **changes)
    ConfigError.check(out_of_range(config))
    if config.batch_size == "auto":
        raise ConfigError('batch_size="auto" is for settings; give a number, or leave it out for the recipe\'s')
    try:
        device = resolve_device(config.device)
    except ConfigError as error:
        if "device" in changes:
            raise
        raise ConfigError(
            f'{store.path} was made on {recipe_device}, which this machine lacks; give device="cpu" for numbers that '
            "are close, and not the same"
        ) from error
    use_machine(device, config.threads)
    job = stored_job(config, device, _NO_INPUTS, exactly=device.type == recipe_device)
    check_recipe(store, job)
    check_memory(job)
    return job


def _check_takes_images(config: ExtractConfig) -> None:
    if config.backbone == NO_BACKBONE:
        raise ConfigError("there is no backbone here that takes images: the inputs of --backbone none are features")
