"""Environments of other libraries: stand-ins with their interfaces and traps, and the real ones where installed."""

import json
import random
from importlib.util import find_spec

import numpy as np
import pytest

from worldmtp.envs.global_rng import GlobalStream, seeded_global_rng
from worldmtp.envs.worlds.adapters import from_gem, from_text_object, from_textarena
from worldmtp.envs.worlds.players import PlayedWorld, WorldWithMoves, demonstrate
from worldmtp.envs.worlds.task import WorldTask

OVER, OPEN = True, False


class GemLike:
    """As GEM: seeds and draws from the global generators, says both flags at once, pays less than 0 for bad form."""

    def reset(self, seed=None):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - what the stand-in is for
        return f"number {random.randint(0, 99)}", {"suffix": "go on"}

    def step(self, action):
        noise = f"{random.randint(0, 99)} {np.random.randint(100)}"  # noqa: NPY002 - as above
        if action == "bad":
            return noise, -0.1, True, True, {}
        return noise, 0.5, action == "end", False, {}


class TextArenaLike:
    """As TextArena 0.7.4: rewards at close, messages fetched, ``num_players`` asserted, global seeding."""

    num_needed = 1

    def reset(self, num_players, seed=None):
        assert num_players == self.num_needed, f"The number of players has to be {self.num_needed}"
        random.seed(seed)
        self.number, self.rewards, self.messages = random.randint(1, 9), None, [(-1, "Guess from 1 to 9.", "PROMPT")]

    def get_observation(self):
        messages, self.messages = self.messages, []
        return 0, messages

    def step(self, action):
        self.messages.append((0, action, "PLAYER_ACTION"))
        if action == str(self.number):
            self.rewards, self.reason = {0: 1}, "You found it."
            return True, {}
        self.messages.append((-1, "higher" if int(action) < self.number else "lower", "GAME_MESSAGE"))
        return False, {}

    def close(self):
        return self.rewards, {0: {"reason": self.reason}}


class HistoryWrapper:
    """As its default observation wrapper: shows all it has ever seen, and clears nothing; passes on what it has not."""

    def __init__(self, env):
        self.env = env
        self.full_observations = {}

    def __getattr__(self, name):
        return getattr(self.env, name)

    def get_observation(self):
        player, messages = self.env.get_observation()
        self.full_observations.setdefault(player, []).extend(messages)
        names = {-1: "GAME", 0: "Player"}
        return player, "".join(f"\n[{names[sender]}] {text}" for sender, text, _ in self.full_observations[player])


class Outer:
    """A wrapper without a history of its own around one that has it."""

    def __init__(self, env):
        self.env = env

    def __getattr__(self, name):
        return getattr(self.env, name)


def global_states():
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - must be found as it was
    return random.getstate(), numpy_state["state"]["key"].tolist(), numpy_state["state"]["pos"]


def play(world, seed, texts):
    return [world.reset(seed)[0], *(world.step(text)[0] for text in texts)]


@pytest.mark.parametrize("make", [lambda: from_gem(GemLike()), lambda: from_text_object(GemLike())])
def test_global_generators_are_untouched_and_worlds_do_not_disturb_each_other(make):
    alone = play(make(), 3, "abc")
    random.seed(1)
    before = global_states()
    one, other = make(), make()
    said = [one.reset(3)[0]]
    other.reset(4)
    for text in "abc":
        random.random()
        said.append(one.step(text)[0])
        other.step(text)
    random.seed(1)
    assert global_states() == before
    assert said == alone
    assert said != play(make(), 4, "abc")
    assert play(one, 3, "abc") == alone


def test_the_global_state_is_put_back_after_a_failure():
    class Failing(GemLike):
        def step(self, action):
            random.random()
            raise RuntimeError("planted")

    world = from_gem(Failing())
    world.reset(0)
    before = global_states()
    with pytest.raises(RuntimeError, match="planted"):
        world.step("a")
    assert global_states() == before


def test_global_streams_are_those_of_the_seed():
    with seeded_global_rng(5):
        expected = [random.random(), np.random.rand(), random.random(), np.random.rand()]  # noqa: NPY002
    stream, drawn = GlobalStream(), []
    stream.seed(5)
    for _ in range(2):
        with stream.lent():
            drawn += [random.random(), np.random.rand()]  # noqa: NPY002
    assert drawn == expected


def test_gem_ends_once_and_is_settled():
    world = from_gem(GemLike(), returns=(-0.1, 1.0))
    assert world.reset(0)[1] == {"suffix": "go on"}
    assert world.step("a")[1:4] == (0.0, False, False)
    assert world.step("end")[1:4] == (1.0, True, False)  # 0.5 + 0.5
    world.reset(0)
    assert world.step("bad")[1:4] == (0.0, True, False)  # terminated wins
    assert from_gem(GemLike()).step("a")[1] == 0.5


@pytest.mark.parametrize("wrap", [HistoryWrapper, lambda env: Outer(HistoryWrapper(env))])
def test_textarena_histories_are_cleared_and_replies_are_what_is_new(wrap):
    trap = wrap(TextArenaLike())
    for _ in range(2):
        trap.reset(num_players=1, seed=7)
        opening = trap.get_observation()[1]
    assert opening == "\n[GAME] Guess from 1 to 9." * 2  # the trap is there

    world = from_textarena(wrap(TextArenaLike()))
    for _ in range(3):
        opening, _ = world.reset(7)
        assert opening == "\n[GAME] Guess from 1 to 9."
        number = world.game.env.number
        wrong = number - 1 or 2
        hint = "higher" if wrong < number else "lower"
        assert world.step(str(wrong))[:4] == (f"\n[Player] {wrong}\n[GAME] {hint}", 0.0, OPEN, False)
        reply, reward, terminated, truncated, info = world.step(str(number))
        assert (reply, reward, terminated, truncated) == ("You found it.", 1.0, OVER, False)
        assert info["game_info"] == {"reason": "You found it."}


def test_textarena_without_wrappers_does_not_repeat_the_player():
    world = from_textarena(TextArenaLike())
    assert world.reset(7)[0] == "Guess from 1 to 9."
    wrong = world.game.env.number - 1 or 2
    assert world.step(str(wrong))[0] in ("higher", "lower")


def test_textarena_games_for_more_are_refused():
    class TwoPlayers(TextArenaLike):
        num_needed = 2

    class SelfPlay(TextArenaLike):
        def get_observation(self):
            return 1, []

    class Unpaid(TextArenaLike):
        def close(self):
            return None, {}

    with pytest.raises(ValueError, match=r"cannot be reset with num_players=1: .* has to be 2"):
        from_textarena(TwoPlayers()).reset(0)
    with pytest.raises(ValueError, match="player 1 of SelfPlay is to move"):
        from_textarena(SelfPlay()).reset(0)
    world = from_textarena(Unpaid())
    world.reset(0)
    with pytest.raises(ValueError, match=r"close\(\) paid None"):
        world.step(str(world.game.env.number))
    with pytest.raises(
        TypeError, match=r"GemLike is no TextArena environment: it has no \['get_observation', 'close'\]"
    ):
        from_textarena(GemLike())


class Plain:
    """Opens with a text alone, and steps as gym did."""

    def __init__(self, word="hello"):
        self.word = word

    def reset(self, start):
        return f"{self.word} {start}"

    def step(self, text):
        return text.upper(), 1, text == "end", {"TimeLimit.truncated": text == "late"}


def test_common_variations_of_the_signatures():
    world = from_text_object(Plain())
    assert world.reset(4) == ("hello 4", {})
    assert world.step("a")[:4] == ("A", 1.0, False, False)
    assert world.step("end")[:4] == ("END", 1.0, True, False)

    class Late(Plain):
        def reset(self, *, seed, options=None):
            return f"seed {seed}", {"a": 1}

        def step(self, text):
            return text, np.float32(0.5), True, {"TimeLimit.truncated": True}

    world = from_text_object(Late())
    assert world.reset(4) == ("seed 4", {"a": 1})
    assert world.step("x")[1:4] == (0.5, False, True)


def returning(reset="hello", step=("a", 0.0, False, False, {})):
    class Fake:
        def reset(self, seed):
            return reset

        def step(self, text):
            return step

    return from_text_object(Fake())


def test_what_is_no_text_game_is_told_so():
    with pytest.raises(TypeError, match="int has no method reset"):
        from_text_object(3)
    with pytest.raises(TypeError, match="Plain is a class; give an object of it"):
        from_text_object(Plain)

    class NoSeed(Plain):
        def reset(self):
            return "a"

    with pytest.raises(TypeError, match=r"NoSeed.reset\(\) takes no seed"):
        from_text_object(NoSeed())
    for opening in (None, 3, ("a", 3), ("a", {}, 1)):
        with pytest.raises(TypeError, match=r"Fake.reset returned .*; expected a str, or \(str, info\)"):
            returning(reset=opening).reset(0)
    for step, message in (
        ("abc", "Fake.step returned 'abc'; expected"),
        (("a", 0.0, False), "Fake.step returned"),
        (("a", 0.0, False, False, None), "the info None, which is no mapping"),
        ((None, 0.0, False, False, {}), "said None, which is no str"),
        (("a", None, False, False, {}), "paid None, which is no finite number"),
        (("a", float("nan"), False, {}), "paid nan, which is no finite number"),
    ):
        with pytest.raises(TypeError, match=message):
            returning(step=step).step("x")
    with pytest.raises(ValueError, match=r"\{'a': 1\} have no effect on Plain, which is already made"):
        from_text_object(Plain(), a=1)
    with pytest.raises(ValueError, match="game 'no_such_module:It' cannot be imported"):
        from_text_object("no_such_module:It")


def test_games_by_name_are_json_and_each_world_has_its_own():
    kwargs = {
        "world": "worldmtp.envs.worlds.adapters:from_text_object",
        "world_kwargs": {"game": "worldmtp.envs.worlds.guess_number:GuessNumber", "max_number": 20, "returns": [0, 2]},
    }
    task = WorldTask(**json.loads(json.dumps(kwargs)))
    example = task.sample(np.random.default_rng(0), "train")
    world = task.make_world()
    assert world.reset(example.meta["seed"])[0] == example.prompt
    assert world.game is not task.make_world().game
    assert world.step(example.hidden)[1:3] == (0.5, True)


@pytest.mark.skipif(find_spec("gem") is not None, reason="GEM is installed")
def test_gem_is_named_where_it_is_missing():
    with pytest.raises(ImportError, match="pip install gem-llm"):
        from_gem("game:GuessTheNumber-v0-easy")


@pytest.mark.skipif(find_spec("textarena") is not None, reason="TextArena is installed")
def test_textarena_is_named_where_it_is_missing():
    with pytest.raises(ImportError, match="pip install textarena"):
        from_textarena("GuessTheNumber-v0")


@pytest.mark.skipif(find_spec("gem") is None, reason="gem-llm is not installed; it pins another reasoning-gym")
def test_the_real_gem():
    before = global_states()
    world = from_gem("game:GuessTheNumber-v0-easy", returns=(-0.1, 1.0))
    alone = play(world, 3, [r"\boxed{5}", r"\boxed{2}"])
    assert alone == play(from_gem("game:GuessTheNumber-v0-easy"), 3, [r"\boxed{5}", r"\boxed{2}"])
    world.reset(3)
    assert world.step("no number")[1:4] == (0.0, True, False)
    assert global_states() == before
    with pytest.raises(ValueError, match=r"GEM has no id 'game:GuessTheNumber-v0'; did you mean"):
        from_gem("game:GuessTheNumber-v0")


@pytest.mark.skipif(find_spec("textarena") is None, reason="textarena is not installed")
@pytest.mark.parametrize("name", ["GuessTheNumber-v0", "GuessTheNumber-v0-raw"])
def test_the_real_textarena(name):
    before = global_states()
    world = from_textarena(name)
    openings = [world.reset(seed)[0] for seed in (1, 2, 1)]
    assert openings[0] == openings[1] == openings[2]
    number = next(guess for guess in range(1, 21) if (world.reset(1), world.step(f"[{guess}]"))[1][2])
    world.reset(1)
    hint = "higher" if number > 1 else "lower"
    assert f"The target number is {hint}." in world.step("[1]" if number > 1 else "[20]")[0]
    assert world.step(f"[{number}]")[1:4] == (1.0, True, False)
    assert global_states() == before
    with pytest.raises(ValueError, match="cannot be reset with num_players=1"):
        from_textarena("TicTacToe-v0").reset(0)
    with pytest.raises(ValueError, match="TextArena has no id 'GuessTheNumbers-v0'; did you mean"):
        from_textarena("GuessTheNumbers-v0")


class Shows(TextArenaLike):
    """Shows these observations, one after the other."""

    def __init__(self, *observations):
        self.observations = observations

    def reset(self, num_players, seed=None):
        self.shown = 0

    def step(self, action):
        self.shown += 1
        return False, {}

    def get_observation(self):
        return 0, self.observations[self.shown]


@pytest.mark.parametrize(
    ("observations", "said"),
    [
        (["Guess.", "Guess.", "Guess."], ["Guess.", "Guess.", "Guess."]),  # refused moves
        (["Score: 1", "Score: 10", "Score: 100"], ["Score: 1", "Score: 10", "Score: 100"]),
        (["Your turn", "Your turn is over"], ["Your turn", "Your turn is over"]),
        (["Board:\n1", "Board:\n10"], ["Board:\n1", "Board:\n10"]),
        (["Board: ab", "Board: a"], ["Board: ab", "Board: a"]),
        (["", "hello", "hello"], ["", "hello", "hello"]),
        (["A\n", "A\nB\n", "A\nB\nB\n"], ["A\n", "B\n", "B\n"]),  # a history, its lines closed
        (["\n[GAME] A", "\n[GAME] A\n[Player] 5\n[GAME] B"], ["\n[GAME] A", "\n[Player] 5\n[GAME] B"]),  # TextArena's
        (["A", "A\nB", "A\nB"], ["A", "\nB", "A\nB"]),
    ],
)
def test_of_a_history_what_is_new_is_said_and_all_of_a_snapshot(observations, said):
    world = from_textarena(Shows(*observations))
    assert [world.reset(0)[0], *(world.step("x")[0] for _ in observations[1:])] == said


def test_a_game_that_shows_how_it_is_played_is_a_world_that_does():
    class Shown(GemLike):
        def moves(self):
            return ["end"]

        def player(self):
            return lambda reply: "end"

    plain, shown = from_text_object(GemLike()), from_text_object(Shown())
    assert not isinstance(plain, (WorldWithMoves, PlayedWorld))
    assert isinstance(shown, WorldWithMoves)
    assert isinstance(shown, PlayedWorld)
    assert (list(shown.moves()), demonstrate(shown, 3)) == (["end"], ["end"])
