"""What a node's children are worth, on a scale that can be added to a prior.

Children that were never visited have no value: both transforms say what stands in its place. Sources: Danihelka et al.
2022, "Policy improvement by planning with Gumbel", appendix D for ``completed_by_mixed_value``; Schrittwieser et al.
2020, MuZero, appendix B for ``by_parent_and_siblings``; constants as in mctx.

There are two scales. By the node's own range (mctx) the best child is 1 and the worst 0, however little lies between
them, which is right where values are exact. By the range of all returns a small difference stays small, so that the
errors of learnt values do not outweigh the prior: ``visited_in_range`` for PUCT, ``completed_in_range`` for Gumbel's.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.search.tree import Node

_EPSILON = 1e-8


def by_parent_and_siblings(node: Node) -> Float[Tensor, "batch width"]:
    """Return Q values between 0 and 1, by the least and the largest of the visited children and of the node itself.

    An unvisited child counts as the worst.
    """
    value = node.value[:, None]
    known = torch.where(node.visited, node.q_values, value)
    low = torch.minimum(value, known.amin(dim=1, keepdim=True))
    high = torch.maximum(value, known.amax(dim=1, keepdim=True))
    return (torch.where(node.visited, node.q_values, low) - low) / (high - low).clamp_min(_EPSILON)


def mixed_value(node: Node) -> Float[Tensor, " batch"]:
    """Return an estimate of the node's value from the model's own and its visited children's (equation 33).

    v_mix = (v + N sum_b pi(b) Q(b) / sum_b pi(b)) / (1 + N), over visited b, with N all visits of children.
    """
    prior = node.logits.softmax(dim=-1).clamp_min(torch.finfo(node.logits.dtype).tiny)
    prior = torch.where(node.visited, prior, 0.0)
    total = prior.sum(dim=1)
    weighted = (prior * torch.where(node.visited, node.q_values, 0.0)).sum(dim=1) / torch.where(total > 0, total, 1.0)
    visits = node.child_visits.sum(dim=1)
    return (node.raw_value + visits * weighted) / (visits + 1)


def completed_q_values(node: Node) -> Float[Tensor, "batch width"]:
    """Return the Q values of visited children, and ``mixed_value`` for the others."""
    return torch.where(node.visited, node.q_values, mixed_value(node)[:, None])


def completed_by_mixed_value(
    node: Node, value_scale: float = 0.1, visit_offset: float = 50.0
) -> Float[Tensor, "batch width"]:
    """Return sigma(completed Q) = (visit_offset + max_b N(b)) value_scale Q, with Q rescaled to between 0 and 1."""
    completed = completed_q_values(node)
    low, high = completed.amin(dim=1, keepdim=True), completed.amax(dim=1, keepdim=True)
    rescaled = (completed - low) / (high - low).clamp_min(_EPSILON)
    most = node.child_visits.amax(dim=1, keepdim=True)
    return (visit_offset + most) * value_scale * rescaled


def completed_by_visited(node: Node) -> Float[Tensor, "batch width"]:
    """Return the Q values of visited children, and for the others the visited ones' mean under the prior.

    Where no child was visited it is the model's own value of the node. ``mixed_value`` weighs that in as well, which is
    right if it is of one scale with the children's; where a model is optimistic about what comes next, a child would
    seem better for having been looked at.
    """
    prior = torch.where(node.visited, node.logits.softmax(dim=-1), 0.0)
    total = prior.sum(dim=1)
    mean = (prior * node.q_values).sum(dim=1) / torch.where(total > 0, total, 1.0)
    return torch.where(node.visited, node.q_values, torch.where(total > 0, mean, node.raw_value)[:, None])


def visited_in_range(node: Node, low: float, high: float) -> Float[Tensor, "batch width"]:
    """Return Q values of ``completed_by_visited``, rescaled so that a return of ``low`` is 0 and one of ``high`` is 1.

    It replaces ``by_parent_and_siblings`` where values are learnt. If the visited children's Q values reach from
    ``low`` to ``high``, both give them the same numbers. They differ in an unvisited child. There it counts as the
    worst of the node. Here that would be the worst of all returns, far below every child that was looked at, so that
    the first child would keep all visits. It counts as much as the visited ones do on average instead, and where all Q
    values are equal the prior alone decides. Nothing is clipped: a learnt reward and value can sum to more than a
    return.
    """
    return (completed_by_visited(node) - low) / (high - low)


def completed_in_range(
    node: Node, low: float, high: float, value_scale: float = 0.1, visit_offset: float = 50.0
) -> Float[Tensor, "batch width"]:
    """Return sigma(Q) of ``completed_by_visited``, rescaled by the range that returns can have, not by the node's own.

    ``completed_by_mixed_value`` makes the best token e^5 times as likely beside the worst, however little lies between
    them: right where values are exact, while a policy that learns from it learns the noise of value heads. Here little
    is little.
    """
    most = node.child_visits.amax(dim=1, keepdim=True).to(node.q_values.dtype)
    return (visit_offset + most) * value_scale * visited_in_range(node, low, high)
