"""Where and how the forward pass is run: device, precision, memory layout.

A runtime is a module with one contract: a uint8 batch of a fixed shape on the CPU in, features on the device out.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from embedx.config import Precision
from embedx.errors import ConfigError
from embedx.models.features import Embedder
from embedx.models.foreign import Opaque

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class EagerRuntime(nn.Module):
    """PyTorch as it is, in channels-last layout, but for programs, which are left as they were made.

    Args:
        embedder: What to run.
        device: Where.
        precision: Of weights and activations; `tf32` lets CUDA round the factors of fp32 products.
    """

    name = "eager"

    def __init__(self, embedder: Embedder, device: torch.device, precision: Precision) -> None:
        super().__init__()
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
        self.device = device
        self.embedder = embedder.requires_grad_(False).to(device)
        if not isinstance(self.embedder.backbone, Opaque):
            self.embedder.backbone.to(_DTYPES[precision])
            self.embedder.backbone.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Computes [B, D] features of [B, 3, H, W] uint8 images."""
        with torch.inference_mode():
            outputs: dict[str, Tensor] = self.embedder(images.to(self.device, non_blocking=True))
            return outputs


def resolve_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA if there is one.

    Raises:
        ConfigError: If there is no such device.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if available else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise ConfigError(f"--device {name!r} is none of auto, cpu, cuda, cuda:N")
    if name != "cpu" and int(match[1] or 0) >= available:
        raise ConfigError(f"--device {name}: torch sees {available} CUDA devices; give --device cpu or auto")
    return torch.device(name)


def resolve_precision(precision: Precision | None, device: torch.device) -> Precision:
    """The precision to use where none is given.

    Raises:
        ConfigError: If the device does not have it.
    """
    if precision == "tf32" and device.type == "cpu":
        raise ConfigError("--precision tf32 is CUDA's; on the CPU give fp32 or bf16")
    return precision or ("tf32" if device.type == "cuda" else "fp32")
