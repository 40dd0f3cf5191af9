"""What the losses of all depths are told and what they give back: coefficients, a teacher, sums.

``worldmtp.fused_losses`` computes with them; objectives and trainers need no more than these. Left out: how the terms
are weighed over depths and over training, which is the objective's.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class LossTerms:
    """Coefficients of what one depth's loss of one token is made of.

    ``ce``, ``kl``, ``tv`` and ``latent`` are summed for each depth and multiplied by its weight. ``e2e_tv`` couples the
    depths, so it is multiplied by the mean of their weights.
    """

    ce: float = 1.0
    kl: float = 0.0
    tv: float = 0.0
    e2e_tv: float = 0.0
    latent: float = 0.0
    latent_beta: float = 1.0

    def __post_init__(self) -> None:
        if not self.latent_beta > 0:
            raise ValueError(f"latent_beta={self.latent_beta} is where smooth L1 turns linear; it must be positive.")

    @property
    def on_teacher_logits(self) -> bool:
        """Whether a term compares logits with a teacher's."""
        return bool(self.kl or self.tv or self.e2e_tv)

    @property
    def on_logits(self) -> bool:
        """Whether a term has a gradient by the logits."""
        return bool(self.ce) or self.on_teacher_logits

    @property
    def need_teacher(self) -> bool:
        """Whether a term compares anything with a teacher."""
        return bool(self.latent) or self.on_teacher_logits


@dataclass(frozen=True)
class Teacher:
    """The trunk as a teacher of the given depths.

    For a depth with offset o at position t, its distribution is the trunk's of the next token at t+o-1, and its latent
    ``hidden[:, t + o - 1]``. With ``detach=False`` gradients flow into ``hidden``, never into ``output_layer``.
    """

    hidden: Float[Tensor, "batch time hidden"]
    output_layer: nn.Linear
    offsets: tuple[int, ...]
    detach: bool = True


@dataclass(frozen=True)
class DepthSums:
    """Detached sums over each depth's valid targets, and how many those are.

    ``accepted`` sums sum_v min(p, q), so ``tv`` is ``counts - accepted``. ``kl``, ``tv``, ``accepted`` and ``latent``
    are measured where there is a teacher and their own term or ``with_acceptance`` asks; elsewhere they are zero.
    """

    ce: Float[Tensor, " depth"]
    kl: Float[Tensor, " depth"]
    tv: Float[Tensor, " depth"]
    latent: Float[Tensor, " depth"]
    top1_hits: Int[Tensor, " depth"]
    accepted: Float[Tensor, " depth"]
    counts: Int[Tensor, " depth"]
