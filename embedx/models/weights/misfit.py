"""Why a checkpoint does not fit a backbone, and the next step in that case."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from embedx.models.weights.candidate import Candidate

_OTHER_MODEL = "give the --backbone that it is a checkpoint of"
_TRANSFORMERS = "a model of transformers; give --backbone hf:FOLDER, with the folder of its config.json"
_FAMILIES = (
    (r"\blora_(A|B|up|down)\b", "adapters (LoRA) and no whole model; merge them into the model, and save that"),
    (r"\bpatch_embeddings\.projection\.|\battention\.attention\.query\.|\bvision_model\.", _TRANSFORMERS),
    (
        r"\bvisual\.(transformer\.resblocks|conv1|class_embedding|trunk)",
        "a CLIP model of OpenAI or open_clip; give the name that open_clip has for it, such as "
        "--backbone openclip:ViT-B-32, or timm for its image encoder, such as "
        "--backbone timm:vit_base_patch32_clip_224",
    ),
    (r"\bencoder\.layers\.encoder_layer_\d", "a vision transformer of torchvision, such as --backbone vit_b_16"),
    (
        r"\bTransformer/encoderblock_0/",
        "a vision transformer for JAX; give the name that timm has for it, such as "
        "--backbone timm:vit_base_patch16_224",
    ),
    (
        r"\bpatch_embed\.proj\.|\bblocks\.\d+\.(\d+\.)?attn\.|\bstages\.\d",
        "a model of timm's; give --backbone timm:NAME",
    ),
    (r"\blayer1\.0\.conv1\.", "a ResNet, such as --backbone resnet18"),
)
"""The names by which families of models are known, each with what it is and the next step."""
_PART = re.compile(r"-\d{5}-of-\d{5}\.")
"""The names of the files of a sharded checkpoint."""


def listed(names: Collection[object], limit: int = 8) -> str:
    """Joins the first names with commas, and adds an ellipsis if there are more."""
    return ", ".join(map(str, itertools.islice(names, limit))) + (", …" if len(names) > limit else "")


def misfit(
    wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], candidates: Sequence[Candidate], file: str
) -> list[str]:
    """Words the faults of the candidate that comes nearest, and the next step, in one or several lines.

    Args:
        wanted: The backbone's tensors by name.
        state: The checkpoint's tensors by name.
        candidates: The comparisons, one under each prefix.
        file: The checkpoint's file name.
    """
    if not candidates:
        advice = _family(state) or _OTHER_MODEL
        return [f"it holds {listed(state)}, and none of the backbone's tensors, {listed(wanted)}; {advice}"]
    nearest = max(candidates, key=lambda candidate: (len(candidate.tensors), len(candidate.mismatched)))
    where = f"under the prefix {nearest.prefix!r} " if nearest.prefix else ""
    shapes = [f"{name} {_shape(own)} instead of {_shape(other)}" for name, (own, other) in nearest.mismatched.items()]
    kinds = {"missing": nearest.missing, "unexpected": nearest.unexpected, "of another shape": shapes}
    faults = [f"  {len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names]
    advice = _shard(nearest, file) or _stem(nearest) or _variant(nearest, wanted)
    if not advice and (len(nearest.tensors) + len(nearest.mismatched)) * 10 < len(wanted):
        advice = _family(state)
    return [f"{where}{len(nearest.tensors)} of its {len(wanted)} tensors match", *faults, advice or _OTHER_MODEL]


def _shard(nearest: Candidate, file: str) -> str:
    """Returns the advice for one file of several."""
    if nearest.missing and _PART.search(file):
        return "the file is one of several that hold the model; give the .index.json beside them"
    return ""


def _stem(nearest: Candidate) -> str:
    """Returns the advice for a model that takes images of other than three channels, and fits otherwise."""
    if nearest.missing or nearest.unexpected or len(nearest.mismatched) != 1:
        return ""
    [(name, (own, wanted))] = nearest.mismatched.items()
    if own.ndim != 4 or wanted.shape[:1] + wanted.shape[2:] != own.shape[:1] + own.shape[2:] or wanted.shape[1] != 3:
        return ""
    channels = own.shape[1]
    way = "self.model(images.mean(1, keepdim=True))" if channels == 1 else f"those {channels} channels"
    return (
        f"all fits but {name}: the model takes {channels} channel{'s' * (channels > 1)}, and embedx gives 3, RGB; "
        f"wrap it in a module of your own that computes {way} of them, and give that as --backbone module:function"
    )


def _variant(nearest: Candidate, wanted: Mapping[str, Tensor]) -> str:
    """Returns the advice for a model that is the backbone but for at most a tenth of its tensors."""
    faults = [*nearest.missing, *nearest.mismatched, *nearest.unexpected]
    if len(faults) * 10 > len(wanted):
        return ""
    parts = listed(dict.fromkeys(name.rpartition(".")[0] or name for name in faults), 3)
    return (
        f"the rest fits: it is a checkpoint of a variant with another {parts}; {_OTHER_MODEL}, or build the variant in "
        "a function of your own and give that as --backbone module:function"
    )


def _family(state: Mapping[str, Tensor]) -> str:
    for pattern, words in _FAMILIES:
        if any(re.search(pattern, name) for name in state):
            return f"by its names it is {words}"
    return ""


def _shape(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}" if tensor.is_floating_point() else f"{list(tensor.shape)} {tensor.dtype}"
