"""The distribution that acts after a search, over all tokens: whatever the policy might do keeps a probability.

What was done can then be learnt from by importance weights, pi / b, which are finite and have a mean of 1 under b. A
search by itself knows the ``width`` likeliest tokens of a root only; the others are one child here that was never
visited, of the prior that they have together.

Left out: noise at the root, Gumbel's or Dirichlet's. With it b is a mixture over noise whose probabilities nobody
knows; without it the same state gives the same b.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.choices import check_choice
from worldmtp.search.config import RULES
from worldmtp.search.policies import SearchedPolicy
from worldmtp.search.q_transforms import completed_by_mixed_value
from worldmtp.search.selection import QTransform


def acting_logprobs(
    rule: str,
    found: SearchedPolicy,
    log_policy: Float[Tensor, "batch vocab"],
    q_transform: QTransform | None = None,
) -> Float[Tensor, "batch vocab"]:
    """Return log b(a|s) of every token, from a search without noise by the policy pi of ``log_policy``.

    ``gumbel``: b(a) = pi(a) exp(sigma(a)) / Z, sigma of completed Q values (Danihelka et al. 2022, section 4), which
    all tokens that were not kept have in common. Where all Q values are equal it is pi.

    ``puct``: b(a) = (N(a) + pi(a)) / (N + 1), N the visits of all children: their shares (Schrittwieser et al. 2020,
    appendix B, at temperature 1) with one visit more, the root's own, which is the policy's. A token that was not
    visited keeps pi(a) / (N + 1).

    Tokens of pi(a) = 0, forbidden ones, have b(a) = 0. ``q_transform`` is that of the search.

    Raises:
        ValueError: there is no such rule.
    """
    check_choice("search", rule, RULES)
    node = found.tree.root
    if rule == "puct":
        visits = torch.zeros_like(log_policy).scatter(1, found.tokens, node.child_visits.to(log_policy))
        return ((visits + log_policy.exp()) / (visits.sum(dim=1, keepdim=True) + 1)).log()
    q_transform = q_transform or completed_by_mixed_value
    others = log_policy.scatter(1, found.tokens, -torch.inf).logsumexp(dim=1)
    with_others, alone = q_transform(node.with_tail(others)), q_transform(node)
    kept = torch.where(others.isneginf()[:, None], alone, with_others[:, :-1]).to(log_policy)
    bonus = with_others[:, -1:].to(log_policy).expand_as(log_policy).scatter(1, found.tokens, kept)
    return (log_policy + bonus).log_softmax(dim=-1)
