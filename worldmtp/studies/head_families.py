"""Heads compared on one frozen trunk: how far ahead each drafts, at equal tokens and about equal size.

A trunk learns the next token on the corpus, once. Each variant - a family, or a family with a setting - then trains its
heads on that trunk, unchanged, on the same batches; acceptance is measured on text that the trunk wrote and on held-out
text. The unit of resampling is the held-out file: of it one or more prompts are taken. Seeds are the heads' initial
weights and their batches; the trunk is one.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from worldmtp.atomic_files import replacing
from worldmtp.choices import check_choice
from worldmtp.heads.block import resolve_head_block
from worldmtp.heads.registry import bind, head_class, make_head
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.objective import MTPObjective
from worldmtp.statistics import Interval, ratio_interval
from worldmtp.studies.acceptance import greedy_acceptance, sampled_acceptance, write_texts
from worldmtp.studies.batches import batch_at, document_ids_at, eval_starts, eval_windows
from worldmtp.studies.corpus import corpus_fingerprint, load_tokens, save_tokens
from worldmtp.studies.protocol import Arm, Report, StudySummary
from worldmtp.studies.report import Results, by_variant, png, table
from worldmtp.studies.training import Batch, TrainingConfig
from worldmtp.studies.variants import VariantStudy, check_variants, fresh_llama, heads_of, objective_of, train_arm

_DETACHED = {"detach_trunk": True, "detach_embedding": True, "detach_lm_head": True}
_TEXTS = {
    "greedy": "the trunk's greedy text",
    "sampled": "its samples, temperature 1",
    "held_out": "held-out text (by its author)",
}
_WIDTH_STEP = 8


@dataclass(frozen=True)
class HeadFamiliesConfig:
    """Trunk, heads, training and texts.

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
        check_variants(self.variants, self.seeds, self.depth)
        if self.compare_with:
            check_choice("compare_with", self.compare_with, self.variants)
        for name, variant in self.variants.items():
            stride = (variant.get("spec") or {}).get("stride", 1)
            if self.depth < 2 or stride != 1:
                raise ValueError(
                    f"variants.{name} has depth={self.depth} and stride={stride}: acceptance is of the tokens "
                    "2, 3, .. ahead in a row; set depth to 2 or more and leave stride at 1."
                )


class HeadFamilies(VariantStudy):
    """The comparison of heads."""

    config_class: ClassVar[type] = HeadFamiliesConfig
    config: HeadFamiliesConfig

    def prepare(self, directory: Path, report: Report) -> None:
        """Write the corpus, the trunk, and the texts it writes."""
        if (directory / "texts.pt").exists():
            return
        save_tokens(directory, self.config.vocab_size)
        tokens = load_tokens(directory)
        trunk = fresh_llama(self.config, max(self._text_tokens, self.config.window_tokens), seed=0)
        model = MTPModel.from_trunk(trunk, MTPConfig(depth=1), torch.Generator().manual_seed(0))
        settings = TrainingConfig(
            num_steps=self.config.trunk_steps, learning_rate=self.config.trunk_learning_rate, warmup_steps=100
        )
        train_arm(model, self._batches(tokens["train"], 0), MTPObjective(), settings, report)
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
        heads = heads_of(variant, config.depth, **_DETACHED)
        if config.num_parameters and "head_width" not in (variant.get("spec") or {}):
            heads = matched_width(heads, trunk, config.num_parameters)
        model = MTPModel.from_trunk(trunk, heads, torch.Generator().manual_seed(arm.seed))
        settings = TrainingConfig(
            num_steps=config.head_steps,
            learning_rate=config.head_learning_rate,
            warmup_steps=min(50, config.head_steps // 4),
            trains_trunk=False,
            seed=arm.seed,
        )
        begin = time.perf_counter()
        objective = objective_of(variant, coef={"start": 1.0})
        train_arm(model, self._batches(tokens, 1 + arm.seed), objective, settings, report)
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
            "acceptance": {name: acceptance.tolist() for name, acceptance in measured.items()},
        }

    def summarize(self, results: list[dict[str, Any]]) -> StudySummary:
        """Write a row for each variant, and a figure of acceptance by depth."""
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

    def _batches(self, tokens: Int[Tensor, " tokens"], seed: int) -> Callable[[int], Batch]:
        def batch_of(step: int) -> Batch:
            ids = batch_at(tokens, self.config.window_tokens, self.config.batch_size, seed, step)
            return Batch(ids, ids)

        return batch_of


def num_head_parameters(config: MTPConfig, trunk: PreTrainedModel) -> int:
    """Return the parameters of the heads that ``config`` describes on that trunk; none is allocated."""
    bound = bind(config, trunk.config, resolve_head_block(config.head_block, trunk))
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make_head(bound, trunk).parameters())


def matched_width(config: MTPConfig, trunk: PreTrainedModel, num_parameters: int) -> MTPConfig:
    """Return ``config`` with the largest inner width, in steps of 8, that has at most ``num_parameters``.

    A family without an inner width is returned as it is: its size follows from the trunk's.

    Raises:
        ValueError: even the smallest width has more parameters.
    """
    if head_class(config.head).defaults(trunk.config.get_text_config()).head_width is None:
        return config

    def sized(steps: int) -> MTPConfig:
        candidate = copy.deepcopy(config)
        candidate.head_width = steps * _WIDTH_STEP
        return candidate

    if num_head_parameters(sized(1), trunk) > num_parameters:
        raise ValueError(
            f"num_parameters={num_parameters} is too few for head={config.head!r}, which has "
            f"{num_head_parameters(sized(1), trunk)} at its smallest width; raise it."
        )
    low, high = 1, 2
    while num_head_parameters(sized(high), trunk) <= num_parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if num_head_parameters(sized(middle), trunk) <= num_parameters else (low, middle)
    return sized(low)


def summarize_heads(results: Results, setting: str, compare_with: str = "") -> StudySummary:
    """Return acceptance and tau of each variant, means over texts and seeds, with intervals over files.

    ``setting`` says on what: a sentence below the tables. ``compare_with`` names the variant that the others' tau is
    compared with, text by text; empty leaves that out.
    """
    groups = by_variant(results)
    ranked = sorted(groups, key=lambda name: -_tau(groups[name], "greedy").estimate)
    depths = range(2, 2 + len(results[0]["acceptance"]["greedy"][0]))
    columns = [*(f"depth {depth}" for depth in depths), "tau"]
    if compare_with:
        columns.append(f"tau less that of {compare_with}")
    lines = []
    for kind, title in _TEXTS.items():
        lines += [
            f"Acceptance on {title}, cumulative (conditional); tau with its 90 % interval over files:",
            "",
            *table(
                ["variant", "kind", "parameters", *columns],
                [_row(name, groups, kind, compare_with) for name in ranked],
            ),
            "",
        ]
    best = _tau(groups[ranked[0]], "greedy").estimate
    num_seeds = max(len(group) for group in groups.values())
    files = results[0]["files"]
    lines.append(
        f"{num_seeds} seed(s) of the heads on one trunk, {len(files)} texts from {len(set(files))} files. {setting}"
    )
    return StudySummary("Head families", "\n".join(lines), headline=best, figure=_figure(groups, ranked))


def _row(name: str, groups: dict[str, Results], kind: str, compare_with: str) -> list[str]:
    group = groups[name]
    mean = _per_text(group, kind).mean(axis=0)
    before = np.concatenate([[1.0], mean[:-1]])
    cells = [f"{a:.3f} ({a / b:.3f})" if b > 0 else "0" for a, b in zip(mean, before, strict=True)]
    cells.append(str(_tau(group, kind)))
    if compare_with:
        cells.append("" if name == compare_with else str(_tau_difference(group, groups[compare_with], kind)))
    size = f"{group[0]['num_parameters'] / 1e6:.2f} M"
    return [name, group[0]["kind"], size, *cells]


def _per_text(group: Results, kind: str) -> np.ndarray:
    """Return the cumulative acceptance (text, depth), averaged over seeds, which share the texts."""
    return np.mean([np.asarray(result["acceptance"][kind]) for result in group], axis=0)


def _tau(group: Results, kind: str) -> Interval:
    return _mean_over_texts(1 + _per_text(group, kind).sum(axis=1), group[0]["files"])


def _tau_difference(group: Results, reference: Results, kind: str) -> Interval:
    difference = _per_text(group, kind).sum(axis=1) - _per_text(reference, kind).sum(axis=1)
    return _mean_over_texts(difference, group[0]["files"])


def _mean_over_texts(values: np.ndarray, files: list[int]) -> Interval:
    """Return the mean, resampling files with all their texts: texts of one file are alike."""
    _, index = np.unique(files, return_inverse=True)
    return ratio_interval(np.bincount(index, weights=values), np.bincount(index), generator=0, unit="file")


def _figure(groups: dict[str, Results], ranked: list[str]) -> bytes:
    figure, colors = Figure(figsize=(11, 4.2), layout="constrained"), colormaps["tab20"]
    axes = figure.subplots(1, len(_TEXTS), sharey=True)
    depths = range(2, 2 + len(groups[ranked[0]][0]["acceptance"]["greedy"][0]))
    for axis, (kind, title) in zip(axes, _TEXTS.items(), strict=True):
        for index, name in enumerate(ranked):
            group = groups[name]
            mean = _per_text(group, kind).mean(axis=0)
            style = "-o" if group[0]["kind"] == "action_conditional" else "--s"
            axis.plot(depths, mean, style, label=name, color=colors(index % 20), markersize=4, linewidth=1.3)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("depth")
        axis.set_xticks(depths)
    axes[0].set_ylabel("cumulative acceptance")
    axes[-1].legend(fontsize=7, title="solid: action-conditional\ndashed: parallel", title_fontsize=7)
    return png(figure)
