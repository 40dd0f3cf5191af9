"""Windows of a long chain of tokens: random ones to learn from, fixed ones to measure on.

A batch is a pure function of seed and step, so a killed run goes on with the batches it had left, two arms of a study
see the same text in the same order, and no state is saved. Windows cross from one document into the
next, as in pre-training; ``document_ids_at`` says where, for targets that must not.

Left out: epochs. Offsets are drawn with replacement, which over a fraction of an epoch differs little.
"""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def batch_at(
    tokens: Int[Tensor, " tokens"], length: int, batch_size: int, seed: int, step: int
) -> Int[Tensor, "batch time"]:
    """Return the batch of that step: windows of ``length`` tokens that start at ``batch_starts``.

    Raises:
        ValueError: as ``batch_starts``.
    """
    starts = batch_starts(len(tokens), length, batch_size, seed, step)
    return _windows(tokens, length, starts)


def batch_starts(num_tokens: int, length: int, batch_size: int, seed: int, step: int) -> Int[Tensor, " batch"]:
    """Return where the windows of that step start: each of the 0 .. ``num_tokens - length`` equally likely.

    Numpy's SeedSequence keeps the streams of all seeds and steps apart; torch's CPU generator would keep 32 bits.

    Raises:
        ValueError: a count below 1, a negative seed or step, or fewer tokens than one window has.
    """
    _check_window(num_tokens, length)
    for name, count, least in (("batch_size", batch_size, 1), ("seed", seed, 0), ("step", step, 0)):
        if count < least:
            raise ValueError(f"{name}={count} must be at least {least}.")
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,)))
    return torch.from_numpy(generator.integers(num_tokens - length + 1, size=batch_size))


def eval_windows(tokens: Int[Tensor, " tokens"], length: int, num_windows: int) -> Int[Tensor, "window time"]:
    """Return windows without overlap, spread evenly from the first token on, the same at every call.

    Raises:
        ValueError: as ``eval_starts``.
    """
    return _windows(tokens, length, eval_starts(len(tokens), length, num_windows))


def eval_starts(num_tokens: int, length: int, num_windows: int) -> Int[Tensor, " window"]:
    """Return where ``eval_windows`` start: multiples of ``num_tokens // num_windows``.

    Raises:
        ValueError: a count below 1, or so many windows that they would overlap.
    """
    _check_window(num_tokens, length)
    if not 1 <= num_windows <= num_tokens // length:
        raise ValueError(
            f"num_windows={num_windows}, but {num_tokens} tokens hold 1 to {num_tokens // length} windows of "
            f"length={length} without overlap; change one of them."
        )
    return torch.arange(num_windows) * (num_tokens // num_windows)


def document_ids_at(
    document_starts: Int[Tensor, " documents"], starts: Int[Tensor, " window"], length: int
) -> Int[Tensor, "window time"]:
    """Return the document of each token of the windows, as its index in ``document_starts``.

    For ``targets.depth_targets(document_ids=...)``, and for intervals whose independent unit is the document.

    Raises:
        ValueError: documents that do not start at 0 and ascend: sorted is what the search below relies on.
    """
    if len(document_starts) == 0 or document_starts[0] != 0 or bool((document_starts.diff() <= 0).any()):
        raise ValueError(
            f"document_starts must start at 0 and ascend; got {document_starts[:5].tolist()} and so on, "
            f"{len(document_starts)} in all."
        )
    positions = starts[:, None] + torch.arange(length, device=starts.device)
    return torch.searchsorted(document_starts, positions.to(document_starts.device), right=True) - 1


def _windows(tokens: Int[Tensor, " tokens"], length: int, starts: Int[Tensor, " window"]) -> Int[Tensor, "window time"]:
    return tokens.unfold(0, length, 1)[starts.to(tokens.device)]


def _check_window(num_tokens: int, length: int) -> None:
    if not 1 <= length <= num_tokens:
        raise ValueError(
            f"length={length} of a window must lie in 1 .. {num_tokens}, the number of tokens; shorten it or pass more "
            "text."
        )
