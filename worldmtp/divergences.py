"""How far a student's next-token distribution, or its latent, is from where it should be: pure functions of one token.

q is the student's distribution (softmax of ``logits``), p the teacher's. Nothing here is reduced over tokens, masked or
weighted, and nothing is detached: that is for the caller. Half precision is computed in float32, float64 stays.

Left out: the reverse divergence KL(q || p), and divergences at a temperature; scale the logits for those.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def cross_entropy_per_token(
    logits: Float[Tensor, "*#batch vocab"], labels: Int[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    """Surprise of each label: -log q(label)."""
    return -torch.log_softmax(_precise(logits), dim=-1).gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)


def entropy_per_token(log_probs: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """Entropy in nats, -sum_v p_v log p_v with 0 log 0 = 0, of log-probabilities.

    A token that is excluded (minus infinity), or whose probability rounds to zero, adds nothing to it nor to its
    gradient. ``torch.special.entr(log_probs.exp())`` is the same number, but its slope at p = 0 is infinite: times the
    slope of exp, which is zero there, it is NaN.
    """
    finite = log_probs.masked_fill(log_probs == float("-inf"), 0.0)  # counts as 1 log 1, which is 0 as well
    return -(finite.exp() * finite).sum(dim=-1)


def kl_per_token(
    logits: Float[Tensor, "*#batch vocab"], teacher_logits: Float[Tensor, "*#batch vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(teacher || student) = sum_v p_v (log p_v - log q_v), with 0 log 0 = 0.

    It differs from the soft cross-entropy of distillation by the teacher's entropy, which the student cannot change.
    """
    log_q = torch.log_softmax(_precise(logits), dim=-1)
    log_p = torch.log_softmax(_precise(teacher_logits), dim=-1)
    p = log_p.exp()
    return (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(dim=-1)


def total_variation_per_token(
    logits: Float[Tensor, "*#batch vocab"], teacher_logits: Float[Tensor, "*#batch vocab"]
) -> Float[Tensor, "*batch"]:
    """TV(p, q) = 1/2 sum_v |p_v - q_v| = 1 - sum_v min(p_v, q_v), in [0, 1].

    sum_v min(p_v, q_v) is the probability that speculative sampling accepts a token drafted from q for the target p
    (Leviathan et al. 2023, section 3.2, https://arxiv.org/abs/2211.17192), which is why it is a loss for drafting heads
    (Bebop, https://arxiv.org/abs/2606.12370, eq. 10, there with p detached).
    """
    q = torch.softmax(_precise(logits), dim=-1)
    p = torch.softmax(_precise(teacher_logits), dim=-1)
    return 0.5 * (p - q).abs().sum(dim=-1)  # unlike 1 - sum_v min, never below zero by rounding


def expected_accepted_length(acceptance: Float[Tensor, "*batch depth"]) -> Float[Tensor, "*batch"]:
    """Expected number of drafted tokens that are accepted, sum_k prod_{j<=k} a_j: tau - 1 of speculative decoding.

    ``acceptance`` a_j is the probability that the j-th drafted token is accepted, given that those before it were. One
    token more is always gained, from the verifying distribution (Leviathan et al. 2023, eq. 1, which has equal a_j).
    """
    return _precise(acceptance).cumprod(dim=-1).sum(dim=-1)


def acceptance_gradient(acceptance: Float[Tensor, "*batch depth"]) -> Float[Tensor, "*batch depth"]:
    """Gradient of ``expected_accepted_length`` with respect to each a_j.

    With K depths, and without a division, so that it is right where some a_j are zero:

        d/da_j sum_k prod_{i<=k} a_i = P_j S_j,   P_j = prod_{i<j} a_i,   S_j = 1 + a_{j+1} S_{j+1},   S_K = 1.
    """
    acceptance = _precise(acceptance)
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
    """Smooth L1 distance of two latents, as the mean over the hidden units.

    With d the difference of one unit: d^2 / (2 beta) where |d| < beta, |d| - beta / 2 beyond. NextLat's regression of a
    predicted latent on the next one (https://arxiv.org/abs/2511.05963), there with the target detached.

    Raises:
        ValueError: ``beta`` is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta={beta} is where the squared part ends; it must be positive.")
    return functional.smooth_l1_loss(_precise(latent), _precise(target), reduction="none", beta=beta).mean(dim=-1)


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
