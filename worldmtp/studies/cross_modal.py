"""Two senses of one hidden world: what does predicting both buy over predicting one, at equal tokens?

Two hidden values u and v move by themselves (a factorial chain). Each moment is told twice: a is a noisy view of u, b a
noisy view of u + v. Tokens come in turns, a_1 b_1 a_2 b_2 .... To foretell a well one has to know u, and b tells of u
only who keeps a belief about v. The law is known (``worldmtp.exact``), so every figure stands beside its optimum.

    both          reads a and b, learns to predict both
    first         reads a and b, learns to predict a alone: half as many targets in the same tokens
    first_twice   the same with twice the steps: as many targets as ``both``
    first_alone   reads and predicts a alone: as many tokens and targets as ``both``, twice the moments

Measured on held-out sequences: the loss of a less that of the exact filter of what the arm reads; how much of the exact
belief over (u, v), given both streams, a linear probe finds in the trunk's last states; and the return of a decision,
naming (u, v) after each moment by the probe's first choice, 1 if right.

Left out: heads of later depths.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.exact import Source, hidden_markov, two_streams
from worldmtp.exact.sources import factorial_parts
from worldmtp.model import IGNORE_INDEX, MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.objective import MTPObjective
from worldmtp.studies.probes import explained_share, linear_readout
from worldmtp.studies.protocol import Arm, Report, StudySummary
from worldmtp.studies.report import Results, by_variant, over_seeds, table
from worldmtp.studies.training import Batch, TrainingConfig
from worldmtp.studies.variants import VariantStudy, fresh_llama, train_arm

ARMS = ("both", "first", "first_twice", "first_alone")
_BURN_IN = 4
"""Moments before anything is measured: at the start nobody knows anything."""
_RESULTS = ("excess", "loss", "belief_r2", "return")


@dataclass(frozen=True)
class CrossModalConfig:
    """World, trunk and training; ``stay`` is the probability that a value is not drawn anew."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    num_values: int = 3
    stay: float = 0.9
    first_clarity: float = 0.6
    """How often a shows u rather than a uniform symbol; ``second_clarity`` for b and u + v."""
    second_clarity: float = 0.8
    num_moments: int = 32
    hidden_size: int = 48
    intermediate_size: int = 96
    num_layers: int = 2
    num_attention_heads: int = 4
    num_steps: int = 300
    batch_size: int = 32
    learning_rate: float = 3e-3
    num_eval_sequences: int = 256
    """Held out, for the probe to learn on, and as many more to measure on."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds is empty; give at least one, as study.seeds=[0].")
        if self.num_moments <= _BURN_IN:
            raise ValueError(f"num_moments={self.num_moments} must exceed the {_BURN_IN} that are not measured.")

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens: the symbols of both streams."""
        return 2 * self.num_values


@dataclass(frozen=True)
class World:
    """The law of both streams in turns, and that of the first alone."""

    both: Source
    first: Source

    @classmethod
    def of(cls, config: CrossModalConfig) -> "World":
        """Return the world that the config describes; state u * n + v holds both values."""
        transition, first, second = factorial_parts(
            config.num_values, config.stay, config.first_clarity, config.second_clarity
        )
        return cls(two_streams(transition, first, second), hidden_markov(transition, first))


@dataclass(frozen=True)
class HeldOut:
    """Sequences of both streams: the state after each moment and the exact belief in it."""

    tokens: Int[Tensor, "sequence token"]
    states: Int[Tensor, "sequence moment"]
    beliefs: Float[Tensor, "sequence moment state"]


class CrossModal(VariantStudy):
    """The study of two senses."""

    config_class: ClassVar[type] = CrossModalConfig
    config: CrossModalConfig

    def arms(self) -> list[Arm]:
        """Return every arm with every seed, a seed's arms together."""
        return [Arm(name, seed) for seed in self.config.seeds for name in ARMS]

    def run_arm(self, arm: Arm, directory: Path, report: Report) -> dict[str, Any]:
        """Train one trunk and measure loss, belief and return."""
        config, world = self.config, World.of(self.config)
        trunk = fresh_llama(config, 2 * config.num_moments, arm.seed)
        model = MTPModel.from_trunk(trunk, MTPConfig(depth=1), torch.Generator().manual_seed(arm.seed))
        settings = TrainingConfig(
            num_steps=config.num_steps * (2 if arm.name == "first_twice" else 1),
            learning_rate=config.learning_rate,
            seed=arm.seed,
        )
        train_arm(model, self._batches(arm, world), MTPObjective(), settings, report)
        probe, test = (self._held_out(world, arm.seed, stream) for stream in (1, 2))
        return {"variant": arm.name, "seed": arm.seed, **measure(model, world, probe, test, arm.name == "first_alone")}

    def summarize(self, results: list[dict[str, Any]]) -> StudySummary:
        """Compare the arms, paired by seed."""
        return summarize_cross_modal(results)

    def _batches(self, arm: Arm, world: World) -> Callable[[int], Batch]:
        source = world.first if arm.name == "first_alone" else world.both

        def batch_of(step: int) -> Batch:
            generator = _generator(arm.seed, 0, step)
            tokens, _ = source.sample(self.config.batch_size, 2 * self.config.num_moments, generator)
            labels = tokens.clone()
            if arm.name in ("first", "first_twice"):
                labels[:, 1::2] = IGNORE_INDEX
            return Batch(tokens, labels)

        return batch_of

    def _held_out(self, world: World, seed: int, stream: int) -> HeldOut:
        config = self.config
        tokens, states = world.both.sample(
            config.num_eval_sequences, 2 * config.num_moments, _generator(seed, stream, 0)
        )
        num_states = config.num_values**2
        beliefs = world.both.beliefs(tokens)[:, 2::2, :num_states]
        return HeldOut(tokens, states[:, 1::2], beliefs)


@torch.no_grad()
def measure(model: MTPModel, world: World, probe: HeldOut, test: HeldOut, alone: bool) -> dict[str, float]:
    """Return what a trained arm's states and logits are worth, as ``figures``."""
    states = [model.trunk_features(_read(held_out, alone)).post_norm for held_out in (probe, test)]
    logprobs = model.logits_of(states[1]).double().log_softmax(dim=-1)
    return figures([each.double() for each in states], logprobs, world, probe, test, alone)


def figures(
    read: list[Float[Tensor, "sequence token hidden"]],
    logprobs: Float[Tensor, "sequence token symbol"],
    world: World,
    probe: HeldOut,
    test: HeldOut,
    alone: bool,
) -> dict[str, float]:
    """Return loss, belief and return of states of both held-out parts, beside the exact filter's (``best_``).

    ``logprobs`` are of the token after each of the second part's.
    """
    # Of the first stream alone a moment is one token, of both two.
    width, source = (1, world.first) if alone else (2, world.both)
    exact = [source.beliefs(_read(held_out, alone))[:, 1:] for held_out in (probe, test)]
    targets = _read(test, alone)[:, _BURN_IN * width :: width]  # each moment's a, foretold by the token before it
    before = slice(_BURN_IN * width - 1, -1, width)
    known = source.next_token(exact[1][:, before]).log()
    loss, best = (-float(logs.gather(2, targets[..., None]).mean()) for logs in (logprobs[:, before], known))
    found = {"loss": loss, "best_loss": best, "excess": loss - best}
    goal, truth = test.beliefs[:, _BURN_IN:].flatten(0, 1), test.states[:, _BURN_IN:].flatten()
    ends = slice(_BURN_IN * width + width - 1, None, width)  # a moment is over with its last token that the arm reads
    for prefix, pair in (("", read), ("best_", exact)):
        known_states, asked = (entries[:, ends].flatten(0, 1) for entries in pair)
        belief = linear_readout(known_states, probe.beliefs[:, _BURN_IN:].flatten(0, 1), asked, 1e-6)
        found[f"{prefix}belief_r2"] = explained_share(goal, belief)
        found[f"{prefix}return"] = float((belief.argmax(dim=1) == truth).double().mean())
    return found


def summarize_cross_modal(results: Results) -> StudySummary:
    """Return each arm's figures with intervals over seeds, and their differences to ``both``, paired by seed."""
    groups = by_variant(results)
    rows, differences = [], []
    for name, group in groups.items():
        shown = [over_seeds([result[key] for result in group]) for key in _RESULTS]
        best = [f"{np.mean([result[f'best_{key}'] for result in group]):.3f}" for key in _RESULTS[1:]]
        rows.append([name, *shown, *best])
        if name != "both" and "both" in groups:
            pairs = zip(groups["both"], group, strict=True)
            paired = [[mine[key] - other[key] for key in _RESULTS] for mine, other in pairs]
            differences.append([f"both - {name}", *(over_seeds([row[place] for row in paired]) for place in range(4))])
    names = ["loss of a over the exact filter's", "loss of a", "belief R2", "return"]
    lines = [
        "Means over seeds [90 %]; the last three columns are those of the exact filter of what the arm reads.",
        "",
        *table(["arm", *names, "exact: loss", "R2", "return"], rows),
        "",
        *table(["paired by seed", *names], differences),
    ]
    headline = float(np.mean([result["belief_r2"] for result in results]))
    return StudySummary("Two senses of one world", "\n".join(lines), headline=headline, figure=None)


def _read(held_out: HeldOut, alone: bool) -> Int[Tensor, "sequence token"]:
    return held_out.tokens[:, 0::2] if alone else held_out.tokens


def _generator(seed: int, stream: int, step: int) -> torch.Generator:
    """Return the generator of a step; SeedSequence keeps the streams of all seeds and steps apart."""
    state = np.random.SeedSequence(seed, spawn_key=(stream, step)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)
