"""What ``head=`` and ``objective=`` choose is what the warm start trains, from the command line's point of view."""

import json
import shutil

import pytest

from worldmtp.cli.train import run
from worldmtp.heads import available_heads
from worldmtp.model.config import MTPConfig
from worldmtp.objective.objective import LossTerms
from worldmtp.objective.plan import CoefSchedule
from worldmtp.training import warm_start

pytestmark = pytest.mark.usefixtures("no_report")

SHORT = ("sft.num_steps=2", "agent.rollout.num_iterations=0", "imagination=off")
MOVING = {
    "coef linear": ("objective.coef={kind:linear,start:0.3,end:0.1,duration:1.0}",),
    "curriculum reverse": ("objective=gloeckle", "objective.window.curriculum=reverse"),
    "deepseek_v3": ("objective=deepseek_v3",),
    "every 2 steps": ("objective.frequency.every_steps=2",),
    "latent ema": ("objective.terms.latent=1", "objective.latent_target=ema"),
    "positions quarter": ("objective.frequency.position_fraction=0.25",),
}
"""Objectives that change from step to step, count tokens, or keep something beside the model."""


@pytest.fixture
def trained(compose_tiny, tmp_path, monkeypatch):
    """Runs two steps of the warm start; the objective that was trained by, the heads, and what was logged."""

    def enough(*args):
        raise MemoryError("the warm start is over")

    monkeypatch.setattr("worldmtp.training.pipeline.evaluate_run", enough)
    made = []
    trainer = warm_start.MTPSFTTrainer

    def seen(model, args, **kwargs):
        made.append(args.build_objective())
        return trainer(model, args, **kwargs)

    monkeypatch.setattr(warm_start, "MTPSFTTrainer", seen)

    def start(*overrides):
        run_dir = tmp_path / "run"
        with pytest.raises(MemoryError, match="the warm start is over"):
            run(compose_tiny(*SHORT, *overrides), run_dir)
        logged = {}
        for line in (run_dir / "sft" / "metrics.jsonl").read_text().splitlines():
            logged |= json.loads(line)
        return made[0], MTPConfig.from_pretrained(run_dir / "sft" / "model"), logged

    return start


def test_the_defaults_train_as_lambda_alone_does(trained, tmp_path):
    # 0.3 by default, by lambda alone, and by an objective that spells its defaults out.
    spelt = ("objective.coef.start=0.3", "objective.depth_weighting=mean", "objective.terms.ce=1")
    found = []
    for overrides in (spelt[:1], (), spelt):
        trained(*overrides)
        found.append((tmp_path / "run" / "sft" / "model" / "model.safetensors").read_bytes())
        shutil.rmtree(tmp_path / "run")
    assert found[0] == found[1] == found[2]


def test_a_preset_and_a_field_reach_the_trainer(trained):
    objective, _, logged = trained("objective=bebop", "objective.window.last=3")
    assert (objective.terms, objective.coef) == (LossTerms(ce=0.0, e2e_tv=1.0), CoefSchedule(start=1.0))
    assert objective.window.last == 3
    assert logged["sft/mtp/coef"] == 1.0
    assert 0 <= logged["sft/mtp/acceptance_depth_3"] <= 1
    assert "sft/mtp/loss_depth_4" not in logged  # beyond the window


@pytest.mark.parametrize("family", [*available_heads(), "fastmtp"])
def test_each_family_trains(trained, family):
    _, config, logged = trained(f"head={family}", "model.config.num_hidden_layers=2")
    assert config.head == ("sequential" if family == "fastmtp" else family)
    assert config.share_depths is (family in ("eagle", "fastmtp", "latent"))
    assert logged["sft/mtp/loss_depth_4"] > 0


def test_fields_of_a_family_reach_the_model(trained):
    _, config, _ = trained("head=hydra", "model.head_spec.head_layers=2", "model.head_spec.detach_trunk=true")
    assert (config.head_layers, config.detach_trunk) == (2, True)


@pytest.mark.parametrize("objective", MOVING)
def test_objectives_train(trained, objective):
    _, _, logged = trained(*MOVING[objective])
    assert logged["sft/loss"] > 0
