"""Does a checkpoint's dtype decide what is learnt from it? One small trunk, saved twice, PPO on Copy.

    python benchmarks/checkpoint_dtype.py --seeds 0 1 2 3 4 --out runs/checkpoint_dtype

Weights are rounded to bfloat16 first, so both files start from equal numbers. Each seed draws a trunk, gives it a short
warm start on the task's own answers, and writes it in float32 and in bfloat16; the arms load one of them and train by
PPO with the same seeds:

    float32           the float32 file
    bfloat16          the bfloat16 file; its weights become float32 as it is loaded
    computed          the bfloat16 file, computed in bfloat16 by autocast
    kept in bfloat16  what is refused since: Adam on bfloat16 weights

The figure is the mean score of sampled answers over the last iterations, whose prompts are drawn anew. The unit of
resampling is the seed; differences to the first arm are paired.
"""

import argparse
import json
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from worldmtp.agents import ImaginationConfig, ImaginationTrainer, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.envs import TextVectorEnv
from worldmtp.model.global_draws import global_draws_from
from worldmtp.model.precision import computing_in
from worldmtp.statistics import paired_difference
from worldmtp.training.config import EnvConfig, ModelConfig
from worldmtp.training.make import make_env, make_model

ARMS = ("float32", "bfloat16", "computed", "kept in bfloat16")
ENV = EnvConfig(
    "worldmtp/Copy-v0",
    {
        "task_kwargs": {"alphabet": "abcdef", "min_length": 3, "max_length": 4, "reward": "exact"},
        "max_prompt": 5,
        "max_new": 5,
    },
)
NUM_PROMPTS, GROUP_SIZE, LAST_ITERATIONS = 32, 4, 10


def write_trunks(env: TextVectorEnv, directory: Path, seed: int, num_steps: int) -> None:
    """The warm trunk, rounded to bfloat16, in both dtypes."""
    config = LlamaConfig(
        vocab_size=env.tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=16,
        tie_word_embeddings=True,
        pad_token_id=env.tokenizer.pad_id,
        bos_token_id=None,
        eos_token_id=env.tokenizer.eos_id,
    )
    with global_draws_from(seed):
        trunk = LlamaForCausalLM(config)
    optimizer = torch.optim.Adam(trunk.parameters(), lr=2e-3)
    examples = env.examples("train", 256, seed)
    order = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        rows = []
        for index in torch.randint(len(examples), (64,), generator=order).tolist():
            prompt, answer = (env.tokenizer.encode(text) for text in (examples[index].prompt, examples[index].answer))
            rows.append((list(prompt), [*answer, env.tokenizer.eos_id]))
        length = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.full((len(rows), length), env.tokenizer.pad_id)
        labels = torch.full_like(ids, -100)
        for row, (prompt, answer) in enumerate(rows):
            ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
            labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        optimizer.zero_grad()
        trunk(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    trunk.to(torch.bfloat16).save_pretrained(directory / "bfloat16")
    trunk.float().save_pretrained(directory / "float32")


def scores(arm: str, directory: Path, seed: int, num_iterations: int, learning_rate: float) -> list[float]:
    """The mean score of each iteration."""
    env = make_env(ENV, NUM_PROMPTS * GROUP_SIZE)
    path = directory / ("float32" if arm == "float32" else "bfloat16")
    model = make_model(ModelConfig(None, str(path), {}, depth=1), env, seed, (0.0, 1.0))
    with (
        mock.patch("worldmtp.agents.ppo.check_trained_weights"),
        mock.patch("worldmtp.agents.world_learning.check_trained_weights"),
    ):
        if arm == "kept in bfloat16":
            torch.nn.Module.to(model, torch.bfloat16)
        trainer = ImaginationTrainer(
            model,
            env,
            RolloutConfig(num_iterations, NUM_PROMPTS, GROUP_SIZE),
            PPOConfig(learning_rate=learning_rate, kl_coef=0.0),
            WorldModelConfig(),
            ImaginationConfig(use="off"),
            seed,
        )
    with computing_in("bfloat16" if arm == "computed" else "float32", torch.device("cpu")):
        return [trainer.step()[0]["rollout/return_mean"] for _ in range(num_iterations)]


def main() -> None:
    """Run all arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--warm-steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--out", type=Path, default=Path("runs/checkpoint_dtype"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    found: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    for seed in arguments.seeds:
        directory = arguments.out / f"seed{seed}"
        write_trunks(make_env(ENV, 2), directory, seed, arguments.warm_steps)
        for arm in ARMS:
            found[arm].append(scores(arm, directory, seed, arguments.iterations, arguments.learning_rate))
    last = {arm: np.array([np.mean(run[-LAST_ITERATIONS:]) for run in runs]) for arm, runs in found.items()}
    print("| arm | first iteration | last ten: per seed | mean | difference to float32 |\n|---|---|---|---|---|")
    for arm in ARMS:
        first = np.mean([run[0] for run in found[arm]])
        each = " ".join(f"{value:.3f}" for value in last[arm])
        gap = paired_difference(last[arm], last["float32"], generator=0, unit="seed")
        difference = "" if arm == "float32" else f"{gap.estimate:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
        print(f"| {arm} | {first:.3f} | {each} | {last[arm].mean():.3f} | {difference} |")
    print(f"\n{time.monotonic() - start:.0f} s")
    (arguments.out / "scores.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
