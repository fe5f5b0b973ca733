"""The runtime `openvino`, an extra of the same name."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from embedx.errors import RuntimeUnfitError
from embedx.models.embedder import Embedder
from embedx.models.outputs import FrozenProgram
from embedx.models.runtimes.base import Runtime
from embedx.values import Precision

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
        if isinstance(embedder.backbone, FrozenProgram):
            raise RuntimeUnfitError("the backbone is a program, which only runs as it was made: give --runtime eager")
        options = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        names: list[str] = []
        try:
            model = _converted(openvino, _ChannelsLast(embedder, names), _channels_last(images))
            compiled = core.compile_model(model, "CPU", options)
        except Exception as error:
            raise RuntimeUnfitError.of(self.name, error) from error
        self._names = names
        self._request = compiled.create_infer_request()

    def compute(self, images: Tensor) -> dict[str, Tensor]:
        """Computes the features of a batch, which must have the shape that this runtime was built for."""
        outputs = self._request.infer([_channels_last(images).numpy()], share_inputs=True)
        values = zip(self._names, outputs.values(), strict=True)
        return {name: torch.from_numpy(value) for name, value in values}


class _ChannelsLast(nn.Module):
    """An embedder of images [B, H, W, 3], as they lie in memory; it fills `names` with those of its features."""

    def __init__(self, embedder: Embedder, names: list[str]) -> None:
        super().__init__()
        self.embedder = embedder
        self._names = names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.embedder(images.permute(0, 3, 1, 2))
        self._names[:] = features
        return tuple(features.values())


def _converted(openvino: Any, model: _ChannelsLast, images: Tensor) -> Any:
    """Converts the model by way of a trace, or of torch.export where the trace might be another model.

    The trace of two images takes a second, and torch.export takes six. But a trace keeps the branches that Python took
    for its images; torch warns of them, and then the export is used.
    """
    shape = list(images.shape)

    # A function, as the trace of a module also describes each of its parts, which takes a while.
    def compute(images: Tensor) -> tuple[Tensor, ...]:
        return model(images)  # type: ignore[no-any-return]

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", TracerWarning)
        try:
            example = images[:2]
            trace = torch.jit.trace(compute, (example,), check_trace=False)
            converted = openvino.convert_model(trace, example_input=(example,), input=[(shape, openvino.Type.u8)])
            if all(output.partial_shape[0] == shape[0] for output in converted.outputs):
                return converted
        except Exception:  # noqa: BLE001  (it may be anyone's code, and the export below takes or refuses it)
            pass
        return openvino.convert_model(torch.export.export(model, (images,)))


def _channels_last(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).contiguous()


def _openvino() -> Any:
    # OpenVINO's converter reports each use to its makers if it finds this package. Nothing may leave this machine.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise RuntimeUnfitError(
            f"--runtime openvino needs the extra openvino ({error}): pip install 'embedx[openvino]'"
        ) from error
    return openvino
