"""The losses of one chunk of tokens and their gradients by the logits, written by hand.

With q the student's distribution, p the teacher's, y the label and [.] an indicator, the gradients by the logits are

    ce  -log q_y                    q - [v = y]
    kl  sum_v p (log p - log q)     q - p                                      teacher: p (log p - log q - kl)
    tv  1 - sum_v min(p, q)         q (s - [q < p]),  s = sum_v q [q < p]      teacher: p (s' - [p < q]), s' alike

and of losses of the acceptance a = 1 - tv, by those of kl and tv:

    nla        -log a                                       tv's / a
    lk_hybrid  u kl + (1 - u) tv,  u = exp(-3 a) constant   u kl's + (1 - u) tv's

Where p = q, tv has a kink and neither counts as smaller. Intermediate results are shared and memory is used
again. Also here: smooth L1 of latents, and the accepted length that the end-to-end loss is about, with its gradient.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from worldmtp.model.precision import full_precision
from worldmtp.objective.objective import LossTerms


@dataclass(frozen=True)
class TokenWeights:
    """What ce, kl and tv of a depth count for in the whole loss; None: not at all. The last two may differ by token."""

    ce: float | Tensor
    kl: float | Tensor | None
    tv: float | Tensor | None

    @classmethod
    def of(
        cls,
        terms: LossTerms,
        depth_weight: float | Tensor,
        tv_weight: Tensor | None,
        accepted: Float[Tensor, " token"] | None = None,
    ) -> "TokenWeights":
        """Return the terms' coefficients times the depth's weight, and what the end-to-end loss adds to tv's.

        ``accepted`` is each token's acceptance, for the terms that weigh tokens by it.
        """
        tv: float | Tensor | None = depth_weight * terms.tv if terms.tv else None
        if tv_weight is not None:
            tv = tv_weight if tv is None else tv_weight + tv
        kl: float | Tensor | None = depth_weight * terms.kl if terms.kl else None
        if accepted is not None and terms.on_acceptance:
            share = _kl_share(accepted)
            on_kl = terms.lk_hybrid * share
            on_tv = terms.nla / _positive(accepted) + terms.lk_hybrid * (1 - share)
            kl = (0.0 if kl is None else kl) + (depth_weight * on_kl)[:, None]
            tv = (0.0 if tv is None else tv) + (depth_weight * on_tv)[:, None]
        return cls(ce=depth_weight * terms.ce, kl=kl, tv=tv)


class TokenLosses:
    """The losses of one chunk of tokens and their gradients by the logits; see the table above.

    ``probs`` is memory for the student's distribution, which its gradient takes over.
    """

    def __init__(
        self,
        logits: Float[Tensor, "token vocab"],
        labels: Int[Tensor, " token"],
        teacher_logits: Float[Tensor, "token vocab"] | None,
        probs: Float[Tensor, "token vocab"],
    ) -> None:
        self.logits, self.labels, self.teacher_logits = logits, labels, teacher_logits
        self.q = torch.softmax(logits, dim=-1, out=probs)
        self.label_logits = logits.gather(-1, labels[:, None]).squeeze(-1)
        self.top_logits = logits.amax(dim=-1)
        # max q = exp(max z - log sum exp z), and at least 1/V: one cheap pass instead of a log-sum-exp.
        self.log_norm = self.top_logits - self.q.amax(dim=-1).log()
        self.ce = self.log_norm - self.label_logits
        if teacher_logits is not None:
            self.p = torch.softmax(teacher_logits, dim=-1)

    def top1_hits(self) -> Int[Tensor, ""]:
        """Return how many labels are the argmax, which is computed only where they may be: a maximum is faster."""
        if self.logits.is_cuda:  # where waiting for how many these are would cost more
            return (self.logits.argmax(dim=-1) == self.labels).sum()
        possible = (self.label_logits == self.top_logits).nonzero().squeeze(-1)
        return (self.logits[possible].argmax(dim=-1) == self.labels[possible]).sum()

    @property
    def log_ratio(self) -> Float[Tensor, "token vocab"]:
        """Return log p - log q, zero where p is."""
        assert self.teacher_logits is not None
        teacher_norm = self.teacher_logits.amax(dim=-1) - self.p.amax(dim=-1).log()
        difference = self.teacher_logits - self.logits
        return difference.add_((self.log_norm - teacher_norm)[:, None]).masked_fill_(self.p == 0, 0.0)

    @property
    def kl(self) -> Float[Tensor, " token"]:
        """Return KL(p || q)."""
        return torch.linalg.vecdot(self.p, self.log_ratio)

    @property
    def accepted(self) -> Float[Tensor, " token"]:
        """Return sum_v min(p, q)."""
        return torch.minimum(self.p, self.q).sum(dim=-1)

    def student_gradient_(self, weights: TokenWeights) -> Float[Tensor, "token vocab"]:
        """Return the gradient of the weighted loss by the student's logits, in the memory of ``q``."""
        scale = weights.ce if weights.kl is None else weights.ce + weights.kl
        if weights.tv is not None:
            below = (self.q < self.p).to(self.q.dtype)
            scale = torch.linalg.vecdot(self.q, below)[:, None].sub(below).mul_(weights.tv).add_(scale)
        gradient = self.q.mul_(scale)
        if weights.kl is not None:
            gradient.sub_(weights.kl * self.p)
        label_gradient = -weights.ce * torch.ones_like(self.ce)
        return gradient.scatter_add_(-1, self.labels[:, None], label_gradient[:, None])

    def teacher_gradient(self, weights: TokenWeights) -> Float[Tensor, "token vocab"]:
        """Return the gradient of the weighted loss by the teacher's logits."""
        scale = torch.zeros_like(self.p)
        if weights.kl is not None:
            log_ratio = self.log_ratio
            scale += weights.kl * log_ratio.sub_(torch.linalg.vecdot(self.p, log_ratio)[:, None])
        if weights.tv is not None:
            below = (self.p < self.q).to(self.p.dtype)
            scale += weights.tv * (torch.linalg.vecdot(self.p, below)[:, None] - below)
        return scale.mul_(self.p)


def acceptance_losses(terms: LossTerms, tokens: TokenLosses) -> Float[Tensor, " token"]:
    """Return nla and lk_hybrid of each token, times their coefficients."""
    accepted = tokens.accepted
    losses = -terms.nla * _positive(accepted).log()
    if terms.lk_hybrid:
        share = _kl_share(accepted)
        losses = losses + terms.lk_hybrid * (share * tokens.kl + (1 - share) * (1 - accepted))
    return losses


def _kl_share(accepted: Tensor) -> Tensor:
    """Return lk_hybrid's weight of KL, with the constant of vLLM's speculators."""
    return torch.exp(-3.0 * accepted)


def _positive(accepted: Tensor) -> Tensor:
    return accepted.clamp_min(torch.finfo(accepted.dtype).tiny)


def expected_accepted_length(acceptance: Float[Tensor, "*batch depth"]) -> Float[Tensor, "*batch"]:
    """Return the expected number of drafts accepted, sum_k prod_{j<=k} a_j: tau - 1 of speculative decoding.

    ``acceptance`` a_j is the probability that the j-th drafted token is accepted, given that those before it were. One
    token more is always gained, from the verifying distribution (Leviathan et al. 2023, eq. 1, which has equal a_j).
    """
    return full_precision(acceptance).cumprod(dim=-1).sum(dim=-1)


def acceptance_gradient(acceptance: Float[Tensor, "*batch depth"]) -> Float[Tensor, "*batch depth"]:
    """Return the gradient of ``expected_accepted_length`` with respect to each a_j.

    With K depths, and without a division, so that it is right where some a_j are zero:

        d/da_j sum_k prod_{i<=k} a_i = P_j S_j,   P_j = prod_{i<j} a_i,   S_j = 1 + a_{j+1} S_{j+1},   S_K = 1.
    """
    acceptance = full_precision(acceptance)
    before, after = torch.ones_like(acceptance), torch.ones_like(acceptance)
    num_depths = acceptance.shape[-1]
    for j in range(1, num_depths):
        before[..., j] = before[..., j - 1] * acceptance[..., j - 1]
        i = num_depths - 1 - j
        after[..., i] = 1.0 + acceptance[..., i + 1] * after[..., i + 1]
    return before * after


def smooth_l1_per_token(
    latent: Float[Tensor, "*#batch hidden"], target: Float[Tensor, "*#batch hidden"], beta: float = 1.0
) -> Float[Tensor, "*batch"]:
    """Return the smooth L1 distance of two latents, as the mean over the hidden units.

    With d the difference of one unit: d^2 / (2 beta) where |d| < beta, |d| - beta / 2 beyond. NextLat's regression of a
    predicted latent on the next one (https://arxiv.org/abs/2511.05963), there with the target detached.

    Raises:
        ValueError: ``beta`` is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta={beta} is where the squared part ends; it must be positive.")
    return functional.smooth_l1_loss(full_precision(latent), full_precision(target), reduction="none", beta=beta).mean(
        dim=-1
    )


def smooth_l1_gradient(
    latent: Float[Tensor, "token hidden"], target: Float[Tensor, "token hidden"], beta: float
) -> Float[Tensor, "token hidden"]:
    """Return the gradient of ``smooth_l1_per_token`` by ``latent``; by ``target`` it is the negative."""
    dtype = precise_dtype(latent.dtype)
    return ((latent.to(dtype) - target.to(dtype)) / beta).clamp_(-1.0, 1.0).div_(latent.shape[-1])


def precise_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what losses are computed in: float32, or float64 where that comes in."""
    return dtype if dtype == torch.float64 else torch.float32
