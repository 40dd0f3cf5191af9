"""Who plays worlds well, and who plays them by chance: the ends between which a policy is measured.

A world may say what can be said and how it is played well, by two methods that nothing else needs:

    def moves(self) -> Sequence[str]: ...     # what may be said now and is not malformed
    def player(self) -> Player: ...           # a good player of the next episode

A player is a function from what the world said last, its opening first, to what is said next. It is no list of moves:
where dice decide, nobody can write down beforehand what will be right. It is told what a policy is told and nothing
else, so what it earns is a ceiling that a policy can reach; ``demonstrate`` makes the list of an episode by playing it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.random import Generator

from worldmtp.envs.scoring import checked_reply
from worldmtp.envs.task import TextWorld, opening_of

Player = Callable[[str], str]
"""From what the world said last to what is said next; made anew for every episode, since it may remember."""

_MAX_TURNS = 10_000


@runtime_checkable
class WorldWithMoves(TextWorld, Protocol):
    """A world that says what may be said."""

    def moves(self) -> Sequence[str]:
        """What may be said next and is not malformed."""
        ...


@runtime_checkable
class PlayedWorld(TextWorld, Protocol):
    """A world that shows how it is played."""

    def player(self) -> Player:
        """A good player of one episode, told no more than a policy is."""
        ...


@dataclass(frozen=True)
class PlayedEpisode:
    """What was said, what it earned in all, and what the world told at its start."""

    said: tuple[str, ...]
    total: float
    info: dict[str, Any]


def play(world: TextWorld, seed: int, player: Player) -> PlayedEpisode:
    """Return the episode of a world, of its own seed's dice, that a player plays.

    Raises:
        RuntimeError: if it does not end.
    """
    reply, told = opening_of(world, seed)
    said: list[str] = []
    total = 0.0
    for _ in range(_MAX_TURNS):
        said.append(player(reply))
        answered = checked_reply(world.step(said[-1]), world)
        reply, total = answered.text, total + answered.reward
        if answered.terminated or answered.truncated:
            return PlayedEpisode(tuple(said), total, told)
    raise RuntimeError(f"{type(world).__name__} of seed {seed} did not end in {_MAX_TURNS} turns.")


def own_player(world: PlayedWorld) -> Player:
    """Return who plays as the world's own player does.

    Raises:
        TypeError: it is no function.
    """
    player = world.player()
    if not callable(player):
        raise TypeError(
            f"player() of {type(world).__name__} returned {player!r}; expected a function from what the world said "
            "last to what is said next, such as lambda reply: 'r'."
        )
    return player


def demonstrate(world: PlayedWorld, seed: int) -> list[str]:
    """Return what the world's own player says in the episode of a seed."""
    return list(play(world, seed, own_player(world)).said)


def random_player(world: WorldWithMoves, rng: Generator) -> Player:
    """Return who says any of the moves, all with the same probability."""

    def say(reply: str) -> str:
        moves = world.moves()
        return moves[int(rng.integers(len(moves)))]

    return say
