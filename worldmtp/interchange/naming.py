r"""The weights of trunk and heads under a layout's names, and back.

``publish`` is what an export writes; of an empty model it is what an import expects to find.

Weights of experts are published one by one, and held by transformers as one tensor for all:

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
from transformers import PreTrainedConfig

from worldmtp.interchange.layouts import Layout
from worldmtp.interchange.llama_names import from_llama, to_llama

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
OWN_UNEMBEDDING = "output.unembeddings.{module}.weight"

# A text model inside a multimodal one; transformers takes the part out as well.
_NESTED = ("model.language_model.", "model.")
_VISION = ("model.visual.", "visual.")
_COMPUTED = ("rotary_emb.inv_freq", "rope.freqs")

_ONE_EXPERT = re.compile(r"(.*\.mlp\.experts\.)(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def publish(
    layout: Layout,
    trunk: Mapping[str, Shaped[Tensor, "..."]],
    heads: Mapping[str, Shaped[Tensor, "..."]],
    num_modules: int,
    config: PreTrainedConfig,
) -> tuple[dict[str, Shaped[Tensor, "..."]], dict[str, Shaped[Tensor, "..."]]]:
    """Return the trunk's weights and the heads', by the names in the file, experts one by one.

    Layouts that repeat embedding and output layer beside every module get the trunk's.
    """
    num_layers = config.get_text_config().num_hidden_layers
    renamed = {layout.theirs(name, num_layers): tensor for name, tensor in heads.items()}
    for module in range(num_modules):
        copy = layout.copy_of_embedding(module, num_layers)
        if copy is not None:
            renamed[copy] = trunk[EMBEDDING]
        if layout.holds_unembedding:
            name = layout.theirs(OWN_UNEMBEDDING.format(module=module), num_layers)
            renamed.setdefault(name, trunk.get(LM_HEAD, trunk[EMBEDDING]))
    trunk, renamed = split_experts(trunk), split_experts(renamed)
    if layout.is_original_llama:
        return to_llama(trunk, config), to_llama(renamed, config)
    return trunk, renamed


def take_apart(
    layout: Layout, tensors: Mapping[str, Shaped[Tensor, "..."]], config: PreTrainedConfig
) -> tuple[dict[str, Shaped[Tensor, "..."]], dict[str, Shaped[Tensor, "..."]]]:
    """Return the trunk's weights by Hugging Face's names and the heads' by the heads'; both whole, as checked before.

    Copies of the trunk's embedding stay out.
    """
    if layout.is_original_llama:
        tensors = from_llama(tensors, config)
    num_layers = config.get_text_config().num_hidden_layers
    trunk, heads = {}, {}
    for name, tensor in tensors.items():
        module = layout.module_of(name, num_layers)
        if module is None:
            trunk[name] = tensor
        elif name != layout.copy_of_embedding(module, num_layers):
            heads[layout.ours(name, num_layers)] = tensor
    return trunk, fuse_experts(heads)


def comparable_names(names: list[str]) -> dict[str, str]:
    """Return the names in a file that count, by what a causal LM of text calls them.

    What every reader computes is left out, and so is a vision tower.
    """
    return {
        _NESTED[1] + name.removeprefix(_NESTED[0]) if name.startswith(_NESTED[0]) else name: name
        for name in names
        if not name.endswith(_COMPUTED) and not name.startswith(_VISION)
    }


def vision_names(names: list[str]) -> list[str]:
    """Return weights of a vision tower, which no causal LM of text has."""
    return [name for name in names if name.startswith(_VISION)]


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
