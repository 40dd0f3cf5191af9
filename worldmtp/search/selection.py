"""Which child a simulation goes on to: PUCT, and Gumbel MuZero's rules at the root and below it.

A rule is given a node of each row and returns a slot of each; ties go to the first slot.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.search.tree import Node

QTransform = Callable[[Node], Float[Tensor, "batch width"]]
Rule = Callable[[Node], Int[Tensor, " batch"]]

_LEAST_SCORE = -1e9


def puct(
    node: Node, q_transform: QTransform, exploration: float = 1.25, exploration_base: float = 19652.0
) -> Int[Tensor, " batch"]:
    """Return the child of the largest upper confidence bound (MuZero, appendix B, equation 2)."""
    return _best(q_transform(node) + exploration_bonus(node, exploration, exploration_base), node)


def exploration_bonus(
    node: Node, exploration: float = 1.25, exploration_base: float = 19652.0
) -> Float[Tensor, "batch width"]:
    """Return what PUCT adds to Q: c(N) sqrt(N) pi(a) / (1 + N(a)), N the node's visits; 0 where pi is."""
    visits = node.visits[:, None]
    constant = exploration + torch.log((visits + exploration_base + 1) / exploration_base).to(node.logits.dtype)
    return visits.sqrt() * constant * node.logits.softmax(dim=-1) / (node.child_visits + 1)


def sequential_halving(num_considered: int, num_simulations: int) -> tuple[int, ...]:
    """Return for each simulation how many visits the candidate it goes to has had.

    The candidates, all at first, are visited equally often; then half of them go on, the better ones, until two are
    left (Karnin et al. 2013, with the budget split evenly among the ceil(log2 m) phases).

    Raises:
        ValueError: a number is negative.
    """
    if num_considered < 0 or num_simulations < 0:
        raise ValueError(f"num_considered={num_considered} and num_simulations={num_simulations} must not be negative.")
    if num_considered <= 1:
        return tuple(range(num_simulations))
    phases = math.ceil(math.log2(num_considered))
    schedule: list[int] = []
    visits = [0] * num_considered
    going_on = num_considered
    while len(schedule) < num_simulations:
        for _ in range(max(1, int(num_simulations / (phases * going_on)))):
            schedule += visits[:going_on]
            visits[:going_on] = [count + 1 for count in visits[:going_on]]
        going_on = max(2, going_on // 2)
    return tuple(schedule[:num_simulations])


def halving_table(
    max_considered: int, num_simulations: int, device: torch.device
) -> Int[Tensor, "considered simulation"]:
    """Return the schedules of 0 .. ``max_considered`` candidates."""
    schedules = [sequential_halving(number, num_simulations) for number in range(max_considered + 1)]
    return torch.tensor(schedules, dtype=torch.long, device=device).reshape(max_considered + 1, num_simulations)


def gumbel_scores(
    node: Node,
    gumbel: Float[Tensor, "batch width"],
    q_transform: QTransform,
    considered_visits: Int[Tensor, " batch"],
) -> Float[Tensor, "batch width"]:
    """Return g + logits + sigma(Q) of the children with so many visits, and minus infinity of the others."""
    logits = node.logits - node.logits.amax(dim=1, keepdim=True)
    scores = (gumbel + logits + q_transform(node)).clamp_min(_LEAST_SCORE)
    return scores.masked_fill(node.child_visits != considered_visits[:, None], -math.inf)


def gumbel_root(
    node: Node,
    gumbel: Float[Tensor, "batch width"],
    q_transform: QTransform,
    table: Int[Tensor, "considered simulation"],
) -> Int[Tensor, " batch"]:
    """Return the best of the candidates whose turn it is (Gumbel MuZero, algorithm 2)."""
    valid = node.logits.isfinite().sum(dim=1).clamp_max(len(table) - 1)
    considered_visits = table[valid, node.child_visits.sum(dim=1)]
    return _best(gumbel_scores(node, gumbel, q_transform, considered_visits), node)


def gumbel_interior(node: Node, q_transform: QTransform) -> Int[Tensor, " batch"]:
    """Return the child whose visits fall furthest short of the improved policy (equation 14); nothing is drawn."""
    improved = (node.logits + q_transform(node)).softmax(dim=-1)
    return _best(improved - node.child_visits / (1 + node.child_visits.sum(dim=1, keepdim=True)), node)


def _best(scores: Float[Tensor, "batch width"], node: Node) -> Int[Tensor, " batch"]:
    return scores.masked_fill(node.logits.isneginf(), -math.inf).argmax(dim=1)
