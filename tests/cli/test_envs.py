"""``worldmtp envs`` as a user meets it: the catalogue, checks with their exit codes, and play at a piped keyboard."""

import io
import json
import re
import subprocess
import sys

import pytest

from worldmtp.cli import envs as script
from worldmtp.cli.arguments import parse_kwargs
from worldmtp.cli.envs_catalogue import _lines_of_ends
from worldmtp.envs.worlds.task import WorldTask

OWN = '''\
import worldmtp


@worldmtp.register_task("{name}", max_prompt=4, max_new=4, tokenizer="char:abcdefgh="{more})
def task(rng):
    """Say the letters again."""
    word = "".join(rng.choice(list("abcdefgh"), size=3))
    return worldmtp.envs.Example(prompt=word + "=", answer=word)
'''

HACKABLE = "lambda example, text: 1.0 if text == example.answer else 0.5 * ('zz' in text)"

WORLD = '''\
import worldmtp


@worldmtp.register_task("{name}", max_prompt=1, max_new=16, tokenizer="char:ab?!")
class Asker:
    """Wants to hear "ab", and asks until it does."""

    def reset(self, seed):
        return "?", {{}}

    def step(self, text):
        found = text == "ab"
        return "" if found else "!", float(found), found, False, {{}}
'''


@pytest.fixture
def command_line(monkeypatch, tmp_path, run_main):
    """Runs ``worldmtp envs`` in this process, in an empty directory; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    known = set(sys.modules)

    def call(*arguments, typed=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        return run_main(script.main, "worldmtp envs", *arguments)

    yield call
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(tmp_path, text, name, **more):
    path = tmp_path / f"{name.lower()}_file.py"
    path.write_text(text.format(name=name, **{"more": ""} | more))
    return f"./{path.name}"


def test_list_describes_the_catalogue(command_line):
    code, out, err = command_line("list", "worldmtp/Pa*")
    assert (code, err) == (0, "")
    (row,) = [line for line in out.splitlines() if "worldmtp/PathStar-v0" in line]
    assert row.split()[:7] == ["worldmtp/PathStar-v0", "answer", "19/19", "4/4", "19", "5", "12"]
    assert "Walk from the start to the goal" in row


def test_list_narrows_by_part_or_pattern(command_line):
    assert [set(json.loads(command_line("list", pattern, "--json")[1])) for pattern in ("REVERSE", "*/copy-v?")] == [
        {"worldmtp/Reverse-v0"},
        {"worldmtp/Copy-v0"},
    ]
    code, _, err = command_line("list", "nothing-like-it")
    assert code == 1
    assert "no id matches 'nothing-like-it'; worldmtp envs list shows all" in err
    for typed in ("ChianSum", "chain_sum"):  # a typo, and what env= calls it
        _, _, err = command_line("list", typed)
        assert f"no id matches {typed!r}; did you mean 'worldmtp/ChainSum-v0'? worldmtp envs list shows all" in err


def test_list_shows_what_was_imported(command_line, tmp_path):
    code, out, _ = command_line("list", "Listed", "--json", "--import", write(tmp_path, OWN, "Listed"))
    assert code == 0
    described = json.loads(out)["worldmtp/Listed-v0"]
    assert described["what"] == "Say the letters again."
    assert (described["kind"], described["prompt"], described["answer"]) == (
        "answer",
        {"median": 4.0, "max": 4},
        {"median": 3.0, "max": 3},
    )


def test_list_says_what_cannot_be_made(command_line, tmp_path):
    (tmp_path / "needy.py").write_text(
        "import worldmtp\n"
        "@worldmtp.register_task('Needy', max_prompt=4, max_new=4)\n"
        "class Needy:\n"
        "    def __init__(self, path=None):\n"
        "        if path is None: raise ValueError('give a path')\n"
        "    def sample(self, rng, split): ...\n"
        "    def score(self, example, text, ids): ...\n"
    )
    _, out, _ = command_line("list", "Needy", "--import", "needy")
    assert "needs --kwargs: give a path" in out


def test_check_passes_and_prints_what_it_measured(command_line, tmp_path):
    file = write(tmp_path, OWN, "Sound")
    code, out, err = command_line("check", "worldmtp/Sound-v0", "--episodes", "30", "--seed", "2", "--import", file)
    assert (code, err) == (0, "")
    assert out.startswith("worldmtp/Sound-v0: Say the letters again.\n")
    assert out.endswith("PASS worldmtp/Sound-v0\n")
    assert "largest mean value 0.000, bound 0.000; 0 scorer errors" in out
    assert "30 held-out episodes each, seed 2" in out
    # 30 of 30: Wilson's lower end is 1 / (1 + z^2 / 30) with z = 1.645.
    assert "oracle           1.000 [0.917, 1.000]" in out
    assert "empty answer     0.000 [0.000, 0.083]" in out


def test_check_fails_with_code_1_and_says_what_was_seen(command_line, tmp_path):
    file = write(tmp_path, OWN, "Hackable", more=f", score={HACKABLE}")
    code, out, err = command_line("check", "worldmtp/Hackable-v0", "--import", file)
    assert code == 1
    assert "PASS" not in out
    assert "error: 'zz', which answers nothing, earns 0.500 on average; the task's probe_bound is 0.0." in err
    assert "Traceback" not in err


@pytest.mark.parametrize("num_rows", [2, 3])
def test_check_of_a_file_of_few_rows(command_line, tmp_path, num_rows):
    """Two rows are enough, one for either split (docs/environments.md), and all seeds show it."""
    rows = ["cat=,CAT", "dog=,DOG", "cow=,COW"][:num_rows]
    (tmp_path / "questions.csv").write_text("\n".join(["prompt,answer", *rows]))
    fewer = ("--episodes", "4", "--kwargs", "pool_size=8", "max_prompt=4", "max_new=4")
    code, out, err = command_line("check", "worldmtp/Data-v0", *fewer, "task_kwargs.path=questions.csv")
    assert (code, err) == (0, "")
    assert f"universe       {num_rows} different questions" in out
    assert out.endswith("PASS worldmtp/Data-v0\n")


def test_check_of_a_world(command_line, tmp_path):
    file = write(tmp_path, WORLD, "Asker")
    fewer = ("--episodes", "20", "--examples", "8", "--kwargs", "pool_size=32")
    code, out, err = command_line("check", "worldmtp/Asker-v0", *fewer, "--import", file)
    assert (code, err) == (0, "")
    assert "kind           turns" in out
    assert "majority" not in out
    assert "floor          not known: the world has no moves()\n" in out
    assert "ceiling        not known: the world has no player()\n" in out


class Shown:
    """Three turns at most, of which each hits by chance in a half: by chance seven episodes of eight are won."""

    def reset(self, seed):
        self.turn = 0
        return "?", {"optimal_value": 1.0}

    def step(self, text):
        self.turn += 1
        found = text == "ab"
        return "!", float(found), found, self.turn == 3, {}

    def moves(self):
        return ["a", "ab"]

    def player(self):
        return lambda reply: "ab"


def test_floor_and_ceiling_of_a_world_that_shows_how_it_is_played():
    floor, ceiling = _lines_of_ends(WorldTask(Shown), 200, 0, 0.2)
    found = re.fullmatch(
        r"floor +([0-9.]+), standard error ([0-9.]+), 200 held-out episodes: random legal moves", floor
    )
    mean, error = float(found[1]), float(found[2])
    assert abs(mean - 7 / 8) < 4 * (7 / 64 / 200) ** 0.5
    # Of values 0 and 1 the standard error is the root of p (1 - p) / (n - 1).
    assert error == pytest.approx((mean * (1 - mean) / 199) ** 0.5, abs=6e-4)
    assert ceiling == (
        "ceiling        1.000, standard error 0.000, 200 held-out episodes: the world's own player; the best one earns "
        "1.000 by the world's own word (optimal_value)"
    )


def test_check_asks_for_fewer_questions_where_there_are_few(command_line, tmp_path):
    file = write(tmp_path, OWN, "Few")
    code, _, err = command_line("check", "worldmtp/Few-v0", "--examples", "600", "--import", file)
    assert code == 1  # eight letters in three places are 512 words
    assert "The check asked for 600 questions of each split; --examples asks for fewer." in err


def test_typos_are_answered_with_the_nearest(command_line):
    code, _, err = command_line("check", "worldmtp/Revers-v0")
    assert code == 1
    assert "Did you mean: `Reverse`?" in err
    code, _, err = command_line("play", "no_such_module:My-v0")
    assert code == 1
    assert "No module named 'no_such_module'" in err


def test_import_that_does_not_exist(command_line):
    code, _, err = command_line("list", "--import", "./no_such_file.py")
    assert code == 1
    assert "--import './no_such_file.py' cannot be imported: there is no file" in err


def answers_of(command_line, env_id, *arguments):
    """What an episode of play shows when nothing is typed but an answer with a wrong letter in it."""
    _, out, _ = command_line("play", env_id, *arguments, typed="\n" * 9)
    return [line.removeprefix("an answer: ") for line in out.splitlines() if line.startswith("an answer: ")]


def test_play_pays_the_right_answer(command_line):
    (first, second) = answers_of(command_line, "worldmtp/Reverse-v0", "--episodes", "2", "--seed", "5")
    typed = f"{first}\n\n"
    code, out, err = command_line("play", "worldmtp/Reverse-v0", "--episodes", "2", "--seed", "5", typed=typed)
    assert (code, err) == (0, "")
    assert "--- episode 1 of 2, train, seed 5" in out
    assert f"{first[::-1]}=\n> score 1.000, solved, reason: ok" in out
    assert "components: position_match 1\n" in out
    assert f"an answer: {second}" in out
    assert "--- mean score 0.500 of 2 episodes" in out


def test_play_ends_with_the_input(command_line):
    code, out, _ = command_line("play", "worldmtp/Reverse-v0", "--split", "heldout")
    assert code == 0
    assert "heldout, seed 0" in out
    assert out.endswith("the input has ended.\n")


def test_play_asks_again_for_what_cannot_be_written(command_line):
    code, out, _ = command_line("play", "worldmtp/Reverse-v0", typed="XYZ\n\n")
    assert code == 0
    assert "of the tokenizer lacks 'XYZ', as in 'XYZ'." in out
    assert "score 0.000, not solved" in out


def test_play_goes_on_turn_by_turn(command_line, tmp_path):
    file = write(tmp_path, WORLD, "Turns")
    code, out, _ = command_line("play", "worldmtp/Turns-v0", "--import", file, typed="b\nab\n")
    assert code == 0
    assert "?\n> !\n    reward 0.000\n> " in out
    assert "    reward 1.000\nscore 1.000, solved" in out
    assert "the task shows no answer." in out


def test_a_game_of_others_is_registered_by_its_adapter(command_line, tmp_path):
    (tmp_path / "game_of_others.py").write_text(
        "import worldmtp\n"
        "from worldmtp.envs.worlds.task import WorldTask\n"
        "class Game:\n"
        "    def reset(self, seed): return 'word?', {}\n"
        "    def step(self, text): return 'thanks', float(text == 'please'), True, False, {}\n"
        "game = {'world': 'worldmtp.envs.worlds.adapters:from_text_object',\n"
        "        'world_kwargs': {'game': 'game_of_others:Game'}}\n"
        "worldmtp.register_task('Game', max_prompt=8, max_new=32, max_turn=16, task_kwargs=game)(WorldTask)\n"
    )
    code, out, err = command_line("play", "worldmtp/Game-v0", "--import", "game_of_others", typed="please\n")
    assert (code, err) == (0, "")
    assert "word?\n> thanks\n    reward 1.000\nscore 1.000, solved" in out


def test_play_says_when_the_room_is_used_up(command_line, tmp_path):
    file = write(tmp_path, WORLD, "Room")
    code, out, _ = command_line("play", "worldmtp/Room-v0", "--import", file, typed="a" * 20 + "\n")
    assert code == 0
    assert "truncated: the room of the episode is used up" in out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["max_new=9"], {"max_new": 9}),
        (["task=gcd", "task_kwargs.max_value=50"], {"task": "gcd", "task_kwargs": {"max_value": 50}}),
        (['{"task": "gcd"}', "split=heldout"], {"task": "gcd", "split": "heldout"}),
        (["a.b=1", "a.c=[1, 2]", "a.d=null"], {"a": {"b": 1, "c": [1, 2], "d": None}}),
        (["tokenizer=char:ab="], {"tokenizer": "char:ab="}),
    ],
    ids=["number", "nested", "json", "values", "equals sign"],
)
def test_kwargs(given, expected):
    assert parse_kwargs(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["max_new"], r"--kwargs 'max_new' must be key=value"),
        (["=3"], r"--kwargs '=3' must be key=value"),
        (["a..b=3"], r"--kwargs 'a\.\.b=3' must be key=value"),
        (['{"task": '], r"is no JSON object"),
        (["a=1", "a.b=2"], r"'a' has the value 1 already, and so no keys"),
    ],
    ids=["no value", "no key", "empty part", "broken json", "value and keys"],
)
def test_kwargs_that_are_none(given, message):
    with pytest.raises(ValueError, match=message):
        parse_kwargs(given)


@pytest.mark.parametrize("argument", ["0", "-1", "many"])
def test_numbers_are_checked(command_line, argument):
    code, _, err = command_line("play", "worldmtp/Copy-v0", f"--episodes={argument}")
    assert code == 2
    assert f"'{argument}' must be a whole number from 1 on." in err


def test_neither_torch_nor_hydra_is_imported():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from worldmtp.cli.envs import main\n"
            "sys.argv[1:] = ['list', 'Copy']; main()\n"
            "sys.argv[1:] = ['check', 'worldmtp/Copy-v0', '--episodes', '5', '--examples', '5']; main()\n"
            "print([name for name in ('torch', 'hydra', 'transformers') if name in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
