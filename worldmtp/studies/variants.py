"""The variants of a study, and the one way to train an arm.

A variant is a name and ``{head, depth, spec, objective}``: a head family, further fields of MTPConfig, and fields of
MTPObjective. Mistakes are found before anything is trained: MTPConfig itself, like any Hugging Face config, would take
a misspelt field and keep it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from worldmtp.choices import check_choice
from worldmtp.heads.registry import check_head
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.objective import MTPObjective
from worldmtp.objective.plan import Progress
from worldmtp.studies.protocol import Arm, Report
from worldmtp.studies.training import Batch, StepLosses, TrainingConfig, train

_FIELDS = [*MTPConfig.__annotations__]
SPEC_FIELDS = _FIELDS[_FIELDS.index("share_depths") : _FIELDS.index("detach_lm_head") + 1]
"""What ``spec`` may hold: the fields of the heads but for their family and depth."""


def check_variants(variants: Mapping[str, Any], seeds: Sequence[int], depth: int | None = None) -> None:
    """Raise if a variant cannot be trained; ``depth`` is that of all, None where each has its own.

    Raises:
        ValueError: there is no variant or no seed, a variant has other keys, a field is unknown or out of range, or an
            objective needs a moving average.
    """
    if not variants:
        raise ValueError("variants is empty; name at least one, as study.variants.latent.head=latent.")
    if not seeds:
        raise ValueError("seeds is empty; give at least one, as study.seeds=[0].")
    keys = {"head", "spec", "objective"} | (set() if depth else {"depth"})
    needed = "head" if depth else "depth"
    for name, variant in variants.items():
        if not isinstance(variant, Mapping) or needed not in variant or set(variant) - keys:
            given = sorted(variant) if isinstance(variant, Mapping) else repr(variant)
            raise ValueError(f"variants.{name} is given as {given}; it takes the keys {sorted(keys)}, {needed} always.")
        for key in variant.get("spec") or {}:
            check_choice(f"a key of variants.{name}.spec", str(key), SPEC_FIELDS)
        check_head(variant.get("head", "sequential"))
        num_depths = heads_of(variant, depth).depth
        objective = objective_of(variant)
        if objective.needs_ema:
            raise ValueError(f"variants.{name}.objective: a study keeps no moving average; use latent_target='trunk'.")
        objective.plan(num_depths, Progress(0, max_steps=1), seed=0)


class VariantStudy:
    """What studies of variants share; a subclass is a ``worldmtp.studies.protocol.Study``."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def arms(self) -> list[Arm]:
        """Return every variant with every seed; all variants of a seed come first, so a study cut short compares some.

        Those are the config's ``variants`` and ``seeds``.
        """
        return [Arm(name, seed) for seed in self.config.seeds for name in self.config.variants]

    def prepare(self, directory: Path, report: Report) -> None:
        """Prepare nothing: what is trained on is drawn as it is needed."""


def heads_of(variant: Mapping[str, Any], depth: int | None = None, **defaults: Any) -> MTPConfig:
    """Return the config of a variant's heads; its own fields come before ``defaults``."""
    fields = {**defaults, **(variant.get("spec") or {})}
    return MTPConfig(head=variant.get("head", "sequential"), depth=depth or variant["depth"], **fields)


def objective_of(variant: Mapping[str, Any], **defaults: Any) -> MTPObjective:
    """Return a variant's objective; its own fields come before ``defaults``."""
    return MTPObjective.from_dict({**defaults, **(variant.get("objective") or {})})


def fresh_llama(sizes: Any, max_tokens: int, seed: int) -> LlamaForCausalLM:
    """Return a small Llama with tied embeddings and weights drawn from the seed; no global generator moves.

    ``sizes`` is a study's config: its vocab_size, hidden_size, intermediate_size, num_layers and num_attention_heads.
    """
    config = LlamaConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_attention_heads,
        max_position_embeddings=max_tokens,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return LlamaForCausalLM(config)


def train_arm(
    model: MTPModel,
    batch_of: Callable[[int], Batch],
    objective: MTPObjective,
    settings: TrainingConfig,
    report: Report,
    measure: Callable[[StepLosses], str] | None = None,
) -> None:
    """Train a model in place and report each step's losses, next token first.

    ``measure`` is called after each step, before the report, which ends with what it returns.
    """

    def on_step(losses: StepLosses) -> None:
        measured = "" if measure is None else measure(losses)
        later = [f"{depth}:{loss:.2f}" for depth, loss in losses.later.items()]
        note = " ".join([f"loss {losses.next_token:.2f}", *later, measured]).rstrip()
        report((losses.step + 1) / settings.num_steps, note)

    train(model, batch_of, objective, settings, on_step)
