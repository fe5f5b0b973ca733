"""Images per second: a loop by hand, embedx, and the bound, as measured by scripts/bench.py."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts.pictures.svg import Svg, Theme

TITLE = (
    "Bars of images per second on two cores: a loop of twenty lines by hand, embedx, and the bound that forward "
    "pass and decoding leave."
)
_IMAGES = {"resnet50": 192}
_ROUNDS = 3
_LEFT, _FULL = 124, 460


def measure() -> dict[str, Any]:
    """Measures all of them in turn, in several rounds. The machine should have nothing else to do."""
    found = {}
    for backbone, images in _IMAGES.items():
        settings = ["--backbone", backbone, "--images", str(images), "--rounds", str(_ROUNDS), "--json"]
        bench = Path(__file__).parent.parent / "bench.py"
        done = subprocess.run([sys.executable, bench, "measure", *settings], stdout=subprocess.PIPE, check=True)
        rates = json.loads(done.stdout.splitlines()[-1])["images_per_second"]
        kinds = {"by hand": "by hand, steady (e)", "embedx": "embedx, steady (d)", "bound": "bound (c)"}
        found[backbone] = {kind: round(rates[name], 1) for kind, name in kinds.items()}
    return {"processor": _processor(), "cores": os.cpu_count(), "rounds": _ROUNDS, "images_per_second": found}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].replace("(R)", "").split())
    return platform.processor()


def draw(theme: Theme, found: dict[str, Any]) -> bytes:
    """Draws three bars per backbone, each group to its own scale."""
    svg = Svg(theme, 720, 136 + 152 * len(found["images_per_second"]), TITLE)
    svg.text(16, 36, "images per second", room=400, bold=True)
    fills = {"by hand": theme.grey_bar, "embedx": theme.accent, "bound": theme.panel}
    y = 76
    for backbone, rates in found["images_per_second"].items():
        svg.text(16, y, backbone, room=400, mono=True, size=17)
        times = f"{rates['embedx'] / rates['by hand']:.1f} times by hand"
        svg.text(704, y, times, room=300, anchor="end", colour=theme.accent, bold=True)
        for kind, rate in rates.items():
            y += 34
            width = _FULL * rate / max(rates.values())
            svg.text(_LEFT - 14, y, kind, room=90, size=17, anchor="end", colour=theme.muted)
            line = theme.muted if kind == "bound" else "none"
            svg.box(_LEFT, y - 19, width, 26, fills[kind], line, radius=3)
            svg.text(_LEFT + width + 12, y, f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}", room=100)
        y += 50
    machine = f"{found['cores']} cores, {found['processor']}; fp32; JPEGs of 500 x 375."
    svg.text(16, y, machine, room=690, size=15, colour=theme.muted)
    svg.text(
        16,
        y + 24,
        f"Medians of {found['rounds']} rounds in turn, after the first batch.",
        room=690,
        size=15,
        colour=theme.muted,
    )
    bound = "Bound: the forward pass alone and decoding alone share the cores."
    svg.text(16, y + 48, bound, room=690, size=15, colour=theme.muted)
    return svg.encode()
