"""Modulated heads: the depth is told to an MLP by an embedding, as a position is told to a transformer.

For depths k = 2 .. K, with h the trunk's hidden state at the same position and e_k the depth's embedding:

    u <- h + e_k          u <- u + V GELU(W u + b) + c, ``head_layers`` times          logits of x_{t+k} = U norm_k(u)

Each depth has an MLP of its own. With ``share_depths`` there is one for all, and the embeddings alone tell the depths
apart: their number is then nearly free. V and c start at zero, and e_k is small (``initializer_range``), so each depth
starts near the trunk's own next-token prediction: at U (h + e_k), as far as there is no ``output_norm``.
``head_init="random"`` draws V and c too. ``head_width`` is the width inside the MLP, 4 D unless given, as in GPT-2.

No paper's: the smallest family whose depths may share all weights without being equal. Left out: scales and gates
made of the depth (FiLM); e_k shifts the MLP's input only.
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


class ResidualMLP(nn.Module):
    """u + V GELU(W u + b) + c."""

    def __init__(self, hidden_size: int, width: int, starts_at_zero: bool) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, width)
        self.down = (ZeroLinear if starts_at_zero else nn.Linear)(width, hidden_size)

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Apply it."""
        return hidden + self.down(functional.gelu(self.up(hidden)))


class ModulatedHead(ParallelHead):
    """Embeddings of depths 2 .. K, and an MLP for each or one for all."""

    shareable = True

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel) -> None:
        super().__init__()
        refuse_unused(config, "concat_order", "feature_layers", "recycle_stage")
        refuse_copied_layers(config)
        refuse_unnormed(config)
        assert config.hidden_size is not None
        assert config.head_width is not None
        assert config.head_layers is not None
        self.depths = range(2, config.depth + 1)
        self.reads_pre_norm = config.hidden_stage == "pre_norm"
        size, width, starts_at_zero = config.hidden_size, config.head_width, config.head_init != "random"
        # One embedding a module: depth 1 alone has none, and a table of no rows cannot be initialised.
        self.depth_embeddings = nn.ModuleList(nn.Embedding(1, size) for _ in self.depths)
        num_sets = min(1, len(self.depths)) if config.share_depths else len(self.depths)
        self.mlps = nn.ModuleList(
            nn.Sequential(*(ResidualMLP(size, width, starts_at_zero) for _ in range(config.head_layers)))
            for _ in range(num_sets)
        )
        self.output: OutputLayers = OutputLayers(config, trunk, copies_lm_head=config.head_init != "random")

    @classmethod
    def defaults(cls, trunk_config: PreTrainedConfig) -> FamilyDefaults:
        """Four times the trunk's width."""
        return FamilyDefaults(head_width=4 * trunk_config.hidden_size)

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
        embedding = self.depth_embeddings[depth - 2]
        assert isinstance(embedding, nn.Embedding)
        mlp = self.mlps[(depth - 2) % len(self.mlps)]
        return self.output.norm(depth, mlp(trunk_hidden + embedding.weight[0]))
