"""What ``reset(options=...)`` may ask of a text environment, checked at the border."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv
from jaxtyping import Bool, Int64

from worldmtp.choices import check_choice
from worldmtp.envs.splits import check_split
from worldmtp.envs.task import Example

OPTION_NAMES = ("split", "group_size", "indices", "prompts", "reset_mask", "ends_others")


@dataclass(frozen=True)
class ResetOptions:
    """``split`` and ``group_size`` are None where they stay as they were."""

    split: str | None
    group_size: int | None
    indices: Int64[np.ndarray, " group"] | None
    prompts: Sequence[str | Example] | None
    reset_mask: Bool[np.ndarray, " row"] | None
    ends_others: bool
    """Whether rows outside of the mask stand still from now on, as if they had ended."""


def parse_options(options: Mapping[str, Any] | None, num_envs: int) -> ResetOptions:
    """Return the options, checked; gymnasium's rules hold for ``reset_mask``.

    Raises:
        ValueError: if an option is unknown, or its value is impossible.
    """
    given = dict(options or {})
    for name in given:
        check_choice("reset option", str(name), OPTION_NAMES)
    split, group_size = given.get("split"), given.get("group_size")
    if split is not None:
        check_split(split)
    if group_size is not None and (group_size < 1 or num_envs % group_size):
        raise ValueError(f"group_size={group_size} does not divide num_envs={num_envs} into whole groups.")
    indices, prompts, mask = given.get("indices"), given.get("prompts"), given.get("reset_mask")
    if indices is not None and prompts is not None:
        raise ValueError("reset options 'indices' and 'prompts' both name the prompts; give one of them.")
    if indices is not None:
        indices = np.asarray(indices)
        if not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(f"indices must be integers, got {indices}.")
        indices = indices.astype(np.int64)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != (num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(
                f"reset_mask must be {num_envs} booleans, at least one true, got {mask.dtype} of shape {mask.shape}."
            )
    ends_others = given.get("ends_others", False)
    if not isinstance(ends_others, bool):
        raise ValueError(f"ends_others={ends_others!r} must be a boolean: whether rows outside reset_mask stand still.")
    return ResetOptions(split, group_size, indices, prompts, mask, ends_others)


@contextmanager
def refusal_changes_nothing(env: gymnasium.Env[Any, Any] | VectorEnv, *names: str) -> Iterator[None]:
    """Put the environment's generator and the attributes named back if the block raises.

    A reset seeds, parses, draws and then refuses, in this order: prompts are drawn by the new seed. What was refused
    must not decide a later reset.
    """
    kept = {name: getattr(env, name) for name in ("_np_random", "_np_random_seed", *names)}
    drawn: Any = None if env._np_random is None else env._np_random.bit_generator.state
    try:
        yield
    except BaseException:
        for name, value in kept.items():
            setattr(env, name, value)
        if env._np_random is not None:
            env._np_random.bit_generator.state = drawn
        raise


def token_id(action: Any, vocab_size: int) -> int:
    """Return the token that an action of a single environment names.

    It is an integer of Python or numpy, or an integer tensor without axes, as rows of a vector environment are of one
    axis. Booleans are no token ids there either.

    Raises:
        ValueError: if it is something else, or outside the vocabulary.
    """
    if isinstance(action, int) and not isinstance(action, bool):  # numpy would lose those beyond 64 bits
        token = action
    else:
        array = np.asarray(action)
        if array.shape != () or array.dtype.kind not in "iu":
            raise ValueError(
                f"action {action!r} is a {type(action).__name__} ({array.dtype}, shape {array.shape}); expected one "
                "integer, the id of a token."
            )
        token = int(array)
    if not 0 <= token < vocab_size:
        raise ValueError(f"action {token} is outside the vocabulary 0..{vocab_size - 1}.")
    return token


def count_groups(rows: Int64[np.ndarray, " row"], group_size: int) -> int:
    """Return how many groups these rows are.

    Raises:
        ValueError: if a group is not whole.
    """
    if group_size == 1:
        return len(rows)
    num_groups, rest = divmod(len(rows), group_size)
    if rest or (rows.reshape(-1, group_size) // group_size != rows.reshape(-1, group_size)[:, :1] // group_size).any():
        raise ValueError(f"reset_mask must cover whole groups of {group_size} rows, got rows {rows.tolist()}.")
    return num_groups
