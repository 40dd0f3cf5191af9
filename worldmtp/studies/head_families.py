"""Heads compared on one frozen trunk: who drafts how far ahead, at equal tokens and, where it can be had, equal size.

A trunk learns the next token on the corpus, once. Each variant - a family, or a family with a setting - then trains its
heads on that trunk, unchanged, on the same batches; acceptance is measured on text that the trunk wrote and on held-out
text. The unit of resampling is the held-out file: of it one or more prompts are taken. Seeds are the heads' initial
weights and their batches; the trunk is one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from worldmtp.atomic_files import replacing
from worldmtp.choices import check_choice
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.objective import MTPObjective
from worldmtp.studies.acceptance import Acceptance, greedy_acceptance, sampled_acceptance, write_texts
from worldmtp.studies.batches import batch_at, document_ids_at, eval_starts, eval_windows
from worldmtp.studies.head_size import matched_width
from worldmtp.studies.head_tables import summarize_heads
from worldmtp.studies.protocol import Arm, Report, StudySummary
from worldmtp.studies.shared import corpus_fingerprint, fresh_llama, load_tokens, progress_line, save_tokens
from worldmtp.studies.training import Batch, StepLosses, TrainingConfig, train
from worldmtp.studies.variants import arms_of, check_seeds, check_variants


@dataclass(frozen=True)
class HeadFamiliesConfig:
    """What is trained and measured.

    ``variants`` maps a name to ``{head, spec, objective}``: a family, further fields of MTPConfig, fields of
    MTPObjective. ``num_parameters`` sets the inner width of families that have one, so that all are of about that size;
    0 leaves the papers' widths. Every variant is compared, text by text, with ``compare_with``; empty leaves that out.
    """

    variants: dict[str, Any]
    seeds: list[int] = field(default_factory=lambda: [0])
    compare_with: str = ""
    depth: int = 4
    num_parameters: int = 0
    vocab_size: int = 2048
    hidden_size: int = 192
    intermediate_size: int = 384
    num_layers: int = 4
    num_attention_heads: int = 4
    window_tokens: int = 128
    batch_size: int = 16
    trunk_steps: int = 1500
    trunk_learning_rate: float = 2e-3
    head_steps: int = 300
    head_learning_rate: float = 2e-3
    num_texts: int = 64
    prompt_tokens: int = 32
    written_tokens: int = 64

    def __post_init__(self) -> None:
        check_variants(self.variants, self.depth)
        check_seeds(self.seeds)
        if self.compare_with:
            check_choice("compare_with", self.compare_with, self.variants)
        for name, variant in self.variants.items():
            stride = (variant.get("spec") or {}).get("stride", 1)
            if self.depth < 2 or stride != 1:
                raise ValueError(
                    f"variants.{name} has depth={self.depth} and stride={stride}: acceptance is of the tokens "
                    "2, 3, .. ahead in a row; set depth to 2 or more and leave stride at 1."
                )


class HeadFamilies:
    """See ``worldmtp.studies.protocol.Study``."""

    config_class: ClassVar[type] = HeadFamiliesConfig

    def __init__(self, config: HeadFamiliesConfig) -> None:
        self.config = config

    def arms(self) -> list[Arm]:
        """Every variant with every seed."""
        return arms_of(self.config.variants, self.config.seeds)

    def prepare(self, directory: Path, report: Report) -> None:
        """Corpus, trunk, and the texts it writes."""
        if (directory / "texts.pt").exists():
            return
        save_tokens(directory, self.config.vocab_size)
        tokens = load_tokens(directory)
        model = MTPModel.from_trunk(self._fresh_trunk(), MTPConfig(depth=1), torch.Generator().manual_seed(0))
        objective = MTPObjective()
        settings = TrainingConfig(
            num_steps=self.config.trunk_steps, learning_rate=self.config.trunk_learning_rate, warmup_steps=100
        )
        train(model, self._batches(tokens["train"], 0), objective, settings, self._progress(settings, report))
        model.trunk.save_pretrained(directory / "trunk")
        windows = eval_windows(tokens["held_out"], self._text_tokens, self.config.num_texts)
        prompts = windows[:, : self.config.prompt_tokens]
        num_tokens = self.config.written_tokens
        starts = eval_starts(len(tokens["held_out"]), self._text_tokens, self.config.num_texts)
        texts = {
            "files": document_ids_at(tokens["held_out_starts"], starts, 1)[:, 0],
            "held_out": windows,
            "greedy": write_texts(model, prompts, num_tokens),
            "sampled": write_texts(model, prompts, num_tokens, torch.Generator().manual_seed(0)),
        }
        with replacing(directory / "texts.pt") as partial:  # last: if it exists, everything before it does
            torch.save(texts, partial)

    def run_arm(self, arm: Arm, directory: Path, report: Report) -> dict[str, Any]:
        """Train one variant's heads and measure them."""
        config, variant = self.config, self.config.variants[arm.name]
        trunk = AutoModelForCausalLM.from_pretrained(directory / "trunk").eval()
        tokens = load_tokens(directory)["train"]
        texts = torch.load(directory / "texts.pt", weights_only=True)
        spec = self._spec(variant, trunk)
        model = MTPModel.from_trunk(trunk, spec, torch.Generator().manual_seed(arm.seed))
        objective = MTPObjective.from_dict({"coef": {"start": 1.0}, **(variant.get("objective") or {})})
        settings = TrainingConfig(
            num_steps=config.head_steps,
            learning_rate=config.head_learning_rate,
            warmup_steps=min(50, config.head_steps // 4),
            trains_trunk=False,
            seed=arm.seed,
        )
        begin = time.perf_counter()
        train(model, self._batches(tokens, 1 + arm.seed), objective, settings, self._progress(settings, report))
        seconds = time.perf_counter() - begin
        measured = {
            "greedy": greedy_acceptance(model, texts["greedy"], config.prompt_tokens),
            "sampled": sampled_acceptance(model, texts["sampled"], config.prompt_tokens),
            "held_out": greedy_acceptance(model, texts["held_out"], config.prompt_tokens),
        }
        return {
            "variant": arm.name,
            "seed": arm.seed,
            "corpus": corpus_fingerprint(directory),
            "kind": model.heads.kind,
            "num_parameters": sum(parameter.numel() for parameter in model.heads.parameters()),
            "seconds_per_step": seconds / config.head_steps,
            "files": texts["files"].tolist(),
            "acceptance": {name: _rows(acceptance) for name, acceptance in measured.items()},
        }

    def summarize(self, results: list[dict[str, Any]]) -> StudySummary:
        """One row a variant; the figure shows acceptance by depth."""
        config = self.config
        setting = (
            f"Llama trunk of {config.num_layers} layers, {config.hidden_size} wide, after {config.trunk_steps} steps "
            f"of {config.batch_size} x {config.window_tokens} tokens; heads after {config.head_steps}; corpus: "
            f"{results[0]['corpus']}."
        )
        return summarize_heads(results, setting, config.compare_with)

    @property
    def _text_tokens(self) -> int:
        return self.config.prompt_tokens + self.config.written_tokens

    def _fresh_trunk(self) -> PreTrainedModel:
        config = self.config
        return fresh_llama(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            max_tokens=max(self._text_tokens, config.window_tokens),
            seed=0,
        )

    def _spec(self, variant: dict[str, Any], trunk: PreTrainedModel) -> MTPConfig:
        given = variant.get("spec") or {}
        detached = {"detach_trunk": True, "detach_embedding": True, "detach_lm_head": True}
        spec = MTPConfig(head=variant["head"], depth=self.config.depth, **{**detached, **given})
        if not self.config.num_parameters or "head_width" in given:
            return spec
        return matched_width(spec, trunk, self.config.num_parameters)

    def _batches(self, tokens: Int[Tensor, " tokens"], seed: int) -> Callable[[int], Batch]:
        def batch_of(step: int) -> Batch:
            ids = batch_at(tokens, self.config.window_tokens, self.config.batch_size, seed, step)
            return Batch(ids, ids)

        return batch_of

    def _progress(self, settings: TrainingConfig, report: Report) -> Callable[[StepLosses], None]:
        def on_step(losses: StepLosses) -> None:
            report((losses.step + 1) / settings.num_steps, progress_line(losses))

        return on_step


def _rows(acceptance: Acceptance) -> list[list[float]]:
    return acceptance.cumulative.tolist()
