"""Embeds a folder of JPEGs as torchvision's documentation does, in fp32, with nothing of embedx.

    python scripts/gpu/plain_forward.py IMAGES OUT BACKBONE [cuda]

OUT gets weights.safetensors, which the embeddings are of, and plain.safetensors, with a tensor [N, D] for each way:
`cpu`; with `cuda`, also `card`, of the pixels that the CPU decoded, and `card, decoder cuda`, of those of nvJPEG. Rows
are in the order of the files' names.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

_BATCH = 16


def main(images: Path, out: Path, backbone: str, device: str = "cpu") -> None:
    """Computes and writes all of them."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    encoded = [read_file(str(path)) for path in sorted(images.glob("*.jpg"))]
    preset = _transforms(models.get_model_weights(backbone).DEFAULT.transforms())
    pixels = torch.stack([preset(decode_jpeg(data, mode=ImageReadMode.RGB)) for data in encoded])
    model = models.get_model(backbone, weights=None)
    _settle_batch_norms(model, pixels)
    save_file(model.state_dict(), out / "weights.safetensors")
    *_, (classifier, _) = model.named_children()
    setattr(model, classifier, nn.Identity())
    found = {"cpu": _rows(model, pixels)}
    if device == "cuda":
        model.cuda()
        found["card"] = _rows(model, pixels.cuda())
        decoded: Any = [decode_jpeg(data, mode=ImageReadMode.RGB, device="cuda") for data in encoded]
        found["card, decoder cuda"] = _rows(model, torch.stack([preset(image) for image in decoded]))
    save_file(found, out / "plain.safetensors")


def _transforms(preset: Any) -> Any:
    """Returns the preset's steps as transforms of version 2, which resize in uint8 where the processor can."""
    return v2.Compose(
        [
            v2.Resize(preset.resize_size, interpolation=preset.interpolation, antialias=True),
            v2.CenterCrop(preset.crop_size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preset.mean, preset.std),
        ]
    )


def _settle_batch_norms(model: nn.Module, pixels: Tensor) -> None:
    """Gives batch norms the images' own statistics, so that random weights tell images apart as trained ones do."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    model.train()
    with torch.no_grad():
        model(pixels)
    model.eval()


def _rows(model: nn.Module, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in pixels.split(_BATCH)]).cpu()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
