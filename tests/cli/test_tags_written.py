"""Every documented tag is written: by a tiny run with the quickstart's settings, or by a setting that is named here."""

import json
from pathlib import Path

import pytest

from worldmtp.cli.schema import build
from worldmtp.tracking.inside_tags import TRUTH_TAGS
from worldmtp.tracking.tags import TAGS
from worldmtp.training import TrainConfig, run

pytestmark = pytest.mark.filterwarnings("ignore")

REPLIES = ("layer_{k}/reply", "layer_{k}/reply_strongest", "reply_uniform")
DRAWN_TO_DIFFER = ("truth/value_corr", "truth/value_ceiling")
"""Correlations, which take returns that are not all alike."""
SHARED = ("norm", "stable_rank", "drift")

# What this run does not write, and what does.
ELSEWHERE = {
    "rollout/tokens_per_forward": "agent.rollout.draft=mtp",
    "losses/num_updates": "agent.ppo.target_kl",
    **{f"rollout/search_{name}": "agent.rollout.act=search" for name in ("trunk_tokens", "kl")},
    "rollout/importance_weight_mean": "agent.rollout.act=search",
    "rollout/effective_sample_share": "agent.rollout.act=search",
    "eval/trunk_tokens": "eval.act=search",
    "eval/policy/{name}": "eval.act=search",
    "imagination/rung": "a gate that is open, after imagination.min_batches batches with skill",
    "imagination/r2": "a gate that is open",
    "imagination/slope": "a gate that is open",
    "eval/return_corr": "imagined returns that differ, after some training",
    "imagination/return_ceiling": "returns that differ in a batch of groups",
    "eval/return_kendall": "imagined returns that differ, after some training",
    "imagination/corr": "imagination=baseline",
    "imagination/weight_h{h}": "imagination=baseline",
    "imagination/skill_h{h}": "imagination=baseline",
    "imagination/turn_border_fraction": "imagination in an environment whose worlds reply, such as env=pig",
    "imagination/gradient_norm_ratio": "imagination.gradient_norm_every",
    "imagination/completions": "imagination.completions",
    "time/completion_seconds": "imagination.completions",
    "time/imagined_scoring_seconds": "imagination.completions",
    "env/imagined_scores": "imagination.completions",
    "losses/observation": "agent.ppo.observation_coef in an environment whose worlds reply",
    "imagination/action_skill": "imagination=latent",
    "imagination/path_weight": "imagination=latent",
    "imagination/return_range": "imagination=latent",
    "imagination/search_skill": "imagination=search",
    "imagination/search_kl": "imagination=search",
    "losses/search": "imagination=search, behind an open gate",
    "imagination/optimism_gap": "imagination=episodes",
    "imagination/disagreement": "imagination=episodes",
    "imagination/batches_trained": "imagination=episodes",
    "imagination/batches_flat": "imagination=episodes",
    "imagination/batches_trusted": "imagination=episodes",
    "imagination/explores": "imagination=episodes",
    "imagination/unknown_fraction": "imagination=episodes",
    "imagination/return_promised": "imagination=episodes",
    "imagination/imagined_turns": "imagination=episodes",
    "imagination/losses/{name}": "imagination=episodes",
    "world_model/reply_nats": "imagination=episodes",
    "world_model/reply_nats_before": "imagination=episodes",
    "world_model/reply_updates": "imagination=episodes",
    "world_model/reply_history": "imagination=episodes",
    "world_model/reply_action_ratio": "imagination=episodes",
    **{
        f"world_model/reply_{name}": "an evaluation with imagination=episodes"
        for name in (
            *(f"depth_{{k}}/{metric}" for metric in ("top1", "accept", "survival", "ce", "ece")),
            *("whole", "top1", "accept", "ece", "end_ece", "reward_error"),
            *("tv", "kl", "survival", "wci", "h_eff", "h_eff_tokens", "entropy", "turns"),
            *("surprise", "knows_turn", "open_loop"),
        )
    },
    "imagination/heldout_{name}_real": "an evaluation with imagination=episodes",
    "imagination/heldout_{name}_imagined": "an evaluation with imagination=episodes",
    "imagination/replies_{i}": "an evaluation with imagination=episodes",
    "samples/imagined": "an evaluation with imagination=episodes",
    **{f"attention/{name}": "an environment whose worlds reply, such as env=pig" for name in REPLIES},
    **{f"heads/shared/{name}": "heads that share weights, such as head=eagle" for name in SHARED},
    **{row.tag: "an environment whose law is known, such as env=mess3" for row in TRUTH_TAGS},
    "custom/{name}": "a user's own writer calls",
    **{
        f"trl/{name}": "post_training.trainer"
        for name in (
            *("loss", "mtp/loss_depth_{k}", "mtp/top1_depth_{k}", "mtp/accepted_depth_{k}"),
            *("{name}", "{group}/{name}", "{group}/{of}/{name}"),
        )
    },
    "sft/mtp/acceptance_depth_{k}": "objective.terms.kl=1, or an evaluation during SFT",
    "sft/eval_mtp/loss_depth_{k}": "MTPSFTTrainer with an eval_dataset",
    "sft/eval_mtp/top1_depth_{k}": "MTPSFTTrainer with an eval_dataset",
    "sft/eval_mtp/acceptance_depth_{k}": "MTPSFTTrainer with an eval_dataset",
}


def written(run_dir: Path) -> set[tuple[str, str]]:
    """Tags of both logs with their kinds; every scalar of them is a number."""
    found = set()
    for log in (run_dir / "metrics.jsonl", run_dir / "sft" / "metrics.jsonl"):
        if not log.is_file():  # no warm start
            continue
        for line in log.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            assert [key for key, value in record.items() if value is None] == []  # stands for what is no number
            found |= {(key, "scalar") for key in record if "/" in key}
            found |= {(key, kind) for kind in ("text", "image", "histogram") for key in record.get(kind, {})}
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_every_documented_tag_is_written_somewhere(compose, tiny_overrides, tmp_path):
    tiny = [value for value in tiny_overrides if value != "env=reverse"]
    overrides = ["experiment=quickstart", *tiny, "eval.every_iterations=1", "logger.num_strips=1"]
    run(build(TrainConfig, compose(*overrides)), tmp_path / "run")
    found = written(tmp_path / "run")
    rows = {(row.tag, row.kind): row for row in TAGS.rows}
    silent = {key for key, row in rows.items() if not any(row.matches(*tag) for tag in found)}
    assert {tag for tag, kind in silent} == set(ELSEWHERE)
    elsewhere = {"imagination/replies_{i}": "image", "samples/imagined": "text"}
    assert {tag: kind for tag, kind in silent if not tag.startswith("custom/") and kind != "scalar"} == elsewhere


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["head=eagle", "imagination=off"], [f"heads/shared/{name}" for name in SHARED]),
        (["imagination=baseline"], ["imagination/corr", "imagination/weight_h0", "imagination/skill_h1"]),
        (["agent.rollout.draft=mtp"], ["rollout/tokens_per_forward"]),
        (
            ["env=pig", "imagination=counterfactual", "agent.ppo.gamma=1", "env.wrappers=[]"],
            ["imagination/turn_border_fraction"],
        ),
        (["env=pig", "agent.ppo.observation_coef=0.1"], ["losses/observation"]),
        # Turns of one token: nothing is drafted, and no head looks ahead.
        (["env=pig", "agent.rollout.draft=mtp", "env.kwargs.max_turn=1", "env.wrappers=[]"], ["rollout/exact_mean"]),
        (["env=tiny_enum"], [row.tag.format(k=4) for row in TRUTH_TAGS if row.tag not in DRAWN_TO_DIFFER]),
        (
            ["imagination.completions=trunk"],
            [
                *("imagination/completions", "imagination/rung_3/r2", "env/imagined_scores"),
                *("time/completion_seconds", "time/imagined_scoring_seconds"),
            ],
        ),
        (["imagination.gradient_norm_every=1"], ["imagination/gradient_norm_ratio"]),
        (["agent.ppo.target_kl=0.05"], ["losses/num_updates"]),
        (
            [
                *("agent.rollout.act=search", "agent.rollout.search_after=1", "imagination=off"),
                *("eval.act=search", "search.tree.num_simulations=4"),
            ],
            [
                *("rollout/search_trunk_tokens", "rollout/search_kl", "rollout/effective_sample_share"),
                *("rollout/importance_weight_mean", "world_model/reward_loss"),
                "eval/trunk_tokens",
                *(f"eval/policy/{name}" for name in ("exact", "score_sampled", "trunk_tokens")),
            ],
        ),
        (
            [
                "imagination=latent",
                "imagination.latent.gated=false",
                "imagination.latent.gate_batches=2",
                "agent.rollout.num_iterations=3",
            ],
            [
                *(f"imagination/{name}" for name in ("action_skill", "path_weight", "return_range", "gate_open")),
                *(f"imagination/losses/{name}" for name in ("policy", "value", "kl_reference", "approx_kl", "entropy")),
            ],
        ),
        (
            [
                "imagination=search",
                "imagination.search.gated=false",
                "imagination.search.gate_batches=2",
                "agent.rollout.num_iterations=3",
            ],
            ["imagination/search_skill", "imagination/search_kl", "imagination/gate_open", "losses/search"],
        ),
        (
            [
                "env=pig",
                "imagination=episodes",
                "imagination.episodes.gated=false",
                "imagination.episodes.num_batches=1",
                "logger.num_strips=1",
            ],
            [
                *(f"imagination/{name}" for name in ("optimism_gap", "disagreement", "batches_trained", "explores")),
                *(f"imagination/{name}" for name in ("batches_flat", "batches_trusted", "return_promised")),
                *("imagination/imagined_turns", "imagination/unknown_fraction"),
                "imagination/losses/policy",
                *(f"world_model/reply_{name}" for name in ("nats", "nats_before", "updates", "history")),
                *("attention/layer_1/reply", "attention/layer_1/reply_strongest", "attention/reply_uniform"),
                "world_model/reply_action_ratio",
                *(f"world_model/reply_depth_1/{name}" for name in ("top1", "accept", "survival", "ce", "ece")),
                *(f"world_model/reply_{name}" for name in ("whole", "top1", "accept", "ece", "end_ece")),
                "world_model/reply_reward_error",
                "imagination/heldout_return_real",
                "imagination/heldout_return_imagined",
            ],
        ),
    ],
)
def test_what_another_setting_writes(overrides, expected, compose, tiny_overrides, tmp_path):
    tiny = [value for value in tiny_overrides if not overrides[0].startswith("env=") or value != "env=reverse"]
    run(build(TrainConfig, compose(*tiny, *overrides)), tmp_path / "run")
    found = written(tmp_path / "run")
    assert set(expected) <= {tag for tag, kind in found if kind == "scalar"}
    shown = {("imagination/replies_0", "image"), ("samples/imagined", "text")}
    assert found & shown == (shown if "imagination=episodes" in overrides else set())
