"""Which drafts become text: the rules that leave the trunk's law as it is.

A row's drafts x_1 .. x_g stand after its newest token; place j of the trunk's distributions is what follows x_1 .. x_j.
Accepted drafts are followed by one more token of the trunk's own: its correction of the first that was refused, or
what comes after the last.

    greedy           x is accepted where it is the most likely token
    chosen drafts    y ~ p is drawn at each place; x is accepted where it equals y, which is the trunk's token anyhow.
                     It is rejection sampling with q one-hot at x: accepted with p(x), else drawn from p without x
    drawn drafts     x ~ q is accepted with min(1, p(x) / q(x)), else a token is drawn from max(p - q, 0), normalised
                     (Leviathan et al. 2023, arXiv 2211.17192, theorem 1; Chen et al. 2023, arXiv 2302.01318)

In each the token at a place is distributed as p given the text before it, whatever q.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.model.categorical import draw


@dataclass(frozen=True)
class Verdict:
    """How many drafts of each row are text, and the trunk's token after them."""

    num_accepted: Int[Tensor, " row"]
    next_tokens: Int[Tensor, " row"]


@dataclass(frozen=True)
class TreeVerdict:
    """A verdict on a tree; ``path`` are its nodes from the root to the last accepted, zero beyond."""

    num_accepted: Int[Tensor, " row"]
    next_tokens: Int[Tensor, " row"]
    path: Int[Tensor, "row step"]


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
        """Steps from the root."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return torch.tensor(depths)

    @cached_property
    def ancestors(self) -> Bool[Tensor, "node node"]:
        """``ancestors[i, j]``: j is on the way from the root to i, i itself included."""
        related = torch.eye(len(self.parents), dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], start=1):
            related[node] |= related[parent]
        return related


def accept_greedy(
    drafts: Int[Tensor, "row draft"],
    num_drafts: Int[Tensor, " row"],
    logits: Float[Tensor, "row place vocab"],
) -> Verdict:
    """The drafts that are the most likely tokens."""
    return _accept_equal(drafts, num_drafts, logits.argmax(dim=-1))


def accept_deterministic(
    drafts: Int[Tensor, "row draft"],
    num_drafts: Int[Tensor, " row"],
    log_probs: Float[Tensor, "row place vocab"],
    generator: torch.Generator | None,
) -> Verdict:
    """Drafts that were chosen, not drawn, against draws of the trunk's."""
    targets = draw(log_probs.flatten(0, 1), generator).view(log_probs.shape[:2])
    return _accept_equal(drafts, num_drafts, targets)


def accept_sampled(
    drafts: Int[Tensor, "row draft"],
    num_drafts: Int[Tensor, " row"],
    log_q: Float[Tensor, "row draft vocab"],
    log_p: Float[Tensor, "row place vocab"],
    generator: torch.Generator | None,
) -> Verdict:
    """Drafts that were drawn from ``log_q``, by rejection sampling."""
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
    drafts: Int[Tensor, "row draft"],
    log_q: Float[Tensor, "row draft vocab"],
    log_p: Float[Tensor, "row draft vocab"],
) -> Float[Tensor, "row draft"]:
    """min(1, p(x) / q(x)); what q cannot have drawn, but is a draft, is accepted with probability zero."""
    index = drafts[..., None]
    ratio = log_p.gather(2, index) - log_q.gather(2, index)
    return ratio.nan_to_num(nan=-torch.inf, posinf=-torch.inf).clamp_max(0.0).exp()[..., 0]


def residual(log_q: Float[Tensor, "row vocab"], log_p: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
    """Logarithms of max(p - q, 0), normalised.

    Where that is zero everywhere, p and q agree to rounding and a draft was refused with a probability of that order;
    p itself stands in, and the law is off by no more than rounding.
    """
    excess = (log_p.exp() - log_q.exp()).clamp_min(0.0)
    mass = excess.sum(dim=-1, keepdim=True)
    return torch.where(mass > 0, (excess / mass.where(mass > 0, torch.ones_like(mass))).log(), log_p)


def accept_tree(tree: Tree, tokens: Int[Tensor, "row node"], targets: Int[Tensor, "row node"]) -> TreeVerdict:
    """Walk from the root along the trunk's own tokens: ``targets[:, i]`` is its choice, or draw, after node i.

    The token at each place is the trunk's, found among the drafts or not, so the law is the trunk's. Of siblings with
    the same token the first is taken.
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
    return TreeVerdict(num_accepted, targets[rows, node], torch.stack(path, dim=1))


def _accept_equal(drafts: Tensor, num_drafts: Tensor, targets: Tensor) -> Verdict:
    num_accepted = accepted_run(drafts == targets[:, : drafts.shape[1]], num_drafts)
    return Verdict(num_accepted, targets.gather(1, num_accepted[:, None])[:, 0])


def accepted_run(is_accepted: Bool[Tensor, "row draft"], num_drafts: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The length of each row's run of accepted drafts, from the first on."""
    is_real = torch.arange(is_accepted.shape[1], device=is_accepted.device) < num_drafts[:, None]
    return (is_accepted & is_real).long().cumprod(dim=1).sum(dim=1)
