"""Hydra heads (Ankner et al. 2024, arXiv 2402.05109): grounded MLPs, each reading all tokens drafted so far.

For depths k = 2 .. K, with h the trunk's hidden states:

    z_0 = SiLU(W_0 [E(x_{i+1}); ..; E(x_{i+k-1}); h_i])        z_j = z_{j-1} + SiLU(W_j z_{j-1}),  j = 1 .. head_layers
    h^k_i = h_i + V z                                          logits of x_{i+k} = U h^k_i

Depth k reads k vectors: the trunk's hidden state, not the head's before it, and the k - 1 tokens since. So the carry
is that concatenation, one embedding wider at each depth, and no depth computes anything for the next; the MLP runs
where the latent is read. V starts at zero (``head_init="random"`` draws it), so every depth starts as the trunk's own
next-token prediction; the paper zeroes the one layer inside its residual instead, to the same end. ``head_width`` is
the inner width, the trunk's where none is given. Each layer of a stack has weights of its own; the released code
repeats one module. The paper's heads own their unembedding: ``unembedding="own"`` starts it as a copy of the LM head.

Left out: Hydra++'s prefix attention, an extra decoder layer between trunk and heads.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from worldmtp.heads.base import FamilyDefaults, OutputLayers, RecurrentHead, ZeroLinear, needed
from worldmtp.model.config import MTPConfig


class GroundedMLP(nn.Module):
    """What one depth adds to the trunk's hidden state."""

    def __init__(self, num_inputs: int, hidden_size: int, width: int, num_layers: int, starts_at_zero: bool) -> None:
        super().__init__()
        self.input = nn.Linear(num_inputs * hidden_size, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))
        self.output = (ZeroLinear if starts_at_zero else nn.Linear)(width, hidden_size)

    def forward(self, inputs: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch hidden"]:
        """Return V z of the equation above."""
        hidden = functional.silu(self.input(inputs))
        for layer in self.layers:
            hidden = hidden + functional.silu(layer(hidden))
        return self.output(hidden)


class HydraHead(RecurrentHead):
    """One grounded MLP for each of depths 2 .. K."""

    ignores = ("feature_layers", "recycle_stage")

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel) -> None:
        super().__init__(config)
        self.hidden_first = config.concat_order == "hidden_first"
        width, num_layers = needed(config.head_width), needed(config.head_layers)
        self.mlps = nn.ModuleList(
            GroundedMLP(depth, self.hidden_size, width, num_layers, starts_at_zero=not self.drawn)
            for depth in self.depths
        )
        self.output = OutputLayers(config, trunk, self.copies_lm_head)

    @classmethod
    def defaults(cls, trunk_config: PreTrainedConfig) -> FamilyDefaults:
        """Choose one residual layer of the trunk's width, the trunk's LM head."""
        return FamilyDefaults(head_width=trunk_config.hidden_size)

    def step(
        self, depth: int, carry: Float[Tensor, "batch query width"], token_embeds: Float[Tensor, "batch query hidden"]
    ) -> Float[Tensor, "batch query new_width"]:
        """Return the carry with one more embedding at its end."""
        return torch.cat([carry, token_embeds], dim=-1)

    def carry_width(self, depth: int) -> int:
        """Return the channels of the hidden state and of the tokens since."""
        return depth * self.hidden_size

    def read(self, depth: int, carry: Float[Tensor, "batch query width"]) -> Float[Tensor, "batch query hidden"]:
        """Return h^k of the equation above."""
        self.check_depth(depth)
        hidden, embeds = carry[..., : self.hidden_size], carry[..., self.hidden_size :]
        inputs = carry if self.hidden_first else torch.cat([embeds, hidden], dim=-1)
        return self.output.norm(depth, hidden + self.mlps[depth - 2](inputs))
