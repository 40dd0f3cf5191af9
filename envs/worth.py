"""What answers that nobody wrote into a row would be worth: scored like any other, counted apart."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from worldmtp.envs.rewards import RewardRules, score_responses
from worldmtp.envs.task import Example


def worth_of(
    rules: RewardRules, examples: Sequence[Example], answers: Sequence[Int64[np.ndarray, " _"]]
) -> Float64[np.ndarray, " answer"]:
    """Return the score of each answer to its example; equal answers to one example are scored once.

    Raises:
        ValueError: an answer is not over, or goes on after its end, or has a token that is not in the vocabulary.
    """
    places: dict[tuple[int, bytes], int] = {}
    asked: list[tuple[Example, Int64[np.ndarray, " _"]]] = []
    which = np.empty(len(answers), dtype=np.int64)
    for index, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        ids = np.ascontiguousarray(answer, dtype=np.int64)
        key = (id(example), ids.tobytes())
        if key not in places:
            _check_is_over(rules, ids)
            places[key] = len(asked)
            asked.append((example, ids))
        which[index] = places[key]
    ran_out = [int(ids[-1]) != rules.tokenizer.eos_id for _, ids in asked]
    with rules.scorer.counting_apart():
        _, scores = score_responses(rules, [example for example, _ in asked], [ids for _, ids in asked], ran_out)
    return np.array([score.value for score in scores], dtype=np.float64)[which]


def _check_is_over(rules: RewardRules, ids: Int64[np.ndarray, " tokens"]) -> None:
    eos_id, vocab_size = rules.tokenizer.eos_id, rules.tokenizer.vocab_size
    ends = ids.ndim == 1 and 0 < len(ids) <= rules.max_steps and not (ids[:-1] == eos_id).any()
    if not ends or (ids[-1] != eos_id and len(ids) < rules.max_steps):
        raise ValueError(
            f"the answer {ids.tolist()} is not over: an answer has up to {rules.max_steps} tokens and ends with its "
            f"only EOS, {eos_id}, unless it has all {rules.max_steps} of them."
        )
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(f"the answer {ids.tolist()} has a token outside the vocabulary 0..{vocab_size - 1}.")
