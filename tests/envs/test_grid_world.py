"""Ways worked by hand, what is seen, and what is hidden."""

import pytest

from worldmtp.envs.worlds.grid_world import MOVES, GridWorld, shortest_path

MAZE = ["S#G", "..#", "#.."]  # the goal is walled in but for the north and west, which are edge and wall
DETOUR = ["S#G", ".#.", "..."]


def test_shortest_paths_by_hand():
    assert shortest_path(["SG"]) == "e"
    assert shortest_path(DETOUR) == "sseenn"
    assert shortest_path(MAZE) is None
    assert shortest_path(["G..", "..S"]) == "nww"  # of three ways of length 3, the first in the order n, e, s, w


def floyd_distance(grid):
    """Another algorithm for the same number."""
    fields = [(row, column) for row, line in enumerate(grid) for column, field in enumerate(line) if field != "#"]
    far = len(fields) + 1
    distance = {
        (a, b): 0 if a == b else 1 if abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 else far for a in fields for b in fields
    }
    for middle in fields:
        for a in fields:
            for b in fields:
                distance[a, b] = min(distance[a, b], distance[a, middle] + distance[middle, b])
    start, goal = (next(it for it in fields if grid[it[0]][it[1]] == letter) for letter in "SG")
    return distance[start, goal]


def test_the_shortest_path_earns_one_on_random_grids():
    world = GridWorld(size=4)
    for seed in range(60):
        _, info = world.reset(seed)
        way = info["shortest_path"]
        assert len(way) == floyd_distance(world.grid)
        steps = [world.step(move) for move in way]
        assert [step[1] for step in steps] == [0.0] * (len(way) - 1) + [1.0]
        assert steps[-1][:4] == ("G", 1.0, True, False)


def test_an_episode_by_hand():
    world = GridWorld(grid=DETOUR, max_turns=9)
    opening, info = world.reset(0)
    assert opening == "##.#"  # edge, wall, free, edge
    assert info["hidden"] == "S#G/.#./..."
    replies = [world.step(text) for text in ("e", "up", "s", " s", "e", "e", "n")]
    assert [step[0] for step in replies] == ["##.#", "?", ".#.#", "..##", "#.#.", ".##.", "G#.#"]
    assert not any(step[1] or step[2] or step[3] for step in replies)
    reply, reward, terminated, truncated, info = world.step("n")
    assert (reply, reward, terminated, truncated, info["is_success"]) == ("G", 6 / 8, True, False, True)


def test_the_limit_truncates_and_pays_nothing():
    world = GridWorld(grid=["S.G"], max_turns=3)
    world.reset(0)
    assert [world.step("w")[1:4] for _ in range(3)] == [(0.0, False, False)] * 2 + [(0.0, False, True)]
    world.reset(0)
    world.step("w")
    world.step("e")
    assert world.step("e")[:4] == ("G", 2 / 3, True, False)  # reached with the last turn: no truncation


def test_the_state_is_hidden():
    """One opening stands for many maps, and in one map different places look the same."""
    world, maps = GridWorld(size=4), {}
    for seed in range(300):
        opening, info = world.reset(seed)
        assert set(opening) <= set("#.G")
        assert len(opening) == len(MOVES)
        maps.setdefault(opening, set()).add(info["hidden"])
    assert max(len(hidden) for hidden in maps.values()) > 10


def test_impossible_arguments():
    with pytest.raises(ValueError, match="expected size >= 2"):
        GridWorld(size=1)
    with pytest.raises(ValueError, match="has no way from S to G"):
        GridWorld(grid=MAZE)
    for grid in (["S."], ["SG", "."], ["SGx"], "SG", ["SG", "SG"], []):
        with pytest.raises(ValueError, match="must be rows of one length"):
            GridWorld(grid=grid)


def test_grids_whose_way_is_longer_than_an_episode_are_drawn_again_or_refused():
    world = GridWorld(size=6, max_turns=4)
    assert max(len(world.reset(seed)[1]["shortest_path"]) for seed in range(100)) == 4
    with pytest.raises(ValueError, match="no way from S to G in max_turns=3 turns"):
        GridWorld(grid=["S....G"], max_turns=3)
