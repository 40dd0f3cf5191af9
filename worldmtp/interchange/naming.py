"""The weights of trunk and heads under a layout's names, and back.

``publish`` is what an export writes; of an empty model it is what an import expects to find.
"""

from collections.abc import Mapping

from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedConfig

from worldmtp.interchange.experts import fuse_experts, split_experts
from worldmtp.interchange.layouts import Layout
from worldmtp.interchange.llama_names import from_llama, to_llama

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
OWN_UNEMBEDDING = "output.unembeddings.{module}.weight"

# A text model inside a multimodal one; transformers takes the part out as well.
_NESTED = ("model.language_model.", "model.")
_VISION = ("model.visual.", "visual.")
_COMPUTED = ("rotary_emb.inv_freq", "rope.freqs")


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
