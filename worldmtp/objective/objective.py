"""``MTPObjective``: the whole loss of multi-token training as one frozen config, from and to plain dicts.

    L = L_1 + lambda * sum_k w_k (ce CE_k + kl KL_k + tv TV_k + latent SmoothL1_k + nla NLA_k + lk_hybrid LK_k)
        + lambda * mean_k(w_k) * e2e_tv E2E

over the depths k trained in the step, 2 .. K. L_1 is the next token's cross-entropy and always counts one: where only
heads are to learn (Medusa-1, FastMTP, Hydra), freeze the trunk, for which L_1 then is a constant. E2E is the accepted
length that is missed, sum_k (1 - prod_{j <= k} acceptance_j) (Bebop, arXiv 2606.12370): a loss of all depths together,
so their weights enter by their mean. KL, TV, NLA, LK and E2E compare with what the trunk itself says when it gets
there: NLA is -log acceptance, and LK goes from KL, where little is accepted, to TV, where much is.

The terms are computed in ``worldmtp.objective.fused``; lambda, the depths and the weights w_k are planned in
``worldmtp.objective.plan``. Objectives of papers are the files of ``configs/objective``. Left out: losses that need
rewards (advantage-weighted heads), which belong to reinforcement.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from worldmtp.choices import check_choice, checked_fields
from worldmtp.objective.plan import (
    DEPTH_WEIGHTINGS,
    CoefSchedule,
    DepthWindow,
    Frequency,
    Progress,
    StepPlan,
    active_depths,
    depth_weights,
    window_depths,
)

LATENT_TARGETS = ("trunk", "ema")
LOSSES = ("ce", "kl", "tv", "e2e_tv", "latent", "nla", "lk_hybrid")
"""The fields of ``LossTerms`` that are coefficients."""


@dataclass(frozen=True)
class LossTerms:
    """Coefficients of what one depth's loss of one token is made of.

    All but ``e2e_tv`` are summed for each depth and multiplied by its weight. ``e2e_tv`` couples the
    depths, so it is multiplied by the mean of their weights.

    Attributes:
        ce: cross-entropy with the token that followed.
        kl: KL(teacher, head): the head learns the trunk's whole distribution.
        tv: total variation from the teacher, which is one minus the probability that a draft is accepted.
        e2e_tv: the accepted length that is missed, over all depths together.
        latent: smooth L1 between the head's latent and the teacher's hidden state.
        latent_beta: where that smooth L1 turns from square to linear.
        nla: -log of the probability that a draft is accepted: tv's gradient, larger where little is accepted.
        lk_hybrid: u KL + (1 - u) TV with u = exp(-3 acceptance), taken as a constant: KL while little is accepted,
            whose gradient does not vanish there, and TV, which is what counts, later (vLLM's speculators).
    """

    ce: float = 1.0
    kl: float = 0.0
    tv: float = 0.0
    e2e_tv: float = 0.0
    latent: float = 0.0
    latent_beta: float = 1.0
    nla: float = 0.0
    lk_hybrid: float = 0.0

    def __post_init__(self) -> None:
        if not self.latent_beta > 0:
            raise ValueError(f"latent_beta={self.latent_beta} is where smooth L1 turns linear; it must be positive.")

    @property
    def on_teacher_logits(self) -> bool:
        """Return whether a term compares logits with a teacher's."""
        return bool(self.kl or self.tv or self.e2e_tv) or self.on_acceptance

    @property
    def on_acceptance(self) -> bool:
        """Return whether a term weighs a token by how likely its draft is accepted."""
        return bool(self.nla or self.lk_hybrid)

    @property
    def on_logits(self) -> bool:
        """Return whether a term has a gradient by the logits."""
        return bool(self.ce) or self.on_teacher_logits

    @property
    def need_teacher(self) -> bool:
        """Return whether a term compares anything with a teacher."""
        return bool(self.latent) or self.on_teacher_logits


@dataclass(frozen=True)
class MTPObjective:
    """How depths 2 .. K are trained. The defaults are DeepSeek-V3's loss with its first lambda throughout.

    Attributes:
        terms: coefficients of the losses of each depth, and of the end-to-end loss.
        depth_weighting: rule of the weights w_k.
        coef: lambda over training.
        window: which depths are trained, and their curriculum.
        frequency: in which steps, at which positions and for how many depths at once.
        latent_target: whose hidden states are the teacher's: the trunk's, or those of its moving average. The latent
            term aims at them; KL, TV and E2E read them through the LM head.
        ema_decay: of that average; Tarvainen & Valpola 2017 (arXiv 1703.01780) use 0.999 past the first epochs.
        detach_teacher: the trunk as the teacher of KL, TV, E2E and latent gets no gradient from them.
        chunk_size: tokens unembedded at once; it bounds memory and changes no value. A large number is one chunk.
    """

    terms: LossTerms = field(default_factory=LossTerms)
    depth_weighting: str = "mean"
    coef: CoefSchedule = field(default_factory=CoefSchedule)
    window: DepthWindow = field(default_factory=DepthWindow)
    frequency: Frequency = field(default_factory=Frequency)
    latent_target: str = "trunk"
    ema_decay: float = 0.999
    detach_teacher: bool = True
    chunk_size: int = 1024

    def __post_init__(self) -> None:
        check_choice("depth_weighting", self.depth_weighting, DEPTH_WEIGHTINGS)
        check_choice("latent_target", self.latent_target, LATENT_TARGETS)
        coefficients = {name: getattr(self.terms, name) for name in LOSSES}
        for name, value in coefficients.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"terms.{name}={value} must be finite and not negative; 0 leaves the term out.")
        if not any(coefficients.values()):
            raise ValueError("all terms are 0, so the heads would learn nothing; coef.start=0 turns their loss off.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie in [0, 1); 0 copies the trunk after each step.")
        if self.latent_target == "ema" and not self.needs_teacher:
            raise ValueError("latent_target='ema' makes a teacher that no term asks for; set terms.latent, kl or tv.")
        if self.latent_target == "ema" and not self.detach_teacher:
            raise ValueError("detach_teacher=False: a moving average takes no gradient; use latent_target='trunk'.")
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size={self.chunk_size} must be at least 1 token; a large number is one chunk.")
        if self.terms.e2e_tv > 0 and (self.frequency.one_random_depth or self.window.first > 2):
            raise ValueError(
                "terms.e2e_tv multiplies the acceptances of depths 2, 3, .. in a row, so it takes neither "
                "frequency.one_random_depth nor a window.first beyond 2; use terms.tv, which each depth has alone."
            )

    @property
    def needs_teacher(self) -> bool:
        """Return whether a term compares with the trunk: everything but cross-entropy."""
        return self.terms.need_teacher

    @property
    def needs_ema(self) -> bool:
        """Return whether a moving average of the trunk has to be kept."""
        return self.latent_target == "ema"

    def plan(self, num_depths: int, progress: Progress, seed: int) -> StepPlan:
        """Return the plan of the step that follows ``progress``, on a model of K = ``num_depths``.

        A depth's weight is that of its window, whether or not a curriculum trains the other depths yet: under ``mean``
        each of M depths counts 1/M from its first step on. A window that ends at j on a deeper model gives depths
        2 .. j the weights they have on a model of K = j.

        Raises:
            ValueError: the window reaches beyond K, or a schedule needs ``max_steps``.
        """
        window, frequency = self.window, self.frequency
        in_window = window_depths(window, num_depths)
        weights = depth_weights(self.depth_weighting, len(in_window), window.first)
        weight_of = dict(zip(in_window, weights, strict=True))
        depths = tuple(active_depths(window, num_depths, progress))
        generator = random.Random(f"{seed}:{progress.step}")
        position_seed = generator.getrandbits(63)  # drawn first: the same positions whether or not a depth is drawn
        if progress.step % frequency.every_steps != 0:
            depths = ()
        rescale = 1.0
        if frequency.one_random_depth and depths:
            rescale = float(len(depths))
            depths = (generator.choice(depths),)
        return StepPlan(
            coef=self.coef.value(progress),
            weights=tuple(rescale * weight_of[k] if k in depths else 0.0 for k in range(2, num_depths + 1)),
            depths=depths,
            position_fraction=frequency.position_fraction,
            position_stride=frequency.position_stride,
            position_seed=position_seed,
            answers_only=frequency.answers_only,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as nested plain dicts, fit for JSON and YAML."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MTPObjective":
        """Return the objective of a dict of ``to_dict``; fields that are left out have their defaults.

        Raises:
            ValueError: a key is unknown (the nearest is suggested), or a value is outside its range.
            TypeError: a value is of the wrong type.
        """
        return cls(**checked_fields(cls, values, "the objective"))
