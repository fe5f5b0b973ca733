"""The bundled sample: a small labelled image folder and a backbone trained on it."""

from pathlib import Path

IMAGES = Path(__file__).parent / "images"
BACKBONE = "shufflenet_v2_x0_5"
CHECKPOINT = Path(__file__).parent / f"{BACKBONE}.safetensors"
