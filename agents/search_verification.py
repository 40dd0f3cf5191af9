"""Verification of what a search over heads has chosen, by one forward of the trunk over its lines; see ``search``.

The trunk reads a text once for the search and for the verification: its keys and values are kept, and the lines of all
root tokens are read behind them as a tree, as drafts are in decoding (``worldmtp.decoding.cache``).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from worldmtp.decoding.cache import CachedTexts
from worldmtp.decoding.lean import make_runner
from worldmtp.dynamics.latent import read_latent
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures
from worldmtp.search import SearchedPolicy, TurnWorldModel
from worldmtp.search.selection import QTransform
from worldmtp.search.verification import LineReading, Lines, VerifiedChoice, principal_variations, verify


@dataclass(frozen=True)
class VerifiedShare:
    """What verification has changed so far.

    Attributes:
        decisions: tokens that were chosen with it.
        overturned: the share of them for which the trunk chose another token than the search.
        q_change: mean absolute difference between the Q values of the heads' tree and those with the trunk's reading,
            over the root tokens that were verified.
    """

    decisions: int
    overturned: float
    q_change: float


class TrunkVerifier:
    """Verifies ``num_lines`` root tokens of every search; counts forwards, tokens, and what was changed.

    Raises:
        TypeError: the trunk has layers without attention, which cannot read several lines behind one text.
    """

    def __init__(self, model: MTPModel, num_lines: int) -> None:
        self._model, self._num_lines = model, num_lines
        self._runner = make_runner(model)
        self._texts: CachedTexts | None = None
        self.num_forwards = 0
        """Forwards over lines: one for each step of a batch of texts."""
        self.tokens_read = 0
        """Tokens of lines that the trunk has read."""
        self._decisions = self._overturned = self._verified = 0
        self._change = 0.0

    @property
    def share(self) -> VerifiedShare:
        """Return what was changed so far."""
        decisions, verified = max(1, self._decisions), max(1, self._verified)
        return VerifiedShare(self._decisions, self._overturned / decisions, self._change / verified)

    def begin(
        self, input_ids: Int[Tensor, "batch length"], attention_mask: Bool[Tensor, "batch length"], max_depth: int
    ) -> TrunkFeatures:
        """Read texts, and keep what lines of ``max_depth`` tokens are to be read behind; return the texts' features."""
        capacity = input_ids.shape[1] + self._num_lines * max_depth
        self._texts = CachedTexts(self._runner, self._model.trunk.config, capacity, self._model.device)
        return self._texts.prefill(input_ids, attention_mask)

    def verified(
        self,
        rule: str,
        found: SearchedPolicy,
        room: Int[Tensor, " batch"],
        world_model: TurnWorldModel,
        gamma: float,
        q_transform: QTransform,
    ) -> SearchedPolicy:
        """Return the search with the actions that the trunk's reading of its lines leads to.

        ``room`` is how many tokens each text may still take; ``world_model`` says which of them are ends.
        """
        lines = principal_variations(found, self._num_lines)
        choice = verify(rule, found, lines, self._read(lines, room, world_model, gamma), q_transform)
        self._count(choice)
        return replace(found, actions=choice.actions)

    def _read(
        self, lines: Lines, room: Int[Tensor, " batch"], world_model: TurnWorldModel, gamma: float
    ) -> LineReading:
        assert self._texts is not None  # begun
        batch, num_lines, length = lines.tokens.shape
        steps = torch.arange(num_lines * length, device=lines.tokens.device)
        number, depth = steps // length, steps % length
        ancestors = (number[:, None] == number) & (depth[:, None] >= depth)
        tokens = torch.where(lines.is_place, lines.tokens, 0).flatten(1)  # what fills lines up is read and left alone
        features = self._texts.forward(tokens, depth, ancestors)
        self.num_forwards += 1
        self.tokens_read += int(lines.is_place.sum())
        said = read_latent(self._model, features.post_norm.flatten(0, 1), with_logits=False)
        left = (room[:, None] - 1 - depth).flatten()
        said = world_model.at_ends(said, tokens.flatten(), left)
        shape = (batch, num_lines, length)
        return LineReading(
            rewards=said.reward.reshape(shape),
            discounts=gamma * said.continuation.reshape(shape),
            values=said.value.reshape(shape),
        )

    def _count(self, choice: VerifiedChoice) -> None:
        self._decisions += len(choice.actions)
        self._overturned += int(choice.is_overturned.sum())
        self._verified += int(choice.is_line.sum())
        self._change += float(choice.q_change.abs().sum())
