"""Who says what a token earns and whether it ends the text: one referee follows all rows of an environment.

A referee is told of every row that begins, and rules on every step. The rewards of an episode add up to the score of
its record, whichever referee it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from worldmtp.envs import core
from worldmtp.envs.core import TextState
from worldmtp.envs.infos import Columns
from worldmtp.envs.scoring import Failure, Scorer
from worldmtp.envs.task import Score
from worldmtp.envs.tokenizer import Tokenizer, written_text


@dataclass(frozen=True)
class Rules:
    """What a referee rules by: ``max_new`` is the room behind a prompt, ``max_steps`` what a policy may write of it.

    ``first_row`` is the number of the referee's first row among all rows that share the scorer.
    """

    tokenizer: Tokenizer
    scorer: Scorer
    max_new: int
    max_steps: int
    truncation_score: str
    max_turn: int | None = None
    first_row: int = 0


@dataclass(frozen=True)
class Ruling:
    """A step as it came out. ``records`` are of the rows that ended, in order; ``replies`` of rows that were told."""

    state: TextState
    rewards: Float64[np.ndarray, " row"]
    terminated: Bool[np.ndarray, " row"]
    truncated: Bool[np.ndarray, " row"]
    records: Columns = field(default_factory=dict)
    replies: Mapping[int, dict[str, Any]] = field(default_factory=dict)


@runtime_checkable
class Referee(Protocol):
    """Rules on the steps of rows."""

    eos_terminates: bool
    """Whether EOS ends the text, and nothing else but the budget does."""

    def begin(self, rows: Int64[np.ndarray, " begun"], state: TextState) -> None:
        """These rows have been given a prompt."""
        ...

    def rule(
        self,
        before: TextState,
        after: TextState,
        actions: Int64[np.ndarray, " row"],
        examples: Shaped[np.ndarray, " row"],
    ) -> Ruling:
        """On the step that led from ``before`` to ``after``, a state that the referee may take over."""
        ...

    def state(self) -> dict[str, Any]:
        """What a snapshot of the environment needs of it, JSON-able."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a snapshot."""
        ...


class AnswerReferee:
    """Nothing until the answer is over, then its score: of a ``Task``."""

    eos_terminates = True

    def __init__(self, rules: Rules, num_rows: int) -> None:
        self._rules = rules

    def begin(self, rows: Int64[np.ndarray, " begun"], state: TextState) -> None:
        """Nothing: an answer is judged by itself."""

    def rule(
        self,
        before: TextState,
        after: TextState,
        actions: Int64[np.ndarray, " row"],
        examples: Shaped[np.ndarray, " row"],
    ) -> Ruling:
        """EOS terminates, the budget truncates."""
        terminated, truncated = core.terminal(
            before, after, actions, self._rules.tokenizer.eos_id, self._rules.max_steps
        )
        rewards = np.zeros(len(actions))
        rows = np.flatnonzero(terminated | truncated)
        if not len(rows):
            return Ruling(after, rewards, terminated, truncated)
        state = core.ended(after, rows)
        records = judge(self._rules, state, rows, truncated, examples)
        rewards[rows] = records["score"]
        return Ruling(state, rewards, terminated, truncated, records)

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


class ProgressReferee:
    """The difference that each token makes: of a ``DenseTask``."""

    eos_terminates = False

    def __init__(self, rules: Rules, num_rows: int) -> None:
        self._rules = rules
        self._paid = np.zeros(num_rows)

    def begin(self, rows: Int64[np.ndarray, " begun"], state: TextState) -> None:
        """Nothing has been paid."""
        self._paid[rows] = 0.0

    def rule(
        self,
        before: TextState,
        after: TextState,
        actions: Int64[np.ndarray, " row"],
        examples: Shaped[np.ndarray, " row"],
    ) -> Ruling:
        """EOS and the task terminate, the budget truncates; a token whose progress cannot be told earns nothing."""
        rules = self._rules
        terminated, truncated = core.terminal(before, after, actions, rules.tokenizer.eos_id, rules.max_steps)
        rewards = np.zeros(len(actions))
        live = np.flatnonzero(~before.done & ~terminated).tolist()
        responses = [after.tokens[row, after.prompt_length[row] : after.length[row]].copy() for row in live]
        texts = [written_text(rules.tokenizer, response.tolist()) for response in responses]
        answers = list(zip(examples[live].tolist(), texts, responses, strict=True))
        for row, progress in zip(live, rules.scorer.progress_batch(answers), strict=True):
            if isinstance(progress, Failure):
                continue
            rewards[row] = progress.value - self._paid[row]
            self._paid[row] = progress.value
            terminated[row] = progress.ended
        truncated &= ~terminated
        rows = np.flatnonzero(terminated | truncated)
        if not len(rows):
            return Ruling(after, rewards, terminated, truncated)
        state = core.ended(after, rows)
        records = judge(rules, state, rows, truncated, examples)
        rewards[rows] += np.array(records["score"]) - self._paid[rows]
        return Ruling(state, rewards, terminated, truncated, records)

    def state(self) -> dict[str, Any]:
        """What was paid."""
        return {"paid": self._paid.tolist()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._paid = np.array(state["paid"], dtype=np.float64)


def judge(
    rules: Rules,
    state: TextState,
    rows: Int64[np.ndarray, " ended"],
    truncated: Bool[np.ndarray, " row"],
    examples: Shaped[np.ndarray, " row"],
) -> dict[str, list[Any]]:
    """What is to be told of rows that have ended: text, score, exact, components, reason and num_tokens."""
    starts, stops = state.prompt_length[rows].tolist(), state.length[rows].tolist()
    block = state.tokens[rows]
    responses = [tokens[start:stop] for tokens, start, stop in zip(block, starts, stops, strict=True)]
    texts = [written_text(rules.tokenizer, response.tolist()) for response in responses]
    ran_out = truncated[rows].tolist()
    answers = list(zip(examples[rows].tolist(), texts, responses, strict=True))
    if rules.truncation_score == "score":
        scores = rules.scorer.score_batch(answers)
    else:
        paid = iter(rules.scorer.score_batch([a for a, out in zip(answers, ran_out, strict=True) if not out]))
        scores = [Score(0.0, reason="no_eos") if out else next(paid) for out in ran_out]
    return {
        "text": texts,
        "score": [float(score.value) for score in scores],
        "exact": [bool(score.exact) for score in scores],
        "components": [{name: float(value) for name, value in score.components.items()} for score in scores],
        "reason": [
            "no_eos" if out and score.reason == "ok" else score.reason
            for score, out in zip(scores, ran_out, strict=True)
        ],
        "num_tokens": [stop - start for start, stop in zip(starts, stops, strict=True)],
    }
