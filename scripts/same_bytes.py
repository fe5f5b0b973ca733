"""Whether two checkouts extract the same bytes: ten small runs of each, their shards and index tables compared.

python scripts/same_bytes.py record CHECKOUT OUT.json          what the runs of one checkout wrote, as checksums
python scripts/same_bytes.py compare CHECKOUT_A CHECKOUT_B     exit code 1 if there is a difference

For changes that are to leave every output as it is. Either side of a comparison can be what `record` has written.
Checksums are of one machine and its versions of torch and Pillow; the interpreter of this script runs both checkouts.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Checkout = Annotated[Path, typer.Argument(help="A folder with the package `embedx` in it.")]
Recorded = Annotated[
    Path, typer.Argument(help="A folder with the package `embedx` in it, or what `record` has written.")
]
Checksums = dict[str, dict[str, dict[str, str]]]
"""Per run and kind of output the sha256 of each part, by its name."""

_ROOM = Path("/tmp/embedx-same-bytes")
"""Where the runs take place, whatever the checkout: index tables hold the absolute paths of the inputs."""
_FIRST_MTIME = 1_700_000_000
_MANIFEST = ("format", "fingerprint", "recipe", "plan", "settings", "totals")
"""Entries of the manifest that neither the time nor the machine's load changes."""
_EVERY_RUN = {"runtime": "eager", "device": "cpu", "threads": "1", "workers": "1", "batch-size": "8"}
_SMALL = ("--backbone", "shufflenet_v2_x0_5", "--weights", "sample", "--image-size", "64")
_SIX_ROWS = ("--shard-size", "24KiB")
"""About as much as six of the backbone's embeddings in float32, so that there are several units."""


class Run:
    """One run: its folder, in which inputs are written and extracted.

    Inputs come from a generator that is seeded with the run's name; each file is a second younger than the last one.

    Args:
        name: The run's name.
        checkout: Whose package extracts.
    """

    def __init__(self, name: str, checkout: Path) -> None:
        self.folder = _ROOM / name
        self.store = self.folder / "store"
        self.random = np.random.default_rng(list(name.encode()))
        self._checkout = checkout
        self._mtimes = itertools.count(_FIRST_MTIME)

    def extract(self, *options: str, stdin: bytes = b"") -> None:
        """Runs `embedx extract` on what is in the folder."""
        settings = [text for name, value in _EVERY_RUN.items() for text in (f"--{name}", value)]
        if "--update" in options and "max_gone" in (self._checkout / "embedx/config.py").read_text():
            settings += ["--max-gone", "100%"]
        done = subprocess.run(
            [sys.executable, "-m", "embedx", "extract", "--out", "store", "--quiet", *settings, *options],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self._checkout)},
            input=stdin,
            capture_output=True,
        )
        if done.returncode != 0:
            raise SystemExit(
                f"{self.folder.name}: exit code {done.returncode} by {self._checkout}\n{done.stderr.decode()}"
            )

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, or writes it anew, with the next time."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.touch(name)

    def touch(self, name: str) -> None:
        """Gives a file the next time."""
        mtime = next(self._mtimes)
        os.utime(self.folder / name, (mtime, mtime))

    def picture(self, suffix: str = ".jpg", *, mode: str = "RGB", orientation: int = 1) -> bytes:
        """The bytes of an image of soft spots, of a width and height between 40 and 160 pixels."""
        width, height, spots = (int(number) for number in self.random.integers((40, 40, 3), (161, 161, 9)))
        pixels = self.random.integers(0, 256, (spots, spots, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        is_deep = mode == "I;16"  # of all 16 bits, which `convert` does not use
        image = Image.fromarray(np.asarray(image.convert("L")) * np.uint16(257)) if is_deep else image.convert(mode)
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = io.BytesIO()
        image.save(content, Image.registered_extensions()[suffix], **({"exif": exif} if orientation != 1 else {}))
        return content.getvalue()

    def pictures(self, folder: str, count: int, suffix: str = ".jpg") -> list[str]:
        """Writes images into a folder; the names of the files."""
        names = [f"{folder}/{number:03d}{suffix}" for number in range(count)]
        for name in names:
            self.write(name, self.picture(suffix))
        return names

    def bad_pictures(self, folder: str) -> list[str]:
        """Writes what has to be rejected with `--max-pixels 30000`; the names of the files."""
        whole = self.picture(".png")
        bad = {
            "empty.jpg": b"",
            "text.jpg": b"no image",
            "cut.png": whole[: len(whole) // 2],
            "huge.ppm": b"P6 200 200 255\n" + bytes(200 * 200 * 3),
        }
        for name, content in bad.items():
            self.write(f"{folder}/{name}", content)
        return [f"{folder}/{name}" for name in bad]

    def vectors(self, count: int) -> NDArray[np.float32]:
        """Runs of four tokens of 64 numbers: [count, 4, 64]."""
        return self.random.standard_normal((count, 4, 64), dtype=np.float32)


def folder(run: Run) -> None:
    """A folder of classes, by several formats, modes and orientations, among them files that are no inputs."""
    for name in ("cat", "Cat", "ünü 100%"):
        run.pictures(f"photos/{name}", 6)
    for orientation in range(2, 9):
        run.write(f"photos/turned/{orientation}.jpg", run.picture(orientation=orientation))
    for suffix in (".png", ".webp", ".bmp", ".gif", ".tiff"):
        run.write(f"photos/formats/image{suffix}", run.picture(suffix))
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        run.write(f"photos/modes/{mode[0]}{len(mode)}.png", run.picture(".png", mode=mode))
    run.write("photos/modes/CMYK.jpg", run.picture(mode="CMYK"))
    run.write("photos/cat/.hidden.jpg", run.picture())
    run.write("photos/notes.txt", b"no input")
    run.extract(*_SMALL, *_SIX_ROWS, "--data", "photos")


def splits(run: Run) -> None:
    """Nested folders as two splits by name, grouped by parent, scaled, in another size and without orientation."""
    for name in ("one/a/x", "one/a/y", "one/b", "two/a/x", "two/c/z/z"):
        run.pictures(name, 6)
    run.write("one/turned.jpg", run.picture(orientation=6))
    data = ("--data", "train=one", "--data", "val=two", "--group-key", "parent")
    run.extract(*_SMALL, *_SIX_ROWS, *data, "--normalize", "--no-exif", "--interpolation", "bicubic")


def csv(run: Run) -> None:
    """A CSV table that names splits, keys and targets, with rejected inputs, stored as float16."""
    names = [*run.pictures("photos", 24), *run.bad_pictures("photos"), "photos/missing.jpg"]
    lines = ["file,id,species,part,weight,seen,note"]
    for number, name in enumerate(names):
        part, species = ("train", "val", "train")[number % 3], ("elk", "owl", "", "eel")[number % 4]
        lines.append(f'{name},id-{number},{species},{part},{number / 7},2024-01-{number + 1:02d},"a, {number}"')
    run.write("images.csv", "\n".join(lines).encode())
    columns = ("--key-column", "id", "--target-column", "species", "--split-column", "part", "--group-key", "species")
    rejecting = ("--max-pixels", "30000", "--max-errors", "5")
    run.extract(*_SMALL, "--data", "images.csv", *columns, *rejecting, "--dtype", "float16", "--shard-size", "12KiB")


def parquet(run: Run) -> None:
    """A Parquet table with the images in it, some null or damaged, grouped by label, stored as bfloat16."""
    contents = {number: run.picture() for number in range(20)} | {3: None, 11: b"no image"}
    images = [{"bytes": content, "path": f"{number}.jpg"} for number, content in contents.items()]
    columns = {
        "image": images,
        "label": pa.array([number % 3 for number in range(20)], pa.int32()),
        "score": pa.array([None if number % 5 == 0 else number / 3 for number in range(20)], pa.float32()),
        "tags": [["x"] * (number % 3) for number in range(20)],
        "captions": [[f"caption {number} of {5 * number + 1}" for _ in range(5)] for number in range(20)],
        "good": [number % 2 == 0 for number in range(20)],
    }
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content, row_group_size=8)
    run.write("images.parquet", content.getvalue())
    grouped = ("--data", "train=images.parquet", "--group-key", "label", "--dtype", "bfloat16")
    run.extract(*_SMALL, *grouped, "--shard-size", "12KiB", "--max-errors", "2")


def tars(run: Run) -> None:
    """Two tars in WebDataset's layout, with layers as maps, grouped by an entry of their JSON; one has no image."""
    for shard in range(2):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for number in range(8):
                told = json.dumps({"colour": ("red", "blue")[number % 2], "n": number, "key": f"k{number}"})
                photo = b"no image" if (shard, number) == (1, 5) else run.picture()
                members = {"jpg": photo, "cls": str(number % 4).encode(), "json": told.encode()}
                members["txt"] = f"image {number} of {shard}\n".encode()
                for extension, member_bytes in members.items():
                    member = tarfile.TarInfo(f"{shard}/{number:04d}.{extension}")
                    member.size = len(member_bytes)
                    tar.addfile(member, io.BytesIO(member_bytes))
        run.write(f"shard-{shard:06d}.tar", content.getvalue())
    data = ("--data", "train=shard-{000000..000001}.tar", "--group-key", "colour", "--max-errors", "1")
    maps = ("--layer", "stage2", "--layer", "conv5", "--pool", "none")
    run.extract(*_SMALL, *data, *maps, "--dtype", "float16", "--shard-size", "80KiB")


def stdin(run: Run) -> None:
    """Paths on stdin that end in NUL, in no order, relative and absolute, some rejected, with a layer pooled by gem."""
    names = [*run.pictures("photos/a b", 9), *run.pictures("photos/c\nd", 8, ".png"), *run.bad_pictures("photos")]
    names += ["photos/missing.jpg", str(run.folder / run.pictures("elsewhere", 1)[0])]
    content = b"".join(os.fsencode(names[number]) + b"\0" for number in run.random.permutation(len(names)))
    data = ("--data", "train=-", "--null", "--max-pixels", "30000", "--max-errors", "5")
    run.extract(*_SMALL, *_SIX_ROWS, *data, "--layer", "stage3", "--pool", "gem", stdin=content)


def features(run: Run) -> None:
    """Features of `.npy` files, of `.safetensors` with targets, and of a folder with rejected ones; no backbone."""
    for number in range(3):
        array = io.BytesIO()
        np.save(array, run.vectors(7).astype((np.float32, np.float16, np.float64)[number]))
        run.write(f"arrays/{number}/rows.npy", array.getvalue())
        tensors: dict[str, NDArray[Any]] = {"embeddings": run.vectors(5), "targets": np.arange(-1, 4)}
        run.write(f"shard-{number}.safetensors", save(tensors))
    for number in range(6):
        run.write(f"single/{number}.safetensors", save({"x": run.vectors(1)[0]}))
    run.write("single/other.safetensors", save({"x": run.vectors(1)[0, :2]}))
    run.write("single/text.npy", b"no features")
    data = ("rows=arrays/*/rows.npy", "shards=shard-{0..2}.safetensors", "files=single")
    sources = tuple(text for source in data for text in ("--data", source))
    computed = ("--pool", "max", "--normalize", "--group-key", "parent", "--shard-size", "1KiB")
    run.extract("--backbone", "none", *sources, *computed, "--max-errors", "2")


def change(run: Run, folder: str) -> None:
    """Changes, touches, removes, renames and adds inputs in a folder that has the images 000 to 007 or more."""
    run.write(f"{folder}/001.jpg", run.picture())
    run.touch(f"{folder}/002.jpg")
    (run.folder / folder / "003.jpg").unlink()
    (run.folder / folder / "004.jpg").rename(run.folder / folder / "0035.jpg")
    (run.folder / folder / "005.jpg").rename(run.folder / folder / "zzz.jpg")
    run.write(f"{folder}/0055.jpg", run.picture())
    run.write(f"{folder}/006.jpg", b"no longer an image")


def update(run: Run) -> None:
    """A grouped folder, some of it rejected, brought to inputs that have changed, with a class that is new."""
    for name in ("cat", "dog", "eel"):
        run.pictures(f"photos/{name}", 12)
    run.bad_pictures("photos/dog")
    settings = (*_SMALL, *_SIX_ROWS, "--data", "all=photos", "--group-key", "class", "--max-pixels", "30000")
    run.extract(*settings, "--max-errors", "4")
    change(run, "photos/cat")
    run.write("photos/dog/text.jpg", run.picture())
    run.pictures("photos/ant", 2)
    shutil.rmtree(run.folder / "photos" / "eel")
    run.extract(*settings, "--max-errors", "4", "--update")


def update_splits(run: Run) -> None:
    """Splits with layers as float16, brought to changed inputs: one split stays, one changes, one goes, one is new."""
    for name in ("same", "changed", "gone", "new"):
        run.pictures(name, 10)
    layers = (*_SMALL, "--layer", "stage4", "--pool", "max", "--dtype", "float16", "--shard-size", "12KiB")
    run.extract(*layers, "--data", "a=same", "--data", "b=changed", "--data", "c=gone")
    change(run, "changed")
    run.extract(*layers, "--data", "a=same", "--data", "b=changed", "--data", "d=new", "--max-errors", "1", "--update")


def retry(run: Run) -> None:
    """Rejected inputs tried again: of one the bytes have come back under the same size and time, of the others not."""
    names = run.pictures("photos/a", 14)
    run.bad_pictures("photos/b")
    path = run.folder / names[9]
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    settings = (*_SMALL, *_SIX_ROWS, "--data", "photos", "--max-pixels", "30000", "--max-errors", "5")
    run.extract(*settings)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    run.extract(*settings, "--retry-rejected")


RUNS: dict[str, Callable[[Run], None]] = {
    each.__name__: each for each in (folder, splits, csv, parquet, tars, stdin, features, update, update_splits, retry)
}


@contextmanager
def empty_room() -> Iterator[None]:
    """The folder of the runs, empty, for one process at a time; removed at the end."""
    with open(f"{_ROOM}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(_ROOM, ignore_errors=True)
        _ROOM.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(_ROOM)


def checksum(value: Any) -> str:
    """Sha256 of a value's canonical JSON; bytes are written in hex, and dates and the like as text."""
    text = json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        default=lambda odd: odd.hex() if isinstance(odd, bytes) else str(odd),
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _behind_header(shard: bytes) -> str:
    """Sha256 of a shard's numbers, whatever its header says."""
    return hashlib.sha256(shard[8 + int.from_bytes(shard[:8], "little") :]).hexdigest()


def checksums(store: Path) -> dict[str, dict[str, str]]:
    """What a store holds: its shards by bytes and numbers, tables by bytes, rows and columns, manifest by entry."""
    shards = {str(path.relative_to(store)): path for path in sorted(store.rglob("*.safetensors"))}
    tables = {str(path.relative_to(store)): pq.read_table(path) for path in sorted(store.glob("index/*.parquet"))}
    manifest = json.loads((store / "manifest.json").read_bytes())
    return {
        "shards": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in shards.items()},
        "tensors": {name: _behind_header(path.read_bytes()) for name, path in shards.items()},
        "index": {name: checksum(table.to_pylist()) for name, table in tables.items()},
        "index_files": {name: hashlib.sha256((store / name).read_bytes()).hexdigest() for name in tables},
        "columns": {name: checksum([str(field) for field in table.schema]) for name, table in tables.items()},
        "manifest": {name: checksum(manifest[name]) for name in _MANIFEST},
    }


def run_all(checkout: Path) -> Checksums:
    """Does all runs with the package of a checkout."""
    if not (checkout / "embedx" / "__main__.py").is_file():
        raise SystemExit(f"{checkout} has no package embedx")
    result = {}
    with empty_room():
        for name, steps in RUNS.items():
            run = Run(name, checkout.resolve())
            run.folder.mkdir()
            print(f"{checkout}: {name}", file=sys.stderr)
            steps(run)
            result[name] = checksums(run.store)
    return result


def differing(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> Iterator[str]:
    """What differs between two stores, a line each."""
    for kind in sorted(before.keys() | after.keys()):
        old, new = before.get(kind, {}), after.get(kind, {})
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                which = "only the second has it" if name not in old else "only the first has it"
                yield f"{kind}: {name}" + ("" if name in old and name in new else f" ({which})")


@app.command()
def record(checkout: Checkout, out: Annotated[Path, typer.Argument(help="The JSON file to write.")]) -> None:
    """Does the runs of one checkout and writes their checksums."""
    out.write_text(json.dumps(run_all(checkout), indent=2) + "\n")


@app.command()
def compare(before: Recorded, after: Recorded) -> None:
    """Compares two checkouts run by run, and exits with 1 if there is a difference."""
    old, new = (json.loads(each.read_bytes()) if each.is_file() else run_all(each) for each in (before, after))
    found = False
    for name in sorted(old.keys() | new.keys()):
        lines = list(differing(old.get(name, {}), new.get(name, {})))
        found |= bool(lines)
        print(f"{name}: {'different' if lines else 'equal'}", *lines, sep="\n  ")
    raise typer.Exit(1 if found else 0)


if __name__ == "__main__":
    app()
