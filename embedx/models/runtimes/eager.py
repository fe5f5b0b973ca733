"""PyTorch as it is."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.fx import Node, symbolic_trace
from torch.nn.utils.fusion import fuse_conv_bn_eval

from embedx.config import Precision
from embedx.models.features import Embedder
from embedx.models.foreign import Opaque
from embedx.models.runtime import DTYPES, Runtime


class EagerRuntime(Runtime):
    """PyTorch as it is, in channels-last layout, with batch norms folded into convolutions.

    Programs are left as they were made.
    """

    name = "eager"

    def __init__(
        self, embedder: Embedder, device: torch.device, precision: Precision, images: Tensor | None = None
    ) -> None:
        super().__init__(embedder, device, precision)
        if not isinstance(embedder.backbone, Opaque):
            fold_batch_norms(embedder.backbone)
            embedder.backbone.to(DTYPES[precision])
            embedder.backbone.to(memory_format=torch.channels_last)
        self.embedder = embedder


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
