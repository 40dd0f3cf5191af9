"""Any dataset of reasoning-gym as a task: its generator, its scorer, its items in a form a small model can afford.

What is added to it, and why:

* *Compact prompts.* Most of a question is the same in every item; the common prefix and suffix of a fixed draw of items
  are cut back to whole words and stripped, then ``separator`` is appended.
* *Item seeds.* A dataset seeds item i with ``seed + i``, so neighbouring seeds share nearly all items. Here one dataset
  is asked for items at random indices of a range of 2**31, and splits are by the hash of the prompt.
* *Credit.* The library's default scorer pays ``len(oracle) / len(answer)`` for any answer that contains the oracle, so
  that a list of all digits earns something everywhere; credit below 1 for text that contains the oracle is removed
  (reason "containment"). Some scorers pay a constant text on every item, up to 1 for "zz"; what a constant text earns on
  every calibration item is measured once, and credit that is not above that floor is removed (reason "floor").
  A scorer that raises raises here too: the environment's scorer counts it.

Left out: chain-of-thought answer tags, curricula.
"""

import difflib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Int64

from worldmtp.envs.task import Example, Score
from worldmtp.envs.tasks.matching import check_reward

_INDEX_RANGE = 2**31
_BOUNDED_SIZE = 1000  # items of the few datasets that prepare their items in advance
_CONSTANT_ANSWERS = ("", "zz", "0", "1", "0123456789", "True", "\u2603")


class ReasoningGymTask:
    """One dataset by name.

    Args:
        dataset: its name in reasoning-gym.
        reward: "score" pays the dataset's own partial credit, hardened; "exact" pays 1 for a full score, else 0.
        compact: whether to strip what all prompts share.
        drop: characters to remove from prompts, such as the blanks of an arithmetic expression.
        separator: appended to a prompt; what tells a model that the question is over.
        probe_bound: largest mean value that content-free text may earn; raise it for datasets with partial credit.
        calibration_items: items from which prompts and the credit floor are learned; fewer for slow generators.
        config: of the dataset, by the names of its own config class.

    Raises:
        ValueError: if the dataset, an option of it, or the reward is unknown.
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
        calibration_items: int = 64,
        **config: Any,
    ) -> None:
        check_reward(reward)
        if calibration_items < 2:
            raise ValueError(f"calibration_items={calibration_items} must be at least 2: one item shares all with itself.")
        self.dataset_name, self.reward, self.separator, self.probe_bound = dataset, reward, separator, probe_bound
        self._dataset = _create(dataset, config)
        self._index_range = _BOUNDED_SIZE if _is_bounded(self._dataset) else _INDEX_RANGE
        self._uses_global_rng = False
        rng = np.random.default_rng(0)
        indices = [int(index) for index in rng.integers(self._index_range, size=calibration_items)]
        global_state = _global_state()
        entries = [self._entry(index) for index in indices]
        self._uses_global_rng = _global_state() != global_state
        _restore_global_state(global_state)
        questions = [entry["question"] for entry in entries]
        self._prefix, self._suffix = shared_affixes(questions) if compact else ("", "")
        self._drop = str.maketrans("", "", drop)
        self._floor = _constant_credit(self._dataset.score_answer, entries)

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """The item at a random index."""
        entry = self._entry(int(rng.integers(self._index_range)))
        answer = entry["answer"]
        prompt = self._compact(entry["question"]).translate(self._drop) + self.separator
        return Example(prompt=prompt, answer=None if answer is None else str(answer), meta={"entry": entry})

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """The dataset's own score of the stripped text, clipped to [0, 1] and hardened.

        Raises:
            ValueError: if the example was not drawn by this task.
        """
        if "entry" not in example.meta:
            raise ValueError(
                f"the prompt {example.prompt!r} carries no reasoning-gym entry, so {self.dataset_name} cannot score it; "
                "take examples from task.sample or env.examples."
            )
        entry = example.meta["entry"]
        text = text.strip()
        raw = float(np.clip(self._dataset.score_answer(text, entry), 0.0, 1.0))
        oracle = None if entry["answer"] is None else str(entry["answer"]).strip()
        value, reason = raw, "ok"
        if text != oracle:
            if raw <= self._floor and raw > 0.0:
                value, reason = 0.0, "floor"
            elif raw < 1.0 and oracle and oracle in text:
                value, reason = 0.0, "containment"
        exact = value >= 1.0
        paid = value if self.reward == "score" else float(exact)
        return Score(value=paid, components={"raw_score": raw}, reason=reason, exact=exact)

    def _entry(self, index: int) -> dict[str, Any]:
        if not self._uses_global_rng:
            return dict(self._dataset[index])
        with _seeded_global_rng(index):
            return dict(self._dataset[index])

    def _compact(self, question: str) -> str:
        if not (question.startswith(self._prefix) and question.endswith(self._suffix)):
            raise ValueError(
                f"{self.dataset_name} asked {question!r}, without the prefix {self._prefix!r} and suffix "
                f"{self._suffix!r} that its calibration items share; raise calibration_items or set compact=False."
            )
        return question[len(self._prefix) : len(question) - len(self._suffix)]


def shared_affixes(questions: list[str]) -> tuple[str, str]:
    """Prefix and suffix that all questions share, cut back to whole words so that no item loses a letter of its own."""
    prefix = os.path.commonprefix(questions)
    while prefix and prefix[-1].isalnum():
        prefix = prefix[:-1]
    shortest = min(len(question) for question in questions) - len(prefix)
    reversed_suffix = os.path.commonprefix([question[::-1] for question in questions])[:shortest]
    while reversed_suffix and reversed_suffix[-1].isalnum():
        reversed_suffix = reversed_suffix[:-1]
    return prefix, reversed_suffix[::-1]


def dataset_names() -> list[str]:
    """Names of all datasets of the installed reasoning-gym."""
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


def _create(name: str, config: dict[str, Any]) -> Any:
    from reasoning_gym.factory import DATASETS, create_dataset

    if name not in DATASETS:
        hint = difflib.get_close_matches(name, DATASETS, n=3)
        raise ValueError(
            f"reasoning-gym has no dataset {name!r}" + (f"; did you mean one of {hint}?" if hint else ".")
        )
    reserved = sorted({"seed", "size"} & set(config))
    if reserved:
        raise ValueError(f"{reserved} of {name} belong to the environment; seed with reset(seed=...) and pool_seed.")
    fields = set(DATASETS[name][1].__dataclass_fields__) - {"seed", "size"}
    unknown = sorted(set(config) - fields)
    if unknown:
        hint = difflib.get_close_matches(unknown[0], fields, n=1)
        raise ValueError(
            f"{name} has no option {unknown[0]!r}"
            + (f", did you mean {hint[0]!r}?" if hint else ".")
            + f" Its options: {sorted(fields)}."
        )
    return create_dataset(name, seed=0, size=_BOUNDED_SIZE, **config)


def _is_bounded(dataset: Any) -> bool:
    """Whether the dataset prepared its items, so that only ``size`` of them exist; the others make any index."""
    try:
        dataset[_INDEX_RANGE - 1]
    except IndexError:
        return True
    return False


def _constant_credit(score_answer: Callable[[str, dict[str, Any]], float], entries: list[dict[str, Any]]) -> float:
    """The most that any constant answer is sure to earn: max over constants of the min over items."""
    floor = 0.0
    for answer in _CONSTANT_ANSWERS:
        least = 1.0
        for entry in entries:
            try:
                least = min(least, float(score_answer(answer, entry)))
            except Exception:  # noqa: BLE001 - a scorer that raises pays nothing; live, the environment counts it
                least = 0.0
            if least <= 0.0:
                break
        floor = max(floor, least)
    return floor


def _global_state() -> tuple[Any, str, bytes, int]:
    name, keys, position, *_ = np.random.get_state()
    return random.getstate(), str(name), np.asarray(keys).tobytes(), int(position)


def _restore_global_state(state: tuple[Any, str, bytes, int]) -> None:
    python_state, name, keys, position = state
    random.setstate(python_state)
    np.random.set_state((name, np.frombuffer(keys, dtype=np.uint32), position))


@contextmanager
def _seeded_global_rng(seed: int) -> Iterator[None]:
    """A few generators draw from the global generators: seed those for the item, then put them back."""
    state = _global_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        _restore_global_state(state)
