"""Texts of a source whose last token is told beforehand: what an environment asks for, with the law still known.

A text is a prefix of the source and h tokens more, of which the last is the *goal*. Drawing a text and reading off its
goal gives the goal the law that it has; what is left to say, given prefix and goal, is the source's own law given where
it ends (a bridge, Doob's h-transform). With n tokens left, M and T_x as in ``worldmtp.exact.source`` and

    a_0 = 1,  a_1 = T_goal 1,  a_n = M a_{n-1}          the chance to end in the goal, by state

the law k <= n tokens ahead, and of the next k, is that of the source reweighted by what is left after it:

    m_k(x | b, goal)          = b M^(k-1) T_x a_{n-k} / b a_n          x the goal where k = n
    p(x_1 .. x_k | b, goal)   = b T_x1 ... T_xk a_{n-k} / b a_n

The belief b over the states is that of the tokens alone: the goal is told once and changes nothing that has happened.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.exact.source import Source, TrueSplit, entropy


@dataclass(frozen=True)
class GoalTexts:
    """A source, how its tokens are written (one character each), and how long its texts are."""

    source: Source
    symbols: str
    prefix_length: int
    answer_length: int

    def __post_init__(self) -> None:
        if len(set(self.symbols)) != len(self.symbols) or len(self.symbols) != self.source.num_symbols:
            raise ValueError(
                f"symbols={self.symbols!r} must be {self.source.num_symbols} different characters, one for each token "
                "of the source."
            )
        if self.prefix_length < 1 or self.answer_length < 1:
            raise ValueError(
                f"prefix_length={self.prefix_length} and answer_length={self.answer_length} must be at least 1."
            )

    def tokens_of(self, texts: Sequence[str]) -> Int[Tensor, "text time"]:
        """Return the source's tokens of texts of one length.

        Raises:
            ValueError: a character is none of the symbols.
        """
        unknown = set("".join(texts)) - set(self.symbols)
        if unknown:
            raise ValueError(f"{sorted(unknown)} are none of the source's symbols {self.symbols!r}.")
        return torch.tensor([[self.symbols.index(character) for character in text] for text in texts])

    def reaching(self, goals: Int[Tensor, " text"], num_left: int) -> Float[Tensor, "text state"]:
        """Return a_n: the chance to end in the goal after ``num_left`` more tokens, by state."""
        if num_left == 0:
            return torch.ones(len(goals), self.source.num_states, dtype=torch.float64)
        chance = self.source.transitions.sum(dim=2)[goals]
        move = self.source.transitions.sum(dim=0)
        for _ in range(num_left - 1):
            chance = chance @ move.T
        return chance

    def marginals(
        self, beliefs: Float[Tensor, "text state"], goals: Int[Tensor, " text"], num_left: int, depth: int
    ) -> Float[Tensor, "text depth symbol"]:
        """Return m_k for k = 1 .. ``depth``, ``num_left`` tokens before the end.

        Raises:
            ValueError: the depth reaches beyond the end, or the goal cannot be reached.
        """
        total = self._total(beliefs, goals, num_left, depth)
        moved, found = beliefs, []
        for k in range(1, depth + 1):
            weighted = torch.einsum("bi,xij,bj->bx", moved, self.source.transitions, self.reaching(goals, num_left - k))
            found.append(self._only_goal(weighted, goals, num_left - k) / total[:, None])
            moved = moved @ self.source.transitions.sum(dim=0)
        return torch.stack(found, dim=1)

    def joint(
        self, beliefs: Float[Tensor, "text state"], goals: Int[Tensor, " text"], num_left: int, depth: int
    ) -> Float[Tensor, "text path"]:
        """Return the law of the next ``depth`` tokens; the first is the path's most significant digit.

        Raises:
            ValueError: as ``marginals``.
        """
        total = self._total(beliefs, goals, num_left, depth)
        reached = beliefs[:, None]  # (text, path, state)
        for _ in range(depth):
            reached = torch.einsum("bpi,xij->bpxj", reached, self.source.transitions).flatten(1, 2)
        weighted = torch.einsum("bpj,bj->bp", reached, self.reaching(goals, num_left - depth))
        by_last = weighted.unflatten(1, (-1, self.source.num_symbols))
        return self._only_goal(by_last, goals, num_left - depth).flatten(1) / total[:, None]

    def true_split(
        self, beliefs: Float[Tensor, "text state"], goals: Int[Tensor, " text"], num_left: int, depth: int
    ) -> TrueSplit:
        """Return the split of each depth's entropy, as ``Source.true_split``; V^depth paths a text are enumerated.

        Raises:
            ValueError: as ``marginals``.
        """
        joints = [entropy(self.joint(beliefs, goals, num_left, k)) for k in range(1, depth + 1)]
        noise = torch.stack([torch.zeros_like(joints[0]), *joints], dim=-1).diff(dim=-1)
        return TrueSplit(noise, entropy(self.marginals(beliefs, goals, num_left, depth)) - noise)

    def _only_goal(self, weighted: Tensor, goals: Int[Tensor, " text"], num_left: int) -> Tensor:
        """Return the weights of a token with what cannot be the last one left out, where it is the last."""
        if num_left:
            return weighted
        is_goal = torch.nn.functional.one_hot(goals, self.source.num_symbols).to(weighted.dtype)
        return weighted * is_goal.view(len(goals), *[1] * (weighted.dim() - 2), -1)

    def _total(
        self, beliefs: Float[Tensor, "text state"], goals: Int[Tensor, " text"], num_left: int, depth: int
    ) -> Float[Tensor, " text"]:
        if not 1 <= depth <= num_left:
            raise ValueError(f"depth={depth} must lie in 1 .. {num_left}, the tokens that are left.")
        total = (beliefs * self.reaching(goals, num_left)).sum(dim=1)
        if bool((total <= 0).any()):
            row = int((total <= 0).nonzero()[0])
            raise ValueError(f"text {row} cannot end in its goal {self.symbols[int(goals[row])]!r}.")
        return total
