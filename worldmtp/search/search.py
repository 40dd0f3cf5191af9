"""Monte-Carlo tree search over any world model, a batch of trees at once and no Python loop over their rows.

A simulation walks each row's tree down to an edge that has no node yet (``_walk``), asks the world model what is there,
all rows in one step (``_expand``), and carries the value back up (``_back_up``). A walk also ends at the deepest level,
where the node is asked again, and where an episode has ended: what is below an end is worth nothing, so that no
network is asked for more of it than that row's share of the batch. Where a world replies, chance decides where an edge
leads: see ``chance``.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.dynamics.imagination import Policy, check_action_conditional
from worldmtp.dynamics.protocol import Dynamics, StorableState
from worldmtp.search.chance import simulate_through_replies
from worldmtp.search.config import SearchConfig
from worldmtp.search.conversation import ConversationDynamics
from worldmtp.search.selection import Rule
from worldmtp.search.tree import UNVISITED, Reading, SearchTree, check_finite


def read_root(
    world_model: Dynamics[Any],
    state: StorableState,
    policy: Policy,
    config: SearchConfig,
    invalid: Bool[Tensor, "batch vocab"] | None = None,
) -> Reading:
    """Return what the roots are, without the tokens that are ``invalid`` there.

    Raises:
        TypeError: the world model is blind to actions: parallel heads cannot be searched.
        ValueError: in a row every token is invalid.
    """
    check_action_conditional(world_model)
    config.depth(world_model.max_horizon)
    prediction = world_model.predict(state)
    assert prediction.logits is not None  # asked for
    logprobs = policy(prediction.logits)
    if invalid is not None:
        if invalid.shape != logprobs.shape:
            raise ValueError(f"invalid has shape {tuple(invalid.shape)}, expected {tuple(logprobs.shape)}.")
        logprobs = logprobs.masked_fill(invalid, -torch.inf)
        stuck = ~logprobs.isfinite().any(dim=1)
        if bool(stuck.any()):
            raise ValueError(f"all tokens are invalid in rows {stuck.nonzero()[:, 0].tolist()[:8]}; one must be left.")
    width = min(config.width, logprobs.shape[-1])
    kept, tokens = logprobs.topk(width, dim=-1)
    return Reading(tokens, kept, prediction.value, prediction.reward, prediction.continuation * config.discount)


@torch.no_grad()
def search(
    world_model: Dynamics[Any],
    state: StorableState,
    root: Reading,
    policy: Policy,
    config: SearchConfig,
    root_rule: Rule,
    interior_rule: Rule,
) -> SearchTree:
    """Return the trees after ``config.num_simulations`` simulations from ``state``, which ``root`` has read.

    Raises:
        FloatingPointError: the world model said something that is not finite.
        ValueError: the trees do not fit into ``max_bytes``.
    """
    tree = SearchTree.grow(root, state, config.num_simulations, config.max_bytes)
    depth = config.depth(world_model.max_horizon)
    for simulation in range(config.num_simulations):
        deepest = min(depth, simulation + 1)
        if isinstance(world_model, ConversationDynamics):
            rules = (root_rule, interior_rule)
            simulate_through_replies(tree, world_model, policy, config.discount, deepest, *rules, simulation + 1)
            continue
        parents, slots = _walk(tree, root_rule, interior_rule, deepest)
        leaves = _expand(tree, world_model, policy, config, parents, slots, simulation + 1)
        _back_up(tree, leaves, depth)
    check_finite(tree)
    return tree


def _walk(
    tree: SearchTree, root_rule: Rule, interior_rule: Rule, max_depth: int
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Return the edge each row's walk ends with, as its node and slot."""
    rows = tree.rows
    nodes = torch.zeros_like(rows)
    slots = root_rule(tree.at(nodes))
    for _ in range(max_depth - 1):
        following = tree.children[rows, nodes, slots]
        goes_on = (following != UNVISITED) & (tree.child_discounts[rows, nodes, slots] != 0)
        if not bool(goes_on.any()):
            break
        nodes = torch.where(goes_on, following, nodes)
        slots = torch.where(goes_on, interior_rule(tree.at(nodes)), slots)
    return nodes, slots


def _expand(
    tree: SearchTree,
    world_model: Dynamics[Any],
    policy: Policy,
    config: SearchConfig,
    parents: Int[Tensor, " batch"],
    slots: Int[Tensor, " batch"],
    number: int,
) -> Int[Tensor, " batch"]:
    """Ask for what is at the edges' ends and write it; return those nodes, old ones where an edge had one."""
    rows = tree.rows
    state = world_model.step(tree.gather(parents), tree.tokens[rows, parents, slots])
    prediction = world_model.predict(state)
    assert prediction.logits is not None  # asked for
    kept, tokens = policy(prediction.logits).topk(tree.tokens.shape[-1], dim=-1)
    known = tree.children[rows, parents, slots]
    nodes = torch.where(known == UNVISITED, number, known)
    discount = prediction.continuation * config.discount
    tree.write(nodes, Reading(tokens, kept, prediction.value, prediction.reward, discount))
    tree.store(number, state)
    tree.children[rows, parents, slots] = nodes
    tree.child_rewards[rows, parents, slots] = prediction.reward
    tree.child_discounts[rows, parents, slots] = discount
    tree.parents[rows, nodes], tree.slots[rows, nodes] = parents, slots
    return nodes


def _back_up(tree: SearchTree, leaves: Int[Tensor, " batch"], depth: int) -> None:
    """Carry the leaves' values up to the roots: each node's value is the mean over its visits."""
    rows, nodes = tree.rows, leaves
    returns: Float[Tensor, " batch"] = tree.values[rows, leaves]
    for _ in range(depth):
        alive = nodes != 0
        if not bool(alive.all()):  # else no row is left out, and none need be copied
            if not bool(alive.any()):
                return
            rows, nodes, returns = rows[alive], nodes[alive], returns[alive]
        parents, slots = tree.parents[rows, nodes], tree.slots[rows, nodes]
        rewards, discounts, _ = tree.edges[rows, parents, :, slots].unbind(1)
        returns = rewards + discounts * returns
        visits = tree.visits[rows, parents]
        tree.child_values[rows, parents, slots] = tree.values[rows, nodes]
        tree.values[rows, parents] = (tree.values[rows, parents] * visits + returns) / (visits + 1)
        tree.visits[rows, parents] = visits + 1
        tree.child_visits[rows, parents, slots] += 1
        nodes = parents
