"""Feeds damaged bytes to what reads strangers' files, by libFuzzer through atheris: `python scripts/fuzz.py decode`.

Whatever the bytes are, there has to come a result, or an error that embedx words itself; all else ends the script,
which then leaves the bytes in a file `crash-…`. The tests try the same targets with inputs of hypothesis's.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is missing; `pip install atheris` brings it, on Linux, for Python 3.11 to 3.13")
    instrumented = atheris.instrument_imports(include=["embedx"])
else:
    instrumented = contextlib.nullcontext()

with instrumented:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from PIL import Image

    import embedx
    from embedx.data.decoding.images import decode
    from embedx.data.plan import build_plan
    from embedx.data.reading.files import RejectedInputError
    from embedx.data.sources import parse_data
    from embedx.data.sources.kinds import SourceOptions
    from embedx.errors import EmbedxError
    from embedx.store.reading.reader import Store
    from embedx.store.reading.verify import verify

_FOLDER = tempfile.TemporaryDirectory(prefix="embedx-fuzz-")
_ROOM = Path(_FOLDER.name)


def try_image(data: bytes) -> None:
    """Decodes an image: [3, H, W] uint8, or a reason."""
    with contextlib.suppress(RejectedInputError):
        pixels = decode(data, max_pixels=1 << 20)
        if pixels.ndim != 3 or len(pixels) != 3 or 0 in pixels.shape or pixels.dtype != torch.uint8:
            raise AssertionError(f"decoded to {pixels.dtype} {list(pixels.shape)}")


def try_source(data: bytes, name: str) -> None:
    """Lists the inputs of a table or a tar: a plan, or a message; then reads some of them: bytes, or a reason."""
    path = _ROOM / name
    path.write_bytes(data)
    with contextlib.suppress(EmbedxError):
        for split in build_plan(parse_data([f"train={path}"]), None).splits.values():
            for place in split.table.select(["path", "offset", "size"]).slice(0, 8).to_pylist():
                with contextlib.suppress(RejectedInputError):
                    split.reader.read(place["path"], place["offset"], place["size"])


def try_paths(data: bytes, name: str) -> None:
    """Lists inputs by paths on stdin: a plan, or a message. They are not read: they may be anybody's."""
    stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(data))
    try:
        with contextlib.suppress(EmbedxError):
            build_plan(parse_data(["-"], SourceOptions(null=name == "null")), None)
    finally:
        sys.stdin = stdin


def try_store(data: bytes, name: str) -> None:
    """Reads a store of which one file is damaged: rows, or a message."""
    path = _store() / name
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        with contextlib.suppress(EmbedxError):
            list(verify(_store()))
        with contextlib.suppress(EmbedxError):
            store = Store.open(_store())
            for split in store.splits:
                store.load(split)
    finally:
        path.write_bytes(whole)


def images() -> dict[str, bytes]:
    """One small image of each kind."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8))
    palette = picture.quantize(8)
    found = {
        "jpeg": _encoded(picture, "JPEG", exif=_turned()),
        "cmyk.jpeg": _encoded(picture.convert("CMYK"), "JPEG"),
        "progressive.jpeg": _encoded(picture, "JPEG", progressive=True),
        "png": _encoded(picture, "PNG"),
        "16.png": _encoded(Image.fromarray(np.arange(63, dtype=np.uint16).reshape(9, 7) * 999), "PNG"),
        "palette.png": _encoded(palette, "PNG", transparency=b"\0\x80\xff"),
        "apng": _encoded(picture, "PNG", save_all=True, append_images=[picture.rotate(90)]),
        "webp": _encoded(picture, "WEBP", quality=60),
        "lossless.webp": _encoded(picture.convert("RGBA"), "WEBP", lossless=True),
        "gif": _encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
        "bmp": _encoded(picture, "BMP"),
        "tiff": _encoded(picture, "TIFF", compression="tiff_lzw", save_all=True, append_images=[picture]),
        "deflate.tiff": _encoded(picture, "TIFF", compression="tiff_adobe_deflate"),
        "ppm": _encoded(picture, "PPM"),
        "tga": _encoded(picture, "TGA", compression="tga_rle"),
    }
    with contextlib.suppress(OSError, KeyError):
        found["jp2"] = _encoded(picture, "JPEG2000")
    with contextlib.suppress(OSError, KeyError):
        found["avif"] = _encoded(picture, "AVIF")
    return found


def tables() -> dict[str, bytes]:
    """One small table of each kind, and one with images in it."""
    names = [f"{number}.jpg" for number in range(5)]
    table = pa.table({"path": names, "label": [0, 1, 0, 1, None], "site": ["a", "b", None, "a", "ü"]})
    lines = ["path,label,site", *(f'{name},{number},"a ""b"""' for number, name in enumerate(names))]
    text = "\n".join(lines).encode()
    objects = "\n".join(f'{{"path": "{name}", "label": {number}, "box": [1, 2]}}' for number, name in enumerate(names))
    embedded = [{"bytes": images()["jpeg"], "path": name} for name in names]
    return {
        "table.csv": text,
        "table.tsv": text.replace(b",", b"\t"),
        "table.jsonl": objects.encode(),
        "table.csv.gz": gzip.compress(text, mtime=0),
        "table.parquet": _parquet(table),
        "images.parquet": _parquet(pa.table({"image": embedded, "label": names})),
    }


def tars() -> dict[str, bytes]:
    """Small tars of each format, in WebDataset's layout."""
    found = {}
    for name, form in (
        ("gnu.tar", tarfile.GNU_FORMAT),
        ("pax.tar", tarfile.PAX_FORMAT),
        ("ustar.tar", tarfile.USTAR_FORMAT),
    ):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=form) as archive:
            for number in range(3):
                for suffix, data in (("jpg", images()["jpeg"]), ("cls", b"3"), ("json", b'{"a": [1, {"b": null}]}')):
                    member = tarfile.TarInfo(
                        f"folder/{'long-' * (number * (2 if name == 'ustar.tar' else 12))}{number}.{suffix}"
                    )
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        found[name] = content.getvalue()
    return found


def paths() -> dict[str, bytes]:
    """Lists of paths, as lines and ended by NUL."""
    names = [b"a.jpg", b"/b/c d.png", b"\xff\xfe.jpg", b"s3://bucket/e.jpg", "ü.jpg".encode(), b"../f.jpg"]
    return {"lines": b"\r\n".join(names), "null": b"\0".join(names)}


def stores() -> dict[str, bytes]:
    """The files of a small store."""
    files = (path for path in sorted(_store().rglob("*")) if path.suffix in (".json", ".parquet", ".safetensors"))
    return {str(path.relative_to(_store())): path.read_bytes() for path in files}


class Target(NamedTuple):
    """What is fed, and with what it begins."""

    seeds: Callable[[], dict[str, bytes]]
    """Whole files, by name."""
    feed: Callable[[bytes, str], None]
    """Takes a file's bytes, and the name of what they were once."""


TARGETS = {
    "decode": Target(images, lambda data, name: try_image(data)),
    "table": Target(tables, try_source),
    "tar": Target(tars, try_source),
    "paths": Target(paths, try_paths),
    "store": Target(stores, try_store),
}


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def _store() -> Path:
    path = _ROOM / "store"
    if not path.exists():
        batches = [
            {
                "images": torch.rand(4, 3),
                "index": torch.arange(4) + start,
                "keys": [f"{start}-{row}" for row in range(4)],
            }
            for start in (0, 4)
        ]
        embedx.run_test(_Same(), {"train": batches}, [embedx.EmbeddingsWriter(path, rows_per_unit=4)])
    return path


class _Same(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def main() -> None:
    """Fuzzes one target until the time is over, or something goes wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    target = TARGETS[arguments.target]
    names = list(target.seeds())
    corpus = _ROOM / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.seeds().values()):
        (corpus / str(number)).write_bytes(bytes([number]) + data)

    def feed(data: bytes) -> None:
        if data:  # the first byte says of which kind the rest is
            target.feed(data[1:], names[data[0] % len(names)])

    seconds = round(60 * arguments.minutes)
    options = [
        f"-max_total_time={seconds}",
        f"-seed={arguments.seed}",
        "-max_len=16384",
        "-timeout=20",
        "-rss_limit_mb=4096",
    ]
    atheris.Setup([sys.argv[0], str(corpus), *options], feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
