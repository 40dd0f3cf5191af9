"""Induction: after a pair of tokens was seen once, does its first token bring its second?

Gloeckle et al. 2024 (arXiv 2404.19737, sec. 4.1) give children's stories random two-token names and ask for the second
token of each name. Here pairs of rare tokens, seldom side by side in any text, replace a few tokens of held-out text:
at every occurrence but the first, copying is the only way to be right.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from worldmtp.model import MTPModel

MIN_SPACING = 4
"""Tokens from one occurrence to the next, at least: two for the pair and some text in between."""


@dataclass(frozen=True)
class InductionTexts:
    """``asked[:, t]`` marks first tokens of a pair seen before: their next token is the question."""

    input_ids: Int[Tensor, "text time"]
    asked: Bool[Tensor, "text time"]


def plant_pairs(
    windows: Int[Tensor, "text time"],
    rare_tokens: Int[Tensor, " rare"],
    generator: torch.Generator,
    num_occurrences: int = 4,
) -> InductionTexts:
    """Overwrite ``num_occurrences`` places of each window with that window's own pair of two different rare tokens.

    Raises:
        ValueError: fewer than two rare tokens, or windows too short to hold the occurrences apart.
    """
    num_texts, length = windows.shape
    num_slots = length // MIN_SPACING
    if len(rare_tokens) < 2:
        raise ValueError(f"{len(rare_tokens)} rare tokens were given; a pair needs 2.")
    if num_slots < num_occurrences:
        raise ValueError(
            f"windows of {length} tokens hold {num_slots} occurrences {MIN_SPACING} tokens apart, not "
            f"{num_occurrences}; give longer windows or fewer occurrences."
        )
    input_ids, asked = windows.clone(), torch.zeros_like(windows, dtype=torch.bool)
    for row in range(num_texts):
        pair = rare_tokens[torch.randperm(len(rare_tokens), generator=generator)[:2]]
        slots = torch.randperm(num_slots, generator=generator)[:num_occurrences].sort().values * MIN_SPACING
        input_ids[row, slots] = pair[0]
        input_ids[row, slots + 1] = pair[1]
        asked[row, slots[1:]] = True
    return InductionTexts(input_ids, asked)


def rarest_tokens(
    tokens: Int[Tensor, " tokens"], vocab_size: int, num_rare: int, min_count: int = 200
) -> Int[Tensor, " rare"]:
    """The least frequent tokens that occur ``min_count`` times: often enough that each is known as a token."""
    counts = torch.bincount(tokens, minlength=vocab_size)
    order = counts.argsort(stable=True)
    return order[counts[order] >= max(min_count, 1)][:num_rare]


@torch.no_grad()
def induction_accuracy(model: MTPModel, texts: InductionTexts) -> float:
    """How often the trunk's greedy next token is the pair's second, where it is asked for."""
    was_training = model.training
    model.eval()
    logits = model(texts.input_ids, compute_depth_logits=False).logits
    model.train(was_training)
    right = logits[:, :-1].argmax(dim=-1) == texts.input_ids[:, 1:]
    return float(right[texts.asked[:, :-1]].float().mean())
