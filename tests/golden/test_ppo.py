"""Golden iterations of PPO with each use of imagination: every logged number but times, and what was written."""

from collections.abc import Callable
from typing import Any

import pytest

from worldmtp import MTPModel
from worldmtp.agents import ImaginationConfig, ImaginationTrainer, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.config import LatentConfig
from worldmtp.agents.episodes_config import EpisodesConfig
from worldmtp.agents.search_config import SearchTargetConfig
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.envs import TextVectorEnv

Golden = Callable[..., None]
ITERATIONS = 4
VOCAB = 7
"""Of ``text_env``."""

CASES: dict[str, dict[str, Any]] = {
    "off": {"use": "off"},
    "off_group": {"use": "off", "ppo": {"advantage": "group"}},
    "off_discounted": {
        "use": "off",
        "ppo": {"gamma": 0.9, "gae_lambda": 0.7, "bootstrap_truncated": True, "scale_advantages": False},
    },
    "off_schedules": {
        "use": "off",
        "ppo": {"warmup_updates": 6, "anneals_learning_rate": True, "ent_coef": 0.01, "kl_coef": 0.1},
    },
    "off_joint_value": {"use": "off", "ppo": {"detach_value": False, "num_epochs": 1, "num_minibatches": 1}},
    "off_drafted": {"use": "off", "rollout": {"draft": "mtp", "num_draft": 2, "temperature": 0.8}},
    "off_masked": {"use": "off", "env": "masked"},
    "off_conversation": {"use": "off", "env": "conversation"},
    "counterfactual_rung_0": {"use": "counterfactual", "imagination": {"max_rung": 0}},
    "counterfactual_rung_1": {"use": "counterfactual", "imagination": {"max_rung": 1}},
    "counterfactual_rung_2": {"use": "counterfactual", "imagination": {"max_rung": 2}},
    "counterfactual_horizon_1": {"use": "counterfactual", "imagination": {"horizon": 1, "chunk_states": 50}},
    "counterfactual_conversation": {"use": "counterfactual", "env": "conversation"},
    "counterfactual_oracle": {"use": "counterfactual", "world": {"backend": "oracle"}},
    "counterfactual_identity": {"use": "counterfactual", "world": {"backend": "identity"}},
    "counterfactual_shuffled": {"use": "counterfactual", "world": {"backend": "shuffled"}},
    "counterfactual_latent_heads": {"use": "counterfactual", "heads": {"head": "latent", "depth": 3}},
    "counterfactual_joint_heads": {
        "use": "counterfactual",
        "world": {
            "learning_rate": 1e-3,
            "warmup_updates": 0,
            "ce_coef": 1.0,
            "kl_coef": 0.0,
            "detach_world_heads": False,
        },
    },
    "counterfactual_tail": {"use": "counterfactual", "imagination": {"tail": True}},
    "counterfactual_tail_cut": {"use": "counterfactual", "imagination": {"tail": True, "min_probability": 0.15}},
    "counterfactual_tail_conversation": {
        "use": "counterfactual",
        "env": "conversation",
        "imagination": {"tail": True, "max_live": 2},
    },
    "counterfactual_completions": {"use": "counterfactual", "imagination": {"max_rung": 0, "completions": "trunk"}},
    "episodes_conversation": {
        "use": "episodes",
        "env": "conversation",
        "world": {"replies": ReplyModelConfig(num_members=2, hidden_size=8, num_heads=2, num_updates=8)},
        "imagination": {
            "episodes": EpisodesConfig(num_batches=2, batch_size=4, exploring_batch_size=4, num_epochs=1, gated=False)
        },
    },
    "latent": {
        "use": "latent",
        "imagination": {"latent": LatentConfig(num_starts=8, gated=False, gate_batches=2, ent_coef=0.01)},
    },
    "latent_mixed": {
        "use": "latent",
        "imagination": {
            "latent": LatentConfig(num_starts=8, gated=False, gate_batches=2, mixed=True, replay_iterations=2)
        },
    },
    "latent_shuffled": {
        "use": "latent",
        "world": {"backend": "shuffled"},
        "imagination": {"latent": LatentConfig(num_starts=8, gated=False, gate_batches=2)},
    },
    "search": {
        "use": "search",
        "imagination": {"search": SearchTargetConfig(num_simulations=8, num_states=12, gated=False, gate_batches=2)},
    },
    "search_corrected_shuffled": {
        "use": "search",
        "world": {"backend": "shuffled"},
        "imagination": {"search": SearchTargetConfig(width=3, gated=False, gate_batches=2, corrected=True)},
    },
    "search_conversation": {
        "use": "search",
        "env": "conversation",
        "imagination": {"search": SearchTargetConfig(num_simulations=4, gated=False, gate_batches=2)},
    },
    "baseline": {"use": "baseline"},
    "baseline_oracle": {"use": "baseline", "world": {"backend": "oracle"}},
    "baseline_parallel": {
        "use": "baseline",
        "world": {"backend": "mtp_parallel"},
        "heads": {"head": "medusa", "depth": 3},
    },
    "baseline_conversation": {"use": "baseline", "env": "conversation", "ppo": {"gamma": 0.9}},
}


IN_EVERY_USE = {
    *("off", "off_drafted", "off_masked", "off_conversation", "counterfactual_tail_conversation"),
    *("counterfactual_completions", "counterfactual_shuffled", "episodes_conversation", "latent_mixed"),
    *("search_corrected_shuffled", "baseline_parallel", "baseline_conversation"),
}
"""What a move of code would most likely change, of each use; all else is looked at with the slow tests."""


def run_ppo(model: MTPModel, env: TextVectorEnv, case: dict[str, Any]) -> dict[str, Any]:
    """Metrics by name, each a list with an entry an iteration, and what was written."""
    trainer = ImaginationTrainer(
        model,
        env,
        RolloutConfig(num_iterations=ITERATIONS, num_prompts=4, group_size=4, **case.get("rollout", {})),
        PPOConfig(**{"learning_rate": 3e-3} | case.get("ppo", {})),
        WorldModelConfig(
            **{"num_updates": 2, "measure_every": 1, "batch_size_episodes": 12, "warmup_updates": 3}
            | case.get("world", {})
        ),
        ImaginationConfig(
            **{"use": case["use"], "horizon": 2, "num_rollouts": 2, "min_batches": 1, "max_live": 4, "tail": False}
            | {"critic_updates": 10, "critic_learning_rate": 0.02}
            | case.get("imagination", {})
        ),
        seed=0,
    )
    trace: dict[str, Any] = {}
    texts = []
    for iteration in range(ITERATIONS):
        metrics, rollout = trainer.step()
        for name, value in metrics.items():
            if not name.startswith("time/"):
                trace.setdefault(name, [None] * iteration).append(value)
        texts.append(
            [
                "".join(map(str, row[mask].tolist()))
                for row, mask in zip(rollout.actions, rollout.step_mask, strict=True)
            ]
        )
        for values in trace.values():
            values += [None] * (iteration + 1 - len(values))
    return dict(sorted(trace.items())) | {"actions": texts}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] * (name not in IN_EVERY_USE)) for name in CASES]
)
def test_iterations_are_the_recorded_ones(
    case: str,
    golden: Golden,
    drawn_model: Callable[..., MTPModel],
    text_env: Callable[[str, int], TextVectorEnv],
    weight_sums: Callable[[MTPModel], dict[str, float]],
) -> None:
    settings = CASES[case]
    heads = {"head": "sequential", "depth": 3, "num_value_bins": 11} | settings.get("heads", {})
    model, env = drawn_model(VOCAB, **heads), text_env(settings.get("env", "letters"), 16)
    trace = run_ppo(model, env, settings)
    gates = trace.get("imagination/gate_open", [])
    assert gates == [] or (gates[0] == 0 and 1 in gates), "what imagination does behind an open gate would not be seen"
    golden("ppo", case, trace | {"weights": weight_sums(model)})


def test_every_record_is_compared(recorded: Callable[[str], set[str]]) -> None:
    assert recorded("ppo") == set(CASES)
