"""The tail of the vocabulary: all tokens that are not live are one action, of the probability they have together.

pi(tail|s) = 1 - sum of pi over the live tokens, and its gradient is the sum of its tokens' gradients. Both are taken
from the log-sum-exp over these tokens and not from the difference, which in float32 is all rounding where the tail is
small, and log 0 where it rounds away. A forbidden token has probability zero and is in no tail.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TAIL = -1
"""Stands for the tail among the ids of live tokens, at the last place."""


def tail_logprob(
    log_policy: Float[Tensor, "batch step vocab"],
    ids: Int[Tensor, "batch step live"],
    is_live: Bool[Tensor, "batch step live"],
) -> Float[Tensor, "batch step"]:
    """Return log pi of all tokens together but the live ones; minus infinity, without a gradient, if there are none."""
    live = torch.zeros_like(log_policy, dtype=torch.bool).scatter(2, ids, is_live)
    empty = (live | torch.isneginf(log_policy)).all(dim=-1)
    # A sum of nothing has NaN for a gradient, so where the tail is empty the whole policy is summed, and not used.
    rest = log_policy.masked_fill(live & ~empty[..., None], float("-inf"))
    return rest.logsumexp(dim=-1).masked_fill(empty, float("-inf"))


def ends_with_tail(ids: Int[Tensor, "batch step live"]) -> bool:
    """Return whether the tail stands at the last place of all states; the host waits for it."""
    return ids.shape[-1] > 0 and bool((ids[..., -1] == TAIL).all())


def live_logprobs(
    log_policy: Float[Tensor, "batch step vocab"],
    ids: Int[Tensor, "batch step live"],
    old_logprobs: Float[Tensor, "batch step live"],
    has_tail: bool,
) -> Float[Tensor, "batch step live"]:
    """Return log pi of the live tokens, and of the tail where ``ids`` end with it: where ``ends_with_tail``.

    The tail is what was outside the live set when that was chosen: ``old_logprobs`` are finite for live tokens alone.
    """
    if not has_tail:
        return log_policy.gather(2, ids)
    tokens = ids[..., :-1]
    tail = tail_logprob(log_policy, tokens, torch.isfinite(old_logprobs[..., :-1]))
    return torch.cat([log_policy.gather(2, tokens), tail[..., None]], dim=-1)
