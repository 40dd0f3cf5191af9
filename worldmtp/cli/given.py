"""Shapes of what the core's own configs hold, heads and objective: None is "not given", for each field of them.

``MTPConfig`` and ``MTPObjective`` keep their defaults and their checks, and need torch; the command line answers
``--help`` without it. So these classes have their names and types alone, which a test holds equal, and ``given`` is
what is handed on. That a coefficient was given, and is not a default, can be told from here only.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any


@dataclass(frozen=True)
class HeadSpecConfig:
    """Fields of ``worldmtp.MTPConfig`` that say how a family's heads are built and how far gradients go."""

    share_depths: bool | None = None
    stride: int | None = None
    concat_order: str | None = None
    hidden_stage: str | None = None
    recycle_stage: str | None = None
    output_norm: str | None = None
    unembedding: str | None = None
    feature_layers: list[int] | None = None
    head_block: str | None = None
    head_width: int | None = None
    head_layers: int | None = None
    head_init: str | None = None
    detach_trunk: bool | None = None
    detach_embedding: bool | None = None
    detach_lm_head: bool | None = None


@dataclass(frozen=True)
class TermsConfig:
    """Fields of ``worldmtp.objective.objective.LossTerms``."""

    ce: float | None = None
    kl: float | None = None
    tv: float | None = None
    e2e_tv: float | None = None
    latent: float | None = None
    latent_beta: float | None = None


@dataclass(frozen=True)
class CoefConfig:
    """Fields of ``worldmtp.objective.plan.CoefSchedule``."""

    kind: str | None = None
    start: float | None = None
    end: float | None = None
    begin: float | None = None
    duration: float | None = None
    unit: str | None = None


@dataclass(frozen=True)
class WindowConfig:
    """Fields of ``worldmtp.objective.plan.DepthWindow``."""

    first: int | None = None
    last: int | None = None
    curriculum: str | None = None
    curriculum_begin: float | None = None
    curriculum_end: float | None = None


@dataclass(frozen=True)
class FrequencyConfig:
    """Fields of ``worldmtp.objective.plan.Frequency``."""

    every_steps: int | None = None
    position_fraction: float | None = None
    position_stride: int | None = None
    answers_only: bool | None = None
    one_random_depth: bool | None = None


@dataclass(frozen=True)
class ObjectiveConfig:
    """Fields of ``worldmtp.objective.MTPObjective``: how the warm start trains depths 2 .. K."""

    terms: TermsConfig = field(default_factory=TermsConfig)
    depth_weighting: str | None = None
    coef: CoefConfig = field(default_factory=CoefConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    frequency: FrequencyConfig = field(default_factory=FrequencyConfig)
    latent_target: str | None = None
    ema_decay: float | None = None
    detach_teacher: bool | None = None
    chunk_size: int | None = None


def given(config: HeadSpecConfig | ObjectiveConfig) -> dict[str, Any]:
    """What was given, as plain nested values; a part of which nothing was given is left out."""
    return _given(config)


def _given(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for column in fields(config):
        value = getattr(config, column.name)
        plain = _given(value) if is_dataclass(value) else value
        if plain is not None and plain != {}:
            found[column.name] = plain
    return found
