"""What denser supervision is worth: trunks trained from scratch with and without heads, on the same text.

Four figures per arm: held-out loss and accuracy of the *next* token along training (tokens to reach a loss, against the
nominal K-fold density), induction, and how far ahead linear probes of the hidden states see. The trunk and the batches
of a seed are the same in every arm, and so is the learning rate's schedule; heads are thrown away before anything is
measured but their own losses. Tokens to a loss are read off curves of whole runs: a run as short as it needed to reach
that loss would have lowered its learning rate earlier.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.objective import MTPObjective
from worldmtp.objective.loss import next_token_loss
from worldmtp.studies.batches import batch_at, eval_windows
from worldmtp.studies.densification_tables import summarize_densification
from worldmtp.studies.induction import MIN_SPACING, induction_accuracy, plant_pairs, rarest_tokens
from worldmtp.studies.probes import count_offsets, probe_offsets
from worldmtp.studies.protocol import Arm, Report, StudySummary
from worldmtp.studies.shared import corpus_fingerprint, fresh_llama, load_tokens, progress_line, save_tokens
from worldmtp.studies.supervision import supervision_density
from worldmtp.studies.training import Batch, StepLosses, TrainingConfig, train
from worldmtp.studies.variants import arms_of, check_seeds, check_variants

MIN_POINTS = 5
"""Of a curve, at least."""


@dataclass(frozen=True)
class DensificationConfig:
    """What is trained and measured; ``variants`` as in ``HeadFamiliesConfig``, each with its own ``depth``.

    ``planted_occurrences`` of a pair of its own (``induction.plant_pairs``) stand in every *training* window, so that
    induction can be learnt in few tokens; 0 leaves the corpus as it is.
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
        check_variants(self.variants)
        check_seeds(self.seeds)
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


class Densification:
    """See ``worldmtp.studies.protocol.Study``."""

    config_class: ClassVar[type] = DensificationConfig

    def __init__(self, config: DensificationConfig) -> None:
        self.config = config

    def arms(self) -> list[Arm]:
        """Every variant with every seed."""
        return arms_of(self.config.variants, self.config.seeds)

    def prepare(self, directory: Path, report: Report) -> None:
        """The corpus as tokens."""
        save_tokens(directory, self.config.vocab_size)

    def run_arm(self, arm: Arm, directory: Path, report: Report) -> dict[str, Any]:
        """Train one trunk with its heads, measuring as it goes."""
        config, variant = self.config, self.config.variants[arm.name]
        tokens = load_tokens(directory)
        spec = MTPConfig(head=variant.get("head", "sequential"), depth=variant["depth"], **(variant.get("spec") or {}))
        trunk = fresh_llama(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            max_tokens=config.window_tokens,
            seed=arm.seed,
        )
        model = MTPModel.from_trunk(trunk, spec, torch.Generator().manual_seed(arm.seed))
        windows = eval_windows(tokens["held_out"], config.window_tokens, config.num_eval_windows)
        rare = rarest_tokens(tokens["train"], config.vocab_size, 100)
        pairs = plant_pairs(windows, rare, torch.Generator().manual_seed(0))
        curve: list[dict[str, float]] = []
        trained: Counter[int] = Counter()

        def on_step(losses: StepLosses) -> None:
            report((losses.step + 1) / config.num_steps, progress_line(losses))
            trained.update(losses.num_targets)
            if (losses.step + 1) % config.eval_every == 0:
                num_tokens = (losses.step + 1) * config.batch_size * config.window_tokens
                curve.append({"tokens": num_tokens, **held_out(model, windows)})
                curve[-1]["induction"] = induction_accuracy(model, pairs)

        def batch_of(step: int) -> Batch:
            ids = batch_at(tokens["train"], config.window_tokens, config.batch_size, arm.seed, step)
            if config.planted_occurrences:
                drawn = torch.Generator().manual_seed(_stream_of(arm.seed, step))
                ids = plant_pairs(ids, rare, drawn, config.planted_occurrences).input_ids
            return Batch(ids, ids)

        settings = TrainingConfig(num_steps=config.num_steps, learning_rate=config.learning_rate, seed=arm.seed)
        train(model, batch_of, MTPObjective.from_dict(variant.get("objective") or {}), settings, on_step)
        targets = model.targets(windows, None, None, windows)
        return {
            "variant": arm.name,
            "seed": arm.seed,
            "corpus": corpus_fingerprint(directory),
            "depth": variant["depth"],
            "density": supervision_density(targets).gain,
            "trained_density": trained.total() / trained[1],
            "curve": curve,
            "probes": self._probes(model, tokens),
        }

    def summarize(self, results: list[dict[str, Any]]) -> StudySummary:
        """Tokens to loss beside the nominal density, induction, probes."""
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
    """A seed for the pairs of a step, apart from that of its windows and from all others."""
    return int(np.random.SeedSequence(seed, spawn_key=(step, 1)).generate_state(1)[0])


@torch.no_grad()
def held_out(model: MTPModel, windows: torch.Tensor) -> dict[str, float]:
    """Loss and accuracy of the next token per target."""
    was_training = model.training
    model.eval()
    _, sums = next_token_loss(model, model.trunk_features(windows), windows, windows)
    model.train(was_training)
    count = int(sums.counts[0])
    return {"loss": float(sums.ce[0]) / count, "accuracy": int(sums.top1_hits[0]) / count}
