"""EAGLE-3 heads (Li et al. 2025, arXiv 2503.01840): one decoder layer fed back its own output, trained that way.

With l, m, h the outputs of a low, a middle and a high layer of the trunk, and for depths k = 2 .. K:

    g^1_i = F [l_i; m_i; h_i]
    u     = [norm(E(x_{i+k-1})); norm(g^{k-1}_i)]                          (2 D wide: what queries, keys, values read)
    a     = g^{k-1}_i + Attention(u)        g^k_i = a + MLP(norm(a))
    logits of x_{i+k} = U norm_out(g^k_i)

The paper's "training-time test" is this recursion, unrolled: beyond depth 2 there are no real features to attend to, so
depth k at position i attends to depth 2's keys at positions up to i, then to those of its own branch, depths 3 .. k at
the same i. A key of depth k at i stands in slot i + k - 1 and is rotated to position i + k - 2 (the trunk's first token
is position 0; only differences matter). One layer serves all depths; ``share_depths=False`` gives each its own.

``feature_layers=()`` reads the trunk's last hidden state through F instead (EAGLE-1, arXiv 2401.15077, feeds that in
without F). What is fed back is g, before the output norm, as in the released code; ``recycle_stage="post_norm"`` feeds
back what U reads. ``unembedding="own"`` is drawn, not copied, as the paper's.

Left out: the reduced vocabulary of the paper's unembedding, and the tree of drafts, which belongs to decoding.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRotaryEmbedding, apply_rotary_pos_emb

from worldmtp.heads.base import ActionConditionalHead, FamilyDefaults, OutputLayers, needed
from worldmtp.heads.block import check_one_source, inner_width, longest_text, make_norm, num_attention_heads
from worldmtp.model.config import MTPConfig
from worldmtp.model.trunk import TrunkFeatures

_MIN_LAYERS_OF_PAPER = 8
_DEFAULT_ROPE_THETA = 10_000.0


class BranchAttention(nn.Module):
    """Grouped-query attention whose queries, keys and values read vectors twice as wide as what it adds to."""

    def __init__(self, sizes: LlamaConfig) -> None:
        super().__init__()
        self.head_dim, num_keys = needed(sizes.head_dim), needed(sizes.num_key_value_heads)
        self.num_groups = sizes.num_attention_heads // num_keys
        inner, grouped = sizes.num_attention_heads * self.head_dim, num_keys * self.head_dim
        self.q_proj = nn.Linear(2 * sizes.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(2 * sizes.hidden_size, grouped, bias=False)
        self.v_proj = nn.Linear(2 * sizes.hidden_size, grouped, bias=False)
        self.o_proj = nn.Linear(inner, sizes.hidden_size, bias=False)

    def forward(
        self,
        inputs: Float[Tensor, "batch query two_hidden"],
        rotation: tuple[Float[Tensor, "batch query head_dim"], Float[Tensor, "batch query head_dim"]],
        attention_mask: Bool[Tensor, "mask_batch 1 query key"],
        cache: Cache | None,
    ) -> Float[Tensor, "batch query hidden"]:
        """Return what the values say; every query must be allowed one key at least."""
        queries, keys, values = (
            projection(inputs).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, query, head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        queries, keys = apply_rotary_pos_emb(queries, keys, *rotation)
        if cache is not None:
            keys, values = cache.update(keys, values, 0)
        keys, values = (part.repeat_interleave(self.num_groups, dim=1) for part in (keys, values))
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=attention_mask)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class EagleLayer(nn.Module):
    """g^k from g^{k-1} and the embeddings."""

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel, sizes: LlamaConfig) -> None:
        super().__init__()
        self.hidden_first = config.concat_order == "hidden_first"
        self.embedding_norm = make_norm(config.head_block, trunk)
        self.hidden_norm = make_norm(config.head_block, trunk)
        self.attention = BranchAttention(sizes)
        self.mlp_norm = make_norm(config.head_block, trunk)
        self.mlp = LlamaMLP(sizes)

    def forward(
        self,
        carry: Float[Tensor, "batch query hidden"],
        token_embeds: Float[Tensor, "batch query hidden"],
        rotation: tuple[Float[Tensor, "batch query head_dim"], Float[Tensor, "batch query head_dim"]],
        attention_mask: Bool[Tensor, "mask_batch 1 query key"],
        cache: Cache | None,
    ) -> Float[Tensor, "batch query hidden"]:
        """Return g^k of the equation above."""
        halves = [self.embedding_norm(token_embeds), self.hidden_norm(carry)]
        if self.hidden_first:
            halves.reverse()
        attended = carry + self.attention(torch.cat(halves, dim=-1), rotation, attention_mask, cache)
        return attended + self.mlp(self.mlp_norm(attended))


class EagleHead(ActionConditionalHead):
    """Depths 2 .. K by one decoder layer, or by one each."""

    attention = "branch"
    shareable = True
    ignores = ("head_layers",)
    copies_lm_head = False
    sums_residuals = True

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel) -> None:
        super().__init__(config)
        hidden_size, feature_layers = needed(config.hidden_size), needed(config.feature_layers)
        check_one_source(feature_layers, config.hidden_stage)
        # The trunk alone reads nothing.
        self.feature_layers = feature_layers if len(self.depths) else ()
        self.reads_pre_norm = self.reads_pre_norm and len(self.depths) > 0
        sizes = _layer_sizes(config, trunk.config.get_text_config())
        self.fuse: nn.Linear | None = None
        if len(self.depths):
            self.fuse = nn.Linear(max(1, len(self.feature_layers)) * hidden_size, hidden_size, bias=False)
        self.layers = nn.ModuleList(EagleLayer(config, trunk, sizes) for _ in range(self.num_sets))
        self.output = OutputLayers(config, trunk, self.copies_lm_head)
        self.rotary_emb = LlamaRotaryEmbedding(sizes)

    @classmethod
    def defaults(cls, trunk_config: PreTrainedConfig) -> FamilyDefaults:
        """Choose one layer for all depths, fed back before its own output norm, over three layers of the trunk."""
        return FamilyDefaults(
            share_depths=True,
            recycle_stage="pre_norm",
            output_norm="own",
            feature_layers=_three_layers(trunk_config.num_hidden_layers),
            head_width=inner_width(trunk_config),
        )

    def begin(self, features: TrunkFeatures) -> Float[Tensor, "batch time hidden"]:
        """Return g^1 of the equation above."""
        if self.fuse is None:
            return super().begin(features)
        read = torch.cat(features.layers, dim=-1) if self.feature_layers else super().begin(features)
        return self.fuse(read)

    def forward_depth(
        self,
        depth: int,
        carry: Float[Tensor, "batch query hidden"],
        token_embeds: Float[Tensor, "batch query hidden"],
        attention_mask: Bool[Tensor, "mask_batch 1 query key"],
        position_ids: Int[Tensor, "batch query"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch query hidden"]:
        """Return carries of one depth; ``cache`` holds the keys of depth 2, then one of each depth of the branch."""
        rotation = self.rotary_emb(carry, position_ids + depth - 2)
        hidden = self.set_of(depth, self.layers)(carry, token_embeds, rotation, attention_mask, cache)
        return self.carry_of(depth, hidden)


def _three_layers(num_layers: int) -> tuple[int, ...]:
    """Return the released code's layers, which *enter* 2, L/2 and L - 3; of small trunks first, middle and last."""
    if num_layers >= _MIN_LAYERS_OF_PAPER:
        return (1, num_layers // 2 - 1, num_layers - 4)
    return tuple(sorted({0, num_layers // 2, num_layers - 1}))


def _layer_sizes(config: MTPConfig, trunk_config: PreTrainedConfig) -> LlamaConfig:
    """Return heads, groups and rotation as the trunk's where it has them, in the names of a Llama config."""
    num_heads = num_attention_heads(trunk_config)
    head_dim = getattr(trunk_config, "head_dim", None) or trunk_config.hidden_size // num_heads
    if head_dim % 2:
        raise ValueError(
            f"head='eagle' rotates pairs of channels, and hidden_size={trunk_config.hidden_size} over "
            f"num_attention_heads={num_heads} gives {head_dim} channels per attention head; choose another trunk."
        )
    rope = getattr(trunk_config, "rope_parameters", None) or {}
    return LlamaConfig(
        hidden_size=trunk_config.hidden_size,
        intermediate_size=config.head_width or inner_width(trunk_config),
        num_attention_heads=num_heads,
        num_key_value_heads=getattr(trunk_config, "num_key_value_heads", None) or num_heads,
        head_dim=head_dim,
        max_position_embeddings=longest_text(trunk_config),
        rope_parameters={"rope_type": "default", "rope_theta": rope.get("rope_theta", _DEFAULT_ROPE_THETA)},
    )
