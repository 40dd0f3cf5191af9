"""A batch of search trees in arrays: one per row, all grown by one node a simulation.

Node 0 is the root; node n is what simulation n - 1 added to its row. Every node has ``width`` children slots, one for
each of its likeliest tokens, which ``tokens`` names: a vocabulary is cut to its top ``width`` under the prior. What was
cut cannot be chosen, and the prior is that of the kept tokens among themselves; the search is blind to the rest.

The layout, and what is written where, follow mctx (DeepMind, https://github.com/google-deepmind/mctx), whose visit
counts these trees reproduce; the arrays are changed in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.dynamics.protocol import StorableState

UNVISITED = -1


@dataclass(frozen=True)
class Reading:
    """What is known of a batch of nodes when they are added: priors over the kept tokens, and the arrival in them."""

    tokens: Int[Tensor, "batch width"]
    logits: Float[Tensor, "batch width"]
    """Log-prior; minus infinity where the token may not be chosen."""
    value: Float[Tensor, " batch"]
    reward: Float[Tensor, " batch"]
    discount: Float[Tensor, " batch"]
    """Of what follows; 0 where the episode has ended."""


@dataclass
class SearchTree:
    """The trees of a batch. ``node`` axes are as long as simulations + 1; edges are stored with the parent."""

    tokens: Int[Tensor, "batch node width"]
    logits: Float[Tensor, "batch node width"]
    raw_values: Float[Tensor, "batch node"]
    """The model's own value of each node, before anything was searched below it."""
    values: Float[Tensor, "batch node"]
    visits: Int[Tensor, "batch node"]
    parents: Int[Tensor, "batch node"]
    slots: Int[Tensor, "batch node"]
    """The slot of the parent that leads here."""
    children: Int[Tensor, "batch node width"]
    child_visits: Int[Tensor, "batch node width"]
    child_rewards: Float[Tensor, "batch node width"]
    child_discounts: Float[Tensor, "batch node width"]
    child_values: Float[Tensor, "batch node width"]
    states: Any
    """The world model's states, in one table with room for all: node n of row b is its row n * batch + b."""
    max_bytes: int
    rows: Int[Tensor, " batch"]
    """The number of each row, to index the first axis by."""
    edges: Float[Tensor, "batch node 3 width"]
    """Rewards, discounts and values of the children, of which those arrays are views: one look-up reads all three."""

    @classmethod
    def grow(cls, root: Reading, state: StorableState, num_simulations: int, max_bytes: int) -> "SearchTree":
        """Return trees that are a root each, with room for the simulations.

        Raises:
            ValueError: they take more than ``max_bytes``.
        """
        (batch, width), nodes = root.tokens.shape, num_simulations + 1
        check_fits(batch, width, num_simulations, root.logits.element_size(), state.row_bytes, max_bytes)
        node, edge = (batch, nodes), (batch, nodes, width)
        edges = root.value.new_zeros((batch, nodes, 3, width))
        tree = cls(
            tokens=root.tokens.new_zeros(edge),
            logits=root.logits.new_zeros(edge),
            raw_values=root.value.new_zeros(node),
            values=root.value.new_zeros(node),
            visits=root.tokens.new_zeros(node),
            parents=root.tokens.new_full(node, UNVISITED),
            slots=root.tokens.new_full(node, UNVISITED),
            children=root.tokens.new_full(edge, UNVISITED),
            child_visits=root.tokens.new_zeros(edge),
            child_rewards=edges[:, :, 0],
            child_discounts=edges[:, :, 1],
            child_values=edges[:, :, 2],
            states=state.reserve(batch * nodes),
            max_bytes=max_bytes,
            rows=torch.arange(batch, device=root.tokens.device),
            edges=edges,
        )
        tree.write(torch.zeros(batch, dtype=torch.long, device=root.tokens.device), root)
        return tree

    def write(self, nodes: Int[Tensor, " batch"], reading: Reading) -> None:
        """Write what is known of a node of each row, and count a visit to it."""
        rows = self.rows
        self.tokens[rows, nodes], self.logits[rows, nodes] = reading.tokens, reading.logits
        self.raw_values[rows, nodes] = reading.value
        self.values[rows, nodes] = reading.value
        self.visits[rows, nodes] += 1

    def store(self, number: int, state: StorableState) -> None:
        """Keep the world model's state of node ``number`` of each row, in its place.

        Raises:
            ValueError: states grow with their depth, and with ones as large as these the trees do not fit any more.
        """
        if state.row_bytes > self.states.row_bytes:
            batch, nodes, width = self.tokens.shape
            check_fits(batch, width, nodes - 1, self.logits.element_size(), state.row_bytes, self.max_bytes)
        self.states = self.states.store(number * len(self.tokens), state)

    def gather(self, nodes: Int[Tensor, " batch"]) -> Any:
        """Return the world model's state of a node of each row."""
        return self.states.select(self.place(nodes))

    def place(self, nodes: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return where the state of a node of each row stands in the table."""
        return nodes * len(self.tokens) + self.rows

    def at(self, nodes: Int[Tensor, " batch"]) -> "Node":
        """Return what there is of a node of each row."""
        rows = self.rows
        rewards, discounts, values = self.edges[rows, nodes].unbind(1)
        return Node(
            logits=self.logits[rows, nodes],
            raw_value=self.raw_values[rows, nodes],
            value=self.values[rows, nodes],
            visits=self.visits[rows, nodes],
            child_visits=self.child_visits[rows, nodes],
            q_values=rewards + discounts * values,
        )

    @property
    def root(self) -> "Node":
        """The root of each row."""
        return self.at(torch.zeros_like(self.rows))

    def most_drawn(self, nodes: Int[Tensor, " batch"], slots: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return where each row's edge has led to most often, the first of equals; UNVISITED where it was not taken.

        An edge has one child, or where a world replies one for each reply that was drawn.
        """
        is_child = (self.parents == nodes[:, None]) & (self.slots == slots[:, None])
        often = self.visits.masked_fill(~is_child, UNVISITED)
        return torch.where(is_child.any(dim=1), often.argmax(dim=1), UNVISITED)

    def principal_variation(self) -> Int[Tensor, "batch length"]:
        """Return the most visited tokens from the root on, -1 after each row's last visited node.

        They are the policy's. Where a world replies, the line goes on behind the reply that was drawn most often.
        """
        nodes, alive, line = torch.zeros_like(self.rows), torch.ones_like(self.rows, dtype=torch.bool), []
        while bool(alive.any()):
            visits = self.child_visits[self.rows, nodes]
            best = visits.argmax(dim=1)
            alive = alive & (visits.amax(dim=1) > 0)
            line.append(torch.where(alive, self.tokens[self.rows, nodes, best], UNVISITED))
            nodes = torch.where(alive, self.most_drawn(nodes, best), nodes)
        return torch.stack(line[:-1], dim=1) if len(line) > 1 else self.tokens.new_empty((len(self.rows), 0))


@dataclass(frozen=True)
class Node:
    """One node of each row; ``q_values`` of a child that was never visited are 0 and mean nothing."""

    logits: Float[Tensor, "batch width"]
    raw_value: Float[Tensor, " batch"]
    value: Float[Tensor, " batch"]
    visits: Int[Tensor, " batch"]
    child_visits: Int[Tensor, "batch width"]
    q_values: Float[Tensor, "batch width"]

    @property
    def visited(self) -> Bool[Tensor, "batch width"]:
        """Which children a simulation has come to."""
        return self.child_visits > 0

    def with_tail(self, logprob: Float[Tensor, " batch"]) -> "Node":
        """Return the node with a last child of log-prior ``logprob`` that nobody has visited."""

        def longer(values: Tensor) -> Tensor:
            return torch.nn.functional.pad(values, (0, 1))

        return replace(
            self,
            logits=torch.cat([self.logits, logprob[:, None].to(self.logits)], dim=1),
            child_visits=longer(self.child_visits),
            q_values=longer(self.q_values),
        )


def check_fits(
    batch: int, width: int, num_simulations: int, float_bytes: int, state_bytes: int, max_bytes: int
) -> None:
    """Do nothing if the arrays of a batch of trees and the states at their nodes fit into ``max_bytes``.

    Raises:
        ValueError: they do not, with the arithmetic.
    """
    edge, node = 3 * 8 + 4 * float_bytes, 3 * 8 + 2 * float_bytes
    needed = batch * (num_simulations + 1) * (width * edge + node + state_bytes)
    if needed > max_bytes:
        raise ValueError(
            f"{batch} trees of {num_simulations} simulations and width {width} take {needed:,} bytes: {batch} trees x "
            f"{num_simulations + 1} nodes x ({width} edges x {edge} + {node} + {state_bytes:,} of the world model's "
            f"state), more than {max_bytes=:,}; search fewer rows at once, with fewer simulations, or narrower."
        )


def check_finite(tree: SearchTree, names: Sequence[str] = ("raw_values", "child_rewards", "child_discounts")) -> None:
    """Do nothing if the world model said numbers only; looked at once, at the end, so that no simulation waits for it.

    Log-priors may be minus infinity, where a policy does not choose a token, and never NaN.

    Raises:
        FloatingPointError: it did not, with what it said of which rows.
    """
    for name in (*names, "logits"):
        array = getattr(tree, name)
        broken = (array.isnan() if name == "logits" else ~array.isfinite()).flatten(start_dim=1).any(dim=1)
        if bool(broken.any()):
            rows = broken.nonzero()[:, 0].tolist()
            raise FloatingPointError(
                f"the world model gave {name} that are not finite in rows {rows[:8]}{'...' if len(rows) > 8 else ''}; "
                "nothing that was searched there means anything. Look at its reward, value and continuation heads, and "
                "at its logits."
            )
