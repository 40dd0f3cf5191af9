"""What a token earns and whether it ends the text: one function for each kind of task, all of one signature.

* ``answer_rewards``: nothing until the answer is over, then its score.
* ``progress_rewards``: the difference that each token of a dense task makes.
* ``turn_rewards``: what a world pays for a turn. It answers in the same row::

    prompt | policy EOS | reply | policy EOS | reply | ...          EOS ends a turn, the world ends the episode

The rewards of an episode add up to the score of its record, whichever function it was. A step that raises changes
nothing here.

A turn is over with EOS or after ``max_turn`` tokens. Its text goes to the world, the reply's tokens into the row, and
the reward to the token that ended the turn. A row that is full is truncated, and an unfinished turn is not played; of
a reply that does not fit the row keeps what does. With ``truncation_score="zero"`` a truncated conversation is worth
nothing, and its last token gives back what was paid. A reply without tokens of its own, a character outside the
tokenizer, is an error of the world like one that it raises.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from worldmtp.envs.rows import Columns, TextRows
from worldmtp.envs.scoring import Failure, Scorer
from worldmtp.envs.task import DenseTask, Example, Reply, Score, Task, TurnTask, clamp_return, is_full_return
from worldmtp.envs.tokenizer import NO_TEXT, Tokenizer, written_text


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


class Ledger:
    """What is kept of the episodes under way: what was paid, and of conversations who wrote what.

    ``acted`` says which tokens the policy wrote; it has no columns where nobody else writes.
    """

    def __init__(self, num_rows: int, width: int) -> None:
        self.paid: Float64[np.ndarray, " row"] = np.zeros(num_rows)
        self.said: list[list[str]] = [[] for _ in range(num_rows)]
        self.turn_start: Int64[np.ndarray, " row"] = np.zeros(num_rows, dtype=np.int64)
        self.acted: Bool[np.ndarray, "row width"] = np.zeros((num_rows, width), dtype=bool)
        self.num_acted: Int64[np.ndarray, " row"] = np.zeros(num_rows, dtype=np.int64)

    def begin(self, rows: Int64[np.ndarray, " begun"], turn_start: Int64[np.ndarray, " begun"]) -> None:
        """Begin new episodes in these rows, whose prompts end at ``turn_start``."""
        self.paid[rows] = 0.0
        for row in rows.tolist():
            self.said[row] = []
        self.turn_start[rows] = turn_start
        self.acted[rows] = False
        self.num_acted[rows] = 0


RewardFunction = Callable[
    [
        RewardRules,
        Ledger,
        TextRows,
        Bool[np.ndarray, " row"],
        Int64[np.ndarray, " row"],
        Shaped[np.ndarray, " row"],
    ],
    StepResult,
]
"""From the rules, the ledger, the rows with this step's tokens, the rows that were live, the actions and the examples.

Of the rows it changes those that a world replies in, and nothing else.
"""


def answer_rewards(
    rules: RewardRules,
    ledger: Ledger,
    rows: TextRows,
    live: Bool[np.ndarray, " row"],
    actions: Int64[np.ndarray, " row"],
    examples: Shaped[np.ndarray, " row"],
) -> StepResult:
    """Pay the score when the answer is over: EOS terminates it, the budget truncates it."""
    terminated, truncated = rows.ends(live, actions, rules.tokenizer.eos_id, rules.max_steps)
    rewards = np.zeros(len(actions))
    ended = (terminated | truncated).nonzero()[0]
    if not len(ended):
        return StepResult(rewards, terminated, truncated)
    records = score_answers(rules, rows, ended, truncated, examples)
    rewards[ended] = records["score"]
    return StepResult(rewards, terminated, truncated, records)


def progress_rewards(
    rules: RewardRules,
    ledger: Ledger,
    rows: TextRows,
    live: Bool[np.ndarray, " row"],
    actions: Int64[np.ndarray, " row"],
    examples: Shaped[np.ndarray, " row"],
) -> StepResult:
    """Pay what each token adds; EOS and the task terminate, the budget truncates.

    A token whose progress cannot be had earns nothing.
    """
    terminated, truncated = rows.ends(live, actions, rules.tokenizer.eos_id, rules.max_steps)
    rewards, paid = np.zeros(len(actions)), ledger.paid.copy()
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
    ledger.paid = paid
    return StepResult(rewards, terminated, truncated, records)


def turn_rewards(
    rules: RewardRules,
    ledger: Ledger,
    rows: TextRows,
    live: Bool[np.ndarray, " row"],
    actions: Int64[np.ndarray, " row"],
    examples: Shaped[np.ndarray, " row"],
) -> StepResult:
    """Let worlds answer the turns that are over, and pay what they pay."""
    is_over = live & (actions == rules.tokenizer.eos_id)
    if rules.max_turn is not None:
        is_over |= live & (rows.length - ledger.turn_start >= rules.max_turn)
    over = np.flatnonzero(is_over).tolist()
    answers = _answers(rules, ledger, rows, over, examples)
    acting = np.flatnonzero(live)
    ledger.acted[acting, rows.length[acting] - 1] = True
    ledger.num_acted[acting] += 1
    rewards = np.zeros(len(actions))
    terminated, truncated = np.zeros_like(live), np.zeros_like(live)
    told: dict[int, dict[str, Any]] = {}
    replies: dict[int, dict[str, Any]] = {}
    for row, (said, answered) in zip(over, answers, strict=True):
        ledger.said[row].append(said)
        if isinstance(answered, Failure):
            terminated[row], told[row] = True, {"reason": answered.reason}
            continue
        reply, ids = answered
        terminated[row], truncated[row] = reply.terminated, reply.truncated
        paid = float(ledger.paid[row])
        ledger.paid[row] = total = clamp_return(paid + reply.reward)
        rewards[row] = reply.reward if total == paid + reply.reward else total - paid
        told[row] = {"reason": str(reply.info.get("reason", "truncated" if reply.truncated else "ok"))}
        if "is_success" in reply.info:
            told[row]["exact"] = bool(reply.info["is_success"])
        written = ids[: int(rows.prompt_length[row]) + rules.max_new - int(rows.length[row])]
        rows.write(row, written)
        replies[row] = {"reply": reply.text, "num_written": len(written), "reply_info": dict(reply.info)}
        ledger.turn_start[row] = rows.length[row]
    is_full = rows.length - rows.prompt_length >= rules.max_new
    is_full |= ledger.num_acted >= rules.max_steps
    truncated |= live & is_full & ~terminated
    if rules.truncation_score == "zero":
        rewards[truncated] -= ledger.paid[truncated]
        ledger.paid[truncated] = 0.0
    records = [
        _turn_record(rules, ledger, rows, row, bool(truncated[row]), told.get(row, {}))
        | replies.get(row, {"reply": "", "num_written": 0, "reply_info": {}})
        for row in (terminated | truncated).nonzero()[0].tolist()
    ]
    columns = {key: [record[key] for record in records] for key in records[0]} if records else {}
    return StepResult(rewards, terminated, truncated, columns, replies)


def _answers(
    rules: RewardRules, ledger: Ledger, rows: TextRows, over: Sequence[int], examples: Shaped[np.ndarray, " row"]
) -> list[tuple[str, tuple[Reply, list[int]] | Failure]]:
    """Return, for each row whose turn is over, what was said, and the reply with its ids or a failure."""
    asked: list[tuple[int, Example, list[str]]] = []
    for row in over:
        turn = rows.response(row, int(ledger.turn_start[row]))
        asked.append((row, examples[row], [*ledger.said[row], written_text(rules.tokenizer, turn.tolist()).strip()]))
    answers: list[tuple[str, tuple[Reply, list[int]] | Failure]] = []
    for (_, example, said), reply in zip(asked, rules.scorer.turn_batch(asked), strict=True):
        if isinstance(reply, Failure):
            answers.append((said[-1], reply))
            continue
        if any(NO_TEXT in text for text in said):  # a world that repeats it would be blamed for what it was told
            reply = replace(reply, text=reply.text.replace(NO_TEXT, ""))
        try:
            answers.append((said[-1], (reply, rules.tokenizer.encode(reply.text))))
        except ValueError as error:
            answers.append((said[-1], rules.scorer.reject(error, example, said[-1])))
    return answers


def _turn_record(
    rules: RewardRules, ledger: Ledger, rows: TextRows, row: int, truncated: bool, told: Mapping[str, Any]
) -> dict[str, Any]:
    score, reason = float(ledger.paid[row]), told.get("reason", "ok")
    return {
        "text": written_text(rules.tokenizer, rows.response(row).tolist()),
        "score": score,
        "exact": told.get("exact", is_full_return(score)),
        "components": {"num_turns": float(len(ledger.said[row]))},
        "reason": "no_eos" if truncated and reason == "ok" else reason,
        "num_tokens": int(ledger.num_acted[row]),
        "acted": ledger.acted[row].copy(),
    }


def score_answers(
    rules: RewardRules,
    rows: TextRows,
    ended: Int64[np.ndarray, " ended"],
    truncated: Bool[np.ndarray, " row"],
    examples: Shaped[np.ndarray, " row"],
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


class Rewards:
    """The reward function of a task's kind, with its ledger.

    ``eos_terminates`` says whether EOS ends the text and nothing else but the budget does.
    """

    def __init__(self, task: Task, rules: RewardRules, num_rows: int, width: int) -> None:
        self.rules = rules
        self._function: RewardFunction = answer_rewards
        self.kind = "AnswerReferee"  # the names that snapshots have had from the first
        if isinstance(task, TurnTask):
            self._function, self.kind = turn_rewards, "TurnReferee"
        elif isinstance(task, DenseTask):
            self._function, self.kind = progress_rewards, "ProgressReferee"
        self.eos_terminates = self._function is answer_rewards
        self._ledger = Ledger(num_rows, width if self._function is turn_rewards else 0)

    def begin(self, rows: Int64[np.ndarray, " begun"], prompt_length: Int64[np.ndarray, " begun"]) -> None:
        """Begin new episodes in these rows."""
        self._ledger.begin(rows, prompt_length)

    def step(
        self,
        rows: TextRows,
        live: Bool[np.ndarray, " row"],
        actions: Int64[np.ndarray, " row"],
        examples: Shaped[np.ndarray, " row"],
    ) -> StepResult:
        """Return what the actions, which stand in the rows already, earn and end."""
        return self._function(self.rules, self._ledger, rows, live, actions, examples)

    def state(self) -> dict[str, Any]:
        """Return what a snapshot of the environment needs, JSON-able."""
        ledger = self._ledger
        if self._function is turn_rewards:
            return {
                "said": [list(texts) for texts in ledger.said],
                "returns": ledger.paid.tolist(),
                "turn_start": ledger.turn_start.tolist(),
                "acted": ledger.acted.tolist(),
            }
        return {} if self.eos_terminates else {"paid": ledger.paid.tolist()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a snapshot; worlds are told again what was said when they are next asked."""
        ledger = self._ledger
        if self._function is turn_rewards:
            ledger.said = [list(texts) for texts in state["said"]]
            ledger.paid = np.array(state["returns"], dtype=np.float64)
            ledger.turn_start = np.array(state["turn_start"], dtype=np.int64)
            ledger.acted = np.array(state["acted"], dtype=bool)
            ledger.num_acted = ledger.acted.sum(axis=1)
        elif not self.eos_terminates:
            ledger.paid = np.array(state["paid"], dtype=np.float64)
