"""A backbone's layers: their names, and their outputs beside the embeddings.

torch.fx tells every operation of a backbone that it can trace; of any other its modules are layers, told by forward
hooks. What a layer gives is copied where it arises, as in-place operations behind it would change it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.ao.nn.quantized import QFunctional
from torch.fx import GraphModule
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from embedx.errors import ConfigError, unknown

EMBEDDINGS = "embeddings"
_RESERVED = {EMBEDDINGS, "index", "targets"}
"""Tensors of a shard that no layer may be named like."""


class TracedLayers(nn.Module):
    """A backbone that torch.fx can trace, with the outputs of some of its layers.

    Args:
        backbone: [B, 3, H, W] → embeddings.
        nodes: Its operations.
        layers: Names of operations, or of modules, whose last operation is their output.
    """

    def __init__(self, backbone: nn.Module, nodes: Sequence[str], layers: Iterable[str]) -> None:
        super().__init__()
        self.node_of = {EMBEDDINGS: nodes[-1], **{layer: _last_within(layer, nodes) for layer in layers}}
        self.extractor = _extractor(backbone, self.node_of.values())
        output = self.extractor.graph.output_node()
        for node in output.all_input_nodes:
            with self.extractor.graph.inserting_after(node):
                copy = self.extractor.graph.call_function(_copy, (node,))
            output.replace_input_with(node, copy)
        self.extractor.recompile()

    def forward(self, images: Tensor) -> dict[str, Any]:
        """The embeddings, and what each layer gives, of images [B, 3, H, W]."""
        outputs = self.extractor(images)
        return {name: outputs[node] for name, node in self.node_of.items()}


class HookedLayers(nn.Module):
    """A backbone with the outputs of some of its modules; of one that is run several times, the last.

    Args:
        backbone: [B, 3, H, W] → embeddings.
        layers: Names of modules.
    """

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
        """The embeddings, and what the layers give that are run at all."""
        self._outputs.clear()
        return {EMBEDDINGS: self.backbone(images), **self._outputs}

    def forward(self, images: Tensor) -> dict[str, Any]:
        """The embeddings, and what each layer gives (the first thing, of a tuple), of images [B, 3, H, W]."""
        outputs = self.run(images)
        ConfigError.check([f"--layer {layer} is not run" for layer in self.layers if layer not in outputs])
        return outputs


def with_layers(backbone: nn.Module, layers: Sequence[str]) -> nn.Module:
    """The backbone, made to give these layers too, by name; itself if there are none."""
    if not layers:
        return backbone
    nodes = _operations(backbone)
    return HookedLayers(backbone, layers) if nodes is None else TracedLayers(backbone, nodes, layers)


def layer_faults(backbone: nn.Module, name: str, layers: Sequence[str]) -> list[str]:
    """What is wrong with these layers of the backbone of this name."""
    if not layers:
        return []
    nodes = _operations(backbone)
    valid = _layer_names(backbone, nodes)
    faults = []
    for layer in layers:
        if layer not in valid or layer in _RESERVED:
            faults.append(unknown("--layer", layer, valid, hint=f"(`embedx layers {name}` lists them)"))
        elif nodes is not None and _is_within(nodes[-1], layer):
            faults.append(f"--layer {layer} gives the embeddings themselves, which are stored anyway; leave it out")
    return faults


def layer_shapes(backbone: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """What can be given to `--layer`, with its output's shape, in the order in which they are computed.

    Args:
        backbone: [B, 3, H, W] → embeddings.
        images: [B, 3, H, W], to tell it by.

    Returns:
        Shapes of one image's part: [D], [T, D], [C, H, W], … Outputs that have no such parts are left out.
    """
    nodes = _operations(backbone)
    names = _layer_names(backbone, nodes)
    if nodes is None:
        outputs = HookedLayers(backbone, names).run(images)
    else:
        of_nodes = _extractor(backbone, nodes)(images)
        outputs = {name: of_nodes[_last_within(name, nodes)] for name in names if not _is_within(nodes[-1], name)}
    return {
        name: tuple(value.shape[1:])
        for name, value in outputs.items()
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == len(images) and name not in _RESERVED
    }


def _operations(backbone: nn.Module) -> list[str] | None:
    """Names of its operations, the output last; None if it can't be traced, or not as it runs.

    Tracing skips hooks, and a graph of quantised additions lacks parts of them.
    """
    if backbone._forward_hooks or any(isinstance(module, QFunctional) for module in backbone.modules()):
        return None
    try:
        nodes: list[str] = get_graph_node_names(backbone, suppress_diff_warning=True)[1][1:]
    except Exception:  # noqa: BLE001  (tracing runs the backbone's own code, whatever it is, on stand-ins)
        return None
    return nodes


def _layer_names(backbone: nn.Module, nodes: Sequence[str] | None) -> list[str]:
    """Operations, and the modules they are in, each behind its last operation; or all modules."""
    if nodes is None:
        return [name for name, _ in backbone.named_modules() if name]
    last_first = (node.rsplit(".", depth)[0] for node in reversed(nodes) for depth in range(node.count("."), -1, -1))
    return list(dict.fromkeys(last_first))[::-1]


def _extractor(backbone: nn.Module, nodes: Iterable[str]) -> GraphModule:
    extractor: GraphModule = create_feature_extractor(
        backbone, {node: node for node in nodes}, suppress_diff_warning=True
    )
    return extractor


def _last_within(layer: str, nodes: Sequence[str]) -> str:
    return next(node for node in reversed(nodes) if _is_within(node, layer))


def _is_within(node: str, layer: str) -> bool:
    return f"{node}.".startswith(f"{layer}.")


def _copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.dequantize() if value.is_quantized else value.clone()
