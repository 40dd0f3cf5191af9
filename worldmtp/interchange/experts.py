"""Mixture-of-experts weights: published one by one, held by transformers as one tensor for all experts.

    ...mlp.experts.{e}.gate_proj.weight [inner, hidden]  \
    ...mlp.experts.{e}.up_proj.weight   [inner, hidden]  /  -> ...mlp.experts.gate_up_proj [expert, 2 inner, hidden]
    ...mlp.experts.{e}.down_proj.weight [hidden, inner]     -> ...mlp.experts.down_proj    [expert, hidden, inner]

transformers converts a trunk's when it loads it. The heads' layers are no part of the trunk, and are converted here.
"""

import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor

_ONE_EXPERT = re.compile(r"(.*\.mlp\.experts\.)(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def fuse_experts(tensors: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
    """Return the tensors with experts put together; all of them must be there."""
    fused: dict[str, Tensor] = {}
    groups: dict[str, dict[tuple[int, str], Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        found = _ONE_EXPERT.fullmatch(name)
        if found is None:
            fused[name] = tensor
        else:
            groups[found[1]][int(found[2]), found[3]] = tensor
    for prefix, weights in groups.items():
        num_experts = 1 + max(index for index, _ in weights)
        for whole, parts in _PARTS.items():
            stacks = [torch.stack([weights[index, part] for index in range(num_experts)]) for part in parts]
            fused[prefix + whole] = torch.cat(stacks, dim=1)
    return fused


def split_experts(tensors: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
    """Return every expert's weights under its own name: the inverse of ``fuse_experts``."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        prefix, _, whole = name.rpartition(".")
        if whole not in _PARTS or not prefix.endswith(".mlp.experts"):
            split[name] = tensor
            continue
        parts = _PARTS[whole]
        for part, stack in zip(parts, tensor.chunk(len(parts), dim=1), strict=True):
            for index, weight in enumerate(stack):
                split[f"{prefix}.{index}.{part}.weight"] = weight
    return split
