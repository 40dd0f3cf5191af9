"""Sequential heads, DeepSeek-V3 form (arXiv 2412.19437, eq. 21-25).

For depths k = 2 .. K and positions i, with h^1 the trunk's hidden states:

    g^k_i = Block_k(P_k [norm(E(x_{i+k-1})); norm(h^{k-1}_i)])        h^k_i = norm_k(g^k_i)
    logits of x_{i+k} = U h^k_i

E and U are the trunk's embedding and LM head. Block_k is one decoder layer, causal over positions i, so h^k_i depends
on x_1 .. x_{i+k-1} and nothing later. What is recycled into depth k+1 is the latent *after* norm_k, the one U reads;
recycling g^k (``recycle_stage="pre_norm"``) costs acceptance in released models that were trained the other way.
``share_depths`` is FastMTP's recursion (arXiv 2509.18362): one block, applied at every depth.

Left out: feeding a head its own drafts in training; the embedding is that of the real token (teacher forcing).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from worldmtp.heads.base import ActionConditionalHead, FamilyDefaults, OutputLayers, needed
from worldmtp.heads.block import BlockSpec, PositionEmbeddings, make_block_spec, make_norm, run_layer
from worldmtp.model.config import MTPConfig
from worldmtp.model.trunk import additive_mask


class SequentialLayer(nn.Module):
    """One depth up to its output norm: two norms, a projection 2D -> D, a decoder layer."""

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel, block: BlockSpec) -> None:
        super().__init__()
        hidden_size = needed(config.hidden_size)
        self.concat_order = config.concat_order
        self.embedding_norm = make_norm(config.head_block, trunk)
        self.hidden_norm = make_norm(config.head_block, trunk)
        self.projection = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.block = block.make_layer()

    def forward(
        self,
        previous_latent: Float[Tensor, "batch query hidden"],
        token_embeds: Float[Tensor, "batch query hidden"],
        attention_bias: Float[Tensor, "mask_batch 1 query key"],
        position_ids: Int[Tensor, "batch query"],
        position_embeddings: PositionEmbeddings,
        cache: Cache | None,
    ) -> Float[Tensor, "batch query hidden"]:
        """Return g^k of the equation above."""
        halves = [self.embedding_norm(token_embeds), self.hidden_norm(previous_latent)]
        if self.concat_order == "hidden_first":
            halves.reverse()
        hidden = self.projection(torch.cat(halves, dim=-1))
        return run_layer(self.block, hidden, attention_bias, position_ids, position_embeddings, cache)


class SequentialHead(ActionConditionalHead):
    """Depths 2 .. K; one layer each, or one for all with ``share_depths``."""

    attention = "depth"
    shareable = True
    ignores = ("feature_layers", "head_layers", "head_width")
    has_trunk_layers = True
    sums_residuals = True

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel) -> None:
        super().__init__(config)
        block = make_block_spec(config.head_block, trunk)
        self.layers = nn.ModuleList(SequentialLayer(config, trunk, block) for _ in range(self.num_sets))
        self.output = OutputLayers(config, trunk, self.copies_lm_head)
        self.rotary_emb = block.make_rotary()

    @classmethod
    def defaults(cls, trunk_config: PreTrainedConfig) -> FamilyDefaults:
        """Choose a norm of its own before the shared unembedding."""
        return FamilyDefaults(output_norm="own")

    def forward_depth(
        self,
        depth: int,
        carry: Float[Tensor, "batch query hidden"],
        token_embeds: Float[Tensor, "batch query hidden"],
        attention_mask: Bool[Tensor, "mask_batch 1 query key"],
        position_ids: Int[Tensor, "batch query"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch query hidden"]:
        """Return carries of one depth; the carry is what is recycled."""
        hidden = self.set_of(depth, self.layers)(
            carry,
            token_embeds,
            additive_mask(attention_mask, carry.dtype),
            position_ids,
            self.rotary_emb(carry, position_ids),
            cache,
        )
        return self.carry_of(depth, hidden)

    def trunk_layers(self) -> list[nn.Module]:
        """Return the depths' decoder layers."""
        return [layer.get_submodule("block") for layer in self.layers]
