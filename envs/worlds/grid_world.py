"""A grid of which the player sees the next four fields only: the walls and the goal are hidden.

A turn is a letter out of n, e, s, w. The answer is the four fields around the player in that order, "#" for a wall or
the edge, "." for a free field, "G" for the goal; the player keeps the map. A move into a wall leaves one where one is,
and the answer looks as before. The move onto the goal is answered with "G" alone::

    # .#.   e EOS  #G.#   e ...          what is no move:  ?
"""

from collections import deque
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from worldmtp.envs.worlds.players import Player

MOVES = {"n": (-1, 0), "e": (0, 1), "s": (1, 0), "w": (0, -1)}
WALL, FREE, START, GOAL, MALFORMED = "#", ".", "S", "G", "?"


Place = TypeVar("Place", bound=Hashable)


def shortest_way(
    start: Place, is_goal: Callable[[Place], bool], steps: Callable[[Place], Iterable[tuple[str, Place]]]
) -> str | None:
    """Return the moves of the first shortest way to a goal, breadth first; None if there is none.

    ``steps`` gives the moves from a place and where they lead, those first that come first in ways as short.
    """
    frontier, ways = deque([start]), {start: ""}
    while frontier:
        here = frontier.popleft()
        if is_goal(here):
            return ways[here]
        for move, there in steps(here):
            if there not in ways:
                ways[there] = ways[here] + move
                frontier.append(there)
    return None


def shortest_path(grid: Sequence[str]) -> str | None:
    """The first shortest way from S to G in the order n, e, s, w, by breadth-first search; None if there is none.

    Raises:
        ValueError: if the grid has not one S and one G, rows of other lengths, or other characters than S, G, "#", ".".
    """
    check_grid(grid)
    return shortest_way(
        _find(grid, START),
        lambda place: field_at(grid, *place) == GOAL,
        lambda place: (step for step in _steps(place) if field_at(grid, *step[1]) != WALL),
    )


def check_grid(grid: Sequence[str]) -> None:
    """Raise ValueError unless the rows are a grid."""
    text = "".join(grid)
    if (
        isinstance(grid, str)
        or len({len(row) for row in grid}) != 1
        or set(text) - {WALL, FREE, START, GOAL}
        or (text.count(START), text.count(GOAL)) != (1, 1)
    ):
        raise ValueError(
            f"grid={grid!r} must be rows of one length, of '#', '.', and exactly one 'S' and one 'G', such as "
            "['S.#', '..G']."
        )


class GridWorld:
    """A random square grid, or a given one. Who reaches the goal in n turns, the shortest way being d, earns d / n.

    That is success weighted by path length (Anderson et al. 2018, "On Evaluation of Embodied Navigation Agents",
    https://arxiv.org/abs/1807.06757). The map known, the optimal return is 1; a player who must explore earns less.
    After ``max_turns`` turns the episode is truncated and has earned nothing; what is no move takes a turn as well.

    Args:
        size: rows and columns.
        wall_probability: that a field is a wall. Start and goal are uniform among the pairs of free fields, and grids
            without a way between them in ``max_turns`` turns are drawn again.
        max_turns: turns of an episode.
        grid: rows of a grid to be used in every episode instead of random ones.

    Raises:
        ValueError: if there is no grid of that kind, or no way in the grid.
    """

    def __init__(
        self,
        size: int = 4,
        wall_probability: float = 0.25,
        max_turns: int = 16,
        grid: Sequence[str] | None = None,
    ) -> None:
        if size < 2 or not 0.0 <= wall_probability <= 0.5 or max_turns < 1:
            raise ValueError(
                f"expected size >= 2, wall_probability in [0, 0.5] and max_turns >= 1, got {size}, "
                f"{wall_probability}, {max_turns}."
            )
        way = "" if grid is None else shortest_path(grid)
        if way is None or len(way) > max_turns:
            raise ValueError(f"grid={list(grid or ())} has no way from S to G in max_turns={max_turns} turns.")
        self.size, self.wall_probability, self.max_turns = size, wall_probability, max_turns
        self._given = None if grid is None else tuple(grid)
        self.grid: tuple[str, ...] = self._given or ()
        self.position = (0, 0)
        self.turn = 0
        self._shortest = 0

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        """A new grid; what the start has around it is the prompt, and the map what it hides."""
        self.grid = self._given or self._draw(np.random.default_rng(seed))
        way = shortest_path(self.grid)
        assert way is not None
        self._shortest = len(way)
        self.position, self.turn = _find(self.grid, START), 0
        return self.view(), {"hidden": "/".join(self.grid), "shortest_path": way}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """What is around the player after a move."""
        self.turn += 1
        move = text.strip()
        is_last = self.turn >= self.max_turns
        if move not in MOVES:
            return MALFORMED, 0.0, False, is_last, {"is_success": False, "reason": "malformed"}
        row, column = dict(_steps(self.position))[move]
        field = field_at(self.grid, row, column)
        if field != WALL:
            self.position = (row, column)
        if field == GOAL:
            return GOAL, self._shortest / self.turn, True, False, {"is_success": True}
        return self.view(), 0.0, False, is_last, {"is_success": False}

    def view(self) -> str:
        """The fields to the north, east, south and west; the start looks like any free field."""
        fields = [field_at(self.grid, *place) for _, place in _steps(self.position)]
        return "".join(FREE if field == START else field for field in fields)

    def moves(self) -> Sequence[str]:
        """The four letters."""
        return tuple(MOVES)

    def player(self) -> Player:
        """An explorer: on to the goal where it is in sight, else to the nearest free field that was not visited yet.

        It knows the views alone, and so walks ways that turn out to be wrong.
        """
        here, seen, visited = (0, 0), {(0, 0): FREE}, set()

        def say(view: str) -> str:
            nonlocal here
            visited.add(here)
            seen.update((place, field) for (_, place), field in zip(_steps(here), view, strict=True))
            move = _way_to_the_nearest(here, seen, visited)[0]
            here = dict(_steps(here))[move]
            return move

        return say

    def _draw(self, rng: np.random.Generator) -> tuple[str, ...]:
        while True:
            fields = np.where(rng.random((self.size, self.size)) < self.wall_probability, WALL, FREE)
            free = np.flatnonzero(fields.ravel() == FREE)
            if len(free) < 2:
                continue
            start, goal = rng.choice(free, size=2, replace=False)
            fields.flat[start], fields.flat[goal] = START, GOAL
            grid = tuple("".join(row) for row in fields.tolist())
            way = shortest_path(grid)
            if way is not None and len(way) <= self.max_turns:
                return grid


def _steps(place: tuple[int, int]) -> list[tuple[str, tuple[int, int]]]:
    return [(move, (place[0] + down, place[1] + right)) for move, (down, right) in MOVES.items()]


def _way_to_the_nearest(
    here: tuple[int, int], seen: Mapping[tuple[int, int], str], visited: Container[tuple[int, int]]
) -> str:
    """Return the shortest known way to the goal if it was seen, else to a free field that was not visited.

    Raises:
        ValueError: if all that can be reached was visited, and no goal is there.
    """
    wanted = [place for place, field in seen.items() if field == GOAL]
    way = shortest_way(
        here,
        lambda place: place in wanted or (not wanted and place not in visited),
        lambda place: (step for step in _steps(place) if seen.get(step[1], WALL) != WALL),
    )
    if way is None:
        raise ValueError("no field is left to visit, and the goal was not found.")
    return way


def field_at(grid: Sequence[str], row: int, column: int) -> str:
    """Return the character of a field; beyond the edge are walls."""
    is_inside = 0 <= row < len(grid) and 0 <= column < len(grid[0])
    return grid[row][column] if is_inside else WALL


def _find(grid: Sequence[str], field: str) -> tuple[int, int]:
    return next((row, fields.index(field)) for row, fields in enumerate(grid) if field in fields)
