"""torchvision's quantised classification models without their classifier; they run on CPUs only.

Random weights are quantised with the ranges of one random image, by torchvision's builder.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torchvision import models

from embedx.errors import CheckpointError, ConfigError
from embedx.models.backbones.base import Architecture, BackboneKind, BackboneOptions, fixed_precision_faults, last_line
from embedx.models.backbones.torchvision import AUXILIARY, BUILD_OPTIONS, check_name, preset, remove_last
from embedx.models.device import resolve_device
from embedx.models.weights.find import find_weights

_PREFIX = "quantized_"


class QuantizedBackbone(Architecture):
    """A quantised classification model of torchvision."""

    outline_device = torch.device("cpu")
    is_fixed = True

    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Builds the model, quantised, without its classifier."""
        options = BUILD_OPTIONS.get(self.name.removeprefix(_PREFIX), {})
        with _deprecations_ignored():
            model: nn.Module = models.get_model(self.name, weights=None, quantize=True, **options)
        return model.eval(), (remove_last(model, torch.ao.nn.quantized.Linear), *AUXILIARY)

    def load(self) -> nn.Module:
        """Builds the model with its weights, whose packed tensors the model's own modules unpack."""
        if self.weights.path is None:
            return super().load()
        model, removed = self.build()
        try:
            with _deprecations_ignored():
                state = torch.load(self.weights.path, map_location="cpu", weights_only=True)
            unused = tuple(f"{part}." for part in removed)
            model.load_state_dict({name: value for name, value in state.items() if not name.startswith(unused)})
        except (pickle.UnpicklingError, OSError, RuntimeError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.weights.path} does not fit {self.name}, or can't be read; it takes what torch.save wrote of "
                f"the quantised model's state_dict() ({last_line(error)})"
            ) from error
        return model


def find(options: BackboneOptions, download: bool) -> QuantizedBackbone:
    """Finds a model by its name."""
    check_name(name := options.backbone)
    faults = fixed_precision_faults(options)
    if resolve_device(options.device).type != "cpu":
        faults.append(f"--device {options.device}: {name} runs on CPUs alone; give --device cpu")
    engine = models.get_model_weights(name)["DEFAULT"].meta["backend"]
    if engine not in (engines := torch.backends.quantized.supported_engines):
        faults.append(f"{name} needs the engine {engine}; this machine's torch has {', '.join(engines)}")
    if (key := options.checkpoint_key) is not None:
        faults.append(f"--checkpoint-key {key}: {name} takes whole state dicts only")
    ConfigError.check(faults)
    weights, member = find_weights(options, download=download)
    return QuantizedBackbone(name, weights, preset(member))


@contextmanager
def _deprecations_ignored() -> Iterator[None]:
    """Silences torch's warnings about the quantisation that torchvision uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*torch\.ao\.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", r"torch\.quantize_per_tensor", UserWarning)
        warnings.filterwarnings("ignore", r"TypedStorage is deprecated", UserWarning)
        # torchvision calibrates with one image, for which some layers' outputs are constant.
        warnings.filterwarnings("ignore", r"must run observer before calling calculate_qparams", UserWarning)
        yield


KIND = BackboneKind(lambda name: name.startswith(_PREFIX), find)
