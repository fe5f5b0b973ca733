"""Prints, as JSON, the versions of libraries, the CUDA devices that torch sees, and where embedx is imported from."""

from __future__ import annotations

import importlib.metadata
import json

import torch
import torchvision

import embedx


def main() -> None:
    """Prints them."""
    cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    found = {
        "embedx": embedx.__file__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cards": [
            {
                "name": card.name,
                "capability": f"{card.major}.{card.minor}",
                "multiprocessors": card.multi_processor_count,
                "memory": card.total_memory,
            }
            for card in cards
        ],
    }
    others = ("numpy", "pillow", "pyarrow", "safetensors", "typer", "rich", "loky", "openvino", "pytest", "triton")
    for name in others:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    print(json.dumps(found))


if __name__ == "__main__":
    main()
