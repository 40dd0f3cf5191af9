"""Which tokens the heads learn to predict, of those that a trainer's batch holds.

    policy       what the trainer's own loss is about: labelled tokens; of a pair, the chosen ones; in RL, those sampled
    completion   everything from a text's first labelled token on, what a world or a tool replied included
    observation  what was replied: of the completion, what is not the policy's
    all          the prompt too

The first token of a text is nobody's target. Texts are rows, or documents packed into one where positions restart.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from worldmtp.model import IGNORE_INDEX
from worldmtp.model.trunk import document_ids_from_position_ids, real_tokens

TOKEN_SETS = ("policy", "completion", "observation", "all")


@dataclass(frozen=True)
class TokenChoice:
    """A choice of tokens in one batch.

    Attributes:
        kind: one of ``TOKEN_SETS``.
        policy_mask: which tokens are the policy's; None: those that have a label.
        rows: which rows are learnt from at all; None: all of them.
    """

    kind: str = "policy"
    policy_mask: Bool[Tensor, "batch time"] | None = None
    rows: Bool[Tensor, " batch"] | None = None

    def labels(
        self,
        input_ids: Int[Tensor, "batch time"],
        labels: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "batch time"] | None = None,
        position_ids: Int[Tensor, "_ time"] | None = None,
    ) -> Int[Tensor, "batch time"]:
        """Return Hugging Face's labels for the heads: the token itself where it is to be learnt, -100 elsewhere.

        Raises:
            ValueError: the mask or the rows are of another batch.
        """
        self._check(input_ids)
        if self.kind == "policy" and self.policy_mask is None:
            chosen = labels
        else:
            mask = self._mask(input_ids, labels, attention_mask, position_ids)
            chosen = torch.where(mask, input_ids, IGNORE_INDEX)
        return chosen if self.rows is None else chosen.masked_fill(~self.rows[:, None], IGNORE_INDEX)

    def _mask(
        self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> Tensor:
        real, labelled = real_tokens(input_ids, attention_mask), labels != IGNORE_INDEX
        if self.policy_mask is not None and self.kind == "policy":
            return self.policy_mask & real
        starts = text_starts(real, position_ids)
        learnt = real & ~starts
        if self.kind == "all":
            return learnt
        # How many labels there were before each text: a text's completion begins at its first one.
        seen = labelled.long().cumsum(dim=1)
        before = torch.where(starts, seen - labelled.long(), 0).cummax(dim=1).values
        completion = learnt & (seen > before)
        if self.kind == "completion":
            return completion
        return completion & ~(labelled if self.policy_mask is None else self.policy_mask)

    def _check(self, input_ids: Tensor) -> None:
        shape = tuple(input_ids.shape)
        for name, value, expected in (("policy_mask", self.policy_mask, shape), ("rows", self.rows, shape[:1])):
            if value is not None and tuple(value.shape) != expected:
                raise ValueError(
                    f"{name} has the shape {tuple(value.shape)} and the forward's batch {shape}: TRL ran another batch "
                    "than it was given, so which tokens the heads may learn is not known. Report this version of TRL."
                )


def text_starts(
    real: Bool[Tensor, "batch time"], position_ids: Int[Tensor, "_ time"] | None
) -> Bool[Tensor, "batch time"]:
    """Return where a text begins: at a row's first real token, after padding, and where positions restart."""
    starts = real.clone()
    starts[:, 1:] &= ~real[:, :-1]
    if position_ids is not None:
        document_ids = document_ids_from_position_ids(position_ids.expand(real.shape))
        starts[:, 1:] |= real[:, 1:] & (document_ids[:, 1:] != document_ids[:, :-1])
    return starts


def num_targets(labels: Int[Tensor, "batch time"]) -> Int[Tensor, ""]:
    """Return how many tokens depth 1 would predict: a row's first has nothing before it."""
    return (labels[:, 1:] != IGNORE_INDEX).sum()
