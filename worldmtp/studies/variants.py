"""The variants of a study: a name for each, and ``{head, spec, objective}``, some with a ``depth`` of their own.

``spec`` holds further fields of MTPConfig, ``objective`` fields of MTPObjective. What is wrong in one is told before
anything is trained: MTPConfig itself, like any Hugging Face config, would take a misspelt field and keep it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from worldmtp.choices import check_choice
from worldmtp.heads.registry import check_head
from worldmtp.model.config import MTPConfig
from worldmtp.objective import MTPObjective
from worldmtp.objective.plan import Progress
from worldmtp.studies.protocol import Arm

SPEC_FIELDS = (
    "share_depths",
    "stride",
    "concat_order",
    "hidden_stage",
    "recycle_stage",
    "output_norm",
    "unembedding",
    "feature_layers",
    "head_block",
    "head_width",
    "head_layers",
    "head_init",
    "detach_trunk",
    "detach_embedding",
    "detach_lm_head",
)


def check_variants(variants: Mapping[str, Any], depth: int | None = None) -> None:
    """Whether each can be trained; ``depth`` is that of all, None where each says its own.

    Raises:
        ValueError: there is none, one has other keys, a field is unknown or out of range, or its objective needs what
            a study has not.
    """
    if not variants:
        raise ValueError("variants is empty; name at least one, as study.variants.latent.head=latent.")
    keys = {"head", "spec", "objective"} | (set() if depth else {"depth"})
    needed = "head" if depth else "depth"
    for name, variant in variants.items():
        if not isinstance(variant, Mapping) or needed not in variant or set(variant) - keys:
            given = sorted(variant) if isinstance(variant, Mapping) else repr(variant)
            raise ValueError(f"variants.{name} is given as {given}; it takes the keys {sorted(keys)}, {needed} always.")
        for key in variant.get("spec") or {}:
            check_choice(f"a key of variants.{name}.spec", str(key), SPEC_FIELDS)
        num_depths = depth or variant["depth"]
        check_head(variant.get("head", "sequential"))
        MTPConfig(head=variant.get("head", "sequential"), depth=num_depths, **(variant.get("spec") or {}))
        objective = MTPObjective.from_dict(variant.get("objective") or {})
        if objective.needs_ema:
            raise ValueError(f"variants.{name}.objective: a study keeps no moving average; use latent_target='trunk'.")
        objective.plan(num_depths, Progress(0, max_steps=1), seed=0)


def arms_of(variants: Mapping[str, Any], seeds: Sequence[int]) -> list[Arm]:
    """Every variant with every seed; all variants of a seed come first, so that a run cut short has compared some."""
    return [Arm(name, seed) for seed in seeds for name in variants]


def check_seeds(seeds: list[int]) -> None:
    """Whether there is one.

    Raises:
        ValueError: there is none.
    """
    if not seeds:
        raise ValueError("seeds is empty; give at least one, as study.seeds=[0].")
