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

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from worldmtp.heads.base import FamilyDefaults, ParallelHead
from worldmtp.heads.output import OutputLayers
from worldmtp.heads.unused import refuse_copied_layers, refuse_unnormed, refuse_unused
from worldmtp.heads.zero import ZeroLinear
from worldmtp.model.config import MTPConfig


class ResidualBlock(nn.Module):
    """h + SiLU(W h + b)."""

    def __init__(self, hidden_size: int, starts_at_zero: bool) -> None:
        super().__init__()
        self.linear = (ZeroLinear if starts_at_zero else nn.Linear)(hidden_size, hidden_size)

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Apply it."""
        return hidden + functional.silu(self.linear(hidden))


class MedusaHead(ParallelHead):
    """Residual blocks and an output layer for each of depths 2 .. K."""

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel) -> None:
        super().__init__()
        refuse_unused(config, "concat_order", "feature_layers", "head_width", "recycle_stage")
        refuse_copied_layers(config)
        refuse_unnormed(config)
        assert config.hidden_size is not None
        assert config.head_layers is not None
        self.depths = range(2, config.depth + 1)
        self.reads_pre_norm = config.hidden_stage == "pre_norm"
        size, starts_at_zero = config.hidden_size, config.head_init != "random"
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(size, starts_at_zero) for _ in range(config.head_layers)))
            for _ in self.depths
        )
        self.output: OutputLayers = OutputLayers(config, trunk, copies_lm_head=config.head_init != "random")

    @classmethod
    def defaults(cls, trunk_config: PreTrainedConfig) -> FamilyDefaults:
        """One block, and an output layer of its own."""
        return FamilyDefaults(unembedding="own")

    def forward_depth(
        self,
        depth: int,
        trunk_hidden: Float[Tensor, "batch query hidden"],
        attention_mask: Bool[Tensor, "mask_batch 1 query key"],
        position_ids: Int[Tensor, "batch query"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch query hidden"]:
        """See the base class; pointwise in time."""
        self.check_depth(depth)
        return self.output.norm(depth, self.blocks[depth - 2](trunk_hidden))
