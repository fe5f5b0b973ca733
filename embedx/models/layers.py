"""A backbone's layers: their names, and their outputs beside the embeddings.

If torch.fx can trace a backbone, all its operations are layers; otherwise its modules are, by means of forward hooks.
A layer's output is copied at once, as in-place operations after it would change it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.ao.nn.quantized import QFunctional
from torch.fx import GraphModule, Node
from torchvision.models.feature_extraction import NodePathTracer

from embedx.errors import ConfigError, unknown
from embedx.models.threads import OwnThreadTracer
from embedx.names import EMBEDDINGS, INDEX, TARGETS

_RESERVED = {EMBEDDINGS, INDEX, TARGETS}
"""The names of a shard's own tensors, which no layer may have."""


class _LayerTracer(OwnThreadTracer, NodePathTracer):  # type: ignore[misc]  # torchvision has no types
    """torchvision's tracer, which names each operation."""


class TracedLayers(nn.Module):
    """A backbone that torch.fx can trace, which also returns the outputs of some of its layers.

    The graph of the backbone's operations becomes this module's. The output of a layer that is a module is that of its
    last operation.
    """

    def __init__(self, backbone: nn.Module, operations: dict[str, Node], layers: Iterable[str]) -> None:
        super().__init__()
        graph = next(iter(operations.values())).graph
        outputs = {EMBEDDINGS: operations[_last(operations)]}
        for layer in layers:
            node = operations[next(name for name in reversed(operations) if _is_within(name, layer))]
            with graph.inserting_after(node):
                outputs[layer] = graph.call_function(_copy, (node,))
        graph.output_node().args = (outputs,)
        self.traced = GraphModule(backbone, graph)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Computes the embeddings and each layer's output of images [B, 3, H, W]."""
        outputs: dict[str, Any] = self.traced(images)
        return outputs


class HookedLayers(nn.Module):
    """A backbone which also returns the outputs of some of its modules; the last one if a module runs several times."""

    def __init__(self, backbone: nn.Module, layers: Iterable[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = tuple(layers)
        self._outputs: dict[str, Any] = {}
        for layer in self.layers:
            backbone.get_submodule(layer).register_forward_hook(functools.partial(self._keep, layer))

    def _keep(self, layer: str, module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        self._outputs.pop(layer, None)  # so that they stand in the order in which they end
        self._outputs[layer] = _copy(first)

    def run(self, images: Tensor) -> dict[str, Any]:
        """Computes the embeddings, and the outputs of the layers that are run at all."""
        self._outputs.clear()
        return {EMBEDDINGS: self.backbone(images), **self._outputs}

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Computes the embeddings and each layer's output (a tuple's first item) of images [B, 3, H, W]."""
        outputs = self.run(images)
        ConfigError.check([f"--layer {layer} is not run" for layer in self.layers if layer not in outputs])
        return outputs


def with_layers(backbone: nn.Module, layers: Sequence[str]) -> nn.Module:
    """Makes a backbone return these layers too, by name; returns it unchanged if there are none."""
    if not layers:
        return backbone
    operations = _operations(backbone)
    return HookedLayers(backbone, layers) if operations is None else TracedLayers(backbone, operations, layers)


def layer_faults(backbone: nn.Module, name: str, layers: Sequence[str]) -> list[str]:
    """Returns one message for each layer that the backbone of this name does not have, or that is its output."""
    if not layers:
        return []
    operations = _operations(backbone)
    valid = _layer_names(backbone, operations)
    faults = []
    for layer in layers:
        if layer not in valid or layer in _RESERVED:
            faults.append(unknown("--layer", layer, valid, hint=f"(`embedx layers {name}` lists them)"))
        elif operations is not None and _is_within(_last(operations), layer):
            faults.append(f"--layer {layer} gives the embeddings themselves, which are stored anyway; leave it out")
    return faults


def layer_shapes(backbone: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Returns the names that `--layer` takes, in the order of computation, by running a backbone on images.

    Each comes with the shape of one image's part: [D], [T, D], [C, H, W], … Outputs without a batch dimension are left
    out.
    """
    operations = _operations(backbone)
    names = _layer_names(backbone, operations)
    if operations is None:
        outputs = HookedLayers(backbone, names).run(images)
    else:
        inner = [name for name in names if not _is_within(_last(operations), name)]
        outputs = TracedLayers(backbone, operations, inner)(images)
    return {
        name: tuple(value.shape[1:])
        for name, value in outputs.items()
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == len(images) and name not in _RESERVED
    }


def _operations(backbone: nn.Module) -> dict[str, Node] | None:
    """Returns a backbone's operations by name, in the order in which they run; None if it can't be traced faithfully.

    Tracing skips hooks, and a graph of quantised additions lacks parts of them.
    """
    if backbone._forward_hooks or any(isinstance(module, QFunctional) for module in backbone.modules()):
        return None
    tracer = _LayerTracer()
    try:
        tracer.trace(backbone)
    except Exception:  # noqa: BLE001  (tracing runs the backbone's own code, whatever it is, on stand-ins)
        return None
    return {name: node for node, name in tracer.node_to_qualname.items() if node.op not in ("placeholder", "output")}


def _layer_names(backbone: nn.Module, operations: dict[str, Node] | None) -> list[str]:
    """Lists operations, and the modules around them, each after its last operation; or all modules."""
    if operations is None:
        return [name for name, _ in backbone.named_modules() if name]
    last_first = (
        name.rsplit(".", depth)[0] for name in reversed(operations) for depth in range(name.count("."), -1, -1)
    )
    return list(dict.fromkeys(last_first))[::-1]


def _last(operations: dict[str, Node]) -> str:
    return next(reversed(operations))


def _is_within(operation: str, layer: str) -> bool:
    return f"{operation}.".startswith(f"{layer}.")


def _copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.dequantize() if value.is_quantized else value.clone()
