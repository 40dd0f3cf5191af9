"""A world turn by turn, text in and text out: for agents that speak in strings and read no tokens.

Registered as ``worldmtp_turns/World-v0``, in a namespace of its own: what begins with ``worldmtp/`` takes tokens.

    gymnasium.make("worldmtp_turns/World-v0", world="GuessNumber")

gymnasium's ``Text`` spaces hold printable ASCII and the newline here, and the empty text. A character outside is an
error that names it, or is replaced; ``Text`` itself would only fail later, in a worker or a wrapper. Vectorise with
``vectorization_mode="sync"``, or "async" with ``shared_memory=False``: gymnasium 1.4 returns other texts than it was
given through shared memory.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from worldmtp.envs.options import refusal_changes_nothing
from worldmtp.envs.registry import env_id, make_task
from worldmtp.envs.task import TextWorld, TurnTask
from worldmtp.envs.tokenizer import DEFAULT_ALPHABET
from worldmtp.envs.worlds.task import WorldTask

CHARSET = DEFAULT_ALPHABET + "\n"
_SEED_RANGE = 2**31
_OPTIONS = ("world_seed",)


class TextTurnEnv(gymnasium.Env[str, str]):
    """One world. The observation is what was said last, and only that: who wants the history keeps it.

    Args:
        world: a world, the name of a registered task with worlds, or "<module>:<class>".
        world_kwargs: what a named world is made with; those of the registration are the default.
        max_text: characters of the longest text, said or heard.
        max_turns: turns after which an episode is truncated; None leaves it to the world.
        foreign_characters: "error" or "replace", which puts "?" for a character the space does not have.
        render_mode: "ansi", the conversation so far, or None.

    Raises:
        ValueError: if the world is unknown, or a choice or a limit is impossible.
        TypeError: if what a name stands for has no worlds.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - as gymnasium declares it

    def __init__(
        self,
        world: str | TextWorld,
        world_kwargs: Mapping[str, Any] | None = None,
        *,
        max_text: int = 4096,
        max_turns: int | None = None,
        foreign_characters: str = "error",
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode={render_mode!r} is unknown; expected 'ansi' or None.")
        if foreign_characters not in ("error", "replace"):
            raise ValueError(f"foreign_characters={foreign_characters!r} is unknown; expected 'error' or 'replace'.")
        if max_text < 1 or (max_turns is not None and max_turns < 1):
            raise ValueError(f"max_text={max_text} and max_turns={max_turns} must be at least 1.")
        self.metadata = {**type(self).metadata}  # what is written into an instance's does not reach the class
        self.world = make_world(world, world_kwargs)
        self.observation_space = spaces.Text(max_text, min_length=0, charset=CHARSET)
        self.action_space = spaces.Text(max_text, min_length=0, charset=CHARSET)
        self.max_text, self.max_turns = max_text, max_turns
        self.foreign_characters, self.render_mode = foreign_characters, render_mode
        self._lines: list[str] = []
        self._turn = 0
        self._is_over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The opening text. The world's seed is drawn, or given as the option ``world_seed``; the info has it.

        Raises:
            ValueError: if an option is unknown, or the opening leaves the space.
        """
        with refusal_changes_nothing(self):
            super().reset(seed=seed)
            options = options or {}
            unknown = sorted(set(options) - set(_OPTIONS))
            if unknown:
                raise ValueError(f"reset option {unknown[0]!r} is unknown; expected one of {_OPTIONS}.")
            drawn = int(self.np_random.integers(_SEED_RANGE))
            world_seed = int(options.get("world_seed", drawn))
            opening, info = self.world.reset(world_seed)
            opening = self._admit(opening, "the world opened with")
        self._lines, self._turn, self._is_over = [opening], 0, False
        return opening, {**info, "world_seed": world_seed}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """The reply.

        Raises:
            ValueError: if the text said or heard leaves the space.
            ResetNeeded: if there is no episode, or it is over.
        """
        if self._is_over:
            raise ResetNeeded("the episode is over, or has not begun; call reset first.")
        said = self._admit(action, "the action is")
        reply, reward, terminated, truncated, info = self.world.step(said)
        self._turn += 1
        truncated = not terminated and (truncated or self._turn == self.max_turns)
        reply = self._admit(reply, "the world replied")
        self._lines += [f"> {said}", reply]
        self._is_over = terminated or truncated
        return reply, float(reward), bool(terminated), bool(truncated), dict(info)

    def render(self) -> str | None:
        """The conversation, the player's turns behind ">", in "ansi" mode."""
        return None if self.render_mode is None else "\n".join(self._lines)

    def _admit(self, text: Any, what: str) -> str:
        if not isinstance(text, str) or len(text) > self.max_text:
            raise ValueError(f"{what} {text!r}; expected a str of at most {self.max_text} characters (max_text).")
        foreign = sorted(set(text) - set(CHARSET))
        if foreign and self.foreign_characters == "error":
            raise ValueError(
                f"{what} {text!r}, with {foreign} outside printable ASCII and newline; clean the text, or set "
                "foreign_characters='replace'."
            )
        return "".join("?" if character in foreign else character for character in text) if foreign else text


def make_world(world: str | TextWorld, world_kwargs: Mapping[str, Any] | None = None) -> TextWorld:
    """Return the world a name stands for; a world is its own.

    Raises:
        ValueError: if there is no such name, or a world that is already made is given kwargs.
        TypeError: if what the name stands for has no worlds.
    """
    if not isinstance(world, str):
        if world_kwargs:
            raise ValueError(f"world_kwargs={dict(world_kwargs)} have no effect on {type(world).__name__}.")
        if isinstance(world, type) or not isinstance(world, TextWorld):
            raise TypeError(f"world={world!r} must be a name or an object with reset(seed) and step(text).")
        return world
    if ":" in world:
        return WorldTask(world, world_kwargs).make_world()
    spec = gymnasium.registry.get(env_id(world))
    task_kwargs = {} if spec is None else dict(spec.kwargs.get("task_kwargs", {}))
    task = make_task(world, task_kwargs)
    if not isinstance(task, TurnTask):
        raise TypeError(f"task {world!r} is a {type(task).__name__} without worlds; nobody answers there.")
    if world_kwargs is None:
        return task.make_world()
    if not isinstance(task, WorldTask):
        raise ValueError(
            f"world_kwargs={dict(world_kwargs)} fit no {type(task).__name__}; register the task with them."
        )
    return WorldTask(task.factory, {**task.world_kwargs, **world_kwargs}).make_world()
