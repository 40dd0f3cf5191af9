"""What denser supervision is worth: trunks trained from scratch with and without heads, on the same text.

Four figures per arm: held-out loss and accuracy of the *next* token along training (tokens to reach a loss, against the
nominal K-fold density), induction, and how far ahead linear probes of the hidden states see. The trunk and the batches
of a seed are the same in every arm, and so is the learning rate's schedule; heads are thrown away before anything is
measured but their own losses. Tokens to a loss are read off curves of whole runs: a run as short as it needed to reach
that loss would have lowered its learning rate earlier.

The nominal density is K targets a token. A text gives fewer: the last k tokens of a document have no target at depth k,
nor has anything across a document's or a prompt's border.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure

from worldmtp.decoding.trunk import evaluation_mode
from worldmtp.model import MTPModel
from worldmtp.objective.loss import next_token_loss
from worldmtp.objective.targets import DepthTargets
from worldmtp.statistics import paired_difference
from worldmtp.studies.batches import batch_at, eval_windows
from worldmtp.studies.corpus import corpus_fingerprint, load_tokens, save_tokens
from worldmtp.studies.probes import (
    MIN_SPACING,
    count_offsets,
    induction_accuracy,
    plant_pairs,
    probe_offsets,
    rarest_tokens,
)
from worldmtp.studies.protocol import Arm, Report, StudySummary
from worldmtp.studies.report import Results, by_variant, over_seeds, png, table
from worldmtp.studies.training import Batch, StepLosses, TrainingConfig
from worldmtp.studies.variants import VariantStudy, check_variants, fresh_llama, heads_of, objective_of, train_arm

MIN_POINTS = 5
"""Of a curve, at least."""

_LEVEL_AT = 0.6
"""The loss and the accuracy to be reached are those of next-token training after this fraction of its tokens."""


@dataclass(frozen=True)
class DensificationConfig:
    """Trunk, training and measurements; ``variants`` maps a name to ``{depth, head, spec, objective}``.

    ``planted_occurrences`` of a pair of its own (``induction.plant_pairs``) stand in every *training* window, so that
    induction can be learnt in few tokens; 0 leaves the corpus unchanged.
    """

    variants: dict[str, Any]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 256
    num_layers: int = 3
    num_attention_heads: int = 4
    window_tokens: int = 128
    batch_size: int = 16
    num_steps: int = 800
    learning_rate: float = 2e-3
    eval_every: int = 40
    num_eval_windows: int = 64
    num_probe_windows: int = 256
    num_offsets: int = 8
    planted_occurrences: int = 0

    def __post_init__(self) -> None:
        check_variants(self.variants, self.seeds)
        if self.eval_every < 1 or self.num_steps // self.eval_every < MIN_POINTS:
            raise ValueError(
                f"eval_every={self.eval_every} and num_steps={self.num_steps} give a curve of fewer than {MIN_POINTS} "
                "points, too coarse to read tokens off; measure more often."
            )
        most = self.window_tokens // MIN_SPACING
        if self.planted_occurrences != 0 and not 2 <= self.planted_occurrences <= most:
            raise ValueError(
                f"planted_occurrences={self.planted_occurrences} must be 0, or 2 to {most}: as many as windows of "
                f"window_tokens={self.window_tokens} hold."
            )
        baselines = [name for name, variant in self.variants.items() if variant["depth"] == 1]
        if len(baselines) != 1:
            raise ValueError(
                f"variants of depth 1 are {baselines}; there must be one, next-token training, which the others are "
                "compared with."
            )


class Densification(VariantStudy):
    """The study of denser supervision."""

    config_class: ClassVar[type] = DensificationConfig
    config: DensificationConfig

    def prepare(self, directory: Path, report: Report) -> None:
        """Write the corpus as tokens."""
        save_tokens(directory, self.config.vocab_size)

    def run_arm(self, arm: Arm, directory: Path, report: Report) -> dict[str, Any]:
        """Train one trunk with its heads, measuring as it goes."""
        config, variant = self.config, self.config.variants[arm.name]
        tokens = load_tokens(directory)
        trunk = fresh_llama(config, config.window_tokens, arm.seed)
        model = MTPModel.from_trunk(trunk, heads_of(variant), torch.Generator().manual_seed(arm.seed))
        windows = eval_windows(tokens["held_out"], config.window_tokens, config.num_eval_windows)
        rare = rarest_tokens(tokens["train"], config.vocab_size, 100)
        pairs = plant_pairs(windows, rare, torch.Generator().manual_seed(0))
        curve: list[dict[str, float]] = []
        trained: Counter[int] = Counter()

        def measure(losses: StepLosses) -> str:
            trained.update(losses.num_targets)
            if (losses.step + 1) % config.eval_every == 0:
                num_tokens = (losses.step + 1) * config.batch_size * config.window_tokens
                curve.append({"tokens": num_tokens, **held_out(model, windows)})
                curve[-1]["induction"] = induction_accuracy(model, pairs)
            return ""

        def batch_of(step: int) -> Batch:
            ids = batch_at(tokens["train"], config.window_tokens, config.batch_size, arm.seed, step)
            if config.planted_occurrences:
                drawn = torch.Generator().manual_seed(_stream_of(arm.seed, step))
                ids = plant_pairs(ids, rare, drawn, config.planted_occurrences).input_ids
            return Batch(ids, ids)

        settings = TrainingConfig(num_steps=config.num_steps, learning_rate=config.learning_rate, seed=arm.seed)
        train_arm(model, batch_of, objective_of(variant), settings, report, measure)
        targets = model.targets(windows, None, None, windows)
        return {
            "variant": arm.name,
            "seed": arm.seed,
            "corpus": corpus_fingerprint(directory),
            "depth": variant["depth"],
            "density": supervision_density(targets),
            "trained_density": trained.total() / trained[1],
            "curve": curve,
            "probes": self._probes(model, tokens),
        }

    def summarize(self, results: list[dict[str, Any]]) -> StudySummary:
        """Compare tokens to a loss with the nominal density, induction, and probes."""
        config = self.config
        count = config.planted_occurrences
        planted = f", {count} occurrences of a pair planted in each" if count else ""
        setting = (
            f"Llama trunks of {config.num_layers} layers, {config.hidden_size} wide; {config.num_steps} steps of "
            f"{config.batch_size} x {config.window_tokens} tokens{planted}; corpus: {results[0]['corpus']}."
        )
        return summarize_densification(results, setting)

    @torch.no_grad()
    def _probes(self, model: MTPModel, tokens: dict[str, torch.Tensor]) -> dict[str, list[float]]:
        config = self.config
        texts = {
            split: eval_windows(tokens[split], config.window_tokens, count)
            for split, count in (("train", config.num_probe_windows), ("held_out", config.num_eval_windows))
        }
        model.eval()
        found = {}
        for name, read in (("states", lambda ids: model.trunk_features(ids).post_norm), ("control", model.embed)):
            states = {split: read(ids) for split, ids in texts.items()}
            accuracy = probe_offsets(
                states["train"],
                texts["train"],
                states["held_out"],
                texts["held_out"],
                config.num_offsets,
                config.vocab_size,
            )
            found[name] = accuracy.mean(dim=0).tolist()
        counted = count_offsets(tokens["train"], texts["held_out"], config.num_offsets, config.vocab_size)
        found["counts"] = counted.mean(dim=0).tolist()
        return found


def _stream_of(seed: int, step: int) -> int:
    """Return a seed for the pairs of a step, apart from that of its windows and from all others."""
    return int(np.random.SeedSequence(seed, spawn_key=(step, 1)).generate_state(1)[0])


@torch.no_grad()
def held_out(model: MTPModel, windows: torch.Tensor) -> dict[str, float]:
    """Return loss and accuracy of the next token per target."""
    with evaluation_mode(model):
        _, sums = next_token_loss(model, model.trunk_features(windows), windows, windows)
    count = int(sums.counts[0])
    return {"loss": float(sums.ce[0]) / count, "accuracy": int(sums.top1_hits[0]) / count}


def supervision_density(targets: DepthTargets) -> float:
    """Return how many targets a batch has for each one of next-token training.

    Raises:
        ValueError: depth 1 has none, so there is nothing to compare with.
    """
    counts = targets.mask.sum(dim=(0, 1)).tolist()
    if counts[0] == 0:
        raise ValueError("no text has a target at depth 1; check labels and masks.")
    return sum(counts) / counts[0]


def tokens_to_reach(tokens: list[float], values: list[float], level: float, falls: bool) -> float:
    """Return the tokens at which a curve first crosses ``level``, interpolated; infinity if it never does.

    A noisy curve counts as having crossed at its first crossing. ``falls`` says which way is better.
    """
    previous: tuple[float, float] | None = None
    for count, value in zip(tokens, values, strict=True):
        if (value <= level) if falls else (value >= level):
            if previous is None:
                return count
            fraction = (level - previous[1]) / (value - previous[1])
            return previous[0] + fraction * (count - previous[0])
        previous = count, value
    return float("inf")


def summarize_densification(results: Results, setting: str) -> StudySummary:
    """Compare each arm with next-token training of the same seed: the gain is tokens of that over tokens of this.

    ``setting`` says on what: a sentence below the table.
    """
    baseline = {result["seed"]: result for result in results if result["depth"] == 1}
    header = [
        "variant",
        "targets a token: nominal, in the text, trained",
        "gain in tokens to loss",
        "in tokens to accuracy",
        "final loss",
        "less next-token training's",
        "induction",
        "probe accuracy at 2, 4, 8 (embedding, counts)",
    ]
    rows, worth = [], []
    for name, group in by_variant(results).items():
        pairs = [(result, baseline[result["seed"]]) for result in group]
        gains, accuracy = ([_gain(*pair, column) for pair in pairs] for column in ("loss", "accuracy"))
        density = f"{group[0]['depth']}x, {group[0]['density']:.2f}x, {group[0]['trained_density']:.2f}x"
        measured = [_final(group, "loss"), _difference(pairs), _final(group, "induction"), _probes(group)]
        rows.append([name, density, _gains(gains), _gains(accuracy), *measured])
        if group[0]["depth"] > 1:
            worth.append(float(np.mean(gains)))
    lines = [
        *table(header, rows),
        "",
        f"{len(baseline)} seed(s). A gain is tokens of next-token training over tokens of the variant, to what the "
        f"former has after {_LEVEL_AT:.0%} of its own; below 1x heads cost tokens. 90 % intervals over seeds.",
        setting,
    ]
    return StudySummary(
        title="What denser supervision is worth",
        markdown="\n".join(lines),
        headline=max(worth, default=1.0),
        figure=_figure(results),
    )


def _column(result: dict[str, Any], name: str) -> list[float]:
    return [float(point[name]) for point in result["curve"]]  # tokens are counted in whole numbers


def _gain(result: dict[str, Any], base: dict[str, Any], name: str) -> float:
    values = _column(base, name)
    level, falls = values[int(_LEVEL_AT * (len(values) - 1))], name == "loss"
    ours = tokens_to_reach(_column(result, "tokens"), _column(result, name), level, falls)
    return tokens_to_reach(_column(base, "tokens"), values, level, falls) / ours


def _gains(values: list[float]) -> str:
    each = " ".join(f"{value:.2f}x" if value > 0 else "not reached" for value in values)
    if len(values) < 2 or min(values) == 0 or min(values) == max(values):
        return each
    return f"{over_seeds(values)}: {each}"


def _final(group: Results, name: str) -> str:
    return " ".join(f"{_column(result, name)[-1]:.3f}" for result in group)


def _difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    if len(pairs) < 2 or pairs[0][0] is pairs[0][1]:
        return "-"
    ours, theirs = ([_column(result, "loss")[-1] for result in side] for side in zip(*pairs, strict=True))
    return str(paired_difference(np.asarray(ours), np.asarray(theirs), generator=0, unit="seed"))


def _probes(group: Results) -> str:
    kinds = ("states", "control", "counts")
    states, control, counts = (np.mean([result["probes"][kind] for result in group], axis=0) for kind in kinds)
    chosen = [offset - 1 for offset in (2, 4, 8) if offset <= len(states)]
    return ", ".join(f"{states[n]:.3f} ({control[n]:.3f}, {counts[n]:.3f})" for n in chosen)


def _figure(results: Results) -> bytes:
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    for index, (name, group) in enumerate(by_variant(results).items()):
        color = f"C{index}"
        for result in group:
            label = name if result is group[0] else None
            tokens = np.asarray(_column(result, "tokens")) / 1e6
            panels[0].plot(tokens, _column(result, "loss"), color=color, label=label, linewidth=1)
            panels[1].plot(tokens, _column(result, "induction"), color=color, linewidth=1)
        states = np.mean([result["probes"]["states"] for result in group], axis=0)
        panels[2].plot(range(1, len(states) + 1), states, "-o", color=color, markersize=4)
    for kind, style, label in (("control", "k:", "embedding of x_t"), ("counts", "k--", "counts after x_t")):
        control = np.mean([result["probes"][kind] for result in results], axis=0)
        panels[2].plot(range(1, len(control) + 1), control, style, label=label)
    panels[0].set(xlabel="million tokens", ylabel="held-out loss of the next token")
    panels[1].set(xlabel="million tokens", ylabel="induction accuracy", ylim=(0, 1.02))
    panels[2].set(xlabel="tokens ahead", ylabel="accuracy of a linear probe of h_t")
    panels[0].legend(fontsize=7)
    panels[2].legend(fontsize=7)
    return png(figure)
