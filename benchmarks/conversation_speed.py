"""Seconds of a rollout in a world: the policy's session extended by each reply, beside one that is filled anew.

    python benchmarks/conversation_speed.py

FrozenLake, slippery, 8 x 8 and without holes, so that episodes last: a prompt of 71 tokens, then turns of one token
and replies of two. The trunk is that of ``model=llama``, three layers 128 wide, fresh. Both arms play the same episodes
with the same draws, one after the other, in each repeat. Times are CPU time of this process, with one thread, of whole
rollouts; the figure is the ratio of both, medians over repeats.
"""

import argparse
import os
import platform
import statistics
import time
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.queues import ActedStep
from worldmtp.agents.rollout import Rollout, collect_rollout
from worldmtp.envs import TextVectorEnv, make_text_vec
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

SIZE = 8
MAX_REPLY = 3


class FilledAnew:
    """An ``ActingPolicy`` that reads all of every text again whenever the environment wrote in one."""

    def __init__(self, model: MTPModel) -> None:
        self._model, self._policy = model, TrunkPolicy(model, 1.0)
        self._last: np.ndarray | None = None

    def act(self, obs: dict[str, np.ndarray], infos: dict[str, Any], generator: torch.Generator | None) -> ActedStep:
        """Return one token a row."""
        lengths = obs["length"][:, 0]
        if self._last is not None and bool((lengths > self._last + 1).any()):
            self._policy = TrunkPolicy(self._model, 1.0)
        self._last = lengths.copy()
        return self._policy.act(obs, infos, generator)


def make_lake(num_rows: int, num_turns: int) -> TextVectorEnv:
    """Return rows of FrozenLake, all of one length."""
    lake = {"game": "FrozenLake", "random_map": {"size": SIZE, "p": 1.0}, "max_turns": num_turns}
    return make_text_vec(
        "worldmtp/FrozenLake-v0",
        num_rows,
        task_kwargs={"world": "worldmtp.envs.worlds.toy_text:ToyText", "world_kwargs": lake},
        tokenizer={"kind": "char", "alphabet": "SFHG/01234567ldru?"},
        max_prompt=SIZE * (SIZE + 1) - 1,
        max_turn=1,
        max_new=num_turns * (1 + MAX_REPLY),
        pool_size=1,
        heldout_fraction=0.0,
    )


def make_model(vocab_size: int) -> MTPModel:
    """Return a fresh model of the sizes of ``model=llama``."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return MTPModel.from_trunk(LlamaForCausalLM(config), MTPConfig(depth=4), torch.Generator().manual_seed(0)).eval()


def play(env: TextVectorEnv, policy: Any, seed: int) -> tuple[Rollout, float]:
    """Return a rollout and its CPU seconds."""
    env.reset(seed=seed)
    begin = time.process_time()
    rollout = collect_rollout(env, policy, torch.Generator().manual_seed(seed), {})
    return rollout, time.process_time() - begin


def main() -> None:
    """Play and print a row of the table for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread, torch {torch.__version__}")
    print("| rows | turns | extended, s | filled anew, s | ratio |")
    print("|---|---|---|---|---|")
    for num_rows in args.rows:
        env = make_lake(num_rows, args.turns)
        model = make_model(env.tokenizer.vocab_size)
        extended, anew = list[float](), list[float]()
        with torch.no_grad():
            play(env, TrunkPolicy(model, 1.0), 0)
            for seed in range(args.repeats):
                ours, taken = play(env, TrunkPolicy(model, 1.0), seed)
                extended.append(taken)
                theirs, taken = play(env, FilledAnew(model), seed)
                anew.append(taken)
                assert torch.equal(ours.actions, theirs.actions), "a draw fell between two roundings; take another seed"
        ratio = statistics.median(other / own for own, other in zip(extended, anew, strict=True))
        print(
            f"| {num_rows} | {ours.num_tokens / num_rows:.0f} | {statistics.median(extended):.2f} "
            f"| {statistics.median(anew):.2f} | {ratio:.1f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
