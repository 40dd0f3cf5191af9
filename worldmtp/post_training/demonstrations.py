"""A dataset of prompts and answers as token ids, in the form that TRL takes as it is.

TRL never tokenizes a dataset that has ``input_ids``. The prompt mask is written into ``labels`` and not into a
``completion_mask`` column: TRL reads that column only with ``completion_only_loss=True``, whose default is False for a
dataset without text, so the mask would be dropped without a word.
"""

from collections.abc import Iterable, Sequence

from datasets import Dataset

from worldmtp.model import IGNORE_INDEX


def build_demonstrations(
    pairs: Iterable[tuple[Sequence[int], Sequence[int]]],
    *,
    eos_token_id: int,
    vocab_size: int,
    max_length: int | None = None,
) -> Dataset:
    """Return rows of ``input_ids`` = prompt + answer + EOS and ``labels`` = the same with -100 on the prompt.

    Args:
        pairs: prompt ids and answer ids; an answer that does not end with EOS gets it.
        eos_token_id: ends every row.
        vocab_size: rows of the model's embedding; every id must be below.
        max_length: tokens of the longest row allowed; None is no limit.

    Raises:
        ValueError: no pair, an empty prompt or answer, EOS inside a row, an id outside the vocabulary, a row too long.
    """
    input_ids, labels = [], []
    for row, (prompt, answer) in enumerate(pairs):
        answer_ids = [*answer] if len(answer) > 0 and answer[-1] == eos_token_id else [*answer, eos_token_id]
        token_ids = [*prompt, *answer_ids]
        _check_row(row, len(prompt), answer_ids, eos_token_id)
        _check_token_ids(row, token_ids, vocab_size, max_length)
        input_ids.append(token_ids)
        labels.append([IGNORE_INDEX] * len(prompt) + answer_ids)
    if not input_ids:
        raise ValueError(
            "The dataset of demonstrations is empty: got 0 (prompt, answer) pairs, expected at least 1. "
            "Check the task's split and its filters."
        )
    return Dataset.from_dict({"input_ids": input_ids, "labels": labels})


def _check_row(row: int, prompt_length: int, answer_ids: list[int], eos_token_id: int) -> None:
    if prompt_length == 0:
        raise ValueError(f"Demonstration {row} has an empty prompt; the first answer token needs one to follow.")
    if len(answer_ids) == 1:
        raise ValueError(f"Demonstration {row} has an empty answer; leave it out or give it at least one token.")
    if eos_token_id in answer_ids[:-1]:
        raise ValueError(
            f"Demonstration {row} has EOS (id {eos_token_id}) inside its answer, at {answer_ids.index(eos_token_id)} "
            f"of {len(answer_ids)} tokens; an episode ends at its first EOS."
        )


def _check_token_ids(row: int, token_ids: list[int], vocab_size: int, max_length: int | None) -> None:
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        raise ValueError(
            f"Demonstration {row} has token ids {min(token_ids)}..{max(token_ids)}, expected 0..{vocab_size - 1}: "
            "the tokenizer is larger than the model's vocabulary. Build the model with vocab_size=len(tokenizer)."
        )
    if max_length is not None and len(token_ids) > max_length:
        raise ValueError(
            f"Demonstration {row} has {len(token_ids)} tokens with EOS, expected at most max_length={max_length}; "
            "raise max_length or leave it out (cutting it would drop EOS)."
        )
