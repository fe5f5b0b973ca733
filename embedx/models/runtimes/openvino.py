"""OpenVINO, the extra `openvino`."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from embedx.config import Precision
from embedx.lean import without_compiler
from embedx.models.features import Embedder
from embedx.models.foreign import Opaque
from embedx.models.runtime import Runtime, RuntimeUnfitError

_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoRuntime(Runtime):
    """The whole forward pass, from uint8 on, traced or exported by PyTorch, and compiled by OpenVINO for this CPU.

    Raises:
        RuntimeUnfitError: If OpenVINO is not installed, or lacks an operator, the precision or the device.
    """

    name = "openvino"
    libraries = ("openvino",)

    def __init__(self, embedder: Embedder, device: torch.device, precision: Precision, images: Tensor) -> None:
        super().__init__(embedder, device, precision)
        openvino = _openvino()
        core = openvino.Core()
        if device.type != "cpu":
            raise RuntimeUnfitError(f"--runtime openvino is for the CPU, and the device is {device}")
        native = precision == "fp32" or "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision not in _PRECISIONS or not native:
            raise RuntimeUnfitError(f"OpenVINO computes no {precision} on this CPU; give --precision fp32")
        if isinstance(embedder.backbone, Opaque):
            raise RuntimeUnfitError("the backbone is a program, which is run as it was made: give --runtime eager")
        names: list[str] = []
        try:
            model = _converted(openvino, _ChannelsLast(embedder, names), _channels_last(images))
            compiled = core.compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                    "PERFORMANCE_HINT": "LATENCY",
                },
            )
        except Exception as error:
            raise RuntimeUnfitError.of(self.name, error) from error
        self._names = names
        self._request = compiled.create_infer_request()

    def compute(self, images: Tensor) -> dict[str, Tensor]:
        """The features of a batch of the shape that this was built for."""
        outputs = self._request.infer([_channels_last(images).numpy()], share_inputs=True)
        values = zip(self._names, outputs.values(), strict=True)
        return {name: torch.from_numpy(value) for name, value in values}


class _ChannelsLast(nn.Module):
    """An embedder of images [B, H, W, 3], as they lie in memory.

    Args:
        embedder: Of images [B, 3, H, W].
        names: Gets the names of the features, which are returned without them.
    """

    def __init__(self, embedder: Embedder, names: list[str]) -> None:
        super().__init__()
        self.embedder = embedder
        self._names = names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.embedder(images.permute(0, 3, 1, 2))
        self._names[:] = features
        return tuple(features.values())


def _converted(openvino: Any, model: _ChannelsLast, images: Tensor) -> Any:
    """The model for OpenVINO, by way of a trace; where that might be another model, of torch.export.

    The trace, of two images, takes a second where torch.export takes six, as that imports torch's compiler, which goes
    through the model three times. But Python's branches and numbers stay as they were, of which torch warns. Mostly
    that is of sizes, which a trace has as tensors: then it is found out whether they matter.
    """
    shape = list(images.shape)
    example = images[:2]

    def compute(images: Tensor) -> tuple[Tensor, ...]:  # of a function no parts are described, which takes a while
        return model(images)  # type: ignore[no-any-return]

    with warnings.catch_warnings(record=True) as told, torch.no_grad():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TracerWarning)
        try:
            trace = torch.jit.trace(compute, (example,), check_trace=False)  # type: ignore[no-untyped-call]
            if not told or (_is_alike(model, example, images) and _is_right(trace, model, example)):
                converted = openvino.convert_model(trace, example_input=(example,), input=[(shape, openvino.Type.u8)])
                if all(output.partial_shape[0] == shape[0] for output in converted.outputs):
                    return converted
        except Exception:  # noqa: BLE001  (it may be anyone's code, which the way below takes or refuses)
            pass
        return openvino.convert_model(torch.export.export(model, (images,)))


def _is_right(trace: Any, model: nn.Module, example: Tensor) -> bool:
    """Whether a trace gives of one image more than it was made of what the model gives: no number goes with theirs."""
    shape = (len(example) + 1, *example.shape[1:])
    images = torch.arange(math.prod(shape)).remainder(251).to(torch.uint8).view(shape)
    return all(map(torch.allclose, trace(images), model(images)))


def _is_alike(model: nn.Module, few: Tensor, many: Tensor) -> bool:
    """Whether the same is computed of few images as of many, whatever is on them, but for numbers that go with theirs.

    Raises:
        Exception: If Python asks for what is on them, as it is gone through on the meta device, where there is nothing.
    """
    weights = {name: tensor.to("meta") for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    runs: list[list[tuple[Any, list[Any]]]] = []
    for images in (few, many):
        with without_compiler(), _Operations() as operations:
            torch.func.functional_call(model, weights, (images.to("meta"),))
        runs.append(operations.noted)

    def alike(one: Any, other: Any) -> bool:
        return bool(one == other or (type(one) is type(other) is int and one * len(many) == other * len(few)))

    return len(runs[0]) == len(runs[1]) and all(
        one == other and len(numbers) == len(others) and all(map(alike, numbers, others))
        for (one, numbers), (other, others) in zip(*runs, strict=True)
    )


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what is computed while it is entered: the operations, and what they are given besides tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.noted: list[tuple[Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation, and notes it."""
        leaves = tree_leaves((args, kwargs))
        self.noted.append((func, [leaf for leaf in leaves if not isinstance(leaf, Tensor)]))
        return func(*args, **(kwargs or {}))


def _channels_last(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).contiguous()


def _openvino() -> Any:
    # OpenVINO's converter reports each use to its makers if it finds this package; nothing is to leave this machine.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise RuntimeUnfitError(
            f"--runtime openvino needs the extra openvino ({error}): pip install 'embedx[openvino]'"
        ) from error
    return openvino
