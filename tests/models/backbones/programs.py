"""A small network, as the files and the code that backbones can be given as."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

SIZE = 32
HALVES = (0.5, 0.5, 0.5)
STEPS: dict[str, Any] = {"mean": HALVES, "std": (0.25, 0.25, 0.25), "image_size": SIZE}


class Small(nn.Module):
    """A convolution and a linear layer on its flattened map, whose view needs one memory layout."""

    preprocessing: dict[str, Any]

    def __init__(self, batch: int = -1, *, as_dict: bool = False) -> None:
        super().__init__()
        self.batch = batch
        self.as_dict = as_dict
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.head = nn.Linear(8 * 8 * 8, 6)

    def forward(self, images: Tensor) -> Any:
        maps = self.conv(images)
        features = self.head(maps.reshape(self.batch, 8 * 8 * 8))
        return {"maps": maps, "features": features} if self.as_dict else features


def small(*arguments: Any, **options: Any) -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small(*arguments, **options).eval()


def export(path: Path, *, batch: int = 8, dynamic: bool = False) -> Path:
    shapes = ({0: torch.export.Dim("batch", max=64)},) if dynamic else None
    program = torch.export.export(small(as_dict=True), (torch.zeros(batch, 3, SIZE, SIZE),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def script(path: Path, model: nn.Module, *, freeze: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.")  # it is deprecated, and in use
        program = torch.jit.trace(model, torch.zeros(8, 3, SIZE, SIZE), strict=False)
        torch.jit.save(torch.jit.freeze(program) if freeze else program, path)
    return path


def build(*, batch: int = -1, as_dict: bool = False, told: bool = True) -> Small:
    """A factory of it, which tells its preprocessing if that is wanted."""
    model = Small(batch, as_dict=as_dict)
    if told:
        model.preprocessing = small_steps()
    return model


def small_steps() -> dict[str, Any]:
    return {"resize": 36, "crop": SIZE, "interpolation": "bicubic", "mean": HALVES, "std": HALVES}


def narrow(*, fits: int) -> nn.Module:
    """A module for which the device's memory is too small, if it gets more images than those; it counts its calls."""

    class Narrow(Small):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        def forward(self, images: Tensor) -> Any:
            if torch.is_inference_mode_enabled():  # and not only asked for its shapes
                self.sizes.append(len(images))
                if len(images) > fits:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().forward(images)

    model = Narrow().eval()
    model.preprocessing = small_steps()
    return model


def pixels() -> nn.Module:
    """A module that gives its input back, which is the pixels in [0, 1], when it is not normalised."""

    class Pixels(nn.Flatten):
        preprocessing: ClassVar = {
            "resize": 16,
            "crop": 16,
            "interpolation": "bilinear",
            "mean": (0,) * 3,
            "std": (1,) * 3,
        }

    return Pixels().eval()


def untraceable() -> nn.Module:
    """A module that looks at its input's values, which torch.fx can't follow."""

    class Looking(Small):
        def forward(self, images: Tensor) -> Any:
            return super().forward(images if images.sum() > 0 else -images)

    return Looking()


def text() -> str:
    return "no module"


def failing() -> nn.Module:
    raise LookupError("no such thing")


def ill_told() -> nn.Module:
    model = Small()
    model.preprocessing = {"resize": 36}
    return model
