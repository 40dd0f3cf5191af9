"""Norm and unembedding at the end of a head: each depth's own, or the trunk's.

DeepSeek-V3 norms with weights of its own and shares the unembedding; Gloeckle et al. 2024 share both; Medusa has its
own unembedding, which starts as a copy of the LM head, and no norm, as it reads what the trunk's norm gave.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from worldmtp.heads.block import make_norm
from worldmtp.model.config import MTPConfig
from worldmtp.model.trunk import final_norm


class SharedNorm:
    """The trunk's final norm, used by a head that does not own it: not a submodule, so saved once, with the trunk.

    Detached, its weights get no gradient from the heads.
    """

    def __init__(self, norm: nn.Module, detached: bool) -> None:
        self.norm = norm
        self.detached = detached

    def __call__(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Apply it."""
        if not self.detached:
            return self.norm(hidden)
        weights = {name: weight.detach() for name, weight in self.norm.named_parameters()}
        return torch.func.functional_call(self.norm, weights, (hidden,))


class OutputLayers(nn.Module):
    """What turns the hidden states of depths 2 .. K into latents, and latents into logits."""

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel, copies_lm_head: bool = True) -> None:
        super().__init__()
        assert config.hidden_size is not None
        assert config.vocab_size is not None
        num_depths = config.depth - 1
        num_sets = min(1, num_depths) if config.share_depths else num_depths
        self._copies_lm_head = copies_lm_head and config.head_init != "random"
        self._shared_norm: SharedNorm | None = None
        if config.output_norm == "shared":
            self._shared_norm = SharedNorm(final_norm(trunk.base_model), config.detach_trunk)
        norms = [make_norm(config.head_block, trunk) for _ in range(num_sets)] if config.output_norm == "own" else []
        self.norms = nn.ModuleList(norms)
        owns = config.unembedding == "own"
        has_bias = trunk.get_output_embeddings().bias is not None
        self.unembeddings = nn.ModuleList(
            nn.Linear(config.hidden_size, config.vocab_size, bias=has_bias) for _ in range(num_sets if owns else 0)
        )

    def norm(self, depth: int, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """The depth's norm, or nothing."""
        if self._shared_norm is not None:
            return self._shared_norm(hidden)
        return self.norms[(depth - 2) % len(self.norms)](hidden) if len(self.norms) else hidden

    def unembedding(self, depth: int) -> nn.Linear | None:
        """The depth's own, or None."""
        if not len(self.unembeddings):
            return None
        layer = self.unembeddings[(depth - 2) % len(self.unembeddings)]
        assert isinstance(layer, nn.Linear)
        return layer

    @torch.no_grad()
    def initialize_from(self, trunk: nn.Module) -> None:
        """Own unembeddings start as copies of the LM head, where the family's do."""
        assert isinstance(trunk, PreTrainedModel)
        lm_head = trunk.get_output_embeddings()
        for layer in self.unembeddings if self._copies_lm_head else ():
            for ours, theirs in zip(layer.parameters(), lm_head.parameters(), strict=True):
                ours.copy_(theirs)
