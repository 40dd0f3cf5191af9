"""A vector environment of any id that can be trained on: ours, or rows of a user's own."""

import importlib
import inspect
import re
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator, parse_env_id
from gymnasium.vector import AutoresetMode

from worldmtp.choices import nearest
from worldmtp.envs.problem import TextProblem
from worldmtp.envs.stacked import StackedVectorEnv
from worldmtp.envs.trainable import TextVectorEnv
from worldmtp.envs.wrappers.text_wrapper import TextVectorWrapper, UnsavedVectorWrapper, unsaved_wrappers

_OWN_ARGUMENTS = ("pool_size", "heldout_fraction")
_REMEDY = (
    "Training needs a TextGenVectorEnv, which worldmtp.register_task makes of any task, or an environment of one text "
    "that follows the token contract of docs/environments.md."
)


class MakingError(ValueError):
    """There is no such environment, or it is none of text; the message begins with its id."""


def find_spec(env_id: str) -> EnvSpec:
    """The registered EnvSpec of an id; the module before a colon is imported first.

    Raises:
        MakingError: if the module cannot be imported, or there is no such id; the nearest is suggested.
    """
    module_name, _, name = env_id.rpartition(":")
    if module_name:
        try:
            importlib.import_module(module_name)
        except ImportError as error:
            raise MakingError(f"{env_id!r} cannot be made: {error}. Expected '<module>:<id>'.") from error
    if name in gymnasium.registry:
        return gymnasium.registry[name]
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:  # it looks for the nearest within the namespace that was given, or in none
        told = str(error) if "/" in name else f"there is no environment {name!r}."
        hint = "" if "Did you mean" in told else _nearest(name)
        raise MakingError(f"{env_id!r} cannot be made: {told}{hint}") from error


def make_text_vec(
    env_id: str, num_envs: int, autoreset_mode: str | AutoresetMode = AutoresetMode.DISABLED, **kwargs: Any
) -> TextVectorEnv:
    """Rows of an environment, by its vector entry point or, where it has none, side by side.

    Wrappers that the entry point puts around the rows are kept and in force. One of gymnasium's own may be among them;
    a warning says that such a run cannot be resumed, since it keeps no snapshots.

    Args:
        env_id: a gymnasium id, or ``<module>:<id>``.
        num_envs: rows.
        autoreset_mode: as of ``TextGenVectorEnv``.
        **kwargs: what the environment is made with. Where a user's own does not take ``pool_size`` or
            ``heldout_fraction``, they are those of ``StackedVectorEnv``.

    Raises:
        MakingError: if there is no such id, what it makes is no environment of text, or a wrapper changes the actions
            or takes the observations apart.
    """
    spec = find_spec(env_id)
    try:
        if spec.vector_entry_point is None:
            return _stacked(spec, num_envs, autoreset_mode, kwargs)
        made = gymnasium.make_vec(spec.id, num_envs=num_envs, autoreset_mode=autoreset_mode, **kwargs)
    except (gymnasium.error.Error, ImportError) as error:
        raise MakingError(f"{env_id!r} cannot be made: {error}") from error
    except TypeError as error:
        raise MakingError(f"{env_id!r} cannot be made with {kwargs}: {error}.{_cure(error, kwargs)}") from error
    return _trainable(env_id, made)


def _trainable(env_id: str, made: Any) -> TextVectorEnv:
    """What was made, with a view on it where a wrapper of gymnasium's hides what training asks."""
    base: Any = made.unwrapped
    if not isinstance(made.unwrapped, TextVectorEnv):
        raise MakingError(f"{env_id!r} makes a {type(base).__name__}. {_REMEDY}")
    if made.single_action_space != base.single_action_space:
        raise MakingError(
            f"{env_id!r} makes {made}, whose actions are {made.single_action_space} where those of the text env are "
            f"{base.single_action_space}; training acts with token ids, so leave out the wrapper that changes them."
        )
    unsaved = unsaved_wrappers(made)
    if not unsaved and isinstance(made, TextVectorEnv):
        return made
    try:
        view: Any = UnsavedVectorWrapper(made) if unsaved else TextVectorWrapper(made)
    except TypeError as error:
        raise MakingError(f"{env_id!r} makes {made}: {error}") from error
    if unsaved:
        warnings.warn(
            f"{env_id!r} has wrappers without snapshots, {unsaved}: a run in it cannot be resumed. Give them state() "
            "and load_state(state), or use those of worldmtp.envs.",
            UserWarning,
            stacklevel=3,
        )
    return view


def _stacked(
    spec: EnvSpec, num_envs: int, autoreset_mode: str | AutoresetMode, kwargs: dict[str, Any]
) -> StackedVectorEnv:
    assert spec.entry_point is not None  # gymnasium registers none without an entry point
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    parameters = inspect.signature(creator).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    kept = {name: kwargs[name] for name in _OWN_ARGUMENTS if name in kwargs and not takes_any | (name in parameters)}
    passed = {name: value for name, value in kwargs.items() if name not in kept}
    make = partial(gymnasium.make, spec.id, disable_env_checker=True, **passed)
    return StackedVectorEnv(make, num_envs, autoreset_mode=autoreset_mode, **kept)


def _cure(error: TypeError, kwargs: Mapping[str, Any]) -> str:
    """What to do: a keyword that was given and is not taken is a typo; else the environment is not one of text."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    task_kwargs = kwargs.get("task_kwargs")
    if unknown is None or unknown[1] not in {*kwargs, *(task_kwargs if isinstance(task_kwargs, Mapping) else ())}:
        return f" {_REMEDY}"
    known = [name for name in inspect.signature(TextProblem).parameters if unknown[1] in kwargs]
    found = nearest(unknown[1], known)
    return f" Did you mean {found!r}?" if found else ""


def _nearest(name: str) -> str:
    """The nearest id of any namespace, as a question: who leaves out the namespace means an id of one."""
    ids = {parse_env_id(env_id)[1]: env_id for env_id in gymnasium.registry if "/" in env_id}
    found = nearest(re.sub(r"-v\d+$", "", name.rpartition("/")[2]), ids)
    return f" Did you mean: `{ids[found]}`?" if found else ""
