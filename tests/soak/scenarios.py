"""The runs that are disturbed: each has its beginning, its command, and the bytes that it gives when left alone."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from embedx.store.format.layout import is_temporary
from embedx.store.reading.verify import verify
from tests.runs import digests
from tests.soak.runs import Done, Fault, Launcher, files_below

_IMAGE = ["--image-size", "8", "--resize", "8", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "-b", "2"]
_LOCK = ".embedx.lock"
_TRIAL = re.compile("[a-z0-9_]{8}")
"""The names of the files by which Python's tempfile tries a folder; they stay where it can't remove them."""


class Scenario(NamedTuple):
    """One command, and where it is given."""

    arguments: list[str]
    update: str = ""
    """The flag of a run on a store of other inputs; where there is none, the store is new."""
    environment: Mapping[str, str] = MappingProxyType({})


_SMALL_UNITS = ["--data", "{inputs}/images", "--shard-size", "4k"]
_GROUPED = ["--group-key", "class"]
SCENARIOS = {
    "fresh": Scenario([*_SMALL_UNITS, *_GROUPED, "-j", "2"]),
    "features": Scenario(["--data", "{inputs}/features.safetensors", "-j", "0"]),
    "journal": Scenario(["--data", "{inputs}/images/train", "-j", "1"], environment={"SOAK_JOURNAL_SECONDS": "0"}),
    "groups": Scenario(["--data", "{inputs}/many", *_GROUPED, "-j", "0"]),
    "update": Scenario([*_SMALL_UNITS, *_GROUPED, "-j", "1"], "--update"),
    "overwrite": Scenario([*_SMALL_UNITS, "-j", "0"], "--overwrite"),
}


class Stage:
    """A folder in which one scenario is played again and again.

    Args:
        root: A new folder.
        name: The scenario's name.
        launcher: The process that starts its runs.
    """

    def __init__(self, root: Path, name: str, launcher: Launcher) -> None:
        root.mkdir()
        scenario = SCENARIOS[name]
        self.stores, self._start, inputs = root / "stores", root / "start", root / "inputs"
        self.out = self.stores / "store"
        draw_inputs(inputs)
        self.launcher = launcher
        backbone = "none" if name == "features" else "torch.nn:Flatten"
        arguments = ["extract", "--backbone", backbone, *([] if name == "features" else _IMAGE)]
        arguments += [part.format(inputs=inputs) for part in scenario.arguments]
        self._environment = dict(scenario.environment) | {"SOAK_PATHS": f"{self.stores}:{inputs}/images"}
        self.arguments = [*arguments, "--out", str(self.out)]
        self._start.mkdir()
        if scenario.update:
            self.reset()
            begun = self.run()
            assert begun.code == 0, begun.stderr
            (self.out / _LOCK).unlink(missing_ok=True)
            self._start.rmdir()
            self.stores.rename(self._start)
            change_inputs(inputs)
            self.arguments.append(scenario.update)
        self.reset()
        done = self.run()
        assert done.code == 0 and not done.left, done
        self.calls = {(kind, role): number for (kind, role), number in done.calls.items() if role != "server"}
        self.expected = digests(self.out)
        self.reset()

    def reset(self) -> None:
        """Brings back the beginning."""
        shutil.rmtree(self.stores, ignore_errors=True)
        shutil.copytree(self._start, self.stores)
        shutil.rmtree(self.launcher.temporary)
        self.launcher.temporary.mkdir()
        for path in self.launcher.shared_memory():
            path.unlink()

    def run(self, fault: Fault | None = None, environment: dict[str, str] | None = None) -> Done:
        return self.launcher.run(self.arguments, self._environment | (environment or {}), fault)

    def faults(self) -> list[str]:
        """What is wrong after a run that has exited with 0."""
        found = [f"verify: {fault}" for fault in verify(self.out)]
        if (got := digests(self.out)) != self.expected:
            differing = sorted(path for path, _ in got.items() ^ self.expected.items())
            found.append(f"other bytes: {dict.fromkeys(differing)}")
        temporary = [path for path in files_below(self.out) if is_temporary(path.rpartition("/")[2]) and path != _LOCK]
        found += [f"left in the store: {temporary}"] if temporary else []
        return [*found, *self.left_outside()]

    def left_outside(self) -> list[str]:
        """What a run has left where nothing of it should be."""
        beside = [path.name for path in self.stores.iterdir() if path != self.out]
        of_torch = "torchinductor_"  # the cache of its compiler, which stays
        temporary = [
            name
            for name in files_below(self.launcher.temporary)
            if not (_TRIAL.fullmatch(name) or name.startswith(of_torch))
        ]
        found = {"beside the store": beside, "in TMPDIR": temporary}
        found["in /dev/shm"] = [path.name for path in self.launcher.shared_memory()]
        return [f"left {place}: {names}" for place, names in found.items() if names]

    def strike(self, fault: Fault, *, anew: bool = False) -> list[str] | None:
        """Lets one run fail and runs the same command again.

        Args:
            fault: The call that fails.
            anew: True to start processes as a user does; False to fork them.

        Returns:
            What does not hold; None if no call was struck.
        """
        self.reset()
        run = self.launcher.start_anew if anew else self.launcher.run
        done = run(self.arguments, self._environment, fault)
        is_verdict = fault.errno == errno.EACCES and "/inputs/" in done.struck  # as if the owner had forbidden it
        if not done.struck or is_verdict:
            return None
        in_temporary = done.struck.startswith(str(self.launcher.temporary))  # which multiprocessing can't remove then
        found = ["hangs"] if done.hung else []
        found += [f"processes left: {done.left}"] if done.left else []
        if done.code == 0:
            found += self.faults()
        elif "fault of embedx" in done.stderr or ("Traceback" in done.stderr and not in_temporary):
            found.append("is called a fault of embedx's")
        if fault.mode != "kill":
            found += [text for text in self.left_outside() if "beside" not in text]
        if in_temporary:  # the folder itself: then the next run has to remove it
            found = [text for text in found if "TMPDIR" not in text]
        if fault.kind == "rmdir":  # a folder that can't be removed stays until the next run
            found = [text for text in found if "beside" not in text]
        again = run(self.arguments, self._environment)
        if again.code != 0 or again.hung or again.left:
            found.append(f"the rerun ends with {again.code}, leaves {again.left}: {again.stderr}")
        else:
            found += [f"after the rerun: {text}" for text in self.faults()]
        if done.struck.startswith("/dev/shm/") or (fault.kind, fault.mode) == ("ftruncate", "sticky"):
            # torch and multiprocessing leave the name of memory that they could not get or were killed at
            found = [text for text in found if "/dev/shm" not in text]
        told = done.stderr if done.hung else done.stderr[-1500:]
        return [f"{text}\n  struck at {done.struck}, exit code {done.code}: {told}" for text in found]


def draw_inputs(folder: Path) -> None:
    """Two splits of tiny images in two classes, images of many classes, and a file of features."""
    chance = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for number in range(count):
            _draw(folder / "images" / split / "ab"[number % 2] / f"{number:02}.png", chance)
    for number in range(20):
        _draw(folder / "many" / f"{number:02}" / "image.png", chance)
    save_file({"embeddings": chance.random((12, 4), np.float32)}, folder / "features.safetensors")


def _draw(path: Path, chance: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(chance.integers(0, 256, (8, 8, 3), np.uint8)).save(path)


def change_inputs(folder: Path) -> None:
    """Changes an input, removes one, adds one and renames one."""
    a = folder / "images/train/a"
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(a / "02.png")
    (a / "04.png").unlink()
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(a / "99.png")
    (a / "06.png").rename(a / "98.png")
