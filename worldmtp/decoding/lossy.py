"""Lossy acceptance: drafts that are likely enough become text, though the trunk would have chosen otherwise.

``generate(lossy=...)`` puts one of these rules in place of those of ``worldmtp.decoding.acceptance``. **The texts'
law is no longer the trunk's**, and no statement is made of what it is: more drafts are accepted, and texts lean towards
what the drafter says. p is the trunk's processed distribution at a place, over the context with the drafts in it:

    ``LossyTypical``   x is accepted where p(x) > min(epsilon, delta exp(-H(p)))
                       (Cai et al. 2024, arXiv 2401.10774, section 3.3.2)
    ``LossyTopN``      x is accepted where it is among the n most likely tokens and p(x) >= max p - delta
                       (relaxed acceptance, as in TensorRT-LLM)

What holds of both:

* Whether a draft is accepted depends on p and the draft alone: nothing is drawn for it, and the distribution it was
  drawn from plays no part. A token that p excludes (top-k, top-p, a processor) is never accepted.
* After the accepted drafts comes the trunk's own token: its most likely one, or where tokens are drawn a draw from p,
  all of p, so that a refused draft may be drawn after all.
* Without ``do_sample``, p is the softmax of the penalised logits: temperature and cuts are those of draws.
* Of a tree, the longest path of accepted nodes is text; of several the one whose end comes first.
* Log-probabilities of the texts are the trunk's at each token, so their sum is the trunk's of the text.

Left out: the switch by phase of the text, relaxed inside a reasoning model's thoughts only.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.decoding.acceptance import Tree, TreeVerdict, Verdict, accepted_run
from worldmtp.model.categorical import entropy_per_token


@dataclass(frozen=True)
class LossyTypical:
    """Typical acceptance; lossy. Defaults are those of Medusa's published runs.

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
        """Whether each draft is, by the processed logits where it stands."""
        return is_typical(drafts, logits.log_softmax(dim=-1), self.epsilon, self.delta)


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
        """Whether each draft is, by the processed logits where it stands."""
        return is_near_top(drafts, logits, self.n, self.delta)


LossyRule = LossyTypical | LossyTopN


def typical_threshold(
    log_probs: Float[Tensor, "*place vocab"], epsilon: float, delta: float
) -> Float[Tensor, "*place"]:
    """min(epsilon, delta exp(-H(p))), H in nats."""
    entropy = entropy_per_token(log_probs)
    return (delta * (-entropy).exp()).clamp_max(epsilon)


def is_typical(
    tokens: Int[Tensor, "row place"], log_probs: Float[Tensor, "row place vocab"], epsilon: float, delta: float
) -> Bool[Tensor, "row place"]:
    """p(x) > min(epsilon, delta exp(-H(p)))."""
    probs = log_probs.gather(2, tokens[..., None])[..., 0].exp()
    return probs > typical_threshold(log_probs, epsilon, delta)


def is_near_top(
    tokens: Int[Tensor, "row place"], logits: Float[Tensor, "row place vocab"], n: int, delta: float
) -> Bool[Tensor, "row place"]:
    """Among the n most likely, p(x) >= max p - delta and p(x) > 0; of equal logits the first token comes first.

    Ranks are of the logits, as greedy choices are: their log-softmax may round two of them to one.
    """
    own = logits.gather(2, tokens[..., None])
    index = torch.arange(logits.shape[2], device=logits.device)
    rank = ((logits > own) | ((logits == own) & (index < tokens[..., None]))).sum(dim=-1)
    probs = logits.softmax(dim=-1)
    own_probs = probs.gather(2, tokens[..., None])[..., 0]
    return (rank < n) & (own_probs >= probs.amax(dim=-1) - delta) & (own_probs > 0)


def accept_lossy(
    is_accepted: Bool[Tensor, "row draft"], num_drafts: Int[Tensor, " row"], targets: Int[Tensor, "row place"]
) -> Verdict:
    """Of a chain, the drafts before the first that is refused; ``targets`` are the trunk's own at each place."""
    num_accepted = accepted_run(is_accepted, num_drafts)
    return Verdict(num_accepted, targets.gather(1, num_accepted[:, None])[:, 0])


def accept_lossy_tree(
    tree: Tree, is_accepted: Bool[Tensor, "row node"], targets: Int[Tensor, "row node"]
) -> TreeVerdict:
    """The longest path of accepted nodes, of several the one whose last node comes first.

    ``is_accepted[:, i]`` judges node i by what follows its parent, and is not read for the root; ``targets[:, i]`` is
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
    return TreeVerdict(num_accepted, targets[rows, last], torch.where(path < num_nodes, path, 0))
