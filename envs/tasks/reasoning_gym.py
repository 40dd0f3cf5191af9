"""Any dataset of reasoning-gym as a task: its generator, its scorer, its items in a form a small model can afford.

What is added to it, and why:

* *Compact prompts.* Most of a question is the same in every item; the prefix and suffix that a fixed draw of items
  shares are cut back to whole words and stripped, then ``separator`` is appended.
* *Item seeds.* A dataset seeds item i with ``seed + i``, so neighbouring seeds share nearly all items. Here one dataset
  is asked for items at random indices of a range of 2**31, and splits are by the hash of the prompt.
* *Credit.* The library's default scorer pays ``len(oracle) / len(answer)`` for any answer that contains the oracle, so
  that a list of all digits earns something everywhere, and others find the oracle wherever it is hidden. Where a
  scorer does that on any calibration item, a text that has the oracle among other text earns nothing (reason
  "containment"), unless the library pays it in full and nothing but brackets and signs was added: "015" and "15." are
  15. Others read what they need and leave the rest unread: where one pays an oracle with other text before or behind it
  in full, such a text earns nothing either. Some scorers pay a constant text on every item, up to 1 for "zz" or "NaN";
  what constant texts earn on every calibration item is measured once, and credit not above that floor is removed
  (reason "floor"), unless the text is the oracle but for the letters' case and punctuation around it. A scorer that
  raises raises here too: the environment's scorer counts it. ``benchmarks/scan_scorers.py`` shows what is paid for
  what.
* *Levels.* ``level`` takes a dataset's options from its curriculum (``reasoning_gym_datasets``).
* *Slow generators.* Most make an item in 0.1 ms, some take 0.4 s. Items can be kept on disk for the next process
  (``reasoning_gym_datasets``); they are the same with and without.
* *Evaluated answers.* Some scorers run the text as Python; what a policy writes is read here instead, or does not
  reach them (``evaluated_answers``).
* *Questions without an answer.* Some items have an oracle that is none: intermediate_integration leaves some integrals
  as ``Integral(...)``, and base_conversion writes 0 as nothing. An item whose oracle is not paid in full here, or is an
  integral that is not in closed form, is passed over and the next one drawn; ``redrawn_fraction`` is their share.
* *Global generators.* Some generators draw from Python's or numpy's; these are seeded for each item and put back.

Left out: chain-of-thought answer tags, and a level that rises while training: levels are environments of their own.
"""

import math
import re
import string
import sys
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from worldmtp.envs.global_rng import seeded_global_rng
from worldmtp.envs.task import Example, Score, is_full_return
from worldmtp.envs.tasks.evaluated_answers import EXPRESSION, LITERAL, verdict
from worldmtp.envs.tasks.reasoning_gym_datasets import (
    BOUNDED_SIZE,
    INDEX_RANGE,
    ItemCache,
    Level,
    create_dataset,
    is_bounded,
)
from worldmtp.envs.tasks.strings import check_reward

_MAX_REDRAWS = 100
_CONSTANT_ANSWERS = (
    *("", "zz", "0", "1", "0123456789", "True", "None", "null", "NaN", "inf", "\u2603"),
    *("[]", "{}", '""', "1/2", "A=1", "A1"),  # which parse, and earn what several scorers pay for that
)


class ReasoningGymTask:
    """One dataset by name.

    Args:
        dataset: its name in reasoning-gym.
        reward: "score" pays the dataset's own partial credit, hardened; "exact" pays 1 for a full score, else 0.
        compact: whether to strip what all prompts share.
        drop: characters to remove from prompts, such as the blanks of an arithmetic expression.
        separator: appended to a prompt; what tells a model that the question is over.
        probe_bound: largest mean value that content-free text may earn; raise it for datasets with partial credit.
        level: of the curriculum: a number for all its attributes, or numbers by the attributes' names.
        cache_dir: where slow items are kept for the next process; None asks the variable ``WORLDMTP_CACHE_DIR``, and
            without it nothing is kept.
        calibration_items: items from which prompts and the credit floor are learned; fewer for slow generators.
        config: of the dataset, by the names of its own config class.

    Raises:
        ValueError: if the dataset, an option or a level of it, or the reward is unknown, or ``level`` and ``config``
            both decide an option.
    """

    def __init__(
        self,
        dataset: str,
        *,
        reward: str = "score",
        compact: bool = True,
        drop: str = "",
        separator: str = "=",
        probe_bound: float = 0.1,
        level: Level | None = None,
        cache_dir: str | Path | None = None,
        calibration_items: int = 64,
        **config: Any,
    ) -> None:
        check_reward(reward)
        if calibration_items < 2:
            raise ValueError(f"calibration_items={calibration_items} must be 2 or more.")
        self.dataset_name, self.reward, self.separator, self.probe_bound = dataset, reward, separator, probe_bound
        with seeded_global_rng(0):
            self._dataset = create_dataset(dataset, config, level)
            self._index_range = BOUNDED_SIZE if is_bounded(self._dataset) else INDEX_RANGE
        identity = f"{version('reasoning-gym')} python {sys.version_info[:2]} {dataset} {self._dataset.config!r}"
        self._cache = ItemCache(cache_dir, f"reasoning_gym-{dataset}", identity)
        rng = np.random.default_rng(0)
        indices = [int(index) for index in rng.integers(self._index_range, size=calibration_items)]
        entries = [self._entry(index) for index in indices]
        questions = [entry["question"] for entry in entries]
        self._prefix, self._suffix = shared_affixes(questions) if compact else ("", "")
        self._drop = str.maketrans("", "", drop)
        self._floor = _constant_credit(self._raw, entries)
        evaluates = dataset in EXPRESSION | LITERAL  # decided by what is written: nothing can be hidden there
        self._num_drawn = self._num_redrawn = 0
        self._pays_hidden = not evaluates and _pays_hidden(self._dataset.score_answer, entries)
        self._leaves_unread = not evaluates and _leaves_unread(self._dataset.score_answer, entries)

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """The item at a random index; where its oracle is no answer, that at the next index drawn.

        Raises:
            ValueError: if no item in 100 has an answer.
        """
        entry: dict[str, Any] = {}
        for _ in range(_MAX_REDRAWS):
            entry = self._entry(int(rng.integers(self._index_range)))
            self._num_drawn += 1
            if self._has_answer(entry):
                break
            self._num_redrawn += 1
        else:
            raise ValueError(
                f"none of {_MAX_REDRAWS} items of {self.dataset_name} has an oracle that is paid in full, such as "
                f"{entry['answer']!r}; change the dataset's options."
            )
        answer = entry["answer"]
        prompt = self._compact(entry["question"]).translate(self._drop) + self.separator
        return Example(prompt=prompt, answer=None if answer is None else str(answer), meta={"entry": entry})

    @property
    def redrawn_fraction(self) -> float:
        """Share of all items drawn so far that had no answer; NaN before the first."""
        return self._num_redrawn / self._num_drawn if self._num_drawn else math.nan

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """The dataset's own score of the stripped text, clipped to [0, 1] and hardened.

        Raises:
            ValueError: if the example was not drawn by this task.
        """
        if "entry" not in example.meta:
            raise ValueError(
                f"the prompt {example.prompt!r} has no reasoning-gym entry, so {self.dataset_name} cannot score it; "
                "take examples from task.sample or env.examples."
            )
        entry = example.meta["entry"]
        text = text.strip()
        oracle = None if entry["answer"] is None else str(entry["answer"]).strip()
        if text != oracle:
            decided = self._verdict(text, entry)
            if decided is not None:
                return self._paid(*decided, raw=decided[0])
        raw = float(self._dataset.score_answer(text, entry))
        if not math.isfinite(raw):
            return self._paid(0.0, "no_number", 0.0)
        raw = min(max(raw, 0.0), 1.0)
        reason = "ok" if text == oracle else self._withheld(text, oracle or "", raw)
        return self._paid(raw if reason == "ok" else 0.0, reason, raw)

    def _withheld(self, text: str, oracle: str, raw: float) -> str:
        """Why a text that is not the oracle is not paid what the library pays, or "ok"."""
        if 0.0 < raw <= self._floor and not (raw >= 1.0 and oracle and _is_respelled(text, oracle)):
            return "floor"
        if self._pays_hidden and oracle and oracle in text and not (raw >= 1.0 and _adds_nothing(text, oracle)):
            return "containment"
        if self._leaves_unread and oracle and is_full_return(raw) and _says_more(text, oracle):
            return "containment"
        return "ok"

    def _has_answer(self, entry: dict[str, Any]) -> bool:
        """Return whether the oracle is a right answer; an item without an oracle is one of many answers."""
        if entry["answer"] is None:
            return True
        oracle = str(entry["answer"]).strip()
        if self._source(entry) in EXPRESSION:
            decided = self._verdict(oracle, entry)
            if decided is not None:  # the library's own scorer would compute an integral that is left as one
                return decided[0] >= 1.0
        return float(self._dataset.score_answer(oracle, entry)) >= 1.0

    def _source(self, entry: dict[str, Any]) -> str:
        name: str = entry["metadata"].get("source_dataset", self.dataset_name)
        return name

    def _verdict(self, text: str, entry: dict[str, Any]) -> tuple[float, str] | None:
        return verdict(self._source(entry), text, entry)

    def _raw(self, text: str, entry: dict[str, Any]) -> float:
        """What a text that is not the oracle earns before credit is removed."""
        decided = self._verdict(text, entry)
        return float(self._dataset.score_answer(text, entry)) if decided is None else decided[0]

    def _paid(self, value: float, reason: str, raw: float) -> Score:
        exact = value >= 1.0
        paid = value if self.reward == "score" else float(exact)
        return Score(value=paid, components={"raw_score": raw}, reason=reason, exact=exact)

    def _entry(self, index: int) -> dict[str, Any]:
        return self._cache.get(index, self._make)

    def _make(self, index: int) -> dict[str, Any]:
        with seeded_global_rng(index):
            return dict(self._dataset[index])

    def _compact(self, question: str) -> str:
        if not (question.startswith(self._prefix) and question.endswith(self._suffix)):
            raise ValueError(
                f"{self.dataset_name} asked {question!r}, without the prefix {self._prefix!r} and suffix "
                f"{self._suffix!r} that its calibration items share; raise calibration_items or set compact=False."
            )
        return question[len(self._prefix) : len(question) - len(self._suffix)]


def shared_affixes(questions: list[str]) -> tuple[str, str]:
    """Prefix and suffix that all questions share, cut back to whole words: an item keeps its own brackets and signs."""
    prefix = re.match(r".*\S\s", _common_prefix(questions), re.DOTALL)
    length = len(prefix[0]) if prefix else 0
    rests = [question[length:][::-1] for question in questions]
    suffix = re.search(r"(\s\S|[.?!:;,=]).*", _common_prefix(rests)[::-1], re.DOTALL)
    return questions[0][:length], suffix[0] if suffix else ""


def _common_prefix(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    length = next((index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


def _is_respelled(text: str, oracle: str) -> bool:
    """Return whether two texts differ by the letters' case and punctuation around them alone."""
    around = string.punctuation + string.whitespace
    return text.casefold().strip(around) == oracle.casefold().strip(around) != ""


def _adds_nothing(text: str, oracle: str) -> bool:
    """Return whether a text has no letter or digit beside the oracle, or is the same number."""
    if not re.search(r"\w", text.replace(oracle, "", 1)):
        return True
    try:
        return Decimal(text.replace(",", "")) == Decimal(oracle.replace(",", ""))
    except InvalidOperation:
        return False


def _says_more(text: str, oracle: str) -> bool:
    """Return whether a text has the oracle in letters of either case, and beside it a letter or a digit but 0."""
    before, found, after = text.casefold().partition(oracle.casefold())
    return bool(found) and re.search(r"[^\W0_]", before + after) is not None


def _credit(score_answer: Callable[[str, dict[str, Any]], float], text: str, entry: dict[str, Any]) -> float:
    """Return what a scorer pays for a text while it is measured; one that raises pays nothing.

    Scorers of the library raise at texts that they cannot read. In an episode that is not caught here: the environment
    scores 0 and counts the error.
    """
    try:
        return float(score_answer(text, entry))
    except Exception:  # noqa: BLE001 - third-party scorers raise whatever their parsers do
        return 0.0


def _leaves_unread(score_answer: Callable[[str, dict[str, Any]], float], entries: list[dict[str, Any]]) -> bool:
    """Return whether the scorer pays in full for an oracle with other text before or behind it, on any item."""
    return any(
        is_full_return(_credit(score_answer, text, entry))
        for entry in entries
        if entry["answer"]
        for joint in (" ", ", ", "\n")
        for text in (f"{entry['answer']}{joint}zz", f"zz{joint}{entry['answer']}")
    )


def _pays_hidden(score_answer: Callable[[str, dict[str, Any]], float], entries: list[dict[str, Any]]) -> bool:
    """Return whether the scorer finds an oracle among other text on any item."""
    return any(
        _credit(score_answer, f"zz {entry['answer']} zz", entry) > max(_credit(score_answer, "zz", entry), 0.0)
        for entry in entries
        if entry["answer"] is not None
    )


def _constant_credit(score_answer: Callable[[str, dict[str, Any]], float], entries: list[dict[str, Any]]) -> float:
    """The most that any constant answer is sure to earn: max over constants of the min over items."""
    floor = 0.0
    for answer in _CONSTANT_ANSWERS:
        least = 1.0
        for entry in entries:
            least = min(least, _credit(score_answer, answer, entry))
            if least <= 0.0:
                break
        floor = max(floor, least)
    return floor
