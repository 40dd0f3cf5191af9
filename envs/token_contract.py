"""The token contract of a single environment: what a class that shares nothing with this package must have.

See ``own.py`` for what comes of it; ``check_text_env`` checks what it does, this only what it says of itself.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from worldmtp.envs.tokenizer import Tokenizer

_TOKENIZER_NAMES = ("vocab_size", "pad_id", "eos_id", "encode", "decode", "spec")
OBSERVATION_KEYS = ("tokens", "length", "prompt_length")


def check_contract(env: gymnasium.Env[Any, Any]) -> None:
    """See that an environment has the spaces of a text, and a tokenizer to read them by.

    Raises:
        ValueError: what is wrong, and what is expected.
    """
    name = type(env.unwrapped).__name__
    remedy = "docs/environments.md has the token contract; worldmtp.register_task makes an environment of any task."
    tokenizer = attribute(env, "tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        missing = [one for one in _TOKENIZER_NAMES if not hasattr(tokenizer, one)]
        raise ValueError(
            f"{name}.tokenizer is {tokenizer!r}, which lacks {', '.join(missing)}; expected a worldmtp.envs.Tokenizer, "
            f"as make_tokenizer gives, or any object with {', '.join(_TOKENIZER_NAMES)}. {remedy}"
        )
    space = env.observation_space
    boxes = space.spaces if isinstance(space, spaces.Dict) else {}
    shapes = [box.shape for key in OBSERVATION_KEYS if (box := boxes.get(key)) is not None and box.dtype == np.int64]
    if set(boxes) != set(OBSERVATION_KEYS) or len(shapes) != 3 or len(shapes[0] or ()) != 1 or shapes[1:] != [(1,)] * 2:
        raise ValueError(
            f"{name}.observation_space is {space}; expected a Dict of int64 Boxes, tokens of shape (L,) and length and "
            f"prompt_length of shape (1,). {remedy}"
        )
    expected = spaces.Discrete(tokenizer.vocab_size)
    if env.action_space != expected:
        raise ValueError(
            f"{name}.action_space is {env.action_space}; expected {expected}, the tokenizer's vocabulary. {remedy}"
        )
    length, max_new = shapes[0][0], longest_episode(env)  # type: ignore[index]
    if max_new is None or not 2 <= max_new < length:
        raise ValueError(
            f"{name}.max_new is {max_new} with {length} tokens a row; expected the most steps of an episode, at least "
            f"2 and less than the row, which holds a prompt too. {remedy}"
        )


def longest_episode(env: gymnasium.Env[Any, Any]) -> int | None:
    """The most steps of an episode: ``max_new``, else ``max_episode_steps`` of the registration; None if unsaid."""
    limit = None if env.spec is None else env.spec.max_episode_steps
    told: int | None = attribute(env, "max_new", limit)
    return told


def attribute(env: gymnasium.Env[Any, Any], name: str, default: Any) -> Any:
    """What the environment, or a wrapper of it, has under that name."""
    return env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else default
