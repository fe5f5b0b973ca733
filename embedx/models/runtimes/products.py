"""Matrix products in fp32 on AMD processors with AVX-512, of which MKL makes half the use that oneDNN makes.

On a Zen 5 with two threads, MKL reached 190 GFLOP/s and oneDNN 360; on processors without AVX-512 they are alike.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_PROCESSOR = Path("/proc/cpuinfo")


def is_slow() -> bool:
    """Whether PyTorch's own way, by MKL, is the slow one on this processor."""
    libraries = torch.backends.mkl, torch.backends.mkldnn
    if not all(library.is_available() for library in libraries):
        return False
    with contextlib.suppress(OSError):
        return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _PROCESSOR.read_text()
    return False


class OneDnnProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this is entered, in inference mode, inputs meet a module's weights, [M, K] in fp32, through oneDNN.

    Args:
        module: Whose weights they are, on the CPU; they may not change any more. Copies of them are kept as oneDNN
            wants them.
    """

    supports_higher_order_operators = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._packed = {
            weight.data_ptr(): (weight.shape, torch.ops.mkldnn._reorder_linear_weight(weight.detach()))
            for weight in module.parameters()
            if weight.ndim == 2 and weight.dtype == torch.float32 and weight.is_contiguous()
        }

    def __enter__(self) -> Self:
        """Keeps attention from its fast path too, which multiplies where no mode can see it."""
        self._fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Lets products and attention be made as before."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.backends.mha.set_fastpath_enabled(self._fast_path)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation, by oneDNN if it is such a product."""
        if func is torch.ops.aten.linear.default:
            inputs, weight, *bias = args
            packed = self._packed_for(weight)
            if packed is not None:
                return torch.ops.mkldnn._linear_pointwise(inputs, packed, *bias or [None], "none", [], "")
        return func(*args, **(kwargs or {}))

    def _packed_for(self, weight: Tensor) -> Tensor | None:
        """What is kept of a weight; None if this is not all of one, but part of one, or computed."""
        shape, packed = self._packed.get(weight.data_ptr(), (None, None))
        return packed if weight.shape == shape and weight.is_contiguous() else None
