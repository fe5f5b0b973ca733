"""How much a forward pass writes, by which one can tell what there is to be saved by fusing its operations."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class WrittenBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of what operations give while it is entered; on the meta device, of what they would give.

    There attention is taken apart, of which the CPU has it in one: vit_b_16 comes to 252 MB an image, and to 179 on the
    CPU. Batch norms are left out, as every runtime folds them into convolutions, and so are views.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation, and counts."""
        output = func(*args, **(kwargs or {}))
        name = func.name()
        if not getattr(func, "is_view", False) and "view" not in name and "batch_norm" not in name:
            written = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
            self.total += sum(leaf.numel() * leaf.itemsize for leaf in written)
        return output
