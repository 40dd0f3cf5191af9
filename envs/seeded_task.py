"""The task of an environment that knows none: a seed is a question, and a text is worth what the environment pays."""

from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Int64

from worldmtp.envs.task import Example, Score, is_full_return
from worldmtp.envs.token_contract import attribute
from worldmtp.envs.tokenizer import Tokenizer

_SEED_RANGE = 2**31


class SeededTask:
    """Questions of an environment that the seed of its reset decides; scores are what it pays.

    Args:
        env: an environment for this task alone, since asking and scoring reset it.
        tokenizer: of its tokens.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], tokenizer: Tokenizer) -> None:
        self.env = env
        self._tokenizer = tokenizer
        self._is_closed = False
        self.probe_bound = float(attribute(env, "probe_bound", 0.0))
        self.universe_size: int | None = attribute(env, "universe_size", None)

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """The prompt that a random seed gives."""
        seed = int(rng.integers(_SEED_RANGE))
        obs, info = self.env.reset(seed=seed)
        prompt = obs["tokens"][: int(obs["prompt_length"][0])]
        return Example(self._tokenizer.decode(prompt.tolist()), info.get("answer"), {"seed": seed})

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """What the environment pays in all for ``ids``; for ``text`` and EOS where there are none.

        A text with a character that has no token can be written by nobody and is worth 0.
        """
        tokens = ids.tolist()
        if not tokens:
            try:
                tokens = [*self._tokenizer.encode(text), self._tokenizer.eos_id]
            except ValueError:
                return Score(0.0, reason="unwritable")
        self.env.reset(seed=example.meta["seed"])
        total, info = 0.0, dict[str, Any]()
        for token in tokens:
            _, reward, terminated, truncated, info = self.env.step(token)
            total += float(reward)
            if terminated or truncated:
                break
        return Score(
            total,
            info.get("components", {}),
            str(info.get("reason", "ok")),
            bool(info.get("exact", is_full_return(total))),
        )

    def close(self) -> None:
        """Close the environment, once."""
        if not self._is_closed:
            self._is_closed = True
            self.env.close()
