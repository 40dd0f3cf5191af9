"""Key, door and goal by hand, and shortest ways against a search that is written another way."""

import itertools

import pytest

from worldmtp.envs.worlds.key_door import GRID, KeyDoor


def test_an_episode_by_hand():
    world = KeyDoor()
    seed = next(seed for seed in range(100) if world.reset(seed)[0] == "11.")
    opening, info = world.reset(seed)
    # Two moves to the key in the corner; four to the door at (2, 2), two beyond, two down to the last row.
    assert (opening, len(info["shortest_path"])) == ("11.", 10)
    assert info["optimal_value"] == pytest.approx(1 - 0.5 * 10 / 30)
    assert "hidden" not in info
    told = [world.step(move)[0] for move in ("s", "e", "E", "n", "n", "w", "w", "n", "s", "s", "e", " e ", "e", "e")]
    #  The door is shut; "E" is no move; from the key there is no way west or north.
    assert told == [
        "21.", "21.", "?", "11.", "01.", "00k", "00k", "00k", "10k", "20k", "21k", "22k", "23k", "24k",
    ]  # fmt: skip
    assert world.step("s")[:4] == ("34k", 0.0, False, False)
    reply, reward, terminated, truncated, info = world.step("s")
    assert (reply, terminated, truncated, info["is_success"]) == ("44G", True, False, True)
    assert reward == pytest.approx(1 - 0.5 * 16 / 30)


def test_the_last_turn_truncates_unless_it_reaches_the_goal():
    world = KeyDoor(["K.D.G"], max_turns=6)
    assert world.reset(0)[0] == "01."
    assert [world.step(move)[2:4] for move in "neeeee"][-1] == (False, True)
    world.reset(0)
    assert [world.step(move) for move in "weeee"][-1][:3] == ("04G", pytest.approx(1 - 0.5 * 5 / 6), True)
    world.reset(0)
    assert [world.step(move) for move in "nweeee"][-1][:4] == ("04G", 0.5, True, False)


def test_starts_are_the_free_fields_beside_the_key():
    world = KeyDoor()
    starts = {world.reset(seed)[0] for seed in range(300)}
    assert starts == {f"{row}{column}." for row, column in itertools.product(range(5), range(2))} - {"00."}
    assert world.reset(7)[0] == KeyDoor().reset(7)[0]


def by_trying_every_story(world, start, longest):
    """The fewest moves to the goal from a start: all states of each number of moves, in sets."""
    states = {(*start, False)}
    for turn in range(1, longest + 1):
        states = {world.after(state, move) for state in states for move in "nesw"}
        if any(GRID[row][column] == "G" for row, column, _ in states):
            return turn
    raise AssertionError("the goal is out of reach")


def test_the_shortest_path_is_none_longer():
    world = KeyDoor()
    for start in world.starts:
        way = world.shortest_path((*start, False))
        assert len(way) == by_trying_every_story(world, start, 20)
        world.state, world.turn = (*start, False), 0
        assert [world.step(move)[2] for move in way] == [False] * (len(way) - 1) + [True]


@pytest.mark.parametrize(
    "grid", ["K.D.G", ["K.D.G", "..#."], ["K.D.G", "K...."], ["KxD.G"], ["K.D.."], ["K.D.G" + "." * 6]]
)
def test_grids_that_are_none(grid):
    with pytest.raises(ValueError, match="must be at most 10 rows"):
        KeyDoor(grid)


@pytest.mark.parametrize(("grid", "max_turns"), [(["KD.G"], 30), (["K.#DG"], 30), (["K.D.G"], 4)])
def test_grids_without_a_way(grid, max_turns):
    with pytest.raises(ValueError, match="must have starts beside the key and a way to the goal"):
        KeyDoor(grid, max_turns)
