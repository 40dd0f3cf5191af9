"""Which drafts become text: lossless rules, which leave the trunk's law as it is, and lossy ones.

A row's drafts x_1 .. x_g stand after its newest token; place j of the trunk's distributions is what follows x_1 .. x_j.
Accepted drafts are followed by one more token of the trunk's own: its correction of the first that was refused, or
what comes after the last. Lossless:

    greedy           x is accepted where it is the most likely token
    chosen drafts    y ~ p is drawn at each place; x is accepted where it equals y, which is the trunk's token anyhow.
                     It is rejection sampling with q one-hot at x: accepted with p(x), else drawn from p without x
    drawn drafts     x ~ q is accepted with min(1, p(x) / q(x)), else a token is drawn from max(p - q, 0), normalised
                     (Leviathan et al. 2023, arXiv 2211.17192, theorem 1; Chen et al. 2023, arXiv 2302.01318)

In each the token at a place is distributed as p given the text before it, whatever q.

``generate(lossy=...)`` accepts drafts that are likely enough, although the trunk would have chosen another token. **The
texts no longer follow the trunk's law**, and nothing is claimed about the law they follow: they lean towards the
drafter. p is the trunk's processed distribution at a place, given the drafts before it:

    ``LossyTypical``   x is accepted where p(x) > min(epsilon, delta exp(-H(p)))
                       (Cai et al. 2024, arXiv 2401.10774, section 3.3.2)
    ``LossyTopN``      x is accepted where it is among the n most likely tokens and p(x) >= max p - delta
                       (relaxed acceptance, as in TensorRT-LLM)

Both depend on p and x alone: nothing is drawn for the decision, and q plays no part. A token that p excludes (top-k,
top-p, a processor) is never accepted. The token after the accepted drafts is the most likely one, or a draw from all of
p, so a refused draft may be drawn after all. Without ``do_sample``, p is the softmax of the penalised logits. In a tree
the longest path of accepted nodes is text; of several, the one whose end comes first. The log-probabilities of the
texts stay the trunk's. Left out: relaxing inside a reasoning model's thoughts only.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.model.categorical import draw, entropy_per_token


@dataclass(frozen=True)
class Tree:
    """A tree of drafts, the same for all rows: ``parents[i] < i`` of each node, -1 of the root, the newest token."""

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        wrong = [node for node, parent in enumerate(self.parents[1:], start=1) if not 0 <= parent < node]
        if not self.parents or self.parents[0] != -1 or wrong:
            raise ValueError(f"parents={self.parents} must start with -1, and every other node follow its parent.")

    @cached_property
    def depths(self) -> Int[Tensor, " node"]:
        """Return the number of steps from the root to each node."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return torch.tensor(depths)

    @cached_property
    def ancestors(self) -> Bool[Tensor, "node node"]:
        """Return whether node j is on the way from the root to node i, i itself included, as ``[i, j]``."""
        related = torch.eye(len(self.parents), dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], start=1):
            related[node] |= related[parent]
        return related


@dataclass(frozen=True)
class Draft:
    """Guesses at the tokens after each row's newest token; the first ``num_drafts`` places of a row count.

    Attributes:
        tokens: a chain, or the nodes of ``tree`` without its root.
        num_drafts: places ahead that a row has drafts for.
        log_q: the distributions that a chain's tokens were drawn from; None where they were chosen.
        tree: how the tokens branch.
        logits: the drafter's processed logits for each place ahead; empty where it has no distribution.
    """

    tokens: Int[Tensor, "row draft"]
    num_drafts: Int[Tensor, " row"]
    log_q: Float[Tensor, "row draft vocab"] | None = None
    tree: Tree | None = None
    logits: tuple[Float[Tensor, "row 1 vocab"], ...] = ()

    @classmethod
    def empty(cls, like: Int[Tensor, "row length"]) -> "Draft":
        """Return a draft of no tokens for as many rows."""
        return cls(like.new_zeros((len(like), 0)), like.new_zeros(len(like)))


@dataclass(frozen=True)
class Verdict:
    """How many drafts of each row become text, and the trunk's own token after them.

    ``path`` holds the accepted nodes of a tree, from the root on, zero beyond the last; None for a chain.
    """

    num_accepted: Int[Tensor, " row"]
    next_tokens: Int[Tensor, " row"]
    path: Int[Tensor, "row step"] | None = None


def accept_equal(
    drafts: Int[Tensor, "row draft"], num_drafts: Int[Tensor, " row"], targets: Int[Tensor, "row place"]
) -> Verdict:
    """Accept drafts that were chosen, not drawn, where they are the trunk's own choices, or draws, at their places."""
    return accept_run(drafts == targets[:, : drafts.shape[1]], num_drafts, targets)


def accept_sampled(
    drafts: Int[Tensor, "row draft"],
    num_drafts: Int[Tensor, " row"],
    log_q: Float[Tensor, "row draft vocab"],
    log_p: Float[Tensor, "row place vocab"],
    generator: torch.Generator | None,
) -> Verdict:
    """Accept drafts that were drawn from ``log_q``, by rejection sampling."""
    num_rows, width = drafts.shape
    chances = acceptance_probability(drafts, log_q, log_p[:, :width])
    source = drafts.device if generator is None else generator.device
    uniforms = torch.rand(drafts.shape, generator=generator, dtype=chances.dtype, device=source).to(drafts.device)
    num_accepted = accepted_run(uniforms < chances, num_drafts)
    rows = torch.arange(num_rows, device=drafts.device)
    after = log_p[rows, num_accepted]
    if width:
        refused = num_accepted < num_drafts
        at = num_accepted.clamp_max(width - 1)
        correction = residual(log_q[rows, at], log_p[rows, at])
        after = torch.where(refused[:, None], correction, after)
    return Verdict(num_accepted, draw(after, generator))


def acceptance_probability(
    drafts: Int[Tensor, "row draft"], log_q: Float[Tensor, "row draft vocab"], log_p: Float[Tensor, "row draft vocab"]
) -> Float[Tensor, "row draft"]:
    """Return min(1, p(x) / q(x)), and zero for a draft that q cannot have drawn."""
    index = drafts[..., None]
    ratio = log_p.gather(2, index) - log_q.gather(2, index)
    return ratio.nan_to_num(nan=-torch.inf, posinf=-torch.inf).clamp_max(0.0).exp()[..., 0]


def residual(log_q: Float[Tensor, "row vocab"], log_p: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
    """Return the logarithms of max(p - q, 0), normalised.

    Where that is zero everywhere, p and q agree to rounding and a draft was refused with a probability of that order;
    p itself is returned, and the law is off by no more than rounding.
    """
    excess = (log_p.exp() - log_q.exp()).clamp_min(0.0)
    mass = excess.sum(dim=-1, keepdim=True)
    return torch.where(mass > 0, (excess / mass.where(mass > 0, torch.ones_like(mass))).log(), log_p)


def accept_tree(tree: Tree, tokens: Int[Tensor, "row node"], targets: Int[Tensor, "row node"]) -> Verdict:
    """Walk from the root along the trunk's own tokens: ``targets[:, i]`` is its choice, or draw, after node i.

    The token at each place is the trunk's, found among the drafts or not, so the law is the trunk's. Among siblings
    with the same token the first one counts.
    """
    rows = torch.arange(len(tokens), device=tokens.device)
    parents = torch.tensor(tree.parents, device=tokens.device)
    order = torch.arange(len(tree.parents), device=tokens.device)
    node = torch.zeros_like(rows)
    num_accepted, path = torch.zeros_like(rows), [node]
    for _ in range(int(tree.depths.max())):
        matches = (parents == node[:, None]) & (tokens == targets[rows, node][:, None])
        child = torch.where(matches, order, len(tree.parents)).amin(dim=1)
        goes_on = child < len(tree.parents)
        node = torch.where(goes_on, child, node)
        num_accepted = num_accepted + goes_on
        path.append(torch.where(goes_on, child, 0))
    return Verdict(num_accepted, targets[rows, node], torch.stack(path, dim=1))


def accept_run(
    is_accepted: Bool[Tensor, "row draft"], num_drafts: Int[Tensor, " row"], targets: Int[Tensor, "row place"]
) -> Verdict:
    """Accept a chain up to the first draft that is refused; ``targets`` are the trunk's own tokens at each place."""
    num_accepted = accepted_run(is_accepted, num_drafts)
    return Verdict(num_accepted, targets.gather(1, num_accepted[:, None])[:, 0])


def accepted_run(is_accepted: Bool[Tensor, "row draft"], num_drafts: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """Return the length of each row's run of accepted drafts, from the first on."""
    is_real = torch.arange(is_accepted.shape[1], device=is_accepted.device) < num_drafts[:, None]
    return (is_accepted & is_real).long().cumprod(dim=1).sum(dim=1)


@dataclass(frozen=True)
class LossyTypical:
    """Typical acceptance; lossy. The defaults are those of Medusa's published runs.

    ``epsilon`` bounds the threshold where p is sharp, ``delta`` scales it where p is flat. Medusa's released functions
    default to the two swapped. With ``delta`` below 1 the most likely token is always accepted, as max p >= exp(-H).
    """

    epsilon: float = 0.09
    delta: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon={self.epsilon} is a probability to be exceeded; it must lie in (0, 1].")
        if not self.delta > 0:
            raise ValueError(f"delta={self.delta} must be positive; without a threshold every draft would be accepted.")

    def accepts(
        self, drafts: Int[Tensor, "row place"], logits: Float[Tensor, "row place vocab"]
    ) -> Bool[Tensor, "row place"]:
        """Return which drafts are accepted, by the processed logits at their places."""
        log_probs = logits.log_softmax(dim=-1)
        probs = log_probs.gather(2, drafts[..., None])[..., 0].exp()
        return probs > typical_threshold(log_probs, self.epsilon, self.delta)


@dataclass(frozen=True)
class LossyTopN:
    """Relaxed acceptance: one of the ``n`` most likely tokens, at most ``delta`` less probable than the first; lossy.

    With ``n=1`` it accepts what lossless greedy decoding accepts.
    """

    n: int
    delta: float

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n={self.n} must be at least 1, which accepts the most likely token alone.")
        if not 0 <= self.delta <= 1:
            raise ValueError(f"delta={self.delta} is a difference of probabilities; it must lie in [0, 1].")

    def accepts(
        self, drafts: Int[Tensor, "row place"], logits: Float[Tensor, "row place vocab"]
    ) -> Bool[Tensor, "row place"]:
        """Return which drafts are accepted, by the processed logits at their places; ties go to the lower token.

        Ranks are of the logits, as greedy choices are: their log-softmax may round two of them to one.
        """
        own = logits.gather(2, drafts[..., None])
        index = torch.arange(logits.shape[2], device=logits.device)
        rank = ((logits > own) | ((logits == own) & (index < drafts[..., None]))).sum(dim=-1)
        probs = logits.softmax(dim=-1)
        own_probs = probs.gather(2, drafts[..., None])[..., 0]
        return (rank < self.n) & (own_probs >= probs.amax(dim=-1) - self.delta) & (own_probs > 0)


LossyRule = LossyTypical | LossyTopN


def typical_threshold(
    log_probs: Float[Tensor, "*place vocab"], epsilon: float, delta: float
) -> Float[Tensor, "*place"]:
    """Return min(epsilon, delta exp(-H(p))), H in nats."""
    return (delta * (-entropy_per_token(log_probs)).exp()).clamp_max(epsilon)


def accept_lossy_tree(tree: Tree, is_accepted: Bool[Tensor, "row node"], targets: Int[Tensor, "row node"]) -> Verdict:
    """Accept the longest path of accepted nodes, of several the one whose last node comes first.

    ``is_accepted[:, i]`` is about node i, given its parent, and is not read for the root; ``targets[:, i]`` is
    the trunk's own token after node i.
    """
    device = is_accepted.device
    ancestors, depths = tree.ancestors.to(device), tree.depths.to(device)
    is_root = torch.arange(len(tree.parents), device=device) == 0
    # A node is reached where no node on the way to it was refused.
    is_reached = ~((~(is_accepted | is_root))[:, None] & ancestors).any(dim=2)
    last = torch.where(is_reached, depths, -1).argmax(dim=1)
    num_accepted = depths[last]
    # Parents come before their children, so a path is its nodes in ascending order; zero beyond its end.
    num_nodes, length = len(tree.parents), int(depths.max()) + 1
    order = torch.where(ancestors[last], torch.arange(num_nodes, device=device), num_nodes)
    path = order.sort(dim=1).values[:, :length]
    rows = torch.arange(len(last), device=device)
    return Verdict(num_accepted, targets[rows, last], torch.where(path < num_nodes, path, 0))
