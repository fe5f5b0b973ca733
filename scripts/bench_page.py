"""Measures the report's page in headless Chromium: the first paint, the map's first frame, and frames when panning.

python scripts/bench_page.py                       # 50,000 points and 2,000 pictures, of made-up data
python scripts/bench_page.py --page report.html    # a page that is there
"""

from __future__ import annotations

import io
import json
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageFilter
from playwright.sync_api import sync_playwright

from embedx.vectors.reporting.report_data import (
    Categories,
    ClassFacts,
    DuplicateFacts,
    DuplicateGroup,
    Fact,
    Finding,
    Findings,
    LeakMatrix,
    Member,
    Numbers,
    Pair,
    Picture,
    Points,
    ReportData,
    SplitFacts,
)
from embedx.vectors.reporting.report_page import render

PAN = """async (frames) => {
  const times = [];
  zoom(1.3);
  await new Promise((done) => {
    let count = 0, last = performance.now();
    const step = (now) => {
      times.push(now - last);
      last = now;
      pan(count % 60 < 30 ? 6 : -6, count % 30 < 15 ? 4 : -4);
      if (++count < frames) requestAnimationFrame(step); else done();
    };
    requestAnimationFrame(step);
  });
  const painted = [];
  for (let i = 0; i < 30; i++) { const begin = performance.now(); paintAll(); painted.push(performance.now() - begin); }
  return [times.slice(5), painted];
}"""
"""Moves the map a little before each of so many frames; returns the milliseconds between, and those of one painting."""


def made_up(points: int = 50_000, pictures: int = 2_000, classes: int = 40) -> ReportData:
    """Makes up a report: clusters of points, pictures of noise as large as photographs', and full lists."""
    generator = np.random.default_rng(0)
    labels = np.sort(generator.choice(classes, points, p=np.arange(classes, 0, -1) / (classes * (classes + 1) / 2)))
    centres = generator.uniform(9000, 56000, (classes, 2))
    places = (
        centres[labels] + generator.normal(0, 2300, (points, 2)) * generator.uniform(0.5, 1.6, (classes, 1))[labels]
    )
    x, y = places.clip(0, 65535).astype(np.uint16).T
    splits = generator.choice(2, points, p=(0.8, 0.2)).astype(np.uint16)
    names = tuple(f"class {number}" for number in range(classes))
    keys = [f"{names[label].replace(' ', '_')}/image_{row:07d}.jpg" for row, label in enumerate(labels)]
    picture = np.full(points, -1, np.int32)
    picture[np.linspace(0, points - 1, pictures).astype(int)] = np.arange(pictures)
    near = (np.arange(points)[:, None] + generator.integers(1, 60, (points, 8))) % points
    similarities = -np.sort(-generator.uniform(0.6, 1, (points, 8)).astype(np.float32))

    def member(row: int, **more: Any) -> Member:
        row %= points
        return Member(keys[row], ("train", "val")[splits[row]], names[labels[row]], int(picture[row]), row, **more)

    shown = [int(row) for row in np.flatnonzero(picture >= 0)]
    found = Findings(
        317, points, tuple(Finding(member(row), "mean cosine distance 0.83") for row in shown[:100]), "A made-up rule."
    )
    groups = tuple(
        DuplicateGroup(tuple(member(row + more, similarity=0.98) for more in range(4)), 4) for row in shown[:200]
    )
    totals = [tuple(int(((labels == label) & (splits == split)).sum()) for split in (0, 1)) for label in range(classes)]
    train = int((splits == 0).sum())
    return ReportData(
        title="made-up",
        facts=tuple(Fact(f"fact {number}", "a value of some words, as facts have") for number in range(12)),
        notices=(),
        splits=(SplitFacts("train", train, train, 0, 0), SplitFacts("val", points - train, points - train, 0, 0)),
        classes=tuple(ClassFacts(name, total) for name, total in zip(names, totals, strict=True)),
        label_name="class",
        rejects=(),
        points=Points(
            total_rows=2 * points,
            x=x,
            y=y,
            keys=keys,
            splits=splits,
            neighbours=near.astype(np.int32),
            similarities=similarities,
            colours={
                "class": Categories(labels.astype(np.uint16), names),
                "split": Categories(splits, ("train", "val")),
                "outlier score": Numbers(generator.gamma(4, 0.1, points).astype(np.float32)),
            },
            picture=picture,
            is_sample=True,
            metadata={"path": [f"/data/photos/{key}" for key in keys]},
        ),
        map_name="t-SNE of made-up points",
        pictures=tuple(Picture(_noise(generator), None, 640, 480) for _ in range(pictures)),
        images_shown=True,
        duplicates=groups,
        duplicate_facts=DuplicateFacts(
            threshold=0.97,
            groups=612,
            rows=840,
            equal=91,
            rows_looked_at=points,
            histogram=tuple(int(1000 * np.exp(-(((step - 30) / 9) ** 2))) for step in range(50)),
            histogram_limits=(0.5, 1.0),
            at_thresholds=((0.9, 9000), (0.95, 2000), (0.97, 840), (0.99, 320), (0.999, 120)),
        ),
        leaks=LeakMatrix(("train", "val"), np.array([[700, 41], [41, 99]]), 82),
        leak_pairs=tuple(
            Pair(member(row), member(row + 1, similarity=0.99, equal=row % 3 == 0)) for row in shown[:100]
        ),
        outliers=found,
        contradicted=found,
        degenerate=Findings(0, points, (), "A made-up rule."),
        dark=found,
        blurry=found,
        tiny=found,
        odd_shaped=found,
    )


def _noise(generator: np.random.Generator) -> bytes:
    coarse = Image.fromarray(generator.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize(
        (96, 72), Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(generator.integers(0, 255, (72, 96, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(1))
    file = io.BytesIO()
    Image.blend(coarse, fine, 0.3).save(file, "WEBP", quality=85)
    return file.getvalue()


def measure(page: Path, frames: int) -> dict[str, Any]:
    """Opens a page in Chromium, and returns what was measured."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1400, "height": 900})
        begin = time.perf_counter()
        tab.goto(page.absolute().as_uri(), wait_until="commit")
        tab.wait_for_selector("html.mapped", state="attached", timeout=60_000)
        mapped = time.perf_counter() - begin
        paints = tab.evaluate("performance.getEntriesByType('paint').map((each) => [each.name, each.startTime])")
        tab.evaluate("document.querySelector('#map').scrollIntoView()")
        times, painted = tab.evaluate(PAN, frames)
        canvas = tab.evaluate("[paint.canvas.width, paint.canvas.height]")
        version = browser.version
        browser.close()
    return {
        "chromium": version,
        "file, bytes": page.stat().st_size,
        "first paint, s": round(dict(paints)["first-contentful-paint"] / 1000, 3),
        "map is there, s": round(mapped, 3),
        "canvas": canvas,
        "frames/s": round(1000 * len(times) / sum(times), 1),
        "slowest of 20 frames, ms": round(float(np.percentile(times, 95)), 1),
        "painting once, ms": round(float(np.median(painted)), 1),
    }


def main(
    page: Annotated[Path | None, typer.Option(help="A page that is there; without it one is made up.")] = None,
    points: int = 50_000,
    pictures: int = 2_000,
    frames: int = 180,
    out: Annotated[Path | None, typer.Option(help="File to keep the made-up page in.")] = None,
) -> None:
    """Measures a page, and prints JSON."""
    cores = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    }
    with tempfile.TemporaryDirectory() as folder:
        facts: dict[str, Any] = {"processor": ", ".join(cores) or platform.processor()}
        if page is None:
            page = out or Path(folder) / "report.html"
            data = made_up(points, pictures)
            begin = time.perf_counter()
            page.write_bytes(render(data))
            facts["render, s"] = round(time.perf_counter() - begin, 2)
        json.dump(facts | measure(page, frames), sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    typer.run(main)
