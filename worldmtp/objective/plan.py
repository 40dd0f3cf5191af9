"""What an optimiser step does of the multi-token loss: its coefficient lambda, its depths and weights, its positions.

Frozen configs, and pure functions of them, of the progress and of a seed: a resumed run draws the same depth and the
same positions, and so do all ranks, which must run the same heads. The weights of depths are those of papers:

    mean       1/D                  DeepSeek-V3, arXiv 2412.19437, eq. 25
    uniform    1                    Gloeckle et al. 2024, arXiv 2404.19737: the plain sum
    harmonic   1/k
    medusa     0.8^(k-1)            Medusa, arXiv 2401.10774: 0.8^i for head i, which predicts token t+1+i: k = i + 1
    fastmtp    0.6^(k-2) / sum      FastMTP, arXiv 2509.18362: 0.51, 0.31, 0.18 for three depths

k is the depth (it predicts token t+k) and D the number of depths weighted. ``mean`` and ``fastmtp`` sum to one, so the
coefficient before them is the weight of all depths together; under the other rules it grows with D.

Left out: coefficients chosen from measurements during training (OCC, arXiv 2605.28184), which need gradients.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from worldmtp.choices import check_choice

COEF_KINDS = ("constant", "linear", "cosine", "step")
UNITS = ("tokens", "steps", "fraction")
CURRICULA = ("none", "forward", "reverse")


@dataclass(frozen=True)
class Progress:
    """How far training has come before a step.

    Attributes:
        step: optimiser steps done; 0 at the first.
        max_steps: how many there will be, or None where that is not known.
        tokens: tokens trained on so far.
    """

    step: int
    max_steps: int | None = None
    tokens: int = 0

    def __post_init__(self) -> None:
        if self.step < 0 or self.tokens < 0:
            raise ValueError(f"step={self.step} and tokens={self.tokens} count what was done; neither is negative.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1; pass None where it is not known.")


@dataclass(frozen=True)
class CoefSchedule:
    """Lambda, the coefficient of all depths 2 .. K beside depth 1's loss, over training.

    ``step`` is ``start`` before ``begin`` and ``end`` from there on: DeepSeek-V3 has 0.3 for the first 10T tokens,
    then 0.1 (arXiv 2412.19437, sec. 4.2). ``linear`` and ``cosine`` go from ``start`` to ``end`` between ``begin`` and
    ``begin + duration`` and stay there.

    Attributes:
        kind: the shape.
        start: value at the beginning; DeepSeek-V3's for most of its training.
        end: value at the end; None for a constant.
        begin: where the change begins, in ``unit``.
        duration: how long it takes, in ``unit``.
        unit: tokens trained on, optimiser steps done, or steps as a fraction of all.
    """

    kind: str = "constant"
    start: float = 0.3
    end: float | None = None
    begin: float = 0.0
    duration: float = 0.0
    unit: str = "fraction"

    def __post_init__(self) -> None:
        check_choice("coef.kind", self.kind, COEF_KINDS)
        check_choice("coef.unit", self.unit, UNITS)
        for name, value in (("start", self.start), ("end", self.end)):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"coef.{name}={value} must be finite and not negative; 0 turns the loss off.")
        if not 0 <= self.begin < math.inf or not 0 <= self.duration < math.inf:
            raise ValueError(
                f"coef.begin={self.begin} and coef.duration={self.duration} must be finite and not negative."
            )
        if self.kind == "constant" and (self.end is not None or self.begin != 0 or self.duration != 0):
            raise ValueError("a constant coef has a start alone; choose another kind, or drop end, begin and duration.")
        if self.kind != "constant" and self.end is None:
            raise ValueError(f"coef.kind={self.kind!r} goes from start to end; give coef.end.")
        if self.kind == "step" and self.duration != 0:
            raise ValueError(f"coef.duration={self.duration}: a step changes at once, at coef.begin; drop it.")
        if self.kind in ("linear", "cosine") and self.duration == 0:
            raise ValueError(f"coef.kind={self.kind!r} needs a positive coef.duration, in {self.unit}.")
        if self.unit == "fraction" and self.begin + self.duration > 1 + 1e-9:  # 0.7 + 0.3 may round above one
            raise ValueError(
                f"coef.begin={self.begin} plus coef.duration={self.duration} lies beyond the end of training; as "
                "fractions they sum to at most 1. For absolute numbers set coef.unit to 'steps' or 'tokens'."
            )

    def value(self, progress: Progress) -> float:
        """Return lambda at that point of training.

        Raises:
            ValueError: the unit is a fraction of training and ``max_steps`` is not known.
        """
        if self.kind == "constant" or self.end is None:
            return self.start
        position = self._position(progress)
        if self.kind == "step":
            return self.start if position < self.begin else self.end
        passed = min(max((position - self.begin) / self.duration, 0.0), 1.0)
        # Both are weighted means of the ends, so that each end is met exactly.
        share = passed if self.kind == "linear" else (1 - math.cos(math.pi * passed)) / 2
        return self.start * (1 - share) + self.end * share

    def _position(self, progress: Progress) -> float:
        if self.unit == "tokens":
            return float(progress.tokens)
        if self.unit == "steps":
            return float(progress.step)
        return progress.step / _known_max_steps(progress, "coef.unit='fraction'")


@dataclass(frozen=True)
class DepthWindow:
    """Which of the depths 2 .. K are trained, and how they come in.

    A curriculum over M depths has M + 1 equal stages (Aynetdinov & Akbik 2025, arXiv 2505.22757; with all depths
    M + 1 = K, the paper's number of heads). ``forward`` starts with the next token alone and adds one depth a stage,
    the shallowest first; ``reverse`` starts with all, loses one depth a stage, the deepest first, and ends with the
    next token alone. The paper's finding: forward keeps what speculative decoding gains, reverse gives the best
    next-token model and heads of no use.

    Attributes:
        first: the shallowest depth trained.
        last: the deepest; None is the model's K.
        curriculum: how the depths come in.
        curriculum_begin: fraction of training at which its first stage begins.
        curriculum_end: fraction at which its last stage ends; that stage's depths stay.
    """

    first: int = 2
    last: int | None = None
    curriculum: str = "none"
    curriculum_begin: float = 0.0
    curriculum_end: float = 1.0

    def __post_init__(self) -> None:
        check_choice("window.curriculum", self.curriculum, CURRICULA)
        if self.first < 2:
            raise ValueError(f"window.first={self.first} must be at least 2; depth 1 is always trained.")
        if self.last is not None and self.last < self.first:
            raise ValueError(f"window.last={self.last} lies before window.first={self.first}; swap them.")
        if not 0 <= self.curriculum_begin < self.curriculum_end <= 1:
            raise ValueError(
                f"window.curriculum_begin={self.curriculum_begin} and curriculum_end={self.curriculum_end} must be "
                "fractions of training with 0 <= begin < end <= 1."
            )


@dataclass(frozen=True)
class Frequency:
    """How often, where and for how many depths the multi-token term is computed: what it costs.

    Attributes:
        every_steps: the term exists in steps divisible by this. Not made up for: the others lack it.
        position_fraction: each position is kept with this probability; what is kept counts 1/fraction.
        position_stride: every n-th position of a row is kept, from a random one on; what is kept counts n-fold.
        answers_only: depths are trained at positions whose next token counts too: from a prompt's last token on, where
            drafting begins. Otherwise the tokens before it are trained to see the answer ahead as well.
        one_random_depth: one depth a step, drawn evenly (Stern et al. 2018, Blockwise Parallel Decoding, arXiv
            1811.03115), its weight multiplied by the number of depths it was drawn from.
    """

    every_steps: int = 1
    position_fraction: float = 1.0
    position_stride: int = 1
    answers_only: bool = False
    one_random_depth: bool = False

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.position_stride < 1:
            raise ValueError(
                f"frequency.every_steps={self.every_steps} and position_stride={self.position_stride} must be at "
                "least 1, which leaves nothing out; coef.start=0 turns the loss off."
            )
        if not 0 < self.position_fraction <= 1:
            raise ValueError(f"frequency.position_fraction={self.position_fraction} must lie in (0, 1].")


def window_depths(window: DepthWindow, num_depths: int) -> range:
    """Return the window's depths on a model of K = ``num_depths``, all stages of a curriculum together; K = 1: none.

    Raises:
        ValueError: the window reaches beyond K.
    """
    if num_depths < 1:
        raise ValueError(f"num_depths={num_depths} must be at least 1, the trunk's own depth.")
    last = num_depths if window.last is None else window.last
    if last > num_depths or window.first > max(num_depths, 2):
        raise ValueError(
            f"window {window.first} .. {last} reaches beyond the model's {num_depths} depths; narrow it or train a "
            "model with MTPConfig(depth=...)."
        )
    return range(window.first, last + 1)


def active_depths(window: DepthWindow, num_depths: int, progress: Progress) -> range:
    """Return the depths trained at that point of training, shallowest first; none in a curriculum's next-token stage.

    Raises:
        ValueError: the window reaches beyond K, or a curriculum runs and ``max_steps`` is not known.
    """
    depths = window_depths(window, num_depths)
    if window.curriculum == "none":
        return depths
    max_steps = _known_max_steps(progress, f"window.curriculum={window.curriculum!r}")
    # Exact arithmetic: in floats, the 29th of 49 stages would begin a step late.
    begin, end = Fraction(str(window.curriculum_begin)), Fraction(str(window.curriculum_end))
    passed = (Fraction(progress.step, max_steps) - begin) / (end - begin)
    stage = min(max(math.floor(passed * (len(depths) + 1)), 0), len(depths))
    return depths[:stage] if window.curriculum == "forward" else depths[: len(depths) - stage]


def _known_max_steps(progress: Progress, what: str) -> int:
    if progress.max_steps is None:
        raise ValueError(
            f"{what} needs to know how long training is and max_steps is None; give the trainer max_steps, or count in "
            "'steps' or 'tokens'."
        )
    return progress.max_steps


MEDUSA_DECAY = 0.8
FASTMTP_DECAY = 0.6


def depth_weights(name: str, num_additional_depths: int, first: int = 2) -> tuple[float, ...]:
    """Return the weights of the depths ``first`` .. ``first + num_additional_depths - 1``, by the rule of that name.

    With the first depth left at 2 these are depths 2 .. K for ``num_additional_depths`` = K - 1, the D of papers.
    Rules that sum to one do so over these depths.

    Raises:
        ValueError: the name is unknown, the number negative, or the first depth below 2.
    """
    check_choice("depth_weighting", name, DEPTH_WEIGHTINGS)
    if num_additional_depths < 0:
        raise ValueError(
            f"num_additional_depths={num_additional_depths} must be at least 0; it is K - 1, depth 1 is the trunk's."
        )
    if first < 2:
        raise ValueError(f"first={first} must be at least 2; depth 1 is the trunk's own loss and has weight one.")
    return tuple(_RULES[name](range(first, first + num_additional_depths)))


def _normalized(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [weight / total for weight in weights]


_RULES: dict[str, Callable[[range], list[float]]] = {
    "mean": lambda depths: [1.0 / len(depths) for _ in depths],
    "uniform": lambda depths: [1.0 for _ in depths],
    "harmonic": lambda depths: [1.0 / k for k in depths],
    "medusa": lambda depths: [MEDUSA_DECAY ** (k - 1) for k in depths],
    "fastmtp": lambda depths: _normalized([FASTMTP_DECAY ** (k - 2) for k in depths]),
}

DEPTH_WEIGHTINGS = tuple(_RULES)
"""The rules' names."""


@dataclass(frozen=True)
class StepPlan:
    """The multi-token term of one step.

    Attributes:
        coef: lambda.
        weights: of depths 2 .. K, zero where a depth is not trained; of a depth that was drawn, with what makes the
            draw unbiased. ``position_scale`` is not in them.
        depths: those trained, shallowest first; empty where the step has no multi-token term.
        position_fraction: see ``Frequency``.
        position_stride: see ``Frequency``.
        position_seed: of the draw of positions.
        answers_only: see ``Frequency``.
    """

    coef: float
    weights: tuple[float, ...]
    depths: tuple[int, ...]
    position_fraction: float
    position_stride: int
    position_seed: int
    answers_only: bool = False

    @property
    def is_active(self) -> bool:
        """Return whether the step has a multi-token term at all; without one the heads need not run."""
        return self.coef > 0 and bool(self.depths)

    @property
    def position_scale(self) -> float:
        """Return one over the probability that a position is kept: sums over what is kept are multiplied by it.

        The sum is then unbiased for the sum over all valid positions, so it is divided by *their* number, not by the
        number kept, which varies with the draw.
        """
        return self.position_stride / self.position_fraction
