"""Parallel transformer heads (Gloeckle et al. 2024, arXiv 2404.19737, section 2).

For depths k = 2 .. K, with z the output of the trunk's last layer but one:

    h^k = norm(Block_k(z))                                        logits of x_{t+k} = U h^k

Block_k is one decoder layer of the trunk's class, causal over positions, and a sibling of the trunk's last layer, which
is the paper's head of depth 1; norm and U are the trunk's final norm and LM head. The weights released with the paper
are of this form. ``feature_layers=()`` branches off after the trunk instead, from its last hidden state before or
after the final norm (``hidden_stage``), as a trunk of one layer must. Blocks are drawn, as the paper trains from
scratch; ``head_init="copy_trunk"`` starts each as a copy of the last layer, so that with the branch at the last layer
but one every depth starts as the trunk's own next-token prediction.

Left out: the paper's order of forward and backward passes, one head's logits in memory at a time, which the losses
have; giving up K - 1 of the trunk's layers so that models of all K have as many weights.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from worldmtp.heads.base import FamilyDefaults, OutputLayers, ParallelHead, needed
from worldmtp.heads.block import check_one_source, make_block_spec, run_layer
from worldmtp.model.config import MTPConfig
from worldmtp.model.trunk import TrunkFeatures, additive_mask


class GloeckleHead(ParallelHead):
    """One decoder layer for each of depths 2 .. K."""

    attention = "depth"
    ignores = ("concat_order", "head_layers", "head_width", "recycle_stage")
    has_trunk_layers = True
    sums_residuals = True

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel) -> None:
        super().__init__(config)
        feature_layers = needed(config.feature_layers)
        check_one_source(feature_layers, config.hidden_stage)
        if len(feature_layers) > 1:
            raise ValueError(
                f"feature_layers={list(feature_layers)} with head='parallel': the heads branch off at one place; name "
                "one layer, or none for the trunk's last hidden state."
            )
        # The trunk alone reads nothing.
        self.feature_layers = feature_layers if len(self.depths) else ()
        block = make_block_spec(config.head_block, trunk)
        self.blocks = nn.ModuleList(block.make_layer() for _ in self.depths)
        self.output = OutputLayers(config, trunk, self.copies_lm_head)
        self.rotary_emb = block.make_rotary()

    @classmethod
    def defaults(cls, trunk_config: PreTrainedConfig) -> FamilyDefaults:
        """Choose the trunk's norm, and the layer before its last where it has one."""
        return FamilyDefaults(output_norm="shared", feature_layers=(-2,) if trunk_config.num_hidden_layers > 1 else ())

    def begin(self, features: TrunkFeatures) -> Float[Tensor, "batch time hidden"]:
        """Return where the heads branch off."""
        return features.layers[0] if self.feature_layers else super().begin(features)

    def forward_depth(
        self,
        depth: int,
        trunk_hidden: Float[Tensor, "batch query hidden"],
        attention_mask: Bool[Tensor, "mask_batch 1 query key"],
        position_ids: Int[Tensor, "batch query"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch query hidden"]:
        """Return latents of one depth."""
        self.check_depth(depth)
        bias, rotation = additive_mask(attention_mask, trunk_hidden.dtype), self.rotary_emb(trunk_hidden, position_ids)
        hidden = run_layer(self.blocks[depth - 2], trunk_hidden, bias, position_ids, rotation, cache)
        return self.output.norm(depth, hidden)

    def trunk_layers(self) -> list[nn.Module]:
        """Return the depths' decoder layers."""
        return [*self.blocks]
