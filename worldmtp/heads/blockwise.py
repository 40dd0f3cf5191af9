"""Heads of blockwise parallel decoding (Stern, Shazeer and Uszkoreit 2018, arXiv 1811.03115, section 6).

For depths k = 2 .. K, with h the trunk's hidden state at the same position:

    a = ReLU(W h + b)                    h^k = norm_k(h + V_k a + c_k)                    logits of x_{t+k} = U h^k

W, the one wide layer, is shared by all depths; U is the trunk's own vocabulary projection. V_k and c_k start at zero,
so each depth starts as the trunk's own next-token prediction; ``head_init="random"`` draws them instead. There is no
norm unless ``output_norm`` asks for one. ``head_width`` is the width of a in all, 4 D unless given; the paper makes
it K times the inner width of the trunk's own feed-forward layers.

Left out: the paper's projection of depth 1, which here is the trunk untouched, and its training on one randomly chosen
depth per minibatch, which is a matter of the objective.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from worldmtp.heads.base import FamilyDefaults, ParallelHead
from worldmtp.heads.output import OutputLayers
from worldmtp.heads.unused import refuse_copied_layers, refuse_unnormed, refuse_unused
from worldmtp.heads.zero import ZeroLinear
from worldmtp.model.config import MTPConfig
from worldmtp.model.trunk import TrunkFeatures


class BlockwiseHead(ParallelHead):
    """One wide layer for all depths 2 .. K, and a projection back for each."""

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel) -> None:
        super().__init__()
        refuse_unused(config, "concat_order", "feature_layers", "head_layers", "recycle_stage")
        refuse_copied_layers(config)
        refuse_unnormed(config)
        assert config.hidden_size is not None
        assert config.head_width is not None
        self.depths = range(2, config.depth + 1)
        self.reads_pre_norm = config.hidden_stage == "pre_norm"
        self.hidden_size = config.hidden_size
        projection = nn.Linear if config.head_init == "random" else ZeroLinear
        # A list of one, or of none where the trunk is alone.
        self.wide = nn.ModuleList(nn.Linear(config.hidden_size, config.head_width) for _ in self.depths[:1])
        self.projections = nn.ModuleList(projection(config.head_width, config.hidden_size) for _ in self.depths)
        self.output: OutputLayers = OutputLayers(config, trunk, copies_lm_head=config.head_init != "random")

    @classmethod
    def defaults(cls, trunk_config: PreTrainedConfig) -> FamilyDefaults:
        """Four times the trunk's width."""
        return FamilyDefaults(head_width=4 * trunk_config.hidden_size)

    def begin(self, features: TrunkFeatures) -> Float[Tensor, "batch time width"]:
        """The hidden state followed by the wide layer's output, which all depths share."""
        hidden = super().begin(features)
        return torch.cat([hidden, *(wide(hidden).relu() for wide in self.wide)], dim=-1)

    def forward_depth(
        self,
        depth: int,
        trunk_hidden: Float[Tensor, "batch query width"],
        attention_mask: Bool[Tensor, "mask_batch 1 query key"],
        position_ids: Int[Tensor, "batch query"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch query hidden"]:
        """See the base class; pointwise in time."""
        self.check_depth(depth)
        hidden, inner = trunk_hidden[..., : self.hidden_size], trunk_hidden[..., self.hidden_size :]
        return self.output.norm(depth, hidden + self.projections[depth - 2](inner))
