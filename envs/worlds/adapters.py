"""Environments of other libraries as worlds: GEM, TextArena, and any object with ``reset(seed)`` and ``step(text)``.

Neither library is a dependency. Each function takes an id, by which every call makes a game of its own, as the rows of
a vector environment need, or a game already made. As JSON, for an EnvSpec or the command line::

    {"world": "worldmtp.envs.worlds.adapters:from_gem", "world_kwargs": {"env": "game:GuessTheNumber-v0-easy"}}
"""

import importlib
from collections.abc import Mapping
from typing import Any

from worldmtp.choices import did_you_mean
from worldmtp.envs.worlds.foreign import ForeignWorld
from worldmtp.envs.worlds.settlement import Returns
from worldmtp.envs.worlds.text_arena import TextArenaGame
from worldmtp.lazy import import_name


def from_gem(env: str | Any, returns: Returns | None = None, **kwargs: Any) -> ForeignWorld:
    """A world of GEM (https://github.com/axon-rl/gem), read in gem-llm 0.1.0.

    Args:
        env: an id of ``gem.make``, or an environment.
        returns: the returns that are worth 0 and 1; GEM pays -0.1 for a malformed answer in many games.
        **kwargs: of ``gem.make``.

    Raises:
        ImportError: if an id is given and GEM is not installed.
        ValueError: if there is no such id, or kwargs are given with an environment.
    """
    if not isinstance(env, str):
        return _made(env, kwargs, returns)

    def make() -> Any:
        _import("gem.envs", "gem-llm")  # registers its ids
        library = _import("gem", "gem-llm")
        _check_id(env, _import("gem.envs.registration", "gem-llm").ENV_REGISTRY, "GEM")
        return library.make(env, **kwargs)

    return ForeignWorld(make, returns)


def from_textarena(env: str | Any, returns: Returns | None = None, **kwargs: Any) -> ForeignWorld:
    """A world of TextArena, see ``TextArenaGame``.

    Args:
        env: an id of ``textarena.make`` whose game one player plays, or an environment.
        returns: the returns that are worth 0 and 1.
        **kwargs: of ``textarena.make``.

    Raises:
        ImportError: if an id is given and TextArena is not installed.
        ValueError: if there is no such id, or kwargs are given with an environment. A game for more than one player is
            refused when it is reset.
    """
    if not isinstance(env, str):
        return _made(TextArenaGame(env), kwargs, returns)

    def make() -> Any:
        library = _import("textarena", "textarena")
        _check_id(env, _import("textarena.envs.registration", "textarena").ENV_REGISTRY, "TextArena")
        return TextArenaGame(library.make(env, **kwargs))

    return ForeignWorld(make, returns)


def from_text_object(game: str | Any, returns: Returns | None = None, **kwargs: Any) -> ForeignWorld:
    """A world of any object with ``reset(seed)`` and ``step(text)``, see ``ForeignWorld`` for what they may return.

    Args:
        game: the object, or "<module>:<class>" of one.
        returns: the returns that are worth 0 and 1.
        **kwargs: what the class is constructed with.

    Raises:
        ValueError: if the class cannot be imported, or kwargs are given with an object.
        TypeError: if the object has not these methods.
    """
    if not isinstance(game, str):
        return _made(game, kwargs, returns)
    made = import_name(game, f"game {game!r}")
    return ForeignWorld(lambda: made(**kwargs), returns)


def _made(game: Any, kwargs: Mapping[str, Any], returns: Returns | None) -> ForeignWorld:
    if kwargs:
        raise ValueError(f"{dict(kwargs)} have no effect on {type(game).__name__}, which is already made.")
    if isinstance(game, type):
        raise TypeError(f"{game.__name__} is a class; give an object of it, or its name as '<module>:<class>'.")
    return ForeignWorld(lambda: game, returns)


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} cannot be imported: {error}. Install it with: pip install {package}") from error


def _check_id(name: str, registry: Mapping[str, Any], library: str) -> None:
    if name not in registry:
        raise ValueError(f"{library} has no id {name!r}{did_you_mean(name, registry)}")
