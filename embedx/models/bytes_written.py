"""The bytes that a forward pass writes, from which `--runtime auto` estimates the gain of fusing its operations."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class BytesWritten(TorchDispatchMode):
    """Adds up the bytes of every operation's outputs while it is entered; the meta device counts like a real one.

    Batch norms are left out, as every runtime folds them into convolutions, and so are views. The meta device has no
    fused attention: there vit_b_16 writes 252 MB an image, and 179 on the CPU.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and counts its outputs."""
        output = func(*args, **(kwargs or {}))
        name = func.name()
        if not getattr(func, "is_view", False) and "view" not in name and "batch_norm" not in name:
            written = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
            self.total += sum(leaf.numel() * leaf.itemsize for leaf in written)
        return output
