"""PyTorch as it is."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node, symbolic_trace
from torch.nn.utils.fusion import fuse_conv_bn_eval

from embedx.models.embedder import Embedder
from embedx.models.foreign import Opaque
from embedx.models.runtimes import products
from embedx.models.runtimes.base import DTYPES, SPARE, Runtime
from embedx.values import Precision


class EagerRuntime(Runtime):
    """PyTorch as it is, in channels-last layout, with batch norms folded into convolutions; on CUDA as a graph.

    Programs are left as they were made.

    Args:
        images: Of the shape that batches have, for the graph; None: there is none. What it was not recorded for, or
            can't be recorded, runs without it, to the same numbers.
    """

    name = "eager"

    def __init__(
        self, embedder: Embedder, device: torch.device, precision: Precision, images: Tensor | None = None
    ) -> None:
        super().__init__(embedder, device, precision)
        self.embedder = embedder
        self._graph: _Graph | None = None
        self._products: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if isinstance(embedder.backbone, Opaque):
            return
        fold_batch_norms(embedder.backbone)
        embedder.backbone.to(DTYPES[precision])
        embedder.backbone.to(memory_format=torch.channels_last)
        if device.type == "cpu" and precision == "fp32" and products.is_slow():
            self._products = products.OneDnnProducts(embedder.backbone)
        if device.type == "cuda" and images is not None:
            self(images)  # tells what is wrong, if anything is
            self._release_memory()  # of the pass before; the graph takes as much again, of its own
            with contextlib.suppress(RuntimeError):  # of what waits for the device in between, or has no memory for it
                self._graph = _Graph(embedder, images.to(device, copy=True))
            if self._graph is not None and self._spare_memory() < SPARE:
                self._graph = None  # it would leave too little for batches on their way
            self._release_memory()

    def compute(self, images: Tensor) -> dict[str, Tensor]:
        """The features of a batch, on CUDA in memory that the next call overwrites."""
        if self._graph is not None and images.shape == self._graph.images.shape:
            return self._graph.replay(images)
        with self._products:
            return super().compute(images)


class _Graph:
    """A forward pass that was recorded once: a single order to the device, and not one for each of its operators.

    Args:
        embedder: On a CUDA device.
        images: [B, 3, H, W] uint8 on it, kept as the place of what is to be computed on.

    Raises:
        RuntimeError: If it can't be recorded.
    """

    def __init__(self, embedder: Embedder, images: Tensor) -> None:
        self.images = images
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]  # torch's own is of one device for all
        # Other threads may ask for pinned memory meanwhile, which would end a recording that is everybody's.
        recording = torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local")
        with torch.cuda.device(images.device), torch.inference_mode(), recording:
            self._outputs = embedder(images)

    def replay(self, images: Tensor) -> dict[str, Tensor]:
        """The features of other images of this shape."""
        self.images.copy_(images, non_blocking=True)
        self._graph.replay()
        return dict(self._outputs)


def fold_batch_norms(backbone: nn.Module) -> None:
    """Folds each batch norm into the convolution before it, in place, where torch.fx can trace which that is.

    Args:
        backbone: In evaluation mode.
    """
    try:
        nodes = list(symbolic_trace(backbone).graph.nodes)
    except Exception:  # noqa: BLE001  (it may be anyone's code, and be run as it is)
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
