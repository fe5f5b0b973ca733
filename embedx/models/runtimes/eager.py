"""The runtime `eager`: PyTorch as it is."""

from __future__ import annotations

import contextlib
from collections import Counter

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval

from embedx.models.embedder import Embedder
from embedx.models.outputs import FrozenProgram
from embedx.models.runtimes.base import DTYPES, SPARE, Runtime
from embedx.models.threads import OwnThreadTracer
from embedx.values import Precision


class EagerRuntime(Runtime):
    """PyTorch as it is, in channels-last layout, with batch norms folded into convolutions; on CUDA as a graph.

    Programs are left as they were made. Batches of another shape than the graph's, and backbones of which no graph can
    be recorded, run without it, with the same numbers. Without `images` of the batches' shape there is no graph.
    """

    name = "eager"

    def __init__(
        self, embedder: Embedder, device: torch.device, precision: Precision, images: Tensor | None = None
    ) -> None:
        super().__init__(embedder, device, precision)
        self.embedder = embedder
        self._graph: _Graph | None = None
        if isinstance(embedder.backbone, FrozenProgram):
            return
        fold_batch_norms(embedder.backbone)
        embedder.backbone.to(DTYPES[precision])
        embedder.backbone.to(memory_format=torch.channels_last)
        if device.type == "cuda" and images is not None:
            self(images)  # raises the errors that have nothing to do with recording
            self._release_memory()  # the pass's memory, as the graph takes as much of its own
            with contextlib.suppress(RuntimeError):  # the backbone waits for the device in between, or memory is short
                self._graph = _Graph(embedder, images.to(device, copy=True))
            if self._graph is not None and self._spare_memory() < SPARE:
                self._graph = None  # too little would be left for the batches that are on their way
            self._release_memory()

    def compute(self, images: Tensor) -> dict[str, Tensor]:
        """Computes the features of a batch; a CUDA graph puts them into memory that the next call overwrites."""
        if self._graph is not None and images.shape == self._graph.images.shape:
            return self._graph.replay(images)
        return super().compute(images)


class _Graph:
    """A recorded forward pass, which is a single launch on the device in place of one per operator.

    The memory of `images`, which are on the device, becomes the graph's input.

    Raises:
        RuntimeError: If the pass can't be recorded.
    """

    def __init__(self, embedder: Embedder, images: Tensor) -> None:
        self.images = images
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(images.device)  # the default is one stream for all devices
        # Other threads may ask for pinned memory meanwhile, which would end a recording of all threads.
        recording = torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local")
        with torch.cuda.device(images.device), torch.inference_mode(), recording:
            self._outputs = embedder(images)

    def replay(self, images: Tensor) -> dict[str, Tensor]:
        """Computes the features of other images of this shape."""
        self.images.copy_(images, non_blocking=True)
        self._graph.replay()
        return dict(self._outputs)


def fold_batch_norms(backbone: nn.Module) -> None:
    """Folds each batch norm into the convolution before it, in place, if torch.fx can trace the backbone."""
    try:
        nodes = list(OwnThreadTracer().trace(backbone).nodes)
    except Exception:  # noqa: BLE001  (it may be anyone's code, and runs without folding)
        return
    modules = dict(backbone.named_modules())
    uses = Counter(id(modules.get(str(node.target))) for node in nodes if node.op == "call_module")
    for node in nodes:
        before = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(before, Node) or before.op != "call_module":
            continue
        norm, conv = modules.get(str(node.target)), modules.get(str(before.target))
        if (
            isinstance(norm, nn.BatchNorm2d)
            and isinstance(conv, nn.Conv2d)
            and norm.track_running_stats
            and len(before.users) == uses[id(norm)] == uses[id(conv)] == 1
        ):
            backbone.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
            backbone.set_submodule(str(node.target), nn.Identity())
