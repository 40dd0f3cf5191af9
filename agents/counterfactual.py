"""Counterfactual advantages, corrected so that a wrong critic cannot bias the policy gradient: pure functions.

A critic Q^(s, a) scores the *live* tokens, the few the policy might have written instead. Centred under the old policy,
A^(s, a) = Q^(s, a) - sum_a' pi_old(a'|s) Q^(s, a'), and with S = sum_l A^(s_l, a_l) over the episode, the gradient is

    sum_t [ sum_a eta A^(s_t, a) grad pi(a|s_t)  +  (G - b - eta S) grad log pi(a_t|s_t) ].

Given s_t, every later A^ has mean zero, every earlier one is a constant, and the one at t is given back by the sum over
actions: the expectation is the policy gradient for *any* Q^, eta and baseline b that do not look at this episode's
actions from t on (the trajectory-wise doubly robust form; Jiang & Li 2016 for the idea). A perfect critic leaves no
residual in a deterministic text world; a useless one gets slope eta = 0 and the plain estimator is back.

Tokens outside the live set get the live mean of Q^, so their A^ is zero *and* the centring stays exact: cutting the
tail costs no bias either.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LiveTokens:
    """The tokens worth asking about in each state, most likely first."""

    ids: Int[Tensor, "batch time live"]
    logprobs: Float[Tensor, "batch time live"]
    mask: Bool[Tensor, "batch time live"]

    def taken(self, actions: Int[Tensor, "batch time"]) -> Bool[Tensor, "batch time live"]:
        """Where the action taken stands among them; nowhere if it was left out."""
        return (self.ids == actions[..., None]) & self.mask


def live_tokens(
    log_policy: Float[Tensor, "batch time vocab"],
    step_mask: Bool[Tensor, "batch time"],
    max_live: int,
    min_probability: float,
) -> LiveTokens:
    """The ``max_live`` likeliest tokens of more than ``min_probability``; the likeliest is always live."""
    logprobs, ids = log_policy.topk(min(max_live, log_policy.shape[-1]), dim=-1)
    mask = logprobs.exp() > min_probability
    mask[..., 0] = True
    return LiveTokens(ids=ids, logprobs=logprobs, mask=mask & step_mask[..., None])


def centred_advantages(
    q_values: Float[Tensor, "batch time live"], live: LiveTokens
) -> Float[Tensor, "batch time live"]:
    """A^ of the live tokens, centred under the old policy; zero where masked."""
    probs = torch.where(live.mask, live.logprobs.exp(), 0.0)
    safe_q = torch.where(live.mask, q_values, 0.0)
    total = probs.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(probs.dtype).tiny)
    state_value = (probs * safe_q).sum(dim=-1, keepdim=True) / total
    return torch.where(live.mask, safe_q - state_value, 0.0)


def episode_correction(
    advantages: Float[Tensor, "batch time live"], live: LiveTokens, actions: Int[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """S = sum_l A^(s_l, a_l): what the critic says of the actions taken, over the episode."""
    return torch.where(live.taken(actions), advantages, 0.0).sum(dim=(1, 2))
