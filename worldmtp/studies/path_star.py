"""Path-star graphs: does a head make the trunk plan where next-token training learns a shortcut?

A graph has ``degree`` arms of nodes from one centre; the prompt lists its edges in random order, then the centre and
the end of one arm; the answer is that arm. Teacher forcing lets every node but the first be read off the edges from the
node before it, so next-token training learns that and guesses the first node: 1/degree (Bachmann & Nagarajan 2024,
arXiv 2403.06963). Heads that must know what follows have to look at the arms' ends before the first step (NextLat,
arXiv 2511.05963: 18.6 % against 99.8 % on G(5, 5)).

Every graph draws new names for its nodes, and every batch new graphs: nothing can be remembered. An answer is right if
every node is the trunk's greedy choice given the ones before, so one forward over the true answer decides it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from matplotlib.figure import Figure
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from worldmtp.decoding.trunk import evaluation_mode
from worldmtp.model import IGNORE_INDEX, MTPModel
from worldmtp.studies.protocol import Arm, Report, StudySummary
from worldmtp.studies.report import Results, by_variant, over_seeds, png, table
from worldmtp.studies.training import Batch, StepLosses, TrainingConfig
from worldmtp.studies.variants import VariantStudy, check_variants, heads_of, objective_of, train_arm


@dataclass(frozen=True)
class PathStarConfig:
    """Graph, trunk and training; ``variants`` maps a name to ``{depth, head, spec, objective}``."""

    variants: dict[str, Any]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    degree: int = 2
    length: int = 5
    num_names: int = 9
    hidden_size: int = 64
    intermediate_size: int = 128
    num_layers: int = 5
    num_attention_heads: int = 4
    initializer_range: float = 0.0875
    residual_range: float = 0.05
    """Of the embedding and of what layers add to the residual stream."""
    num_steps: int = 8000
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    eval_every: int = 500
    num_eval_graphs: int = 1000

    def __post_init__(self) -> None:
        for name, value in (("degree", self.degree), ("length", self.length)):
            if value < 2:
                raise ValueError(f"{name}={value} must be at least 2; less leaves nothing to choose.")
        if self.eval_every < 1:
            raise ValueError(f"eval_every={self.eval_every} must be at least 1 step.")
        if self.num_names < self.num_nodes:
            raise ValueError(
                f"num_names={self.num_names} is fewer than the {self.num_nodes} nodes of a graph with {self.degree} "
                f"arms of {self.length}; raise it."
            )
        check_variants(self.variants, self.seeds)

    @property
    def num_nodes(self) -> int:
        """Return the number of nodes: the centre and the arms."""
        return 1 + self.degree * (self.length - 1)


@dataclass(frozen=True)
class Graphs:
    """Texts of one shape; ``prompt_length`` tokens come before the answer."""

    input_ids: Int[Tensor, "graph time"]
    prompt_length: int

    def batch(self) -> Batch:
        """Return the texts with labels on the answers alone."""
        labels = self.input_ids.clone()
        labels[:, : self.prompt_length] = IGNORE_INDEX
        return Batch(self.input_ids, labels)


def draw_graphs(num_graphs: int, degree: int, length: int, num_names: int, generator: np.random.Generator) -> Graphs:
    """Draw random graphs as token ids: names 0 .. num_names - 1, then the mark before the answer.

    Text: source and target of each edge, shuffled; the centre; the goal; the mark; the nodes from the centre to the
    goal, the centre left out.
    """
    num_nodes = 1 + degree * (length - 1)
    names = generator.permuted(np.tile(np.arange(num_names), (num_graphs, 1)), axis=1)[:, :num_nodes]
    centre, arms = names[:, :1], names[:, 1:].reshape(num_graphs, degree, length - 1)
    starts = np.concatenate([np.repeat(centre[:, :, None], degree, axis=1), arms[..., :-1]], axis=2)
    edges = np.stack([starts, arms], axis=-1).reshape(num_graphs, -1, 2)
    order = generator.permuted(np.tile(np.arange(edges.shape[1]), (num_graphs, 1)), axis=1)
    shuffled = np.take_along_axis(edges, order[..., None], axis=1).reshape(num_graphs, -1)
    mark = np.full((num_graphs, 1), num_names)
    # Names are shuffled, so the first arm is as good as any.
    prompt = np.concatenate([shuffled, centre, arms[:, 0, -1:], mark], axis=1)
    return Graphs(torch.from_numpy(np.concatenate([prompt, arms[:, 0]], axis=1)), prompt.shape[1])


@torch.no_grad()
def right_nodes(model: MTPModel, graphs: Graphs) -> Bool[Tensor, "graph node"]:
    """Return where the trunk's greedy choice is the answer's node, given the true ones before."""
    with evaluation_mode(model):
        logits = model(graphs.input_ids, compute_depth_logits=False).logits
    answers = graphs.input_ids[:, graphs.prompt_length :]
    return logits[:, graphs.prompt_length - 1 : -1].argmax(dim=-1) == answers


class PathStarStudy(VariantStudy):
    """The study of path-star graphs."""

    config_class: ClassVar[type] = PathStarConfig
    config: PathStarConfig

    def run_arm(self, arm: Arm, directory: Path, report: Report) -> dict[str, Any]:
        """Train one trunk with its heads and measure exact match and first node on fresh graphs along the way."""
        config, variant = self.config, self.config.variants[arm.name]
        heads = heads_of(variant, initializer_range=config.initializer_range)
        model = MTPModel.from_trunk(self._fresh_trunk(arm.seed), heads, torch.Generator().manual_seed(arm.seed))
        held_out = self._graphs(config.num_eval_graphs, np.random.SeedSequence(0, spawn_key=(0, 0)))
        curve: list[dict[str, float]] = []

        def measure(losses: StepLosses) -> str:
            done = losses.step + 1
            if done % config.eval_every == 0 or done == config.num_steps:
                right = right_nodes(model, held_out)
                exact, first = right.all(dim=1).float().mean(), right[:, 0].float().mean()
                curve.append({"step": done, "exact": float(exact), "first": float(first)})
            return f"exact {curve[-1]['exact']:.2f}" if curve else ""

        settings = TrainingConfig(
            num_steps=config.num_steps,
            learning_rate=config.learning_rate,
            warmup_steps=100,
            weight_decay=config.weight_decay,
            seed=arm.seed,
        )
        train_arm(model, self._batches(arm.seed), objective_of(variant), settings, report, measure)
        right = right_nodes(model, held_out)
        return {
            "variant": arm.name,
            "seed": arm.seed,
            "degree": config.degree,
            "curve": curve,
            "exact": right.all(dim=1).tolist(),
            "first": right[:, 0].tolist(),
        }

    def summarize(self, results: list[dict[str, Any]]) -> StudySummary:
        """Compare exact match by variant."""
        return summarize_path_star(results)

    def _batches(self, seed: int) -> Callable[[int], Batch]:
        # Streams of a step and those of evaluation have spawn keys of different lengths, so that none is another's.
        return lambda step: self._graphs(
            self.config.batch_size, np.random.SeedSequence(seed, spawn_key=(step,))
        ).batch()

    def _graphs(self, num_graphs: int, seed: np.random.SeedSequence) -> Graphs:
        config = self.config
        return draw_graphs(num_graphs, config.degree, config.length, config.num_names, np.random.default_rng(seed))

    def _fresh_trunk(self, seed: int) -> PreTrainedModel:
        config = GPTNeoXConfig(
            vocab_size=self.config.num_names + 1,
            hidden_size=self.config.hidden_size,
            intermediate_size=self.config.intermediate_size,
            num_hidden_layers=self.config.num_layers,
            num_attention_heads=self.config.num_attention_heads,
            max_position_embeddings=4 * self.config.num_nodes + self.config.length,
            initializer_range=self.config.initializer_range,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
            use_parallel_residual=False,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            trunk = GPTNeoXForCausalLM(config)
        _quiet_residuals(trunk, self.config.residual_range / self.config.initializer_range)
        return trunk


def summarize_path_star(results: Results) -> StudySummary:
    """Return exact match per variant: each seed's, and their mean with its interval over seeds."""
    chance, means, rows = 1 / results[0]["degree"], [], []
    for name, group in by_variant(results).items():
        exact = [float(np.mean(result["exact"])) for result in group]
        first = np.mean([np.mean(result["first"]) for result in group])
        means.append(float(np.mean(exact)))
        rows.append([name, over_seeds(exact), " ".join(f"{value:.3f}" for value in exact), f"{first:.3f}"])
    lines = [
        f"Exact match on {len(results[0]['exact'])} fresh graphs; guessing the arm gives {chance:.3f}.",
        "",
        *table(["variant", "exact match, mean over seeds [90 %]", "each seed", "first node"], rows),
    ]
    return StudySummary("Path-star graphs", "\n".join(lines), headline=max(means), figure=_figure(results, chance))


def _figure(results: Results, chance: float) -> bytes:
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    for index, (name, group) in enumerate(by_variant(results).items()):
        for result in group:
            steps, exact = zip(*((point["step"], point["exact"]) for point in result["curve"]), strict=True)
            label = name if result["seed"] == results[0]["seed"] else None
            axis.plot(steps, exact, color=f"C{index}", label=label, linewidth=1.3)
    axis.axhline(chance, color="k", linestyle=":", label="1 / degree")
    axis.set(xlabel="step", ylabel="exact match on fresh graphs", ylim=(0, 1.02))
    axis.legend(fontsize=8)
    return png(figure)


@torch.no_grad()
def _quiet_residuals(trunk: GPTNeoXForCausalLM, factor: float) -> None:
    """Scale the embedding and what the layers add: the rest is drawn wide, so that attention is sharp from the start.

    So initialised, edges are looked up after some hundred steps; with everything small, after some thousand.
    """
    loud = ("embed_in.weight", "attention.dense.weight", "mlp.dense_4h_to_h.weight")
    for name, weight in trunk.gpt_neox.named_parameters():
        if name.endswith(loud):
            weight.mul_(factor)
