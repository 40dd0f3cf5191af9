"""Verification of a search: what an exact world model says of the lines that a cheap one has planned.

A search over heads believes the heads. Before a token is written, the lines that it would follow are read by the trunk:

    lines      of the best root tokens, each with the most visited path below it (``principal_variations``)
    reading    reward, continuation and value at every place of the lines, all in one forward of the trunk
    re-score   the tree's own means, with the trunk's numbers at the places of the lines (``verified_q_values``)
    choice     among these root tokens, by the rule that searched (``verify``)

Where the trunk says what the heads have said, Q values and choice stay as they are. How often the choice changes is a
meter of the planner's model error. Nodes beside the lines keep what the heads say of them.

Left out: priors of the lines by the trunk, trees through replies, and the distribution that acts (``acting``).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.search.policies import SearchedPolicy
from worldmtp.search.selection import QTransform, exploration_bonus
from worldmtp.search.tree import UNVISITED, Node, SearchTree

_LEAST_GAIN = 1e-6
"""Of a score over the searched token's, in nats or visits; less is rounding."""
_BISECTIONS = 60


@dataclass(frozen=True)
class Lines:
    """Paths from the root, a line for each of its best tokens; UNVISITED where there is no line, or it has ended."""

    slots: Int[Tensor, "batch line"]
    nodes: Int[Tensor, "batch line length"]
    tokens: Int[Tensor, "batch line length"]

    @property
    def is_place(self) -> Bool[Tensor, "batch line length"]:
        """Where a line has a token."""
        return self.nodes != UNVISITED


@dataclass(frozen=True)
class LineReading:
    """What a world model says after each token of lines; places that lines do not have mean nothing.

    ``discounts`` are of what follows: gamma times the continuation, 0 at an end.
    """

    rewards: Float[Tensor, "batch line length"]
    discounts: Float[Tensor, "batch line length"]
    values: Float[Tensor, "batch line length"]


@dataclass(frozen=True)
class VerifiedChoice:
    """The outcome of a verification.

    Attributes:
        actions: the tokens that are chosen now.
        is_overturned: where they are not those of the search.
        q_values: of the root tokens with a line, by the lines' reading.
        q_change: by how much they differ from the search's; 0 where there is no line.
        is_line: which lines there are.
    """

    actions: Int[Tensor, " batch"]
    is_overturned: Bool[Tensor, " batch"]
    q_values: Float[Tensor, "batch line"]
    q_change: Float[Tensor, "batch line"]
    is_line: Bool[Tensor, "batch line"]


def principal_variations(found: SearchedPolicy, num_lines: int) -> Lines:
    """Return the lines of the ``num_lines`` best root tokens, the searched action's first.

    The others come in the order of their visits, and of ``found.weights`` among equals. Tokens that no simulation has
    visited have no line.

    Raises:
        ValueError: no line is asked for.
    """
    if num_lines < 1:
        raise ValueError(f"num_lines={num_lines} must be at least 1: the line of the token that was searched for.")
    tree, rows = found.tree, found.tree.rows
    visits = tree.child_visits[:, 0]
    is_action = found.tokens == found.actions[:, None]
    order = _order(is_action, visits, found.weights)[:, :num_lines]
    slots = torch.where(visits.gather(1, order) > 0, order, UNVISITED)
    at, edge = torch.zeros_like(slots), slots
    nodes, tokens = list[Tensor](), list[Tensor]()
    while bool((edge != UNVISITED).any()):
        goes_on, safe = edge != UNVISITED, edge.clamp_min(0)
        tokens.append(torch.where(goes_on, tree.tokens[rows[:, None], at, safe], UNVISITED))
        child = tree.children[rows[:, None], at, safe]
        nodes.append(torch.where(goes_on, child, UNVISITED))
        at = torch.where(goes_on, child, at)
        below = tree.child_visits[rows[:, None], at]
        edge = torch.where(goes_on & (below.amax(dim=2) > 0), below.argmax(dim=2), UNVISITED)
    return Lines(slots, torch.stack(nodes, dim=2), torch.stack(tokens, dim=2))


def verified_q_values(tree: SearchTree, lines: Lines, reading: LineReading) -> Float[Tensor, "batch line"]:
    """Return the Q values of the lines' root tokens, had the tree heard ``reading`` at the places of the lines.

    A node's value is the mean over its visits: with v its own value, heard n times, and N(b) visits of its children

        V = (n v + sum_b N(b) (r(b) + d(b) V(b))) / (n + sum_b N(b)),    Q = r + d V

    n is 1, or more at the deepest level and at ends, where walks stop again and again. From the lines' ends upwards v,
    r, d and V of the lines' nodes are the reading's, and all else is the tree's.
    """
    rows = tree.rows[:, None]
    q_below = torch.zeros_like(reading.values[:, :, 0])
    for place in reversed(range(lines.nodes.shape[2])):
        nodes, is_place = lines.nodes[:, :, place].clamp_min(0), lines.is_place[:, :, place]
        visits, child_visits = tree.visits[rows, nodes], tree.child_visits[rows, nodes]
        rewards, discounts, values = tree.edges[rows, nodes].unbind(2)
        q_values = rewards + discounts * values
        if place + 1 < lines.nodes.shape[2]:
            is_next = tree.children[rows, nodes] == lines.nodes[:, :, place + 1, None]
            is_next &= lines.is_place[:, :, place + 1, None]
            q_values = torch.where(is_next, q_below[..., None], q_values)
        heard = visits - child_visits.sum(dim=2)
        total = heard * reading.values[:, :, place] + (child_visits * q_values).sum(dim=2)
        q_value = reading.rewards[:, :, place] + reading.discounts[:, :, place] * total / visits
        q_below = torch.where(is_place, q_value, q_below)
    return q_below


def verify(
    rule: str, found: SearchedPolicy, lines: Lines, reading: LineReading, q_transform: QTransform
) -> VerifiedChoice:
    """Choose among the lines' root tokens by the rule that searched, with the Q values of ``reading``.

    A score's change is all that counts, so that an unchanged Q never overturns a choice:

    ``gumbel``: min(s, s*) + s' - s, with s = log prior + sigma(Q), s' the same of the verified Q values, and s* that of
    the searched action. Of tokens visited as often as that it is s' itself, as s <= s* there. A token that sequential
    halving has dropped counts as at most the action's equal before.

    ``puct``: the visits that it would have come to; see ``visits_by_changed_values``.
    """
    node, is_line = found.tree.root, lines.slots != UNVISITED
    q_values = verified_q_values(found.tree, lines, reading)
    slots = lines.slots.clamp_min(0)
    changed = torch.where(is_line, q_values - node.q_values.gather(1, slots), 0.0)
    after = replace(node, q_values=node.q_values.scatter_add(1, slots, changed))
    if rule == "gumbel":
        before = (node.logits + q_transform(node)).gather(1, slots)
        scores = before.minimum(before[:, :1]) + (after.logits + q_transform(after)).gather(1, slots) - before
    else:
        scores = visits_by_changed_values(node, q_transform(after) - q_transform(node), lines).gather(1, slots)
    gains = (scores - scores[:, :1] - _LEAST_GAIN).masked_fill(~is_line, -torch.inf)
    best = gains.argmax(dim=1)
    is_overturned = gains.amax(dim=1) > 0
    chosen = slots.gather(1, torch.where(is_overturned, best, 0)[:, None])
    return VerifiedChoice(found.tokens.gather(1, chosen)[:, 0], is_overturned, q_values, changed, is_line)


def visits_by_changed_values(
    node: Node, change: Float[Tensor, "batch width"], lines: Lines
) -> Float[Tensor, "batch width"]:
    """Return the visits that PUCT would have come to if the rescaled Q values of the lines' tokens were changed.

    PUCT visits the largest Q + u next, u(a) = c sqrt(N) pi(a) / (1 + N(a)), so that after many visits Q + u is about
    one number for all children (Grill et al. 2020, "Monte-Carlo tree search as regularized policy optimization",
    https://arxiv.org/abs/2007.12509). A change D of the Q values changes that number by some x, and then

        u'(a) = u(a) + x - D(a),    1 + N'(a) = (1 + N(a)) u(a) / u'(a)

    with x such that there are as many visits as before. Where nothing changes, x is 0 and N' is N.
    """
    is_line = torch.zeros_like(node.child_visits).scatter_add(1, lines.slots.clamp_min(0), (lines.slots >= 0).long())
    change = torch.where(is_line > 0, change, 0.0)
    bonus = exploration_bonus(node)
    is_valid = bonus > 0
    bonus = torch.where(is_valid, bonus, 1.0)
    change = torch.where(is_valid, change, 0.0)
    counts = torch.where(is_valid, node.child_visits + 1, 0).to(bonus)
    lowest = torch.where(is_valid, change - bonus, -torch.inf).amax(dim=1, keepdim=True)
    least, most = change.amin(dim=1, keepdim=True), change.amax(dim=1, keepdim=True)
    low, high = torch.maximum(lowest, least), most
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_many = (counts * bonus / (bonus + middle - change)).sum(dim=1, keepdim=True) > counts.sum(1, keepdim=True)
        low, high = torch.where(is_many, middle, low), torch.where(is_many, high, middle)
    return torch.where(is_valid, counts * (bonus / (bonus + high - change)) - 1, 0.0)


def _order(
    is_action: Bool[Tensor, "batch width"], visits: Int[Tensor, "batch width"], weights: Float[Tensor, "batch width"]
) -> Int[Tensor, "batch width"]:
    """Return slots, the action's first, then by visits, then by weights."""
    order = weights.argsort(dim=1, descending=True, stable=True)
    for key in (visits, is_action.long()):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return order
