"""The tree of a round of parallel decoding with a beam: every text that the candidates of each depth make together.

Its levels are the depths: level 1 has ``widths[0]`` nodes, and each node of a level has as many children as the next
width says. Nodes are numbered level by level, the children of the first node first; the tree has no node for the text
itself, which the trunk has read.

        text | a  b                 level 1, widths[0] = 2:   nodes 0, 1
             | aa ab  ba bb         level 2, widths[1] = 2:   nodes 2, 3 after a; 4, 5 after b
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import mul

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.decoding.acceptance import Tree

MAX_NODES = 4096
"""Of a beam's tree: masks and scores of so many tokens are made at once."""


@dataclass(frozen=True)
class BeamTree:
    """The tree with so many candidates at each depth.

    Raises:
        ValueError: a width below 1, or more nodes than ``MAX_NODES``; the message does the sum.
    """

    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths={self.widths} must be counts of at least 1, one for each depth.")
        if self.num_nodes > MAX_NODES:
            levels = " + ".join(str(size) for size in self.level_sizes)
            raise ValueError(
                f"widths={self.widths} make {levels} = {self.num_nodes} nodes for each beam, and one forward scores at "
                f"most {MAX_NODES}; lower a width or leave out a depth."
            )

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Nodes of each level: products of the widths so far."""
        return tuple(accumulate(self.widths, mul))

    @property
    def num_nodes(self) -> int:
        """In all levels."""
        return sum(self.level_sizes)

    @property
    def num_inner(self) -> int:
        """Nodes with children; they come first."""
        return self.num_nodes - self.level_sizes[-1]

    @cached_property
    def depths(self) -> Int[Tensor, " node"]:
        """The level of each node: how many tokens its path has."""
        return self._rooted.depths[1:]

    @cached_property
    def ancestors(self) -> Bool[Tensor, "node node"]:
        """``ancestors[i, j]``: j is on the path to i, i itself included."""
        return self._rooted.ancestors[1:, 1:]

    @cached_property
    def paths(self) -> Int[Tensor, "node depth"]:
        """The nodes on the way to each, itself the last, which is repeated up to the deepest level."""
        num_nodes = self.num_nodes
        order = torch.where(self.ancestors, torch.arange(num_nodes), num_nodes).sort(dim=1).values
        return order[:, : len(self.widths)].minimum(torch.arange(num_nodes)[:, None])

    @cached_property
    def _rooted(self) -> Tree:
        """With the text's last token as its root."""
        parents = [-1, *[0] * self.widths[0]]
        for level, size in zip(self.widths[1:], self.level_sizes, strict=False):
            first = len(parents) - size
            parents += [first + node for node in range(size) for _ in range(level)]
        return Tree(tuple(parents))


def path_log_probs(
    tree: BeamTree, tokens: Int[Tensor, "row node"], log_probs: Sequence[Float[Tensor, "row _ vocab"]]
) -> Float[Tensor, "row node"]:
    """Log-probability of each node's path: the sum over its tokens, each given the path before it.

    ``log_probs[k]`` are of what follows each node of level k; of what follows the text, the first. Sums are in double
    precision.
    """
    total = torch.zeros((len(tokens), 1), dtype=torch.float64, device=tokens.device)
    found = list[Tensor]()
    for level, after in zip(tokens.split(tree.level_sizes, dim=1), log_probs, strict=True):
        children = level.view(len(level), after.shape[1], -1)
        total = (total[..., None] + after.gather(2, children).double()).flatten(1)
        found.append(total)
    return torch.cat(found, dim=1)


def candidate_nodes(
    tree: BeamTree, tokens: Int[Tensor, "row node"], eos_token_ids: Sequence[int]
) -> tuple[Bool[Tensor, "row node"], Bool[Tensor, "row node"]]:
    """Which nodes' paths are candidates, and which of those have ended.

    A path ends at its first end-of-text token; one without any is a candidate where it is as deep as the tree.
    """
    ends = torch.tensor(list(eos_token_ids), dtype=tokens.dtype, device=tokens.device)
    is_over = torch.zeros((len(tokens), 1), dtype=torch.bool, device=tokens.device)
    candidates, ended = list[Tensor](), list[Tensor]()
    for depth, level in enumerate(tokens.split(tree.level_sizes, dim=1), start=1):
        was_over = is_over.repeat_interleave(tree.widths[depth - 1], dim=1)
        is_end = torch.isin(level, ends)
        ended.append(is_end & ~was_over)
        candidates.append(ended[-1] if depth < len(tree.widths) else ~was_over)
        is_over = was_over | is_end
    return torch.cat(candidates, dim=1), torch.cat(ended, dim=1)
