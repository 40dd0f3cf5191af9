"""Prompts made and encoded before the first step, so that a slow generator is never inside the step loop."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from worldmtp.envs.task import Example
from worldmtp.envs.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncodedExamples:
    """Examples and the tokens of their prompts, right-padded; ``examples``, ``keys`` and ``prompts`` hold objects."""

    examples: Shaped[np.ndarray, " example"]
    keys: Shaped[np.ndarray, " example"]
    prompts: Shaped[np.ndarray, " example"]
    tokens: Int64[np.ndarray, "example max_prompt"]
    length: Int64[np.ndarray, " example"]

    def __len__(self) -> int:
        return len(self.examples)

    def select(self, indices: Int64[np.ndarray, " selected"]) -> "EncodedExamples":
        """Examples by index, repeats allowed."""
        return EncodedExamples(
            self.examples[indices],
            self.keys[indices],
            self.prompts[indices],
            self.tokens[indices],
            self.length[indices],
        )

    def fingerprint(self) -> str:
        """Hash of all prompts in order: what indices mean depends on it."""
        return hashlib.blake2b("".join(self.keys).encode(), digest_size=8).hexdigest()


def encode_examples(
    examples: Sequence[Example], tokenizer: Tokenizer, max_prompt: int, max_new: int
) -> EncodedExamples:
    """Encode prompts and see that they, and their answers, fit.

    Raises:
        ValueError: if a prompt is empty or longer than ``max_prompt`` tokens, or an answer and EOS than ``max_new``.
    """
    encoded = [tokenizer.encode(example.prompt) for example in examples]
    longest = max(range(len(encoded)), key=lambda index: len(encoded[index]))
    if len(encoded[longest]) > max_prompt:
        raise ValueError(
            f"the prompt {examples[longest].prompt!r} takes {len(encoded[longest])} tokens, the longest of "
            f"{len(examples)}, but max_prompt={max_prompt}; raise max_prompt or make the task's prompts shorter."
        )
    for example, ids in zip(examples, encoded, strict=True):
        if not ids:
            raise ValueError(f"the prompt {example.prompt!r} has no tokens; a policy needs at least one to answer to.")
        if example.answer is not None and len(tokenizer.encode(example.answer)) + 1 > max_new:
            raise ValueError(
                f"the answer {example.answer!r} to {example.prompt!r} takes {len(tokenizer.encode(example.answer))} "
                f"tokens and EOS, but max_new={max_new}; raise max_new or make the task's answers shorter."
            )
    tokens = np.full((len(encoded), max_prompt), tokenizer.pad_id, dtype=np.int64)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids)] = ids
    length = np.array([len(ids) for ids in encoded], dtype=np.int64)
    return EncodedExamples(
        object_column(examples),
        object_column([example.key for example in examples]),
        object_column([example.prompt for example in examples]),
        tokens,
        length,
    )


def object_column(values: Sequence[Any]) -> Shaped[np.ndarray, " value"]:
    """An array of these very objects."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
