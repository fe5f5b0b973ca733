"""Draw the bundled sample: shapes and textures whose colours say nothing about the class.

Run from the repository root: `python -m scripts.make_sample`.
"""

import colorsys
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from embedx.sample import IMAGES

SEED = 0
SPLITS = {"train": 28, "val": 10}
"""Images per class."""
SIDES = (64, 80, 96, 112, 128)
"""Widths and heights to choose from, in pixels."""
SUPERSAMPLING = 3
"""Images are drawn this many times larger, then scaled down, which smooths their edges."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Shape = Callable[[Floats, Floats], Mask]


def polygon_radius(x: Floats, y: Floats, corners: int) -> Floats:
    """Scale at which a regular polygon's edge passes through a point.

    Args:
        x: Horizontal coordinates, any shape.
        y: Vertical coordinates, shape of `x`.
        corners: Number of corners; the polygon of scale 1 has them on the unit circle.

    Returns:
        The scales, shape of `x`.
    """
    sector = 2 * np.pi / corners
    angle = np.mod(np.arctan2(y, x), sector) - sector / 2
    scale: Floats = np.hypot(x, y) * np.cos(angle) / np.cos(sector / 2)
    return scale


def star(x: Floats, y: Floats) -> Mask:
    """Five-pointed star: the points inside at least four of the pentagram's five half-planes."""
    angles = np.pi / 5 + np.arange(5) * 2 * np.pi / 5
    inside = [x * np.cos(a) + y * np.sin(a) < np.cos(2 * np.pi / 5) for a in angles]
    mask: Mask = np.sum(inside, axis=0) >= 4
    return mask


SHAPES: dict[str, Shape] = {
    "checker": lambda x, y: (
        (np.maximum(abs(x), abs(y)) < 0.9) & ((np.floor(x / 0.36 + 0.5) + np.floor(y / 0.36 + 0.5)) % 2 == 0)
    ),
    "crescent": lambda x, y: (np.hypot(x, y) < 1) & (np.hypot(x - 0.45, y) > 0.8),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.27) & (np.maximum(abs(x), abs(y)) < 0.95),
    "disc": lambda x, y: np.hypot(x, y) < 0.9,
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.75) < 0.2,
    "star": star,
    "stripes": lambda x, y: (np.maximum(abs(x), abs(y)) < 0.9) & (np.mod(x / 0.4 + 0.25, 1) < 0.5),
    "triangle": lambda x, y: polygon_radius(x, y, corners=3) < 1,
}
"""For each class, which points belong to the shape; it lies within the unit circle or nearly so."""


def gradient(rng: np.random.Generator, x: Floats, y: Floats, hue: float, value: float) -> Floats:
    """Blend two colours of about one hue along a random direction.

    Args:
        rng: Source of randomness.
        x: Horizontal coordinates `[H, W]`, about -1 to 1.
        y: Vertical coordinates `[H, W]`.
        hue: Mean hue as a fraction of the colour circle.
        value: Mean brightness, 0 to 1.

    Returns:
        RGB colours `[H, W, 3]`, 0 to 1.
    """
    saturation = rng.uniform(0.25, 0.7)
    ends = [
        colorsys.hsv_to_rgb((hue + sign * 0.06) % 1, saturation, np.clip(value + sign * 0.1, 0, 1)) for sign in (-1, 1)
    ]
    angle = rng.uniform(0, 2 * np.pi)
    blend = np.clip(0.5 + 0.5 * (x * np.cos(angle) + y * np.sin(angle)), 0, 1)[..., None]
    colours: Floats = (1 - blend) * np.array(ends[0]) + blend * np.array(ends[1])
    return colours


def draw(rng: np.random.Generator, shape: Shape) -> Image.Image:
    """Draw one shape of random size, place, rotation and colours on a blotched, noisy background.

    The shape lies within the image's central square, so that a resize and centre crop keep it.

    Args:
        rng: Source of randomness.
        shape: The shape to draw, an entry of `SHAPES`.

    Returns:
        An RGB image, its sides from `SIDES`.
    """
    size = width, height = int(rng.choice(SIDES)), int(rng.choice(SIDES))
    columns, rows = np.arange(width * SUPERSAMPLING), np.arange(height * SUPERSAMPLING)
    half = min(width, height) * SUPERSAMPLING / 2
    x, y = np.meshgrid((columns - columns.mean()) / half, (rows - rows.mean()) / half)

    hue, dark = rng.uniform(), rng.uniform(0.25, 0.5)
    values = rng.permutation([dark, dark + rng.uniform(0.4, 0.5)])
    background = gradient(rng, x, y, hue, values[0])
    for _ in range(rng.integers(2, 6)):
        centre_x, centre_y, spread = *rng.uniform(-1.2, 1.2, 2), rng.uniform(0.15, 0.5)
        blotch = np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / spread**2)
        background += rng.uniform(-0.12, 0.12, 3) * blotch[..., None]
    foreground = gradient(rng, x, y, hue + rng.uniform(0.2, 0.8), values[1])

    scale = rng.uniform(0.42, 0.8)
    left, top = rng.uniform(-1, 1, 2) * (0.86 - scale)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    mask = shape(cos * (x - left) + sin * (y - top), cos * (y - top) - sin * (x - left))

    opaque = Image.fromarray(np.uint8(mask) * np.uint8(255))
    shadow = opaque.filter(ImageFilter.GaussianBlur(half / 16))
    background *= 1 - 0.35 * np.asarray(shadow)[..., None] / 255
    colours = np.where(mask[..., None], foreground, background)
    colours += rng.normal(0, rng.uniform(0, 0.08), mask.shape)[..., None]
    image = Image.fromarray((np.clip(colours, 0, 1) * 255).astype(np.uint8))
    return image.resize(size, Image.Resampling.BOX)


def save(image: Image.Image, stem: Path, number: int) -> None:
    """Save an image as JPEG, but one in fourteen as WebP and one in fourteen as a palette PNG."""
    match number % 14:
        case 5:
            image.save(stem.with_suffix(".webp"), quality=80)
        case 9:
            image.quantize(64).save(stem.with_suffix(".png"), optimize=True)
        case _:
            image.save(stem.with_suffix(".jpg"), quality=82, optimize=True)


def main() -> None:
    """Replace the bundled images by newly drawn ones, the same for the same seed."""
    shutil.rmtree(IMAGES, ignore_errors=True)
    rng = np.random.default_rng(SEED)
    for split, count in SPLITS.items():
        for name, shape in SHAPES.items():
            folder = IMAGES / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                save(draw(rng, shape), folder / f"{name}_{number:02d}", number)
    files = [path for path in IMAGES.rglob("*") if path.is_file()]
    print(f"{len(files)} images, {sum(path.stat().st_size for path in files):,} bytes in {IMAGES}")


if __name__ == "__main__":
    main()
