"""Runs whose heads cannot have the config's world model: refused where it would be used, undisturbed where not."""

import json

import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.cli.train import run
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.training import make

COLD = ("sft.num_steps=0", "agent.rollout.num_iterations=1")


@pytest.fixture
def parallel_model(tiny_trunk):
    return MTPModel.from_trunk(tiny_trunk("llama"), MTPConfig(head="medusa", depth=3))


@pytest.mark.usefixtures("no_report")
def test_off_needs_no_world_model(compose_tiny, tmp_path):
    # Depth 1 has no head to step, and the config's horizon is 3: nothing is imagined, and nothing else is missing.
    run(compose_tiny("imagination=off", "model.depth=1", "imagination.horizon=3", *COLD), tmp_path / "run")
    logged = {}
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        logged |= json.loads(line)
    assert "eval/return_realized" in logged
    assert "eval/return_imagined" not in logged


@pytest.mark.usefixtures("no_report")
def test_off_with_parallel_heads(compose_tiny, monkeypatch, tmp_path):
    def with_parallel_heads(config, env, seed):
        model = make.make_model(config, env, seed)
        heads = MTPConfig(head="medusa", depth=3)
        return MTPModel.from_trunk(model.trunk, heads, torch.Generator().manual_seed(seed))

    monkeypatch.setattr("worldmtp.training.pipeline.make_model", with_parallel_heads)
    run(compose_tiny("imagination=off", *COLD), tmp_path / "run")
    with pytest.raises(ValueError, match=r"world_model=mtp with imagination=counterfactual: .*.mtp_parallel. for"):
        run(compose_tiny("imagination=counterfactual", *COLD), tmp_path / "other")


@pytest.mark.parametrize(
    ("backend", "use", "message"),
    [
        ("mtp", "baseline", "world_model=mtp with imagination=baseline: head='medusa' gives the policy-averaged"),
        ("mtp_parallel", "counterfactual", "world_model=mtp_parallel with imagination=counterfactual: Parallel"),
        ("mtp_paralel", "off", r"world_model\.backend='mtp_paralel' is unknown; did you mean 'mtp_parallel'\?"),
    ],
)
def test_what_is_refused_before_any_training(backend, use, message, parallel_model):
    with pytest.raises(ValueError, match=message):
        make.check_imagination(parallel_model, backend, ImaginationConfig(use=use, horizon=2), PPOConfig())


@pytest.mark.parametrize(
    ("backend", "use", "horizon", "imagines"),
    [
        ("mtp", "off", 2, False),
        ("mtp_parallel", "off", 2, True),
        ("mtp_parallel", "off", 3, False),
        ("mtp_parallel", "baseline", 2, True),
    ],
)
def test_what_can_be_imagined(backend, use, horizon, imagines, parallel_model):
    assert (
        make.check_imagination(parallel_model, backend, ImaginationConfig(use=use, horizon=horizon), PPOConfig())
        is imagines
    )
