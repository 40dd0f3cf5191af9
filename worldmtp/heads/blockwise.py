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
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from worldmtp.heads.base import FamilyDefaults, OutputLayers, PointwiseHead, ZeroLinear, needed
from worldmtp.model.config import MTPConfig
from worldmtp.model.trunk import TrunkFeatures


class BlockwiseHead(PointwiseHead):
    """One wide layer for all depths 2 .. K, and a projection back for each."""

    ignores = ("concat_order", "feature_layers", "head_layers", "recycle_stage")

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel) -> None:
        super().__init__(config)
        self.hidden_size, width = needed(config.hidden_size), needed(config.head_width)
        projection = nn.Linear if self.drawn else ZeroLinear
        # A list of one, or of none where the trunk is alone.
        self.wide = nn.ModuleList(nn.Linear(self.hidden_size, width) for _ in self.depths[:1])
        self.projections = nn.ModuleList(projection(width, self.hidden_size) for _ in self.depths)
        self.output = OutputLayers(config, trunk, self.copies_lm_head)

    @classmethod
    def defaults(cls, trunk_config: PreTrainedConfig) -> FamilyDefaults:
        """Choose four times the trunk's width."""
        return FamilyDefaults(head_width=4 * trunk_config.hidden_size)

    def begin(self, features: TrunkFeatures) -> Float[Tensor, "batch time width"]:
        """Return the hidden state followed by the wide layer's output, which all depths share."""
        hidden = super().begin(features)
        return torch.cat([hidden, *(wide(hidden).relu() for wide in self.wide)], dim=-1)

    def transform(
        self, depth: int, trunk_hidden: Float[Tensor, "batch query width"]
    ) -> Float[Tensor, "batch query hidden"]:
        """Return the state plus the depth's projection of the wide layer."""
        hidden, inner = trunk_hidden[..., : self.hidden_size], trunk_hidden[..., self.hidden_size :]
        return hidden + self.projections[depth - 2](inner)
