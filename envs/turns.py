"""The referee of conversations: when the policy's turn is over, the world answers in the same row.

::

    prompt | policy EOS | reply | policy EOS | reply | ...          EOS ends a turn, the world ends the episode

A turn is over with EOS or after ``max_turn`` tokens. Its text goes to the world, the reply's tokens into the row, and
the reward to the token that ended the turn. A row that is full is truncated, and an unfinished turn is not played; of
a reply that does not fit the row keeps what does. With ``truncation_score="zero"`` a truncated conversation is worth
nothing, and its last token gives back what was paid. A reply without tokens of its own, a character outside the
tokenizer, is an error of the world like one that it raises.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from worldmtp.envs import core
from worldmtp.envs.core import TextState
from worldmtp.envs.referees import Rules, Ruling
from worldmtp.envs.scoring import Failure
from worldmtp.envs.task import clamp_return, is_full_return
from worldmtp.envs.tokenizer import NO_TEXT, written_text
from worldmtp.envs.worlds.replay import Reply


class TurnReferee:
    """Plays the turns of a ``TurnTask``; all that was said is kept, since it is what the worlds are."""

    eos_terminates = False

    def __init__(self, rules: Rules, num_rows: int) -> None:
        self._rules = rules
        self._said: list[list[str]] = [[] for _ in range(num_rows)]
        self._returns = np.zeros(num_rows)
        self._turn_start = np.zeros(num_rows, dtype=np.int64)
        self._acted: Bool[np.ndarray, "row length"] | None = None

    @property
    def acted(self) -> Bool[np.ndarray, "row length"]:
        """Which tokens the policy wrote."""
        assert self._acted is not None
        return self._acted.copy()

    def begin(self, rows: Int64[np.ndarray, " begun"], state: TextState) -> None:
        """Nothing has been said but the prompt."""
        if self._acted is None:
            self._acted = np.zeros(state.tokens.shape, dtype=bool)
        for row in rows.tolist():
            self._said[row] = []
        self._returns[rows] = 0.0
        self._turn_start[rows] = state.length[rows]
        self._acted[rows] = False

    def rule(
        self,
        before: TextState,
        after: TextState,
        actions: Int64[np.ndarray, " row"],
        examples: Shaped[np.ndarray, " row"],
    ) -> Ruling:
        """Let worlds answer the turns that are over."""
        assert self._acted is not None
        rules, live = self._rules, ~before.done
        self._acted[live, before.length[live]] = True
        is_over = live & (actions == rules.tokenizer.eos_id)
        if rules.max_turn is not None:
            is_over |= live & (after.length - self._turn_start >= rules.max_turn)
        rewards = np.zeros(len(actions))
        terminated, truncated = np.zeros_like(live), np.zeros_like(live)
        reasons: dict[int, str] = {}
        replies: dict[int, dict[str, Any]] = {}
        successes: dict[int, bool] = {}
        over = np.flatnonzero(is_over).tolist()
        for row, answered in zip(over, self._answers(over, after, examples), strict=True):
            if isinstance(answered, Failure):
                terminated[row], reasons[row] = True, answered.reason
                continue
            reply, ids = answered
            terminated[row], truncated[row] = reply.terminated, reply.truncated
            paid = float(self._returns[row])
            self._returns[row] = total = clamp_return(paid + reply.reward)
            rewards[row] = reply.reward if total == paid + reply.reward else total - paid
            reasons[row] = str(reply.info.get("reason", "truncated" if reply.truncated else "ok"))
            if "is_success" in reply.info:
                successes[row] = bool(reply.info["is_success"])
            num_written = self._write(row, after, ids)
            replies[row] = {"reply": reply.text, "num_written": num_written}
            self._turn_start[row] = after.length[row]
        is_full = after.length - after.prompt_length >= rules.max_new
        is_full |= self._acted.sum(axis=1) >= rules.max_steps
        truncated |= live & is_full & ~terminated
        if rules.truncation_score == "zero":
            rewards[truncated] -= self._returns[truncated]
            self._returns[truncated] = 0.0
        rows = np.flatnonzero(terminated | truncated)
        if not len(rows):
            return Ruling(after, rewards, terminated, truncated, replies=replies)
        state = core.ended(after, rows)
        no_reply = {"reply": "", "num_written": 0}
        records = [
            self._record(state, row, reasons.get(row, "ok"), bool(truncated[row]), successes.get(row))
            | replies.get(row, no_reply)
            for row in rows.tolist()
        ]
        columns = {key: [record[key] for record in records] for key in records[0]}
        return Ruling(state, rewards, terminated, truncated, columns, replies)

    def state(self) -> dict[str, Any]:
        """All that was said and paid."""
        return {
            "said": [list(texts) for texts in self._said],
            "returns": self._returns.tolist(),
            "turn_start": self._turn_start.tolist(),
            "acted": self.acted.tolist(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there; worlds are told again what was said when they are next asked."""
        self._said = [list(texts) for texts in state["said"]]
        self._returns = np.array(state["returns"], dtype=np.float64)
        self._turn_start = np.array(state["turn_start"], dtype=np.int64)
        self._acted = np.array(state["acted"], dtype=bool)

    def _answers(
        self, rows: Sequence[int], state: TextState, examples: Shaped[np.ndarray, " row"]
    ) -> list[tuple[Reply, list[int]] | Failure]:
        """Reply and its ids, or a failure, for each row whose turn is over."""
        rules = self._rules
        for row in rows:
            turn = state.tokens[row, self._turn_start[row] : state.length[row]]
            self._said[row].append(written_text(rules.tokenizer, turn.tolist()).strip())
        asked = [(rules.first_row + row, examples[row], self._said[row]) for row in rows]
        answers: list[tuple[Reply, list[int]] | Failure] = []
        for (_, example, said), reply in zip(asked, rules.scorer.turn_batch(asked), strict=True):
            if isinstance(reply, Failure):
                answers.append(reply)
                continue
            if any(NO_TEXT in text for text in said):  # a world that repeats it would be blamed for what it was told
                reply = replace(reply, text=reply.text.replace(NO_TEXT, ""))
            try:
                answers.append((reply, rules.tokenizer.encode(reply.text)))
            except ValueError as error:
                answers.append(rules.scorer.reject(error, example, said[-1]))
        return answers

    def _write(self, row: int, state: TextState, ids: list[int]) -> int:
        """Into the state, which is this step's own; how many tokens fitted."""
        start = int(state.length[row])
        written = ids[: int(state.prompt_length[row]) + self._rules.max_new - start]
        state.tokens[row, start : start + len(written)] = written
        state.length[row] += len(written)
        return len(written)

    def _record(
        self, state: TextState, row: int, reason: str, truncated: bool, is_success: bool | None
    ) -> dict[str, Any]:
        assert self._acted is not None
        response = state.tokens[row, state.prompt_length[row] : state.length[row]]
        score = float(self._returns[row])
        return {
            "text": written_text(self._rules.tokenizer, response.tolist()),
            "score": score,
            "exact": is_full_return(score) if is_success is None else is_success,
            "components": {"num_turns": float(len(self._said[row]))},
            "reason": "no_eos" if truncated and reason == "ok" else reason,
            "num_tokens": int(self._acted[row].sum()),
            "acted": self._acted[row].copy(),
        }
