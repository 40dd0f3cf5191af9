"""What decoding a batch gave: the texts, their log-probabilities, and what it took."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class DecodingOutput:
    """Prompts and what follows them, with its account.

    Attributes:
        sequences: the prompts as they were given, then the new tokens, then padding.
        lengths: new tokens of each row, the one that ended it included.
        logprobs: of the new tokens under the policy that was asked for; zero past the end.
        num_trunk_forwards: over the whole batch, the prompts' included.
        num_rounds: rounds that each row took part in, the prompts' forward left out.
        drafted_per_depth: how often, over rows and rounds, a first, second, .. token ahead was drafted; the candidates
            of a tree for one token count once.
        accepted_per_depth: and how often one for it, and for all before it, was accepted.
    """

    sequences: Int[Tensor, "row time"]
    lengths: Int[Tensor, " row"]
    logprobs: Float[Tensor, "row new"]
    num_trunk_forwards: int
    num_rounds: Int[np.ndarray, " row"]
    drafted_per_depth: Int[np.ndarray, " ahead"]
    accepted_per_depth: Int[np.ndarray, " ahead"]

    @property
    def tokens_per_forward(self) -> float:
        """New tokens a row got from a round, on average; what the prompts' forward gave is not counted."""
        rounds = int(self.num_rounds.sum())
        return float((self.lengths - 1).sum()) / rounds if rounds else float("nan")
