"""What a token earns and whether it ends the text: one class for each kind of task.

* ``AnswerRewards``: nothing until the answer is over, then its score.
* ``ProgressRewards``: the difference that each token of a dense task makes.
* ``TurnRewards``: what a world pays for a turn. It answers in the same row::

    prompt | policy EOS | reply | policy EOS | reply | ...          EOS ends a turn, the world ends the episode

The rewards of an episode add up to the score of its record, whichever class it was. A step that raises changes
nothing here.

A turn is over with EOS or after ``max_turn`` tokens. Its text goes to the world, the reply's tokens into the row, and
the reward to the token that ended the turn. A row that is full is truncated, and an unfinished turn is not played; of
a reply that does not fit the row keeps what does. With ``truncation_score="zero"`` a truncated conversation is worth
nothing, and its last token gives back what was paid. A reply without tokens of its own, a character outside the
tokenizer, is an error of the world like one that it raises.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from worldmtp.envs.rows import Columns, TextRows
from worldmtp.envs.scoring import Failure, Scorer
from worldmtp.envs.task import DenseTask, Example, Reply, Score, Task, TurnTask, clamp_return, is_full_return
from worldmtp.envs.tokenizer import NO_TEXT, Tokenizer, alphabet_error, written_text

Examples = Shaped[np.ndarray, " row"]
"""The question of each row."""


@dataclass(frozen=True)
class RewardRules:
    """What rewards depend on: ``max_new`` is the room behind a prompt, ``max_steps`` what a policy may write of it."""

    tokenizer: Tokenizer
    scorer: Scorer
    max_new: int
    max_steps: int
    truncation_score: str
    max_turn: int | None = None


@dataclass(frozen=True)
class StepResult:
    """A step as it came out. ``records`` are of the rows that ended, in order; ``replies`` of rows with a reply."""

    rewards: Float64[np.ndarray, " row"]
    terminated: Bool[np.ndarray, " row"]
    truncated: Bool[np.ndarray, " row"]
    records: Columns = field(default_factory=dict)
    replies: Mapping[int, dict[str, Any]] = field(default_factory=dict)


class AnswerRewards:
    """Pays the score when the answer is over: EOS terminates it, the budget truncates it.

    ``eos_terminates`` says whether EOS ends the text and nothing else but the budget does, and ``kind`` is the name
    that snapshots have had from the first.
    """

    kind = "AnswerReferee"
    eos_terminates = True

    def __init__(self, rules: RewardRules, num_rows: int, width: int) -> None:
        self.rules = rules
        self.paid: Float64[np.ndarray, " row"] = np.zeros(num_rows)
        """What each episode under way has earned."""

    def begin(self, rows: Int64[np.ndarray, " begun"], prompt_length: Int64[np.ndarray, " begun"]) -> None:
        """Begin new episodes in these rows, whose prompts are so long."""
        self.paid[rows] = 0.0

    def step(
        self, rows: TextRows, live: Bool[np.ndarray, " row"], actions: Int64[np.ndarray, " row"], examples: Examples
    ) -> StepResult:
        """Return what the actions, which stand in the rows already, earn and end.

        Of the rows it changes those that a world replies in, and nothing else.
        """
        terminated, truncated = rows.ends(live, actions, self.rules.tokenizer.eos_id, self.rules.max_steps)
        rewards = np.zeros(len(actions))
        ended = (terminated | truncated).nonzero()[0]
        if not len(ended):
            return StepResult(rewards, terminated, truncated)
        records = score_answers(self.rules, rows, ended, truncated, examples)
        rewards[ended] = records["score"]
        return StepResult(rewards, terminated, truncated, records)

    def state(self) -> dict[str, Any]:
        """Return what a snapshot of the environment needs, JSON-able."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a snapshot."""


class ProgressRewards(AnswerRewards):
    """Pays what each token adds; EOS and the task terminate, the budget truncates.

    A token whose progress cannot be had earns nothing.
    """

    kind = "ProgressReferee"
    eos_terminates = False

    def step(
        self, rows: TextRows, live: Bool[np.ndarray, " row"], actions: Int64[np.ndarray, " row"], examples: Examples
    ) -> StepResult:
        """Return what the actions add and end."""
        rules = self.rules
        terminated, truncated = rows.ends(live, actions, rules.tokenizer.eos_id, rules.max_steps)
        rewards, paid = np.zeros(len(actions)), self.paid.copy()
        going_on = np.flatnonzero(live & ~terminated).tolist()
        responses = [rows.response(row).copy() for row in going_on]
        texts = [written_text(rules.tokenizer, response.tolist()) for response in responses]
        answers = list(zip(examples[going_on].tolist(), texts, responses, strict=True))
        for row, progress in zip(going_on, rules.scorer.progress_batch(answers), strict=True):
            if isinstance(progress, Failure):
                continue
            rewards[row] = progress.value - paid[row]
            paid[row] = progress.value
            terminated[row] = progress.ended
        truncated &= ~terminated
        ended = (terminated | truncated).nonzero()[0]
        records: Columns = {}
        if len(ended):
            records = score_answers(rules, rows, ended, truncated, examples)
            rewards[ended] += np.array(records["score"]) - paid[ended]
        self.paid = paid
        return StepResult(rewards, terminated, truncated, records)

    def state(self) -> dict[str, Any]:
        """Return what was paid."""
        return {"paid": self.paid.tolist()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.paid = np.array(state["paid"], dtype=np.float64)


class TurnRewards(AnswerRewards):
    """Lets worlds answer the turns that are over, and pays what they pay; keeps what was said, and by whom."""

    kind = "TurnReferee"
    eos_terminates = False

    def __init__(self, rules: RewardRules, num_rows: int, width: int) -> None:
        super().__init__(rules, num_rows, width)
        self.said: list[list[str]] = [[] for _ in range(num_rows)]
        self.turn_start: Int64[np.ndarray, " row"] = np.zeros(num_rows, dtype=np.int64)
        self.acted: Bool[np.ndarray, "row width"] = np.zeros((num_rows, width), dtype=bool)
        """Which tokens the policy wrote; ``num_acted`` counts them."""
        self.num_acted: Int64[np.ndarray, " row"] = np.zeros(num_rows, dtype=np.int64)

    def begin(self, rows: Int64[np.ndarray, " begun"], prompt_length: Int64[np.ndarray, " begun"]) -> None:
        """Begin new conversations in these rows; the first turns start behind the prompts."""
        super().begin(rows, prompt_length)
        for row in rows.tolist():
            self.said[row] = []
        self.turn_start[rows] = prompt_length
        self.acted[rows] = False
        self.num_acted[rows] = 0

    def step(
        self, rows: TextRows, live: Bool[np.ndarray, " row"], actions: Int64[np.ndarray, " row"], examples: Examples
    ) -> StepResult:
        """Return what worlds reply to the turns that are over, pay and end; the replies are written into the rows."""
        rules = self.rules
        is_over = live & (actions == rules.tokenizer.eos_id)
        if rules.max_turn is not None:
            is_over |= live & (rows.length - self.turn_start >= rules.max_turn)
        over = np.flatnonzero(is_over).tolist()
        answers = self._answers(rows, over, examples)
        acting = np.flatnonzero(live)
        self.acted[acting, rows.length[acting] - 1] = True
        self.num_acted[acting] += 1
        rewards = np.zeros(len(actions))
        terminated, truncated = np.zeros_like(live), np.zeros_like(live)
        told: dict[int, dict[str, Any]] = {}
        replies: dict[int, dict[str, Any]] = {}
        for row, (said, answered) in zip(over, answers, strict=True):
            self.said[row].append(said)
            if isinstance(answered, Failure):
                terminated[row], told[row] = True, {"reason": answered.reason}
                continue
            reply, ids = answered
            terminated[row], truncated[row] = reply.terminated, reply.truncated
            paid = float(self.paid[row])
            self.paid[row] = total = clamp_return(paid + reply.reward)
            rewards[row] = reply.reward if total == paid + reply.reward else total - paid
            told[row] = {"reason": str(reply.info.get("reason", "truncated" if reply.truncated else "ok"))}
            if "is_success" in reply.info:
                told[row]["exact"] = bool(reply.info["is_success"])
            written = ids[: int(rows.prompt_length[row]) + rules.max_new - int(rows.length[row])]
            rows.write(row, written)
            replies[row] = {"reply": reply.text, "num_written": len(written), "reply_info": dict(reply.info)}
            self.turn_start[row] = rows.length[row]
        is_full = rows.length - rows.prompt_length >= rules.max_new
        is_full |= self.num_acted >= rules.max_steps
        truncated |= live & is_full & ~terminated
        if rules.truncation_score == "zero":
            rewards[truncated] -= self.paid[truncated]
            self.paid[truncated] = 0.0
        records = [
            self._record(rows, row, bool(truncated[row]), told.get(row, {}))
            | replies.get(row, {"reply": "", "num_written": 0, "reply_info": {}})
            for row in (terminated | truncated).nonzero()[0].tolist()
        ]
        columns = {key: [record[key] for record in records] for key in records[0]} if records else {}
        return StepResult(rewards, terminated, truncated, columns, replies)

    def state(self) -> dict[str, Any]:
        """Return what was said and paid, and who wrote what."""
        return {
            "said": [list(texts) for texts in self.said],
            "returns": self.paid.tolist(),
            "turn_start": self.turn_start.tolist(),
            "acted": self.acted.tolist(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there; worlds are told again what was said when they are next asked."""
        self.said = [list(texts) for texts in state["said"]]
        self.paid = np.array(state["returns"], dtype=np.float64)
        self.turn_start = np.array(state["turn_start"], dtype=np.int64)
        self.acted = np.array(state["acted"], dtype=bool)
        self.num_acted = self.acted.sum(axis=1)

    def _answers(
        self, rows: TextRows, over: Sequence[int], examples: Examples
    ) -> list[tuple[str, tuple[Reply, list[int]] | Failure]]:
        """Return, for each row whose turn is over, what was said, and the reply with its ids or a failure."""
        tokenizer, scorer = self.rules.tokenizer, self.rules.scorer
        asked: list[tuple[int, Example, list[str]]] = []
        for row in over:
            turn = rows.response(row, int(self.turn_start[row]))
            asked.append((row, examples[row], [*self.said[row], written_text(tokenizer, turn.tolist()).strip()]))
        answers: list[tuple[str, tuple[Reply, list[int]] | Failure]] = []
        for (_, example, said), reply in zip(asked, scorer.turn_batch(asked), strict=True):
            if isinstance(reply, Failure):
                answers.append((said[-1], reply))
                continue
            reply = in_own_words(reply, said)
            try:
                answers.append((said[-1], (reply, tokenizer.encode(reply.text))))
            except ValueError as error:
                cause = alphabet_error(tokenizer, [reply.text]) or error  # with what to do
                answers.append((said[-1], scorer.reject(cause, example, said[-1])))
        return answers

    def _record(self, rows: TextRows, row: int, truncated: bool, told: Mapping[str, Any]) -> dict[str, Any]:
        score, reason = float(self.paid[row]), told.get("reason", "ok")
        return {
            "text": written_text(self.rules.tokenizer, rows.response(row).tolist()),
            "score": score,
            "exact": told.get("exact", is_full_return(score)),
            "components": {"num_turns": float(len(self.said[row]))},
            "reason": "no_eos" if truncated and reason == "ok" else reason,
            "num_tokens": int(self.num_acted[row]),
            "acted": self.acted[row].copy(),
        }


def in_own_words(reply: Reply, said: Sequence[str]) -> Reply:
    """Return a reply without what is no text, if that was said: a world would be blamed for what it was told."""
    if any(NO_TEXT in text for text in said):
        return replace(reply, text=reply.text.replace(NO_TEXT, ""))
    return reply


def make_rewards(task: Task, rules: RewardRules, num_rows: int, width: int) -> AnswerRewards:
    """Return what pays so many rows of a task of its kind."""
    if isinstance(task, TurnTask):
        return TurnRewards(rules, num_rows, width)
    return (ProgressRewards if isinstance(task, DenseTask) else AnswerRewards)(rules, num_rows, width)


def score_answers(
    rules: RewardRules,
    rows: TextRows,
    ended: Int64[np.ndarray, " ended"],
    truncated: Bool[np.ndarray, " row"],
    examples: Examples,
) -> dict[str, list[Any]]:
    """Return the records of rows that have ended: text, score, exact, components, reason and num_tokens."""
    responses = [rows.response(row).copy() for row in ended.tolist()]
    ran_out = truncated[ended].tolist()
    texts, scores = score_responses(rules, examples[ended].tolist(), responses, ran_out)
    return {
        "text": texts,
        "score": [float(score.value) for score in scores],
        "exact": [bool(score.exact) for score in scores],
        "components": [{name: float(value) for name, value in score.components.items()} for score in scores],
        "reason": [
            "no_eos" if out and score.reason == "ok" else score.reason
            for score, out in zip(scores, ran_out, strict=True)
        ],
        "num_tokens": [len(response) for response in responses],
    }


def score_responses(
    rules: RewardRules,
    examples: Sequence[Example],
    responses: Sequence[Int64[np.ndarray, " _"]],
    ran_out: Sequence[bool],
) -> tuple[list[str], list[Score]]:
    """Return the text and the score of each response; those that ran out of budget by ``truncation_score``."""
    texts = [written_text(rules.tokenizer, response.tolist()) for response in responses]
    answers = list(zip(examples, texts, responses, strict=True))
    if rules.truncation_score == "score":
        return texts, rules.scorer.score_batch(answers)
    paid = iter(rules.scorer.score_batch([a for a, out in zip(answers, ran_out, strict=True) if not out]))
    return texts, [Score(0.0, reason="no_eos") if out else next(paid) for out in ran_out]
