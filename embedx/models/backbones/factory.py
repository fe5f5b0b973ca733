"""The user's own code: `package.module:factory`, called with the arguments of `--backbone-arg`.

The factory returns an nn.Module from normalised images [B, 3, H, W] to features; of several tensors `main_tensor`
takes one. Its weights are those that the module comes with, or a checkpoint's. Its preprocessing is the module's
attribute `preprocessing`, if there is one: a dict of crop, mean and std, and where they matter of resize and
interpolation.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from embedx.errors import ConfigError, unknown
from embedx.models.backbones.base import Architecture, BackboneKind, BackboneOptions, last_line
from embedx.models.outputs import main_tensor
from embedx.models.weights.find import Weights, given_weights
from embedx.recipe import Preprocessing
from embedx.values import Interpolation, parse_channels, parse_resize

_NAME = re.compile(r"[\w.]+:\w+")


class FactoryBackbone(Architecture):
    """The module that a factory returned."""

    outline_device = torch.device("cpu")

    def __init__(self, options: BackboneOptions) -> None:
        name = options.backbone
        self.arguments = _parse_arguments(options.backbone_arg)
        self._module = _call(name, _factory(name), self.arguments, options.seed)
        weights = given_weights(options) or Weights("factory", sha256=_sha256(self._module.state_dict()))
        super().__init__(name, weights, _preprocessing(name, self._module))

    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Returns the factory's module, which a hook makes return a single tensor."""
        return self._module, ()

    def load(self) -> nn.Module:
        """Returns the module, with the checkpoint's weights if there is one."""
        return self._module if self.weights.path is None else super().load()


def find(options: BackboneOptions, download: bool) -> FactoryBackbone:
    """Calls the factory."""
    if options.weights != "DEFAULT":
        raise ConfigError(
            f"--weights {options.weights}: the weights of {options.backbone} are the factory's; leave it out, "
            "or give --checkpoint FILE"
        )
    return FactoryBackbone(options)


def _parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    arguments = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier() or key in arguments:
            raise ConfigError(f"--backbone-arg {pair}: give each argument once, as key=value")
        try:
            arguments[key] = json.loads(value)
        except json.JSONDecodeError:
            arguments[key] = value
    return arguments


def _factory(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the current folder, as `python -m` has it
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"--backbone {name}: {module_name} can't be imported ({type(error).__name__}: {last_line(error)}); it is "
            "looked for in the current folder and among the installed packages"
        ) from error
    factory: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(factory):
        functions = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise ConfigError(unknown("factory", attribute, functions, hint=f"(in {module_name})"))
    return factory


def _call(name: str, factory: Callable[..., Any], arguments: Mapping[str, Any], seed: int) -> nn.Module:
    """Calls the factory, with torch's random numbers seeded, and puts its module into evaluation mode."""
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"--backbone {name}: {error}; give its arguments with --backbone-arg key=value") from error
    except ValueError:
        pass  # it has no signature
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = factory(**arguments)
    except Exception as error:
        raise ConfigError(
            f"--backbone {name}: the factory raised {type(error).__name__}: {last_line(error)} (--debug shows where)"
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"--backbone {name}: the factory returned a {type(module).__name__}, no nn.Module")
    module.register_forward_hook(lambda module, inputs, output: main_tensor(output))
    return module.eval()


def _preprocessing(name: str, module: nn.Module) -> Preprocessing | None:
    """Reads the steps that a module declares; a ConfigError names every fault in them."""
    steps = getattr(module, "preprocessing", None)
    if steps is None:
        return None
    attribute = f"--backbone {name}: its attribute `preprocessing`"
    if not isinstance(steps, Mapping):
        raise ConfigError(f"{attribute} is a {type(steps).__name__}; give a dict of {', '.join(_STEPS)}")
    missing = [step for step in ("crop", "mean", "std") if step not in steps]
    faults = [f"{attribute} lacks {step!r}; it needs crop, mean and std" for step in missing]
    values: dict[str, Any] = {"interpolation": "bilinear"}
    for step, value in steps.items():
        if step not in _STEPS:
            faults.append(f"{attribute}: {unknown('step', str(step), _STEPS)}")
            continue
        try:
            values[step] = _STEPS[step](value)
        except (ValueError, TypeError, OverflowError) as error:
            faults.append(f"{attribute}: {step}: {error}")
    ConfigError.check(faults)
    return Preprocessing(**{"resize": values["crop"], **values})


def _crop(value: Any) -> int:
    side = parse_resize(value)
    if isinstance(side, tuple) and side[0] != side[1]:
        raise ValueError(f"{value!r} is no square; embedx gives square images")
    return side[0] if isinstance(side, tuple) else side


def _interpolation(value: Any) -> Interpolation:
    if value not in (known := get_args(Interpolation)):
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return cast(Interpolation, value)


def _mean(value: Any) -> tuple[float, float, float]:
    numbers = parse_channels(value)
    if not all(0 <= number <= 1 for number in numbers):
        raise ValueError(f"{value!r} is not from 0 to 1; divide numbers of 0 to 255 by 255")
    return numbers


def _std(value: Any) -> tuple[float, float, float]:
    numbers = parse_channels(value)
    if not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"{value!r} is not above 0")
    return numbers


_STEPS: dict[str, Callable[[Any], Any]] = {
    "resize": parse_resize,
    "crop": _crop,
    "interpolation": _interpolation,
    "mean": _mean,
    "std": _std,
}
"""The steps that a module may declare, each with the function that reads its value."""


def _sha256(state: Mapping[str, Tensor]) -> str:
    """Hashes the names, types, shapes and values of all the tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


KIND = BackboneKind(lambda name: _NAME.fullmatch(name) is not None, find, runs_code=True)
