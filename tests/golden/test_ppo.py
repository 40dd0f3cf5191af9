"""Golden iterations of PPO with each use of imagination: every logged number but times, and what was written."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from worldmtp import MTPModel
from worldmtp.agents import ImaginationConfig, ImaginationTrainer, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.envs import Example, Score, TextGenVectorEnv, VectorActionMask, WorldTask

Golden = Callable[[str, str, dict[str, Any]], None]
MakeModel = Callable[..., MTPModel]
ITERATIONS = 4
ALPHABET = "abcd="
VOCAB = 2 + len(ALPHABET)

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
    "counterfactual_horizon_1": {"use": "counterfactual", "imagination": {"horizon": 1, "chunk_states": 7}},
    "counterfactual_drafted": {"use": "counterfactual", "rollout": {"draft": "mtp"}},
    "counterfactual_conversation": {"use": "counterfactual", "env": "conversation"},
    "counterfactual_oracle": {"use": "counterfactual", "world": {"backend": "oracle"}},
    "counterfactual_identity": {"use": "counterfactual", "world": {"backend": "identity"}},
    "counterfactual_shuffled": {"use": "counterfactual", "world": {"backend": "shuffled"}},
    "counterfactual_latent_heads": {"use": "counterfactual", "heads": {"head": "latent", "depth": 3}},
    "baseline": {"use": "baseline"},
    "baseline_oracle": {"use": "baseline", "world": {"backend": "oracle"}},
    "baseline_parallel": {
        "use": "baseline",
        "world": {"backend": "mtp_parallel"},
        "heads": {"head": "medusa", "depth": 3},
    },
    "baseline_conversation": {"use": "baseline", "env": "conversation", "ppo": {"gamma": 0.9}},
}


class CountLetters:
    """Prompt: two letters and "=". Each "a" or "b" written is paid a quarter, up to one."""

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        letters = "".join(rng.choice(list("abcd"), size=2))
        return Example(prompt=f"{letters}=", answer="abab")

    def score(self, example: Example, text: str, ids: np.ndarray) -> Score:
        count = min(text.count("a") + text.count("b"), 4)
        return Score(value=count / 4, components={}, reason="ok", exact=count == 4)


class Echo:
    """Repeats what is said behind "=" and pays an eighth for each "a"; three turns."""

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        self._num_turns = 0
        return "abcd"[seed % 4] + "=", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._num_turns += 1
        return "=" + text, text.count("a") / 8, self._num_turns == 3, False, {}


def make_env(kind: str, num_envs: int) -> Any:
    rows = {
        "num_envs": num_envs,
        "autoreset_mode": "disabled",
        "tokenizer": {"kind": "char", "alphabet": ALPHABET},
        "pool_size": 8,
    }
    if kind == "conversation":
        turns = {"max_prompt": 2, "max_new": 18, "max_turn": 2}
        return TextGenVectorEnv(task=WorldTask(Echo, num_seeds=40), **turns, **rows)
    env = TextGenVectorEnv(task=CountLetters(), max_prompt=3, max_new=5, heldout_fraction=0.25, **rows)
    return VectorActionMask(env, alphabet="abc") if kind == "masked" else env


def run_ppo(model: MTPModel, case: dict[str, Any]) -> dict[str, Any]:
    """Metrics by name, each a list with an entry an iteration; the texts; what the weights sum to in the end."""
    trainer = ImaginationTrainer(
        model,
        make_env(case.get("env", "letters"), 16),
        RolloutConfig(num_iterations=ITERATIONS, num_prompts=4, group_size=4, **case.get("rollout", {})),
        PPOConfig(**{"learning_rate": 3e-3} | case.get("ppo", {})),
        WorldModelConfig(num_updates=2, batch_size_episodes=12, **case.get("world", {})),
        ImaginationConfig(
            **{"use": case["use"], "horizon": 2, "num_rollouts": 2, "min_batches": 1, "max_live": 4}
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
    return dict(sorted(trace.items())) | {"actions": texts, "weights": sums_of(model)}


def sums_of(model: MTPModel) -> dict[str, float]:
    """Of the absolute weights, by part."""
    parts = {"trunk": model.trunk, "heads": model.heads, "world_heads": model.world_heads}
    return {
        name: sum(float(weight.detach().abs().sum()) for weight in part.parameters()) for name, part in parts.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_iterations_are_the_recorded_ones(case: str, golden: Golden, drawn_model: MakeModel) -> None:
    heads = {"head": "sequential", "depth": 3, "num_value_bins": 11} | CASES[case].get("heads", {})
    trace = run_ppo(drawn_model(VOCAB, **heads), CASES[case])
    gates = trace.get("imagination/gate_open", [])
    assert gates == [] or (gates[0] == 0 and 1 in gates), "what imagination does behind an open gate would not be seen"
    golden("ppo", case, trace)
