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

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from worldmtp.heads.base import FamilyDefaults, OutputLayers, PointwiseHead, ZeroLinear, needed
from worldmtp.model.config import MTPConfig


class ResidualMLP(nn.Module):
    """u + V GELU(W u + b) + c."""

    def __init__(self, hidden_size: int, width: int, starts_at_zero: bool) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, width)
        self.down = (ZeroLinear if starts_at_zero else nn.Linear)(width, hidden_size)

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Return the layer's output."""
        return hidden + self.down(functional.gelu(self.up(hidden)))


class ModulatedHead(PointwiseHead):
    """Embeddings of depths 2 .. K, and an MLP for each or one for all."""

    shareable = True
    ignores = ("concat_order", "feature_layers", "recycle_stage")

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel) -> None:
        super().__init__(config)
        size, width, num_layers = needed(config.hidden_size), needed(config.head_width), needed(config.head_layers)
        # One embedding a module: depth 1 alone has none, and a table of no rows cannot be initialised.
        self.depth_embeddings = nn.ModuleList(nn.Embedding(1, size) for _ in self.depths)
        self.mlps = nn.ModuleList(
            nn.Sequential(*(ResidualMLP(size, width, not self.drawn) for _ in range(num_layers)))
            for _ in range(self.num_sets)
        )
        self.output = OutputLayers(config, trunk, self.copies_lm_head)

    @classmethod
    def defaults(cls, trunk_config: PreTrainedConfig) -> FamilyDefaults:
        """Choose four times the trunk's width."""
        return FamilyDefaults(head_width=4 * trunk_config.hidden_size)

    def transform(
        self, depth: int, trunk_hidden: Float[Tensor, "batch query width"]
    ) -> Float[Tensor, "batch query hidden"]:
        """Return the shifted state after the depth's MLP."""
        embedding = self.depth_embeddings[depth - 2]
        assert isinstance(embedding, nn.Embedding)
        return self.set_of(depth, self.mlps)(trunk_hidden + embedding.weight[0])
