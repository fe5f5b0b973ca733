"""The preprocessing of Hugging Face's image processors, translated into a Preprocessing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from embedx.models.backbones import hub
from embedx.recipe import Preprocessing
from embedx.values import Interpolation, parse_channels

_INTERPOLATIONS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""The interpolations by Pillow's numbers, which image processors use."""
_CONVNEXT_SQUASHED = 384
"""The size in pixels from which ConvNeXt's image processor squashes images instead of cropping them."""
_TOLERANCE = 3.0
"""The largest difference, of 255, between two implementations of the same preprocessing, rounding included."""


def preprocessing_of(folder: Path) -> Preprocessing | None:
    """Translates a folder's image processor; None if there is none, or embedx has no such preprocessing."""
    import transformers

    try:
        with hub.quiet_transformers():
            processor = transformers.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError):  # there is none, an unknown one, or the model's own code
        return None
    steps = _steps(processor.to_dict())
    return steps if steps and _agree(steps, processor) else None


def _steps(settings: Mapping[str, Any]) -> Preprocessing | None:
    """Translates an image processor's settings; None if they describe no square of a fixed size."""
    geometry = _geometry(settings)
    interpolation = _INTERPOLATIONS.get(settings.get("resample", -1))
    if geometry is None or interpolation is None:
        return None
    # The processor's values are uint8 · rescale_factor; a Preprocessing's are uint8 / 255.
    scale = 255 * settings["rescale_factor"] if settings.get("do_rescale") else 255.0
    scale = 1.0 if math.isclose(scale, 1) else scale
    normalized = settings.get("do_normalize")
    mean = [value / scale for value in (settings["image_mean"] if normalized else (0.0, 0.0, 0.0))]
    std = [value / scale for value in (settings["image_std"] if normalized else (1.0, 1.0, 1.0))]
    if len(mean) != 3 or len(std) != 3:
        return None
    return Preprocessing(*geometry, interpolation, parse_channels(mean), parse_channels(std))


def _geometry(settings: Mapping[str, Any]) -> tuple[int | tuple[int, int], int] | None:
    """Returns the size to resize images to, and the side of the square to crop then, both in pixels."""
    size = settings.get("size")
    if not size or not settings.get("do_resize"):
        return None
    edge, height, width = (size.get(key) for key in ("shortest_edge", "height", "width"))
    if edge and "crop_pct" in settings:
        return ((edge, edge) if edge >= _CONVNEXT_SQUASHED else int(edge / settings["crop_pct"])), edge
    crop = settings["crop_size"] if settings.get("do_center_crop") else size
    if not crop.get("height") or crop["height"] != crop.get("width"):
        return None
    if edge:
        return edge, crop["height"]
    return ((height, width), crop["height"]) if height and width else None


def _agree(steps: Preprocessing, processor: Any) -> bool:
    """Tells whether an image processor does just these steps; some do more, or others, than their settings say.

    It is tried on a smooth image, for which different ways to interpolate give the same pixels.
    """
    down, across = torch.linspace(0, 255, 300).view(-1, 1), torch.linspace(0, 255, 400)
    pixels = torch.stack([down.expand(300, 400), across.expand(300, 400), (down + across) / 2]).to(torch.uint8)
    try:
        with hub.quiet_transformers():
            theirs = processor(pixels, return_tensors="pt")["pixel_values"]
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError):
        return False
    resize = [steps.resize] if isinstance(steps.resize, int) else list(steps.resize)
    resized = transforms.resize(pixels, resize, interpolation=InterpolationMode(steps.interpolation), antialias=True)
    ours = transforms.center_crop(resized, [steps.crop, steps.crop])
    std = torch.tensor(steps.std).view(3, 1, 1)
    scaled = (theirs[0] * std + torch.tensor(steps.mean).view(3, 1, 1)) * 255
    return scaled.shape == ours.shape and bool((scaled - ours).abs().max() <= _TOLERANCE)
