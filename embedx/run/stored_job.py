"""The job that computes rows as a store's were: by the settings and the recipe that its manifest states."""

from __future__ import annotations

import dataclasses
import os

import torch
from rich.console import Console

from embedx.config import ExtractConfig
from embedx.data.plan import Plan
from embedx.errors import ConfigError, StoreMismatchError
from embedx.models.backbones import runs_code
from embedx.models.device import resolve_precision
from embedx.models.runtimes.eager import EagerRuntime
from embedx.run.job import Job
from embedx.run.prepare import describe_spec, input_shape
from embedx.store.format.differences import difference_text, leaves_that_differ
from embedx.store.reading.reader import Store


def stored_config(store: Store, *, trust: bool) -> ExtractConfig:
    """Returns the settings that the store was made with, as its recipe resolved them.

    Args:
        store: The store, as it is opened.
        trust: Whether to run a backbone that is code, or a program, although the store names it.

    Raises:
        ConfigError: If the store does not state its settings, or its backbone runs code and is not trusted.
    """
    settings, recipe = store.manifest.settings.stated, store.manifest.recipe
    resolved = {name: getattr(recipe, name) for name in ("device", "precision", "runtime", "batch_size", "dtype")}
    if not settings or None in resolved.values():
        raise ConfigError(
            f"{store.path} does not say how it was made, as a store of `embedx extract` does: no row can be recomputed"
        )
    config = ExtractConfig.from_json({**settings, **resolved})
    if runs_code(config.backbone) and not trust:
        raise ConfigError(
            f"the backbone of {store.path} is {config.backbone}; loading it runs code that the store's author has "
            "chosen; if you trust the author and the code, add --trust (in Python trust=True)"
        )
    return dataclasses.replace(config, out=store.path, workers=None, threads=None)


def stored_job(config: ExtractConfig, device: torch.device, plan: Plan, *, exactly: bool = False) -> Job:
    """Determines the run that computes these inputs with the store's settings.

    Args:
        config: The settings, by `stored_config`.
        device: The device to compute on.
        plan: The inputs to compute; none for those that come later.
        exactly: Whether only the recipe's precision and runtime will do; else those nearest to them are taken.
    """
    assert isinstance(config.batch_size, int)  # a recipe's
    spec = describe_spec(config, input_shape(config, plan), notice=lambda text: None)
    precision = config.precision
    names: list[str] = [config.runtime]
    if not exactly:
        # The CPU has no tf32; fp32 is more exact, and within the tolerance.
        precision = "fp32" if precision == "tf32" and device.type == "cpu" else precision
        # The store's runtime may not be installed here; eager's results are within the tolerance.
        names += [EagerRuntime.name] if config.runtime != EagerRuntime.name else []
    return Job(config, plan, spec, device, resolve_precision(precision, device), config.batch_size, tuple(names))


def check_recipe(store: Store, job: Job) -> None:
    """Checks that the job's recipe is the store's, but for device, precision and batch size, which may differ.

    Raises:
        StoreMismatchError: If it is another, as backbone, weights or preprocessing have changed since.
    """
    may_differ = {name: getattr(job.recipe, name) for name in ("device", "precision", "batch_size")}
    then = store.manifest.recipe.replacing(**may_differ).to_json()
    if lines := [difference_text(*leaf) for leaf in leaves_that_differ("recipe", then, job.recipe.to_json())]:
        raise StoreMismatchError(
            [
                f"{store.path} has another recipe than its settings give now:",
                *(f"  {line}" for line in lines),
                "no row was recomputed; restore the files and versions with which it was made",
            ]
        )


def working_directory(store: Store, console: Console) -> str:
    """Returns the folder from which the settings' relative paths begin: the current one if that is gone."""
    folder = store.manifest.settings.working_directory or os.curdir
    if os.path.isdir(folder):
        return folder
    text = f"{folder}, where the store was made, is gone: relative paths are taken from the current folder"
    console.print(text, soft_wrap=True)
    return os.curdir
