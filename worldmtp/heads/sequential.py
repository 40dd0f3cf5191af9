"""Sequential heads, DeepSeek-V3 form (arXiv 2412.19437, eq. 21-25).

For depths k = 2 .. K and positions i, with h^1 the trunk's hidden states after its final norm:

    h^k_i = norm_out(Block_k(P_k [norm(E(x_{i+k-1})); norm(h^{k-1}_i)]))        logits of x_{i+k} = U h^k_i

E and U are the trunk's embedding and LM head. Block_k is one decoder layer, causal over positions i, so h^k_i depends
on x_1 .. x_{i+k-1} and nothing later. What is recycled into depth k+1 is the latent *after* norm_out, the one U reads;
recycling the one before it costs acceptance in released models.

Left out: feeding a head its own drafts in training; the embedding is that of the real token (teacher forcing).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from worldmtp.config import MTPConfig
from worldmtp.heads.base import ActionConditionalHead
from worldmtp.heads.block import BlockSpec, make_block_spec
from worldmtp.heads.masks import additive_mask

NORM_EPS = 1e-6


class SequentialLayer(nn.Module):
    """One depth: two norms, a projection 2D -> D, a decoder layer, a norm."""

    def __init__(self, hidden_size: int, block: BlockSpec, concat_order: str) -> None:
        super().__init__()
        self.concat_order = concat_order
        self.embedding_norm = nn.RMSNorm(hidden_size, eps=NORM_EPS)
        self.hidden_norm = nn.RMSNorm(hidden_size, eps=NORM_EPS)
        self.projection = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.block = block.make_layer()
        self.output_norm = nn.RMSNorm(hidden_size, eps=NORM_EPS)

    def forward(
        self,
        previous_latent: Float[Tensor, "batch query hidden"],
        token_embeds: Float[Tensor, "batch query hidden"],
        attention_bias: Float[Tensor, "mask_batch 1 query key"],
        position_ids: Int[Tensor, "batch query"],
        position_embeddings: tuple[Tensor, Tensor],
        cache: DynamicCache | None,
    ) -> Float[Tensor, "batch query hidden"]:
        """See the equation above."""
        halves = [self.embedding_norm(token_embeds), self.hidden_norm(previous_latent)]
        if self.concat_order == "hidden_first":
            halves.reverse()
        hidden = self.block(
            self.projection(torch.cat(halves, dim=-1)),
            attention_mask=attention_bias,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
            position_embeddings=position_embeddings,
        )
        return self.output_norm(hidden)


class SequentialHead(ActionConditionalHead):
    """Depths 2 .. K; one layer each, or one for all with ``share_depths``."""

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel) -> None:
        super().__init__()
        self.depths = range(2, config.depth + 1)
        block = make_block_spec(config.head_block, trunk)
        num_layers = min(1, len(self.depths)) if config.share_depths else len(self.depths)
        self.layers = nn.ModuleList(
            SequentialLayer(trunk.config.hidden_size, block, config.concat_order) for _ in range(num_layers)
        )
        self.rotary_emb = block.make_rotary()

    def layer(self, depth: int) -> nn.Module:
        """The layer of a depth.

        Raises:
            ValueError: there is none; depth 1 is the trunk.
        """
        if depth not in self.depths:
            raise ValueError(
                f"depth={depth} is not one of these heads' depths {self.depths.start} .. {self.depths.stop - 1}; "
                "depth 1 is the trunk itself, more depths need MTPConfig(depth=...)."
            )
        return self.layers[(depth - 2) % len(self.layers)]

    def forward_depth(
        self,
        depth: int,
        previous_latent: Float[Tensor, "batch query hidden"],
        token_embeds: Float[Tensor, "batch query hidden"],
        attention_mask: Bool[Tensor, "mask_batch 1 query key"],
        position_ids: Int[Tensor, "batch query"],
        cache: DynamicCache | None = None,
    ) -> Float[Tensor, "batch query hidden"]:
        """See the base class."""
        return self.layer(depth)(
            previous_latent,
            token_embeds,
            additive_mask(attention_mask, previous_latent.dtype),
            position_ids,
            self.rotary_emb(previous_latent, position_ids),
            cache,
        )
