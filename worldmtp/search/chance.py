"""A simulation through what a world replies: edges that chance decides, backed up in expectation.

An edge is a token and, where it ends the policy's turn, the reply to it. At every visit the reply is drawn anew from
the source of replies, and the walk goes on to the child whose reply and end are those drawn; a reply that has not come
yet becomes a new child of the same edge. So an edge has as many children as different replies were drawn, each visited
as often as it was drawn, and the edge's Q is the mean over its visits of what was paid and what came after: an unbiased
estimate of the expectation over replies, given where the walks went from there on, and never the best reply's value.

What the walk carries is the conversation that it has drawn itself (``Talk``), and not the one that its nodes were made
with: two conversations of one text may stand differently in a world that does not say all of what it hides. This is
partially observed Monte-Carlo planning (Silver and Veness 2010, "Monte-Carlo Planning in Large POMDPs",
https://papers.nips.cc/paper/2010/hash/edfbe1afcf9246bb0d40eb4d8027d90f-Abstract.html), with the policy's prior and
value in place of rollouts.

What is approximate: each reply is one sample, so that values have its noise, 1 / sqrt(visits) of the spread of replies;
and a mean over visits includes the early ones, which explored.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.dynamics.imagination import Policy
from worldmtp.search.conversation import ConversationDynamics, ConversationState, Talk
from worldmtp.search.selection import Rule
from worldmtp.search.tree import UNVISITED, Reading, SearchTree


@dataclass(frozen=True)
class _Step:
    """The edges that some rows took at one level, with what was paid and whether it went on this time."""

    rows: Int[Tensor, " alive"]
    nodes: Int[Tensor, " alive"]
    slots: Int[Tensor, " alive"]
    rewards: Float[Tensor, " alive"]
    discounts: Float[Tensor, " alive"]


@dataclass(frozen=True)
class _Walk:
    """Where each row's walk ended: its last edge, the known child there or UNVISITED, and what it had drawn."""

    steps: list[_Step]
    parents: Int[Tensor, " batch"]
    slots: Int[Tensor, " batch"]
    known: Int[Tensor, " batch"]
    talk: Talk


def simulate_through_replies(
    tree: SearchTree,
    dynamics: ConversationDynamics,
    policy: Policy,
    gamma: float,
    max_depth: int,
    root_rule: Rule,
    interior_rule: Rule,
    number: int,
) -> None:
    """Walk each row's tree down, read what is there into node ``number`` where it is new, and carry values back up."""
    walk = _walk(tree, dynamics, gamma, max_depth, root_rule, interior_rule)
    leaves = _expand(tree, dynamics, policy, gamma, walk, number)
    _back_up(tree, walk.steps, leaves)


def _walk(
    tree: SearchTree,
    dynamics: ConversationDynamics,
    gamma: float,
    max_depth: int,
    root_rule: Rule,
    interior_rule: Rule,
) -> _Walk:
    rows = tree.rows
    nodes = torch.zeros_like(rows)
    alive = torch.ones_like(rows, dtype=torch.bool)
    talk: Talk = tree.states.talk.select(tree.place(nodes))
    parents, last_slots, known = nodes, nodes, nodes
    steps: list[_Step] = []
    for level in range(max_depth):
        slots = (interior_rule if level else root_rule)(tree.at(nodes))
        live = alive.nonzero()[:, 0]
        spoken = dynamics.speak(talk.select(live), tree.tokens[live, nodes[live], slots[live]])
        talk = talk.put(live, spoken)
        discounts = gamma * (~spoken.is_over).to(tree.values)
        steps.append(_Step(live, nodes[live], slots[live], spoken.reward.to(tree.values), discounts))
        parents, last_slots = torch.where(alive, nodes, parents), torch.where(alive, slots, last_slots)
        known = torch.where(alive, _child(tree, nodes, slots, talk), known)
        alive = alive & (known != UNVISITED) & ~talk.is_over
        if not bool(alive.any()):
            break
        nodes = torch.where(alive, known, nodes)
    return _Walk(steps, parents, last_slots, known, talk)


def _child(
    tree: SearchTree, nodes: Int[Tensor, " batch"], slots: Int[Tensor, " batch"], talk: Talk
) -> Int[Tensor, " batch"]:
    """Return the node that a row's edge has led to when it was answered so, or UNVISITED."""
    batch, num_nodes = tree.parents.shape
    told: Talk = tree.states.talk
    replies = told.reply.unflatten(0, (num_nodes, batch)).transpose(0, 1)
    is_over = told.is_over.unflatten(0, (num_nodes, batch)).transpose(0, 1)
    is_same = (tree.parents == nodes[:, None]) & (tree.slots == slots[:, None])
    is_same &= (replies == talk.reply[:, None]).all(dim=2) & (is_over == talk.is_over[:, None])
    return torch.where(is_same.any(dim=1), is_same.int().argmax(dim=1), UNVISITED)


def _expand(
    tree: SearchTree, dynamics: ConversationDynamics, policy: Policy, gamma: float, walk: _Walk, number: int
) -> Int[Tensor, " batch"]:
    rows, parents, slots = tree.rows, walk.parents, walk.slots
    before: Any = tree.states.inner.select(tree.place(parents))
    inner = dynamics.read(before, tree.tokens[rows, parents, slots], walk.talk)
    state = ConversationState(inner, walk.talk)
    prediction = dynamics.predict(state)
    assert prediction.logits is not None  # asked for
    kept, tokens = policy(prediction.logits).topk(tree.tokens.shape[-1], dim=-1)
    leaves = torch.where(walk.known == UNVISITED, number, walk.known)
    discount = gamma * prediction.continuation
    tree.write(leaves, Reading(tokens, kept, prediction.value, prediction.reward, discount))
    tree.store(number, state)
    tree.children[rows, parents, slots] = leaves
    tree.parents[rows, leaves], tree.slots[rows, leaves] = parents, slots
    return leaves


def _back_up(tree: SearchTree, steps: list[_Step], leaves: Int[Tensor, " batch"]) -> None:
    """Carry the leaves' values up the edges that were taken, with what was paid there this time.

    Of an edge the mean reward r and the mean discount d over its visits are kept, and the mean value v of what came
    after, weighted by the discounts: so that r + d v, the edge's Q, is the mean of what its visits brought.
    """
    returns = tree.values[tree.rows, leaves]
    for step in reversed(steps):
        edge = (step.rows, step.nodes, step.slots)
        after = step.discounts * returns[step.rows]
        arrived = step.rewards + after
        number = tree.child_visits[edge]
        reward, discount = tree.child_rewards[edge], tree.child_discounts[edge]
        total = discount * tree.child_values[edge] * number + after
        discount = discount + (step.discounts - discount) / (number + 1)
        tree.child_rewards[edge] = reward + (step.rewards - reward) / (number + 1)
        tree.child_discounts[edge] = discount
        tree.child_values[edge] = torch.where(discount > 0, total / (number + 1) / discount, 0.0)
        tree.child_visits[edge] += 1
        node = (step.rows, step.nodes)
        visits = tree.visits[node]
        tree.values[node] = (tree.values[node] * visits + arrived) / (visits + 1)
        tree.visits[node] += 1
        returns = returns.index_put((step.rows,), arrived)
