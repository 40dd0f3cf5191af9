"""A search tree as nodes to read: what was thought of each token, how often it was looked at, and what it is worth.

Where a world replies, a token that ends a turn has the replies that were drawn under it, and tokens go on under these::

    l   12 visits, prior 60 %, Q .51       the mean over all that was drawn
        10   drawn 8 times
            d    7 visits ...
        11   drawn 4 times

The line that is followed takes the action, then the most visited token, and of replies the one drawn most often.
"""

from dataclasses import dataclass

from worldmtp.dynamics.turns import NOTHING
from worldmtp.search.conversation import ConversationState
from worldmtp.search.policies import SearchedPolicy
from worldmtp.search.tree import UNVISITED, SearchTree


@dataclass(frozen=True)
class DrawnReply:
    """A reply to the token above it, with the tokens behind it, the most visited first.

    Attributes:
        tokens: what was heard; none, where the world said nothing.
        visits: simulations that have drawn it.
        is_end: whether the conversation ended with it.
        is_chosen: whether it is on the line that is followed.
    """

    tokens: tuple[int, ...]
    visits: int
    is_end: bool
    is_chosen: bool
    children: tuple["TreeNode", ...]


@dataclass(frozen=True)
class TreeNode:
    """A token that a search has come to, with those behind it, the most visited first.

    Attributes:
        token: the one that leads here.
        visits: simulations that went through it.
        prior: its probability among the kept tokens of its parent.
        q: what it is worth: reward on the way here, and what follows; where a world replies the mean over replies.
        is_end: whether nothing can follow.
        is_chosen: whether it is the action, or on the line that is followed behind it.
        children: the tokens behind it, of the same turn.
        replies: what the world was found to reply where the token ended a turn, the most drawn first.
    """

    token: int
    visits: int
    prior: float
    q: float
    is_end: bool
    is_chosen: bool
    children: tuple["TreeNode", ...]
    replies: tuple[DrawnReply, ...] = ()


@dataclass(frozen=True)
class Spoken:
    """A text, and which of its tokens the world wrote: its openings and replies."""

    tokens: tuple[int, ...]
    is_heard: tuple[bool, ...]

    @classmethod
    def of_one(cls, tokens: tuple[int, ...]) -> "Spoken":
        """Return a text of which nobody but the policy, or its user, is said to have written a part."""
        return cls(tokens, (False,) * len(tokens))

    def then(self, tokens: tuple[int, ...], is_heard: bool) -> "Spoken":
        """Return the text with more behind it."""
        return Spoken(self.tokens + tokens, self.is_heard + (is_heard,) * len(tokens))


@dataclass(frozen=True)
class Planned:
    """One plan: the text before it, its tree, what it wrote, and what the root is worth after it."""

    before: Spoken
    tree: tuple[TreeNode, ...]
    written: tuple[int, ...]
    value: float


def tree_of(found: SearchedPolicy, row: int) -> tuple[TreeNode, ...]:
    """Return the visited children of a row's root."""
    tree = found.tree
    names = ("tokens", "child_visits", "child_rewards", "child_discounts", "child_values", "visits")
    tokens, visits, rewards, discounts, values, drawn = (getattr(tree, name)[row].tolist() for name in names)
    priors = tree.logits[row].softmax(dim=-1).tolist()
    action, replies, children = int(found.actions[row]), _replies_of(tree, row), _children_of(tree, row)

    def below(node: int, is_followed: bool) -> tuple[TreeNode, ...]:
        """The tokens behind a node; where the line comes to it, one of them is on it."""
        seen = sorted((slot for slot, count in enumerate(visits[node]) if count > 0), key=lambda s: -visits[node][s])
        chosen = tokens[0].index(action) if node == 0 else next(iter(seen), None)
        return tuple(at(node, slot, is_followed and slot == chosen) for slot in seen)

    def at(node: int, slot: int, is_chosen: bool) -> TreeNode:
        ends = sorted(children[node, slot], key=lambda child: -drawn[child])
        is_heard = ends[0] in replies
        return TreeNode(
            token=tokens[node][slot],
            visits=visits[node][slot],
            prior=priors[node][slot],
            q=rewards[node][slot] + discounts[node][slot] * values[node][slot],
            is_end=discounts[node][slot] == 0,
            is_chosen=is_chosen,
            children=() if is_heard else below(ends[0], is_chosen),
            replies=tuple(reply(child, is_chosen and child == ends[0]) for child in ends) if is_heard else (),
        )

    def reply(child: int, is_chosen: bool) -> DrawnReply:
        heard, is_end = replies[child]
        return DrawnReply(heard, drawn[child], is_end, is_chosen, below(child, is_chosen))

    return below(0, True)


def _children_of(tree: SearchTree, row: int) -> dict[tuple[int, int], list[int]]:
    """Return where each edge, a node and a slot, has led to, in the order in which it was found."""
    children: dict[tuple[int, int], list[int]] = {}
    for child, edge in enumerate(zip(tree.parents[row].tolist(), tree.slots[row].tolist(), strict=True)):
        if edge[0] != UNVISITED:
            children.setdefault(edge, []).append(child)
    return children


def _replies_of(tree: SearchTree, row: int) -> dict[int, tuple[tuple[int, ...], bool]]:
    """Return by node what was heard on the way to it, and whether that was the end; of nodes that begin a turn."""
    if not isinstance(tree.states, ConversationState):
        return {}
    talk, batch = tree.states.talk, len(tree.tokens)
    said, heard = talk.said[row::batch].tolist(), talk.reply[row::batch].tolist()
    return {
        node: (tuple(token for token in heard[node] if token != NOTHING), is_over)
        for node, is_over in enumerate(talk.is_over[row::batch].tolist())
        if all(token == NOTHING for token in said[node])
    }


def line_of(nodes: tuple[TreeNode, ...], length: int) -> list[int]:
    """Return the tokens that are chosen, ``length`` at most, to the end of the policy's turn."""
    line: list[int] = []
    while len(line) < length:
        chosen = [node for node in nodes if node.is_chosen]
        if not chosen:
            break
        line.append(chosen[0].token)
        nodes = chosen[0].children
    return line
