"""Latent dynamics heads (NextLat, arXiv 2511.05963): the next hidden state from the last one and a token.

For depths k = 2 .. K, with h^1 the trunk's hidden states:

    h^k_i = h^{k-1}_i + MLP(norm([E(x_{i+k-1}); h^{k-1}_i]))        logits of x_{i+k} = U h^k_i

norm is a LayerNorm of the concatenation; the MLP has GELUs between its linear layers, three of them with the default
``head_layers=2`` hidden ones of ``head_width`` (the trunk's width where none is given). Its last layer starts at zero,
so every depth starts as the identity; ``head_init="random"`` draws it too. One dynamics serves all depths, applied to
its own predictions, and goes on beyond K; ``share_depths=False`` gives each depth its own, and ends at K.

Latents live where the trunk's do, after its final norm, and the LM head reads them as they are. ``output_norm`` puts a
norm before it; ``recycle_stage="pre_norm"`` then hands on what stands before that norm. A norm of the trunk's own
("shared") over states before the trunk's (``hidden_stage="pre_norm"``) is the same space one norm earlier.

Left out: attention. A step depends on the last latent and the token alone, which makes it cheap, and blind to what
the latent does not hold.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from worldmtp.heads.base import FamilyDefaults, OutputLayers, RecurrentHead, ZeroLinear, needed
from worldmtp.model.config import MTPConfig


class LatentStep(nn.Module):
    """h + MLP(LayerNorm([h; E]))."""

    def __init__(
        self, hidden_size: int, width: int, num_hidden_layers: int, hidden_first: bool, starts_at_zero: bool
    ) -> None:
        super().__init__()
        self.hidden_first = hidden_first
        self.norm = nn.LayerNorm(2 * hidden_size)
        widths = [2 * hidden_size, *[width] * num_hidden_layers]
        layers: list[nn.Module] = []
        for inner, outer in pairwise(widths):
            layers += [nn.Linear(inner, outer), nn.GELU()]
        self.mlp = nn.Sequential(*layers, (ZeroLinear if starts_at_zero else nn.Linear)(width, hidden_size))

    def forward(
        self, latent: Float[Tensor, "*batch hidden"], token_embeds: Float[Tensor, "*batch hidden"]
    ) -> Float[Tensor, "*batch hidden"]:
        """Return the next latent."""
        halves = [latent, token_embeds] if self.hidden_first else [token_embeds, latent]
        return latent + self.mlp(self.norm(torch.cat(halves, dim=-1)))


class LatentHead(RecurrentHead):
    """Depths 2 .. K by one recursive step, or by one each."""

    shareable = True
    ignores = ("feature_layers",)

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel) -> None:
        super().__init__(config)
        self.unbounded = bool(config.share_depths and len(self.depths))
        self.steps = nn.ModuleList(
            LatentStep(
                needed(config.hidden_size),
                needed(config.head_width),
                needed(config.head_layers),
                hidden_first=config.concat_order == "hidden_first",
                starts_at_zero=not self.drawn,
            )
            for _ in range(self.num_sets)
        )
        self.output = OutputLayers(config, trunk, self.copies_lm_head)

    @classmethod
    def defaults(cls, trunk_config: PreTrainedConfig) -> FamilyDefaults:
        """Choose one step for all depths, two hidden layers of the trunk's width, the trunk's LM head."""
        return FamilyDefaults(share_depths=True, head_width=trunk_config.hidden_size, head_layers=2)

    def step(
        self, depth: int, carry: Float[Tensor, "batch query hidden"], token_embeds: Float[Tensor, "batch query hidden"]
    ) -> Float[Tensor, "batch query hidden"]:
        """Return the next latents."""
        return self.carry_of(depth, self.set_of(depth, self.steps)(carry, token_embeds))
