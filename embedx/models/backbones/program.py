"""Bare programs: `torch.export` archives (`.pt2`) and TorchScript files.

A program takes normalised float32 images [B, 3, H, W] and returns features; of several tensors `main_tensor` takes
one. Weights are inside, so the recipe's sha256 is the file's; which preprocessing they need nobody knows.

What loading one does: TorchScript is run by torch's own interpreter, which knows tensors and no Python. A `.pt2`
may hold pickled constants and symbolic expressions, which torch reads in ways that can run code: as with any
program, load those alone whose author you trust.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from embedx.config import ExtractConfig
from embedx.errors import CheckpointError, ConfigError
from embedx.models.backbones.base import Architecture, BackboneKind, fixed_precision_faults, last_line
from embedx.models.device import resolve_device
from embedx.models.foreign import Opaque
from embedx.models.weights.read import of_file

_SUFFIXES = (".pt2", ".pt", ".ts", ".jit", ".torchscript")
_OF_EXPORT = {"archive_format", "serialized_exported_program.json"}
"""Entries that tell an exported program, the second before torch 2.8."""
_OF_TORCHSCRIPT = {"constants.pkl"}
_NO_PROGRAM = (
    "neither an exported program nor TorchScript; if it holds weights alone, give it as --checkpoint, and the name of "
    "their architecture as --backbone"
)


class Program(Architecture):
    """A program that was read from its file."""

    preprocessing = None
    outline_device = torch.device("cpu")
    opaque = True

    def __init__(self, config: ExtractConfig) -> None:
        self.name = config.backbone
        self.weights = of_file("program", Path(config.backbone))
        self._device = config.device
        self._program = _read(Path(config.backbone))
        # TorchScript does not say which batches it takes; most take one image, which is quickly tried.
        self.outline_batches = (1,) if config.batch_size == "auto" else (1, config.batch_size)
        if isinstance(self._program, torch.export.ExportedProgram):
            batch, _, height, width = self._exported_shape(self._program)
            if batch is not None and batch != config.batch_size:
                raise ConfigError(f"{self.name} takes batches of {batch}; give --batch-size {batch}")
            if height != width:
                raise ConfigError(f"{self.name} takes images of {height}x{width}; embedx gives square ones")
            self.image_size = height

    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """The program, with its weights."""
        if isinstance(self._program, torch.export.ExportedProgram):
            return Opaque(self._program.module()), ()
        return Opaque(self._program), ()

    def load(self) -> nn.Module:
        """The program; an exported one where it is to run, as its graph names the device of new tensors."""
        device = resolve_device(self._device)
        if isinstance(self._program, torch.export.ExportedProgram) and device.type != "cpu":
            move_to_device_pass(self._program, device)
        return self.outline()

    def _exported_shape(self, program: torch.export.ExportedProgram) -> list[int | None]:
        """[B, 3, H, W] of its images, with None for what may vary."""
        names = program.graph_signature.user_inputs
        values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
        if len(values) != 1 or not isinstance(values[0], torch.Tensor) or values[0].ndim != 4:
            raise ConfigError(f"{self.name} does not take images alone; export a module that takes one [B, 3, H, W]")
        if values[0].dtype != torch.float32:
            raise ConfigError(f"{self.name} takes images of {values[0].dtype}; export it for float32 ones")
        return [side if isinstance(side, int) else None for side in values[0].shape]


def find(config: ExtractConfig, download: bool) -> Program:
    """Reads a program."""
    faults = fixed_precision_faults(config)
    if not Path(config.backbone).is_file():
        faults.append(f"--backbone {config.backbone}: there is no such file")
    if config.checkpoint is not None:
        faults.append(f"--checkpoint {config.checkpoint}: a program has its weights inside; leave it out")
    if config.weights != "DEFAULT":
        faults.append(f"--weights {config.weights}: a program has its weights inside; leave it out")
    ConfigError.check(faults)
    return Program(config)


def is_program(name: str) -> bool:
    """Whether this is a path of a program: by its suffix, as names of models may hold slashes too."""
    return Path(name).suffix.lower() in _SUFFIXES


def _read(path: Path) -> nn.Module | torch.export.ExportedProgram:
    """Reads a program of either kind, which its archive's entries tell.

    Raises:
        CheckpointError: If it is none, or this torch can't read it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name.rsplit("/", 1)[-1] for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path}: {_NO_PROGRAM}") from error
    if not entries & {*_OF_EXPORT, *_OF_TORCHSCRIPT}:
        raise CheckpointError(f"{path}: {_NO_PROGRAM}")
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # That it is deprecated, or not supported from Python 3.14 on: programs of that kind are there all the same.
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is ")
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # nor written to
            if entries & _OF_EXPORT:
                return torch.export.load(file)  # not by its path, whose suffix would matter
            script: nn.Module = torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
            return script
    except Exception as error:
        raise CheckpointError(
            f"{path}: torch {torch.__version__} can't read this program ({type(error).__name__}: {last_line(error)})"
        ) from error


KIND = BackboneKind(is_program, find, runs_code=True)
