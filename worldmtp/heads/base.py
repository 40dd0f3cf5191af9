"""The two kinds of heads, told apart by type, and what all families are made of.

*Action-conditional* heads give the next latent from (latent, token) and can be chained, so they can answer "what if
the token were another" and serve as dynamics. *Parallel* heads read the trunk's hidden states alone and give the
policy-averaged marginal of token t+k, so they cannot.

Both make latents for depths 2 .. K; depth 1 is the trunk itself. What is handed from depth to depth is the *carry*,
which may be wider than the latent (tokens drafted so far) or stand before its norm; ``read`` makes the latent of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel

from worldmtp.heads.block import copy_last_layer, make_norm
from worldmtp.model.config import MTPConfig
from worldmtp.model.trunk import TrunkFeatures, backbone_of, final_norm

Value = TypeVar("Value")


def needed(value: Value | None) -> Value:
    """Return a field of a bound config, none of which is None."""
    assert value is not None
    return value


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


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, and is known as such to whoever initialises weights.

    A residual branch that ends in it starts as the identity, a prediction as the uniform one.
    """

    def reset_parameters(self) -> None:
        """Zero weight and bias."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class SharedNorm:
    """The trunk's final norm, used by a head that does not own it: not a submodule, so saved once, with the trunk.

    While the config says ``detach_trunk``, its weights get no gradient from the heads; a trainer may say so for a time.
    """

    def __init__(self, norm: nn.Module, config: MTPConfig) -> None:
        self.norm = norm
        self._config = config

    def __call__(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Return the normed states."""
        if not self._config.detach_trunk:
            return self.norm(hidden)
        weights = {name: weight.detach() for name, weight in self.norm.named_parameters()}
        return torch.func.functional_call(self.norm, weights, (hidden,))


class OutputLayers(nn.Module):
    """Norm and unembedding at the end of a head: each depth's own, or the trunk's.

    DeepSeek-V3 norms with weights of its own and shares the unembedding; Gloeckle et al. 2024 share both; Medusa has
    its own unembedding, which starts as a copy of the LM head, and no norm, as it reads what the trunk's norm gave.
    """

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel, copies_lm_head: bool) -> None:
        super().__init__()
        hidden_size, vocab_size = needed(config.hidden_size), needed(config.vocab_size)
        num_depths = config.depth - 1
        num_sets = min(1, num_depths) if config.share_depths else num_depths
        self._copies_lm_head = copies_lm_head and config.head_init != "random"
        self._shared_norm: SharedNorm | None = None
        if config.output_norm == "shared":
            self._shared_norm = SharedNorm(final_norm(backbone_of(trunk)), config)
        norms = [make_norm(config.head_block, trunk) for _ in range(num_sets)] if config.output_norm == "own" else []
        self.norms = nn.ModuleList(norms)
        owns = config.unembedding == "own"
        has_bias = trunk.get_output_embeddings().bias is not None
        self.unembeddings = nn.ModuleList(
            nn.Linear(hidden_size, vocab_size, bias=has_bias) for _ in range(num_sets if owns else 0)
        )

    def norm(self, depth: int, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Return the states after the depth's norm, or as they are where there is none."""
        if self._shared_norm is not None:
            return self._shared_norm(hidden)
        return self.norms[(depth - 2) % len(self.norms)](hidden) if len(self.norms) else hidden

    def unembedding(self, depth: int) -> nn.Linear | None:
        """Return the depth's own unembedding, or None."""
        if not len(self.unembeddings):
            return None
        layer = self.unembeddings[(depth - 2) % len(self.unembeddings)]
        assert isinstance(layer, nn.Linear)
        return layer

    @torch.no_grad()
    def initialize_from(self, trunk: PreTrainedModel) -> None:
        """Copy the LM head into own unembeddings, where the family's start so."""
        lm_head = trunk.get_output_embeddings()
        for layer in self.unembeddings if self._copies_lm_head else ():
            for ours, theirs in zip(layer.parameters(), lm_head.parameters(), strict=True):
                ours.copy_(theirs)


class Head(nn.Module, ABC):
    """Heads of all depths 2 .. K. Made as ``Head(config, trunk)``; ``config`` is bound: none of its fields is None.

    A family makes ``self.output`` last: the order of its modules is the order in which their weights are drawn.
    """

    kind: ClassVar[str]
    shareable: ClassVar[bool] = False
    """Whether ``share_depths`` makes sense."""
    ignores: ClassVar[tuple[str, ...]] = ()
    """Fields of the config that the family does not read; set, they are refused (``worldmtp.heads.registry``)."""
    has_trunk_layers: ClassVar[bool] = False
    """Whether there are layers of the trunk's form, which ``head_init="copy_trunk"`` can fill."""
    copies_lm_head: ClassVar[bool] = True
    """Whether own unembeddings start as copies of the LM head, unless all weights are drawn."""
    sums_residuals: ClassVar[bool] = False
    """Whether latents before the output norm are sums that no norm has seen, as a decoder layer's output is."""
    feature_layers: tuple[int, ...] = ()

    def __init__(self, config: MTPConfig) -> None:
        super().__init__()
        self.depths = range(2, config.depth + 1)
        self.reads_pre_norm = config.hidden_stage == "pre_norm"
        self.num_sets = min(1, len(self.depths)) if config.share_depths else len(self.depths)
        """Sets of weights: one for each depth, or one for all."""
        self.drawn = config.head_init == "random"
        """Whether all weights are drawn, those that the family would start at zero or as copies too."""
        self.copies_trunk = config.head_init == "copy_trunk"
        self.output: OutputLayers

    @classmethod
    def defaults(cls, trunk_config: PreTrainedConfig) -> FamilyDefaults:
        """Return the paper's choices, for a trunk of this size."""
        return FamilyDefaults()

    def begin(self, features: TrunkFeatures) -> Float[Tensor, "batch time width"]:
        """Return what depth 2 reads of the trunk: its last hidden state, after the final norm or before it."""
        if not self.reads_pre_norm:
            return features.post_norm
        assert features.pre_norm is not None
        return features.pre_norm

    def unembedding(self, depth: int) -> nn.Linear | None:
        """Return the depth's own output layer; None where it is the trunk's LM head."""
        self.check_depth(depth)
        return self.output.unembedding(depth)

    def set_of(self, depth: int, sets: nn.ModuleList) -> nn.Module:
        """Return a depth's module of ``num_sets``.

        Raises:
            ValueError: there is no head of this depth; depth 1 is the trunk.
        """
        self.check_depth(depth)
        return sets[(depth - 2) % len(sets)]

    def check_depth(self, depth: int) -> None:
        """Raise ValueError if there is no head of this depth; depth 1 is the trunk."""
        if depth not in self.depths:
            raise ValueError(
                f"depth={depth} is not one of these heads' depths {self.depths.start} .. {self.depths.stop - 1}; "
                "depth 1 is the trunk itself, more depths need MTPConfig(depth=...)."
            )

    def initialize_from(self, trunk: nn.Module) -> None:
        """Copy into fresh heads what starts as a copy of the trunk's weights; random ones are drawn before."""
        assert isinstance(trunk, PreTrainedModel)
        self.output.initialize_from(trunk)
        for layer in self.trunk_layers() if self.copies_trunk else ():
            copy_last_layer(trunk, layer)

    def trunk_layers(self) -> list[nn.Module]:
        """Return the layers of the trunk's form, where the family ``has_trunk_layers``."""
        return []


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
    """Whether stepping on gives depths beyond K."""

    def __init__(self, config: MTPConfig) -> None:
        super().__init__(config)
        self.hidden_size = needed(config.hidden_size)
        self.recycles_pre_norm = config.recycle_stage == "pre_norm"
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
        """Return carries of one depth at positions i, from those of the depth before and the embeddings of x_{i+k-1}.

        ``attention_mask`` is True where a query may attend to a key. ``cache`` belongs to this depth alone, or to the
        branch; the new keys are appended to it, and ``key`` counts those already in it first. ``position_ids`` are
        those of i, at every depth.
        """

    def carry_width(self, depth: int) -> int:
        """Return the channels of a depth's carry, depth 1 being what ``begin`` gives."""
        return self.hidden_size

    def read(self, depth: int, carry: Float[Tensor, "batch query width"]) -> Float[Tensor, "batch query hidden"]:
        """Return the latent: what the output layer and the world heads read, so after the output norm."""
        return self.output.norm(depth, carry) if self.recycles_pre_norm else carry

    def carry_of(self, depth: int, hidden: Float[Tensor, "batch query hidden"]) -> Float[Tensor, "batch query hidden"]:
        """Return the carry made of a depth's state before its output norm."""
        return hidden if self.recycles_pre_norm else self.output.norm(depth, hidden)


class RecurrentHead(ActionConditionalHead):
    """Heads whose step is a function of (carry, token) alone."""

    @abstractmethod
    def step(
        self, depth: int, carry: Float[Tensor, "batch query width"], token_embeds: Float[Tensor, "batch query hidden"]
    ) -> Float[Tensor, "batch query new_width"]:
        """Return the carries of one depth."""

    def forward_depth(
        self,
        depth: int,
        carry: Float[Tensor, "batch query width"],
        token_embeds: Float[Tensor, "batch query hidden"],
        attention_mask: Bool[Tensor, "mask_batch 1 query key"],
        position_ids: Int[Tensor, "batch query"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch query new_width"]:
        """Return ``step``; mask, positions and cache do not matter."""
        self.check_depth(depth)
        return self.step(depth, carry, token_embeds)


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
        """Return latents of one depth from what ``begin`` gave; ``cache`` belongs to this depth alone."""


class PointwiseHead(ParallelHead):
    """Parallel heads that read one position's state alone."""

    @abstractmethod
    def transform(
        self, depth: int, trunk_hidden: Float[Tensor, "batch query width"]
    ) -> Float[Tensor, "batch query hidden"]:
        """Return a depth's states before its output norm."""

    def forward_depth(
        self,
        depth: int,
        trunk_hidden: Float[Tensor, "batch query width"],
        attention_mask: Bool[Tensor, "mask_batch 1 query key"],
        position_ids: Int[Tensor, "batch query"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch query hidden"]:
        """Return ``transform`` after the depth's norm; mask, positions and cache do not matter."""
        self.check_depth(depth)
        return self.output.norm(depth, self.transform(depth, trunk_hidden))


def head_latents(
    heads: ActionConditionalHead | ParallelHead,
    features: TrunkFeatures,
    embed_ahead: Callable[[int], Float[Tensor, "batch time hidden"]],
    allowed: Bool[Tensor, "batch 1 time time"],
    position_ids: Int[Tensor, "batch time"],
    depths: Iterable[int],
) -> dict[int, Float[Tensor, "batch time hidden"]]:
    """Return teacher-forced latents of depths over real text, every position at once; a chain makes those in between.

    Depth k at position i reads the real token x_{i+k-1}. Where that lies beyond the row or the document it reads what
    happens to stand there; nobody's target asks for it, and no other position sees it. ``embed_ahead(n)`` gives the
    embeddings of the tokens n ahead of each position.
    """
    wanted = sorted(set(depths))
    carry = heads.begin(features)
    if isinstance(heads, ParallelHead):
        return {depth: heads.forward_depth(depth, carry, allowed, position_ids) for depth in wanted}
    latents: dict[int, Tensor] = {}
    cache = DynamicCache() if heads.attention == "branch" else None
    own_branch = torch.eye(allowed.shape[-1], dtype=torch.bool, device=allowed.device)[None, None]
    mask = allowed
    for depth in range(2, max(wanted, default=1) + 1):
        if depth > 2 and heads.attention == "branch":
            mask = torch.cat([mask, own_branch.expand(mask.shape[0], -1, -1, -1)], dim=-1)
        carry = heads.forward_depth(depth, carry, embed_ahead(depth - 1), mask, position_ids, cache)
        if depth in wanted:
            latents[depth] = heads.read(depth, carry)
    return latents
