"""Programs: `torch.export` archives (`.pt2`) and TorchScript files.

A program takes normalised float32 images [B, 3, H, W] and returns features; of several tensors `main_tensor` takes
one. The file holds the weights, so the recipe has the file's sha256. It does not say which preprocessing
they need.

TorchScript is run by torch's own interpreter, which knows tensors and no Python. A `.pt2` may hold pickled constants
and symbolic expressions, and torch can run code when it reads those: load only programs whose author you trust.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from embedx.errors import CheckpointError, ConfigError
from embedx.models.backbones.base import Architecture, BackboneKind, BackboneOptions, fixed_precision_faults, last_line
from embedx.models.device import resolve_device
from embedx.models.outputs import FrozenProgram
from embedx.models.runtimes.base import SMALL_BATCH
from embedx.models.weights.find import weights_of_file

_SUFFIXES = (".pt2", ".pt", ".ts", ".jit", ".torchscript")
_OF_EXPORT = {"archive_format", "serialized_exported_program.json"}
"""The entries by which an exported program is known; the second was written before torch 2.8."""
_OF_TORCHSCRIPT = {"constants.pkl"}
_NO_PROGRAM = (
    "neither an exported program nor TorchScript; if it holds weights alone, give it as --checkpoint, and the name of "
    "their architecture as --backbone"
)


class ProgramBackbone(Architecture):
    """A program that was read from its file."""

    outline_device = torch.device("cpu")
    is_program = is_fixed = True

    def __init__(self, options: BackboneOptions) -> None:
        path = Path(options.backbone)
        super().__init__(options.backbone, weights_of_file("program", path), preprocessing=None)
        self._device = options.device
        self._program = _read(path)
        # TorchScript does not say which batches it takes; most take one image, which is quickly tried.
        batch_size = SMALL_BATCH if options.batch_size is None else options.batch_size
        self.outline_batches = (1,) if batch_size == "auto" else (1, batch_size)
        if isinstance(self._program, torch.export.ExportedProgram):
            batch, _, height, width = self._exported_shape(self._program)
            if batch is not None and batch != batch_size:
                raise ConfigError(f"{self.name} takes batches of {batch}; give --batch-size {batch}")
            if height != width:
                raise ConfigError(f"{self.name} takes images of {height}x{width}; embedx gives square ones")
            self.image_size = height

    def build(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Returns the program, with its weights."""
        program = self._program
        return FrozenProgram(program.module() if isinstance(program, torch.export.ExportedProgram) else program), ()

    def load(self) -> nn.Module:
        """Returns the program; an exported one on the run's device, which its graph names for new tensors."""
        device = resolve_device(self._device)
        if isinstance(self._program, torch.export.ExportedProgram) and device.type != "cpu":
            move_to_device_pass(self._program, device)
        return self.outline()

    def _exported_shape(self, program: torch.export.ExportedProgram) -> list[int | None]:
        """Returns the shape [B, 3, H, W] of the images of an exported program, with None for sides that may vary."""
        names = program.graph_signature.user_inputs
        values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
        if len(values) != 1 or not isinstance(values[0], torch.Tensor) or values[0].ndim != 4:
            raise ConfigError(f"{self.name} does not take images alone; export a module that takes one [B, 3, H, W]")
        if values[0].dtype != torch.float32:
            raise ConfigError(f"{self.name} takes images of {values[0].dtype}; export it for float32 ones")
        return [side if isinstance(side, int) else None for side in values[0].shape]


def find(options: BackboneOptions, download: bool) -> ProgramBackbone:
    """Reads a program."""
    faults = fixed_precision_faults(options)
    if not Path(options.backbone).is_file():
        faults.append(f"--backbone {options.backbone}: there is no such file")
    if options.checkpoint is not None:
        faults.append(f"--checkpoint {options.checkpoint}: a program has its weights inside; leave it out")
    if options.weights != "DEFAULT":
        faults.append(f"--weights {options.weights}: a program has its weights inside; leave it out")
    ConfigError.check(faults)
    return ProgramBackbone(options)


def is_program(name: str) -> bool:
    """Tells whether a text is the path of a program, by its suffix; names of models may hold slashes too."""
    return Path(name).suffix.lower() in _SUFFIXES


def _read(path: Path) -> nn.Module | torch.export.ExportedProgram:
    """Reads a program of either kind, known by the entries of its archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name.rsplit("/", 1)[-1] for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path}: {_NO_PROGRAM}") from error
    if not entries & {*_OF_EXPORT, *_OF_TORCHSCRIPT}:
        raise CheckpointError(f"{path}: {_NO_PROGRAM}")
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # torch.jit.load is deprecated, and not supported from Python 3.14 on; its programs still have to be read.
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is ")
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # nor written to
            if entries & _OF_EXPORT:
                return torch.export.load(file)  # not by its path, whose suffix would matter
            script: nn.Module = torch.jit.load(file, map_location="cpu")
            return script
    except Exception as error:
        raise CheckpointError(
            f"{path}: torch {torch.__version__} can't read this program ({type(error).__name__}: {last_line(error)})"
        ) from error


KIND = BackboneKind(is_program, find, runs_code=True)
