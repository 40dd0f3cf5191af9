"""The model that the vector env is held against: its rows as plain lists, one step of each kind of task written out.

Ids: pad 0, EOS 1, a 2, b 3, = 4, ! 5. All rewards are multiples of 1/8, so sums are exact.
"""

import hashlib
from dataclasses import dataclass, field, replace

import pytest

from worldmtp.envs import CharTokenizer, Example, Score, TextGenVectorEnv
from worldmtp.envs.task import Progress
from worldmtp.envs.worlds.task import WorldTask

EOS, LETTERS, NUM_SEEDS = 1, "ab=!", 64
WORDS = ["a", "b", "aa", "ab", "ba", "bb", "aaa", "aab", "aba", "abb", "baa", "bab", "bba", "bbb"]


def text_of(ids):
    return "".join(LETTERS[token - 2] for token in ids if token != EOS)


def ids_of(text):
    return [LETTERS.index(letter) + 2 for letter in text]


def key_of(prompt, hidden=""):
    return hashlib.blake2b((prompt + ("\0" + hidden if hidden else "")).encode(), digest_size=8).hexdigest()


def matched(word, text):
    return next((place for place, letter in enumerate(text) if letter != word[place : place + 1]), len(text))


def worth(word, text):
    return 1.0 if text == word else matched(word, text) / 8


class Spell:
    """Spell the word of the prompt: 1, or an eighth for each letter until the first that is wrong."""

    def sample(self, rng, split):
        return Example(WORDS[rng.integers(len(WORDS))] + "=")

    def score(self, example, text, ids):
        return Score(worth(example.prompt[:-1], text))


class DenseSpell(Spell):
    """The same, paid as it comes; a whole word is worth its eighths until EOS. Over at the first wrong letter."""

    def progress(self, example, text, ids):
        right = matched(example.prompt[:-1], text)
        return Progress(right / 8, ended=right < len(text))


class Parrot:
    """Repeats what is said, pays a quarter for a new text; three turns. "b" leaves; "bb" breaks it and is counted."""

    def reset(self, seed):
        self.seed, self.num_turns, self.heard = seed, 0, set()
        return "ab"[seed % 2] + "=", {}

    def step(self, text):
        self.num_turns += 1
        if text == "bb":
            raise RuntimeError("this world has fallen apart")
        if text == "b":
            return "", 0.5, True, self.num_turns == 3, {}
        reward = 0.25 * (text not in self.heard)
        self.heard.add(text)
        return text + "!" * (1 + self.seed % 3), reward, False, self.num_turns == 3, {}


def reply_of(seed, said):
    """What the parrot answers and pays, terminated, truncated; None where it raises."""
    if said[-1] in ("b", "bb"):
        return ("", 0.5, True, False) if said[-1] == "b" else None
    return said[-1] + "!" * (1 + seed % 3), 0.25 * (said[-1] not in said[:-1]), False, len(said) == 3


@dataclass
class Row:
    question: Example
    group: int
    response: list = field(default_factory=list)
    acted: list = field(default_factory=list)
    turn: list = field(default_factory=list)
    said: list = field(default_factory=list)
    paid: float = 0.0
    done: bool = False

    @property
    def tokens(self):
        return ids_of(self.question.prompt) + self.response

    @property
    def text(self):
        return text_of(self.response)

    def copy(self):
        lists = {name: [*getattr(self, name)] for name in ("response", "acted", "turn", "said")}
        return replace(self, **lists)


@dataclass(frozen=True)
class Outcome:
    """Of one row in one step; ``reply`` is the world's text and how many of its tokens fit."""

    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    reason: str = "ok"
    reply: tuple | None = None
    raises: bool = False


@dataclass(frozen=True)
class Game:
    """A kind of task with its limits, and the model of one of its steps."""

    kind: str
    max_new: int = 4
    max_steps: int | None = None
    max_turn: int | None = None
    truncation_score: str = "score"
    on_error: str = "zero"
    num_rows: int = 4
    max_prompt: int = 4

    def make(self):
        task = {"plain": Spell, "dense": DenseSpell}.get(self.kind)
        return TextGenVectorEnv(
            self.num_rows,
            autoreset_mode="disabled",
            task=task() if task else WorldTask(Parrot, num_seeds=NUM_SEEDS),
            tokenizer=CharTokenizer(LETTERS),
            max_prompt=self.max_prompt,
            max_new=self.max_new,
            max_turn=self.max_turn,
            max_episode_steps=self.max_steps,
            truncation_score=self.truncation_score,
            on_error=self.on_error,
            heldout_fraction=0.5,
            pool_size=16,
        )

    def questions(self):
        """All there are, by their keys."""
        if self.kind == "talk":
            seeds = range(NUM_SEEDS)
            found = [Example("ab"[seed % 2] + "=", meta={"seed": seed}, hidden=str(seed)) for seed in seeds]
        else:
            found = [Example(word + "=") for word in WORDS]
        return {key_of(question.prompt, question.hidden): question for question in found}

    def begin(self, question, group):
        return Row(question, group)

    def step(self, row, action):
        if row.done:
            return Outcome()
        row.response.append(action)
        row.acted.append(True)
        outcome = self._talk(row, action) if self.kind == "talk" else self._write(row, action)
        if self.kind == "talk" and outcome.truncated and self.truncation_score == "zero":
            outcome = replace(
                outcome, reward=-row.paid
            )  # what this turn earns is not paid, what was paid is given back
        row.paid += outcome.reward
        row.done = outcome.terminated or outcome.truncated
        return outcome

    def _is_full(self, row):
        return len(row.response) >= self.max_new or sum(row.acted) >= (self.max_steps or self.max_new)

    def _write(self, row, action):
        word, text, value = row.question.prompt[:-1], row.text, row.paid
        terminated = action == EOS
        if self.kind == "dense" and not terminated:
            value, terminated = matched(word, text) / 8, matched(word, text) < len(text)
        truncated = not terminated and self._is_full(row)
        if terminated or truncated:
            value = 0.0 if truncated and self.truncation_score == "zero" else worth(word, text)
        return Outcome(value - row.paid, terminated, truncated, "no_eos" if truncated else "ok")

    def _talk(self, row, action):
        row.turn.append(action)
        outcome = Outcome()
        if action == EOS or len(row.turn) == self.max_turn:
            row.said.append(text_of(row.turn))
            row.turn = []
            answer = reply_of(row.question.meta["seed"], row.said)
            if answer is None:
                return Outcome(terminated=True, reason="error", raises=True)
            words, reward, terminated, truncated = answer
            written = ids_of(words)[: self.max_new - len(row.response)]
            row.response += written
            row.acted += [False] * len(written)
            reason = "truncated" if truncated else "ok"
            outcome = Outcome(reward, terminated, truncated, reason, (words, len(written)))
        if self._is_full(row) and not (outcome.terminated or outcome.truncated):
            outcome = replace(outcome, truncated=True, reason="no_eos")
        return outcome


@pytest.fixture
def games():
    """By name."""
    return {
        "plain": Game("plain"),
        "plain-three-steps": Game("plain", max_steps=3, truncation_score="zero"),
        "dense": Game("dense"),
        "dense-three-steps": Game("dense", max_steps=3, truncation_score="zero"),
        "conversation": Game("talk", max_new=14),
        "conversation-five-steps": Game("talk", max_new=14, max_steps=5, max_turn=3, truncation_score="zero"),
        "conversation-in-short-rows": Game("talk", max_new=6),
        "conversation-that-raises": Game("talk", max_new=14, on_error="raise"),
    }
