"""A source of tokens with hidden states, and everything that its law says of the future, in closed form.

``transitions[x, i, j]`` is the probability that state i emits token x and becomes state j. What a prefix tells is the
belief b over the states, and with T_x the matrix of token x and M their sum:

    next token        p(x | b)             = b T_x 1
    belief after x    b'                   = b T_x / (b T_x 1)
    k tokens ahead    m_k(x | b)           = b M^(k-1) T_x 1
    next k tokens     p(x_1 .. x_k | b)    = b T_x1 ... T_xk 1

(Rabiner 1989, https://doi.org/10.1109/5.18626, in the form that emits on the edges.) Markov chains, grammars with a
bounded stack and enumerable MDPs are sources whose state a prefix settles. All is float64 and pure; joints are
enumerated, V^k paths a belief.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class TrueSplit:
    """The entropy of token t+k, k = 1 .. depth, given the prefix, in nats: what a head of no error loses.

    Attributes:
        noise: H(x_{t+k} | x_<t+k), what is unknown even to who has seen the tokens in between.
        structural: I(x_{t+k}; x_{t+1} .. x_{t+k-1} | x_<=t), what a head that averages over them cannot know; 0 at
            k = 1.
    """

    noise: Float[Tensor, "*batch depth"]
    structural: Float[Tensor, "*batch depth"]


@dataclass(frozen=True)
class Source:
    """A law of token sequences; ``start`` is the belief before the first token."""

    transitions: Float[Tensor, "symbol state state"]
    start: Float[Tensor, " state"]

    def __post_init__(self) -> None:
        if self.transitions.dtype != torch.float64 or self.start.dtype != torch.float64:
            raise ValueError(f"a source is float64; got {self.transitions.dtype} and {self.start.dtype}.")
        if bool((self.transitions < 0).any()) or bool((self.start < 0).any()):
            raise ValueError("transitions or start has a negative entry; both hold probabilities.")
        totals = torch.cat([self.transitions.sum(dim=(0, 2)), self.start.sum()[None]])
        off = (totals - 1).abs() > _TOLERANCE
        if bool(off.any()):
            place = int(off.nonzero()[0])
            what = "start" if place == len(self.start) else f"transitions[:, {place}, :]"
            raise ValueError(f"{what} adds up to {float(totals[place])}; probabilities of one state add up to 1.")

    @property
    def num_symbols(self) -> int:
        """Return the size of the vocabulary."""
        return self.transitions.shape[0]

    @property
    def num_states(self) -> int:
        """Return the number of hidden states."""
        return self.transitions.shape[1]

    def sample(
        self, num_sequences: int, length: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "sequence time"], Int[Tensor, "sequence time"]]:
        """Draw sequences; return their tokens, and the hidden state after each token."""
        states = torch.multinomial(self.start, num_sequences, replacement=True, generator=generator)
        edges = self.transitions.permute(1, 0, 2).flatten(1)  # (state, symbol * state)
        tokens, visited = [], []
        for _ in range(length):
            edge = torch.multinomial(edges[states], 1, generator=generator)[:, 0]
            states = edge % self.num_states
            tokens.append(edge // self.num_states)
            visited.append(states)
        return torch.stack(tokens, dim=1), torch.stack(visited, dim=1)

    def update(
        self, beliefs: Float[Tensor, "batch state"], tokens: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch state"]:
        """Return the beliefs after one more token each.

        Raises:
            ValueError: the source never emits such a token there.
        """
        reached = torch.einsum("bi,bij->bj", beliefs, self.transitions[tokens])
        total = reached.sum(dim=1, keepdim=True)
        if bool((total <= 0).any()):
            row = int((total[:, 0] <= 0).nonzero()[0])
            raise ValueError(f"token {int(tokens[row])} of row {row} has probability 0 after what came before it.")
        return reached / total

    def beliefs(self, tokens: Int[Tensor, "sequence time"]) -> Float[Tensor, "sequence time_plus_1 state"]:
        """Return the beliefs along sequences: entry t is that after t tokens, entry 0 the start.

        Raises:
            ValueError: as ``update``.
        """
        found = [self.start.expand(len(tokens), -1)]
        for column in tokens.unbind(dim=1):
            found.append(self.update(found[-1], column))
        return torch.stack(found, dim=1)

    def next_token(self, beliefs: Float[Tensor, "*batch state"]) -> Float[Tensor, "*batch symbol"]:
        """Return p(x | b)."""
        return beliefs @ self.transitions.sum(dim=2).T

    def marginals(self, beliefs: Float[Tensor, "*batch state"], depth: int) -> Float[Tensor, "*batch depth symbol"]:
        """Return m_k(x | b) for k = 1 .. ``depth``: what perfect heads that average over the tokens between say."""
        moved, found = beliefs, []
        for _ in range(depth):
            found.append(self.next_token(moved))
            moved = moved @ self.transitions.sum(dim=0)
        return torch.stack(found, dim=-2)

    def joint(self, beliefs: Float[Tensor, "*batch state"], depth: int) -> Float[Tensor, "*batch path"]:
        """Return the probabilities of the next ``depth`` tokens; the first is the path's most significant digit."""
        reached = beliefs[..., None, :]  # (..., path, state)
        for _ in range(depth):
            reached = torch.einsum("...pi,xij->...pxj", reached, self.transitions).flatten(-3, -2)
        return reached.sum(dim=-1)

    def path_logprob(
        self, beliefs: Float[Tensor, "batch state"], paths: Int[Tensor, "batch depth"]
    ) -> Float[Tensor, "batch depth"]:
        """Return log p(x_k | b, x_1 .. x_{k-1}) of each token of one path a belief; -inf from an impossible one on."""
        reached, found = beliefs, []
        for column in paths.unbind(dim=1):
            reached = torch.einsum("bi,bij->bj", reached, self.transitions[column])
            total = reached.sum(dim=1)
            found.append(total.log())
            reached = reached / total.clamp_min(torch.finfo(total.dtype).tiny)[:, None]
        return torch.stack(found, dim=1)

    def true_split(self, beliefs: Float[Tensor, "*batch state"], depth: int) -> TrueSplit:
        """Return the split of each depth's entropy; V^depth paths a belief are enumerated.

        With H_k the entropy of the next k tokens: noise_k = H_k - H_{k-1}, structural_k = H(m_k) - noise_k.
        """
        joints = [entropy(self.joint(beliefs, k)) for k in range(1, depth + 1)]
        joint = torch.stack([torch.zeros_like(joints[0]), *joints], dim=-1)
        noise = joint.diff(dim=-1)
        return TrueSplit(noise=noise, structural=entropy(self.marginals(beliefs, depth)) - noise)


def entropy(probabilities: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """Return -sum p log p in nats, with 0 log 0 = 0."""
    return -torch.special.xlogy(probabilities, probabilities).sum(dim=-1)


def stationary(transition: Float[Tensor, "state state"]) -> Float[Tensor, " state"]:
    """Return the law of the states that one step leaves as it is: b = b M, sum b = 1.

    Raises:
        ValueError: there are several, as of a chain in parts that do not reach each other.
    """
    num_states = len(transition)
    system = torch.cat([transition.T - torch.eye(num_states, dtype=transition.dtype), torch.ones_like(transition[:1])])
    if (
        int(torch.linalg.matrix_rank(system)) < num_states
        or int(torch.linalg.matrix_rank(system[:-1])) < num_states - 1
    ):
        raise ValueError("the chain has several stationary laws; give the start yourself.")
    right = torch.zeros(num_states + 1, dtype=transition.dtype)
    right[-1] = 1
    return torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[:, 0].clamp_min(0)
