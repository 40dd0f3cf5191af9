"""The two kinds of heads, told apart by type, and what both have in common.

*Action-conditional* heads give the next latent from (latent, token) and can be chained, so they can answer "what if
the token were another" and serve as dynamics. *Parallel* heads read the trunk's hidden states alone and give the
policy-averaged marginal of token t+k, so they cannot.

Both make latents for depths 2 .. K; depth 1 is the trunk itself. What is handed from depth to depth is the *carry*,
which may be wider than the latent (tokens drafted so far) or stand before its norm; ``read`` makes the latent of it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig

from worldmtp.model.trunk import TrunkFeatures

if TYPE_CHECKING:
    from worldmtp.heads.output import OutputLayers


@dataclass(frozen=True)
class FamilyDefaults:
    """What a family takes where ``MTPConfig`` says None: the choices of its paper."""

    share_depths: bool = False
    recycle_stage: str = "post_norm"
    output_norm: str = "none"
    unembedding: str = "shared"
    feature_layers: tuple[int, ...] = ()
    head_width: int | None = None
    """None: the family has no such width."""
    head_layers: int = 1


class Head(nn.Module, ABC):
    """Heads of all depths 2 .. K. Made as ``Head(config, trunk)``; ``config`` is bound: none of its fields is None."""

    kind: ClassVar[str]
    shareable: ClassVar[bool] = False
    """Whether ``share_depths`` makes sense."""
    depths: range
    reads_pre_norm: bool = False
    feature_layers: tuple[int, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.output: OutputLayers | None = None
        """Own norms and unembeddings; None where the latents are made for the trunk's LM head as they are."""

    @classmethod
    def defaults(cls, trunk_config: PreTrainedConfig) -> FamilyDefaults:
        """The paper's choices, for a trunk of this size."""
        return FamilyDefaults()

    def begin(self, features: TrunkFeatures) -> Float[Tensor, "batch time width"]:
        """What depth 2 reads of the trunk: its last hidden state, after the final norm or before it."""
        if not self.reads_pre_norm:
            return features.post_norm
        assert features.pre_norm is not None
        return features.pre_norm

    def unembedding(self, depth: int) -> nn.Linear | None:
        """The depth's own output layer; None where it is the trunk's LM head."""
        self.check_depth(depth)
        return None if self.output is None else self.output.unembedding(depth)

    def check_depth(self, depth: int) -> None:
        """Whether there is a head of this depth.

        Raises:
            ValueError: there is none; depth 1 is the trunk.
        """
        if depth not in self.depths:
            raise ValueError(
                f"depth={depth} is not one of these heads' depths {self.depths.start} .. {self.depths.stop - 1}; "
                "depth 1 is the trunk itself, more depths need MTPConfig(depth=...)."
            )

    def initialize_from(self, trunk: nn.Module) -> None:
        """Copy into fresh heads what starts as a copy of the trunk's weights; random ones are drawn before."""
        if self.output is not None:
            self.output.initialize_from(trunk)


class ActionConditionalHead(Head):
    """Heads whose depth k reads the carry of depth k-1 and the token k-1 ahead.

    ``attention`` says what a step depends on besides its own (carry, token): ``"none"``, nothing (a recurrence);
    ``"depth"``, the inputs of the same depth at earlier positions (DeepSeek-V3); ``"branch"``, depth 2 at the positions
    up to the root, over real text, and the branch's own depths (EAGLE), so that the keys it attends to are depth 2's
    of all positions followed by one of each depth since.
    """

    kind: ClassVar[str] = "action_conditional"
    attention: ClassVar[str] = "none"
    unbounded: bool = False
    """Whether depths beyond K can be had by stepping on."""
    recycles_pre_norm: bool = False
    """Whether a depth hands on its state before its output norm; the norm then stands in ``read``."""

    @abstractmethod
    def forward_depth(
        self,
        depth: int,
        carry: Float[Tensor, "batch query width"],
        token_embeds: Float[Tensor, "batch query hidden"],
        attention_mask: Bool[Tensor, "mask_batch 1 query key"],
        position_ids: Int[Tensor, "batch query"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch query new_width"]:
        """Carries of one depth at positions i, from those of the depth before and the embeddings of x_{i+k-1}.

        ``attention_mask`` is True where a query may attend to a key. ``cache`` belongs to this depth alone, or to the
        branch; the new keys are appended to it, and ``key`` counts those already in it first. ``position_ids`` are
        those of i, at every depth.
        """

    def read(self, depth: int, carry: Float[Tensor, "batch query width"]) -> Float[Tensor, "batch query hidden"]:
        """The latent: what the output layer and the world heads read, so after the output norm."""
        return self._normed(depth, carry) if self.recycles_pre_norm else carry

    def hand_on(self, depth: int, hidden: Float[Tensor, "batch query hidden"]) -> Float[Tensor, "batch query hidden"]:
        """The carry made of a depth's state before its output norm."""
        return hidden if self.recycles_pre_norm else self._normed(depth, hidden)

    def _normed(self, depth: int, hidden: Tensor) -> Tensor:
        return hidden if self.output is None else self.output.norm(depth, hidden)


class ParallelHead(Head):
    """Heads whose every depth reads the trunk's hidden states and no token beyond them.

    ``attention`` is ``"none"`` where a position reads its own state alone, ``"depth"`` where it attends to
    those before.
    """

    kind: ClassVar[str] = "parallel"
    attention: ClassVar[str] = "none"

    @abstractmethod
    def forward_depth(
        self,
        depth: int,
        trunk_hidden: Float[Tensor, "batch query width"],
        attention_mask: Bool[Tensor, "mask_batch 1 query key"],
        position_ids: Int[Tensor, "batch query"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch query hidden"]:
        """Latents of one depth from what ``begin`` gave; ``cache`` belongs to this depth alone."""
