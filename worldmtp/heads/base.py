"""The two kinds of heads, told apart by type.

*Action-conditional* heads give the next latent from (latent, token) and can be chained, so they can answer "what if
the token were another" and serve as dynamics. *Parallel* heads read the trunk's hidden state alone and give the
policy-averaged marginal of token t+k, so they cannot.

Both make latents that the trunk's LM head reads, in depths 2 .. K: depth 1 is the trunk itself.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache


class ActionConditionalHead(nn.Module, ABC):
    """Heads whose depth k reads the latent of depth k-1 and the token k-1 ahead."""

    kind: ClassVar[str] = "action_conditional"
    depths: range

    @abstractmethod
    def forward_depth(
        self,
        depth: int,
        previous_latent: Float[Tensor, "batch query hidden"],
        token_embeds: Float[Tensor, "batch query hidden"],
        attention_mask: Bool[Tensor, "mask_batch 1 query key"],
        position_ids: Int[Tensor, "batch query"],
        cache: DynamicCache | None = None,
    ) -> Float[Tensor, "batch query hidden"]:
        """Latents h^k_i of one depth from h^{k-1}_i and the embeddings of x_{i+k-1}, at positions i.

        ``attention_mask`` is True where a query may attend to a key. ``cache`` belongs to this depth alone; the new
        keys are appended to it, and ``key`` counts those already in it first.
        """


class ParallelHead(nn.Module, ABC):
    """Heads whose every depth reads the trunk's hidden states and no token beyond them."""

    kind: ClassVar[str] = "parallel"
    depths: range

    @abstractmethod
    def forward_depth(
        self,
        depth: int,
        trunk_hidden: Float[Tensor, "batch query hidden"],
        attention_mask: Bool[Tensor, "mask_batch 1 query key"],
        position_ids: Int[Tensor, "batch query"],
    ) -> Float[Tensor, "batch query hidden"]:
        """Latents of one depth from the trunk's hidden states."""
