"""A grid with a door: fetch the key, pass the door, reach the goal. Rewarded at the end only, and for being quick.

A turn is a letter out of n, e, s, w. The reply is row, column, and what is held: "." nothing, "k" the key; the last one
ends with "G"::

    40.   n EOS  30.   n EOS  20. ...  00k ...  22k ...  44G          what is no move:  ?

A move into a wall, over the edge, or into the door without the key leaves one where one is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmtp.envs.worlds.grid_world import FREE, GOAL, MALFORMED, MOVES, WALL, field_at, shortest_way
from worldmtp.envs.worlds.players import Player

KEY, DOOR, HELD, EMPTY = "K", "D", "k", "."
GRID = ("K.#..", "..#..", "..D..", "..#..", "..#.G")
"""A wall with a door between the key and the goal."""

State = tuple[int, int, bool]
"""Row, column, and whether the key is held."""


class KeyDoor:
    """Who reaches the goal in turn n of ``max_turns`` earns 1 - n / (2 max_turns), and who does not earns nothing.

    After ``max_turns`` turns the episode is truncated; what is no move takes a turn as well. The grid is always the
    same and never shown, so that an episode is its start: uniform among the free fields that can be reached from the
    key without the door. Seeds tell episodes apart.

    Args:
        grid: rows of "#", ".", and one "K", "D" and "G" each.
        max_turns: turns of an episode.

    Raises:
        ValueError: if the grid is none, has no start, or the goal cannot be reached from each of them in time.
    """

    def __init__(self, grid: Sequence[str] = GRID, max_turns: int = 30) -> None:
        text = "".join(grid)
        if (
            isinstance(grid, str)
            or len({len(row) for row in grid}) != 1
            or set(text) - {WALL, FREE, KEY, DOOR, GOAL}
            or [text.count(one) for one in (KEY, DOOR, GOAL)] != [1, 1, 1]
            or max(len(grid), len(grid[0])) > 10
        ):
            raise ValueError(
                f"grid={grid!r} must be at most 10 rows of one length of at most 10, of '#', '.', and exactly one 'K', "
                "'D' and 'G', such as ['K.#..', '..D.G']."
            )
        self.grid, self.max_turns = tuple(grid), max_turns
        self.starts = self._starts()
        ways = [self.shortest_path((row, column, False)) for row, column in self.starts]
        if not ways or any(way is None or len(way) > max_turns for way in ways):
            raise ValueError(
                f"grid={list(grid)} must have starts beside the key and a way to the goal in {max_turns=}."
            )
        self.state: State = (*self.starts[0], False)
        self.turn = 0

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        """A new start, which is the prompt."""
        row, column = self.starts[int(np.random.default_rng(seed).integers(len(self.starts)))]
        self.state, self.turn = (row, column, False), 0
        way = self.shortest_path(self.state)
        assert way is not None
        return self.view(), {"shortest_path": way, "optimal_value": self.worth(len(way))}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Where a move has led, and what is held."""
        self.turn += 1
        is_last = self.turn >= self.max_turns
        move = text.strip()
        if move not in MOVES:
            return MALFORMED, 0.0, False, is_last, {"is_success": False, "reason": "malformed"}
        self.state = self.after(self.state, move)
        if field_at(self.grid, *self.state[:2]) == GOAL:
            return self.view()[:2] + GOAL, self.worth(self.turn), True, False, {"is_success": True}
        return self.view(), 0.0, False, is_last, {"is_success": False}

    def moves(self) -> Sequence[str]:
        """The four letters."""
        return tuple(MOVES)

    def player(self) -> Player:
        """A shortest way from where the last reply says one is."""

        def say(reply: str) -> str:
            way = self.shortest_path((int(reply[0]), int(reply[1]), reply[2] == HELD))
            assert way  # from every state that a start leads to
            return way[0]

        return say

    def worth(self, turn: int) -> float:
        """What the goal in this turn earns."""
        return 1.0 - 0.5 * turn / self.max_turns

    def view(self) -> str:
        """Row, column and what is held."""
        row, column, has_key = self.state
        return f"{row}{column}{HELD if has_key else EMPTY}"

    def after(self, state: State, move: str) -> State:
        """The state that a move leads to."""
        row, column, has_key = state
        to = row + MOVES[move][0], column + MOVES[move][1]
        field = field_at(self.grid, *to)
        if field == WALL or (field == DOOR and not has_key):
            return state
        return (*to, has_key or field == KEY)

    def shortest_path(self, state: State) -> str | None:
        """The first shortest way to the goal in the order n, e, s, w, breadth first; None if there is none."""
        return shortest_way(
            state,
            lambda here: field_at(self.grid, *here[:2]) == GOAL,
            lambda here: ((move, self.after(here, move)) for move in MOVES),
        )

    def _starts(self) -> list[tuple[int, int]]:
        """Return the free fields that can be reached from the key while the door is shut, in reading order."""
        key = next((row, fields.index(KEY)) for row, fields in enumerate(self.grid) if KEY in fields)
        frontier, seen = [key], {key}
        while frontier:
            row, column = frontier.pop()
            for down, right in MOVES.values():
                to = row + down, column + right
                if to not in seen and field_at(self.grid, *to) in (FREE, GOAL):
                    seen.add(to)
                    frontier.append(to)
        return sorted(place for place in seen if field_at(self.grid, *place) == FREE)
