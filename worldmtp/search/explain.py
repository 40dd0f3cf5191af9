"""A search tree as nodes to read: what was thought of each token, how often it was looked at, and what it is worth."""

from dataclasses import dataclass

from worldmtp.search.policies import SearchedPolicy
from worldmtp.search.tree import UNVISITED


@dataclass(frozen=True)
class TreeNode:
    """A token that a search has come to, with those behind it, the most visited first.

    Attributes:
        token: the one that leads here.
        visits: simulations that went through it.
        prior: its probability among the kept tokens of its parent.
        q: what it is worth: reward on the way here, and what follows.
        is_end: whether nothing can follow.
        is_chosen: whether it is the action, or on the most visited line behind it.
    """

    token: int
    visits: int
    prior: float
    q: float
    is_end: bool
    is_chosen: bool
    children: tuple["TreeNode", ...]


@dataclass(frozen=True)
class Planned:
    """One plan: the text before it, its tree, what it wrote, and what the root is worth after it."""

    before: tuple[int, ...]
    tree: tuple[TreeNode, ...]
    written: tuple[int, ...]
    value: float


def tree_of(found: SearchedPolicy, row: int) -> tuple[TreeNode, ...]:
    """Return the visited children of a row's root."""
    tree = found.tree
    names = ("tokens", "children", "child_visits", "child_rewards", "child_discounts", "child_values")
    tokens, children, visits, rewards, discounts, values = (getattr(tree, name)[row].tolist() for name in names)
    priors = tree.logits[row].softmax(dim=-1).tolist()
    action = int(found.actions[row])

    def below(node: int, chosen: int | None) -> tuple[TreeNode, ...]:
        """The children of a node, of which ``chosen`` is the slot of the line that is taken."""
        seen = [slot for slot, count in enumerate(visits[node]) if count > 0]
        return tuple(at(node, slot, slot == chosen) for slot in sorted(seen, key=lambda slot: -visits[node][slot]))

    def at(node: int, slot: int, is_chosen: bool) -> TreeNode:
        child = children[node][slot]
        onwards = max(range(len(visits[child])), key=visits[child].__getitem__) if is_chosen else None
        return TreeNode(
            token=tokens[node][slot],
            visits=visits[node][slot],
            prior=priors[node][slot],
            q=rewards[node][slot] + discounts[node][slot] * values[node][slot],
            is_end=discounts[node][slot] == 0,
            is_chosen=is_chosen,
            children=below(child, onwards) if child != UNVISITED else (),
        )

    return below(0, tokens[0].index(action))


def line_of(nodes: tuple[TreeNode, ...], length: int) -> list[int]:
    """Return the tokens that are chosen, ``length`` at most: the action and the most visited line behind it."""
    line: list[int] = []
    while len(line) < length:
        chosen = [node for node in nodes if node.is_chosen]
        if not chosen:
            break
        line.append(chosen[0].token)
        nodes = chosen[0].children
    return line
