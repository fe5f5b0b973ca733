"""A store on disk, and one of its rows from the index table to the shard and to the image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
from PIL import Image
from safetensors import safe_open

from embedx import sample
from scripts.pictures.svg import Svg, Theme

TITLE = (
    "A store on disk, and one row of its index table: it names the shard and the row of an embedding, and its "
    "image by key and by sha256."
)
_INDEX, _KEY = "index/val-00000.parquet", "star/star_03.jpg"
_SIDE, _COLOURS = 48, "0123456789abcdefghijklmnopqrstuvwxyz"
_TREE = (
    ("demo/", ""),
    ("├─ manifest.json", ""),
    ("├─ index/", ""),
    ("│  ├─ train-00000.parquet", ""),
    ("│  └─ val-00000.parquet", "accent"),
    ("├─ train/", ""),
    ("│  └─ … 8 classes", ""),
    ("└─ val/", ""),
    ("   ├─ … 7 classes", ""),
    ("   └─ star/", ""),
    ("      └─ shard-00000.safetensors", "second"),
)


def measure() -> dict[str, Any]:
    """Embeds the bundled sample, and follows one row with readers that know nothing of embedx."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        recipe = ["--backbone", "shufflenet_v2_x0_5", "--weights", "sample", "--group-key", "class"]
        subprocess.run([sys.executable, "-m", "embedx", "extract", "--quiet", *recipe, "--out", str(out)], check=True)
        (row,) = pq.read_table(out / _INDEX, filters=[("key", "=", _KEY)]).to_pylist()
        with safe_open(out / row["shard"], "numpy") as shard:
            embeddings = shard.get_tensor("embeddings")
    with Image.open(sample.IMAGES / "val" / _KEY) as image:
        width, height = image.size
        small = image.convert("RGB").resize((_SIDE, _SIDE)).quantize(len(_COLOURS), dither=Image.Dither.NONE)
    palette, places = small.getpalette() or [], list(small.tobytes())
    lines = [places[start : start + _SIDE] for start in range(0, _SIDE * _SIDE, _SIDE)]
    return {
        "row": {name: row[name] for name in ("key", "status", "target", "bytes", "sha256", "shard", "row")},
        "shape": list(embeddings.shape),
        "dtype": str(embeddings.dtype),
        "numbers": [[round(float(number), 3) for number in line[:4]] for line in embeddings[: row["row"] + 2]],
        "size": [width, height],
        "colours": ["#" + bytes(palette[start : start + 3]).hex() for start in range(0, 3 * len(_COLOURS), 3)],
        "pixels": ["".join(_COLOURS[place] for place in line) for line in lines],
    }


def draw(theme: Theme, found: dict[str, Any]) -> bytes:
    """Draws the folder, and beside and below it what its files say of the row."""
    svg = Svg(theme, 720, 568, TITLE)
    row, digest = found["row"], f"{found['row']['sha256'][:12]}…"

    svg.box(16, 16, 304, 286, theme.panel, theme.line)
    for number, (line, colour) in enumerate(_TREE):
        shade = getattr(theme, colour) if colour else theme.ink
        svg.text(28, 46 + 24 * number, line, room=290, size=14.5, mono=True, colour=shade, bold=bool(colour))

    svg.box(344, 16, 360, 286, theme.page, theme.accent)
    svg.arrow((236, 137), (340, 137), colour=theme.accent)
    svg.text(358, 46, "one row of the index table", room=340, bold=True, colour=theme.accent)
    for number, (name, value) in enumerate({**row, "sha256": digest}.items()):
        y = 82 + 33 * number
        svg.text(358, y, name, room=60, size=14.5, mono=True, colour=theme.muted)
        svg.text(424, y, str(value), room=278, size=14 if name == "shard" else 14.5, mono=True)

    svg.arrow((400, 302), (400, 346), colour=theme.second)
    svg.text(388, 329, "shard and row", room=140, size=15, colour=theme.muted, anchor="end")
    svg.box(16, 350, 432, 202, theme.page, theme.second)
    svg.text(30, 380, "the shard, any safetensors reader", room=410, bold=True, colour=theme.second)
    rows, columns = found["shape"]
    svg.text(30, 406, f"embeddings [{rows}, {columns}] {found['dtype']}", room=400, size=14.5, mono=True)
    for number, numbers in enumerate(found["numbers"]):
        y, is_it = 434 + 22 * number, number == row["row"]
        if is_it:
            svg.box(22, y - 17, 420, 23, theme.second_panel, radius=4)
        text = f"{number}  " + "  ".join(f"{value:.3f}" for value in numbers) + "  …"
        svg.text(30, y, text, room=412, size=14.5, mono=True, bold=is_it, colour="" if is_it else theme.muted)

    svg.arrow((584, 302), (584, 346), colour=theme.accent)
    svg.text(572, 329, "key and sha256", room=140, size=15, colour=theme.muted, anchor="end")
    svg.box(464, 350, 240, 202, theme.page, theme.accent)
    svg.text(584, 380, "the image", room=220, bold=True, colour=theme.accent, anchor="middle")
    colours = dict(zip(_COLOURS, found["colours"], strict=True))
    svg.mosaic(532, 392, 104, [[colours[place] for place in line] for line in found["pixels"]])
    svg.text(584, 518, row["key"], room=230, size=14.5, mono=True, anchor="middle")
    svg.text(584, 540, digest, room=230, size=14.5, mono=True, anchor="middle", colour=theme.muted)
    return svg.encode()
