"""What the policy's states are really worth: every answer that it might write, weighed by its probability and scored.

In a world whose answers can be enumerated (``env=tiny_enum``) a return need not be drawn: with p the policy as it acts,

    V(s) = sum_a p(a | s) Q(s, a)        Q(s, a) = score of the answer, if a ends it, else gamma V(s a)

exact but for tokens below ``LEAST`` of probability, whose answers are left out and count 0; how much that may be is
told. So imagined returns can be held against values and not against one draw each: no noise ceiling stands between.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from worldmtp.analysis import EvalArtefact
from worldmtp.decoding.trunk import evaluation_mode
from worldmtp.model import MTPModel
from worldmtp.model.precision import full_precision

LEAST = 1e-4
MAX_ANSWERS = 512
"""Answers of one length that a prompt may have, for them to be enumerated."""

Answer = tuple[int, ...]
NextToken = Callable[[Sequence[Answer]], Float[Tensor, "prefix vocab"]]


@dataclass(frozen=True)
class StateValues:
    """Values of the states along one answer, the first before any token; ``missing`` bounds what was left out."""

    values: Float[np.ndarray, " state"]
    missing: float


def values_along(
    next_token: NextToken,
    score: Callable[[Answer], float],
    answer: Answer,
    eos_id: int,
    max_new: int,
    gamma: float,
    least: float = LEAST,
) -> StateValues:
    """Return V of each state in which the policy chose a token of ``answer``.

    Args:
        next_token: the policy's probabilities of the next token, behind answers of one length so far.
        score: what a finished answer is worth, in [0, 1].
        answer: that was written; its states are kept however improbable they are.
        eos_id: ends an answer.
        max_new: tokens that end it in any case.
        gamma: discount per token.
        least: probability below which a token is left out.
    """
    written = {answer[:place]: token for place, token in enumerate(answer)}
    levels: list[dict[Answer, dict[int, float]]] = []
    open_answers: list[Answer] = [()]
    while open_answers:
        laws = zip(open_answers, next_token(open_answers), strict=True)
        levels.append({prefix: _kept(law, written.get(prefix), least) for prefix, law in laws})
        open_answers = [
            (*prefix, token)
            for prefix, kept in levels[-1].items()
            for token in kept
            if token != eos_id and len(prefix) + 1 < max_new
        ]
    values: dict[Answer, float] = {}
    missing: dict[Answer, float] = {}
    for level in reversed(levels):
        for prefix, kept in level.items():
            values[prefix], missing[prefix] = 0.0, max(0.0, 1 - sum(kept.values()))
            for token, chance in kept.items():
                longer = (*prefix, token)
                values[prefix] += chance * (gamma * values[longer] if longer in values else score(longer))
                missing[prefix] += chance * missing.get(longer, 0.0)
    along = [answer[:length] for length in range(len(answer))]
    return StateValues(np.array([values[prefix] for prefix in along]), max(missing[prefix] for prefix in along))


def _kept(law: Float[Tensor, " vocab"], written: int | None, least: float) -> dict[int, float]:
    """Return the chances of the tokens that are not too improbable, and of the one that was written."""
    tokens = set((law >= least).nonzero()[:, 0].tolist()) | ({written} if written is not None else set())
    return {token: float(law[token]) for token in sorted(tokens)}


@torch.no_grad()
def exact_state_values(
    model: MTPModel,
    artefact: EvalArtefact,
    score: Callable[[int, Int64[np.ndarray, " tokens"]], float],
    eos_id: int,
    max_new: int,
    temperature: float,
    gamma: float,
    num_rows: int,
) -> tuple[Float[np.ndarray, "row length"], float]:
    """Return V at each state of the first sampled answers, in the places of ``imagined_return``; NaN elsewhere.

    ``score`` is given the row and the answer's tokens. The second number bounds what was left out.
    """
    found, missing = np.full(artefact.input_ids[:num_rows].shape, np.nan), 0.0
    with evaluation_mode(model):
        for row in range(len(found)):
            start, length = int(artefact.prompt_length[row]), int(artefact.attention_mask[row].sum())
            prompt = torch.from_numpy(artefact.input_ids[row, :start]).long()
            written = tuple(artefact.input_ids[row, start:length].tolist())

            def next_token(prefixes: Sequence[Answer], prompt: Tensor = prompt) -> Tensor:
                tails = torch.tensor(prefixes, dtype=torch.long).view(len(prefixes), -1)
                texts = torch.cat([prompt.expand(len(prefixes), -1), tails], dim=1).to(model.device)
                logits = model(texts, compute_depth_logits=False).logits[:, -1]
                return (full_precision(logits).double() / temperature).softmax(dim=-1).cpu()

            def worth(answer: Answer, row: int = row) -> float:
                return score(row, np.array(answer, dtype=np.int64))

            along = values_along(next_token, worth, written, eos_id, max_new, gamma)
            found[row, start - 1 : length - 1] = along.values
            missing = max(missing, along.missing)
    return found, missing
