"""Golden numbers of a report: a model is evaluated on held-out prompts, saved, read again, and counted."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp import MTPModel
from worldmtp.agents import Evaluator, PPOConfig
from worldmtp.analysis import EvalArtefact, load_artefact, metrics, save_artefact
from worldmtp.analysis.metrics import RootedPredictions, reliability, rooted_predictions
from worldmtp.analysis.return_agreement import return_agreement
from worldmtp.analysis.summary import RunSummary, summary_table
from worldmtp.dynamics import make_world_model
from worldmtp.envs import Example, TextVectorEnv
from worldmtp.statistics import Interval
from worldmtp.training.evaluation import Imagining, RunEvaluation, evaluate_run, summarize

Golden = Callable[..., None]
VOCAB, HORIZON = 7, 2
PROMPTS = ["ab=", "ba=", "cd=", "dc=", "ac=", "bd=", "aa=", "dd=", "ca=", "db=", "bc=", "cc="]
CASES = {
    "chained": ("sequential", "mtp"),
    "parallel": ("medusa", "mtp_parallel"),
    "oracle": ("latent", "oracle"),
    "nothing_imagined": ("hydra", None),
}
"""The heads and the back-end that imagines."""
MEANS = {
    "acceptance": metrics.acceptance,
    "survival": metrics.survival,
    "path_consistency": metrics.path_consistency,
    "path_divergence": metrics.path_divergence,
    "agreement": metrics.agreement,
    "cross_entropy": metrics.cross_entropy,
    "chain_cross_entropy": metrics.chain_cross_entropy,
    "gap": metrics.gap,
    "prediction_entropy": metrics.prediction_entropy,
}


def evaluated(model: MTPModel, env: TextVectorEnv, backend: str | None) -> RunEvaluation:
    """As a run does it; without a back-end nothing is imagined."""
    examples = [Example(prompt=prompt, answer="abab") for prompt in PROMPTS]
    world_model = make_world_model(backend, model, torch.Generator().manual_seed(0)) if backend else None
    evaluator = Evaluator(env, examples, temperature=0.9, seed=1)
    tokens = ("<pad>", "<eos>", *"abcd=")
    imagining = Imagining(world_model, HORIZON, 3, seed=2)
    return evaluate_run(model, evaluator, evaluator.run(model), imagining, PPOConfig(), tokens)


def numbers_of(artefact: EvalArtefact) -> dict[str, Any]:
    """What the tables and figures of a report show."""
    rooted = rooted_predictions(artefact)
    depths = range(1, artefact.num_depths + 1)
    numbers: dict[str, Any] = {
        f"{name} of depth {depth}": asdict_or_none(quantity(rooted).interval(depth, generator=0))
        for name, quantity in MEANS.items()
        for depth in depths
    }
    numbers["drafts kept"] = asdict_or_none(metrics.effective_horizon(rooted, generator=0))
    for depth in depths:
        table = reliability(rooted, depth)
        numbers[f"calibration of depth {depth}"] = {name: column.tolist() for name, column in vars(table).items()}
    numbers |= {f"{name} by entropy": strata(rooted, name) for name in ("agreement", "acceptance")}
    returns = return_agreement(artefact, generator=0)
    numbers["returns"] = asdict(returns)
    return numbers


def strata(rooted: RootedPredictions, name: str) -> dict[str, Any]:
    values = rooted.agrees.astype(np.float64) if name == "agreement" else metrics.acceptance_probability(rooted)
    edges, bins = metrics.by_chain_entropy(rooted, values)
    return {"edges": edges.tolist(), "means": [stratum.mean().tolist() for stratum in bins]}


def asdict_or_none(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else asdict(interval)


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_the_recorded_ones(
    case: str,
    golden: Golden,
    drawn_model: Callable[..., MTPModel],
    text_env: Callable[[str, int], TextVectorEnv],
    tmp_path: Path,
) -> None:
    head, backend = CASES[case]
    model = drawn_model(VOCAB, head=head, depth=3, num_value_bins=11)
    found = evaluated(model, text_env("letters", len(PROMPTS)), backend)
    save_artefact(found.artefact, tmp_path, case)
    artefact = load_artefact(tmp_path, case)
    assert (np.isfinite(artefact.imagined_return).any()) == (backend is not None)
    summary = RunSummary((summarize(found, case, case),), wall_clock_seconds=1.0, machine="any")
    trace = {"logged": found.metrics, "table": summary_table(summary).splitlines(), **numbers_of(artefact)}
    golden("report", case, trace)


def test_every_record_is_compared(recorded: Callable[[str], set[str]]) -> None:
    assert recorded("report") == set(CASES)
