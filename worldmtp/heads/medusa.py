"""Medusa heads (Cai et al. 2024, arXiv 2401.10774, section 2.1.1).

For depths k = 2 .. K, with h the trunk's hidden state at the same position, ``head_layers`` residual blocks and an
output layer of the depth's own:

    h <- h + SiLU(W h + b)                                  logits of x_{t+k} = U_k h^k

W and b start at zero and U_k as a copy of the LM head, so each depth starts as the trunk's own next-token prediction;
``head_init="random"`` draws them all instead. The paper writes no bias, its released weights have one. Each block of a
stack has weights of its own; the released code repeats one module, which makes a stack of n blocks one block applied
n times.

The paper counts from the LM head: its head k is depth k + 1 here. ``unembedding="shared"`` saves K - 1 vocabulary
matrices, and is not Medusa's. Left out: the tree of candidates and typical acceptance, which belong to decoding.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from worldmtp.heads.base import FamilyDefaults, OutputLayers, PointwiseHead, ZeroLinear, needed
from worldmtp.model.config import MTPConfig


class ResidualBlock(nn.Module):
    """h + SiLU(W h + b)."""

    def __init__(self, hidden_size: int, starts_at_zero: bool) -> None:
        super().__init__()
        self.linear = (ZeroLinear if starts_at_zero else nn.Linear)(hidden_size, hidden_size)

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Return the layer's output."""
        return hidden + functional.silu(self.linear(hidden))


class MedusaHead(PointwiseHead):
    """Residual blocks and an output layer for each of depths 2 .. K."""

    ignores = ("concat_order", "feature_layers", "head_width", "recycle_stage")

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel) -> None:
        super().__init__(config)
        size, num_layers = needed(config.hidden_size), needed(config.head_layers)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(size, not self.drawn) for _ in range(num_layers))) for _ in self.depths
        )
        self.output = OutputLayers(config, trunk, self.copies_lm_head)

    @classmethod
    def defaults(cls, trunk_config: PreTrainedConfig) -> FamilyDefaults:
        """Choose one block, and an output layer of its own."""
        return FamilyDefaults(unembedding="own")

    def transform(
        self, depth: int, trunk_hidden: Float[Tensor, "batch query width"]
    ) -> Float[Tensor, "batch query hidden"]:
        """Return the state after the depth's blocks."""
        return self.blocks[depth - 2](trunk_hidden)
