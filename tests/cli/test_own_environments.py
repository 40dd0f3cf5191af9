"""The five routes to an environment of one's own: checked and trained from an empty directory by the console scripts.

The texts are those of docs/own_environments.md, which a test compares where the sources are; all else runs from an
installed wheel as well.
"""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass

import pytest

MAX_LINES = 10


@dataclass(frozen=True)
class Route:
    """A section of the page: a file, and the two commands."""

    heading: str
    check: str
    train: str
    file: str = ""
    text: str = ""
    rows: str = ""


ROUTES = (
    Route(
        "Decorator",
        "worldmtp envs check worldmtp/DoubleLetters-v0 --import ./my_envs.py",
        "worldmtp train imports=[./my_envs.py] env=custom env.id=worldmtp/DoubleLetters-v0",
        "my_envs.py",
        '''\
import worldmtp


@worldmtp.register_task("DoubleLetters", max_prompt=4, max_new=8, tokenizer="char:abcdef=")
def double_letters(rng):
    """Write every letter twice."""
    word = "".join(rng.choice(list("abcdef"), size=3))
    return worldmtp.envs.Example(prompt=word + "=", answer="".join(2 * letter for letter in word))
''',
    ),
    Route(
        "A score of your own",
        "worldmtp envs check worldmtp/NearSum-v0 --import ./my_scores.py",
        "worldmtp train imports=[./my_scores.py] env=custom env.id=worldmtp/NearSum-v0",
        "my_scores.py",
        '''\
import worldmtp


def nearness(example, text):
    """Return 1 for the right sum, less for one further off, and 0 for what is no number."""
    return 1 / (1 + abs(int(example.answer) - int(text))) if text.isdecimal() and text.isascii() else 0.0


@worldmtp.register_task("NearSum", tokenizer="char:0123456789+=", score=nearness, probe_bound=0.01)
def near_sum(rng):
    one, other = rng.integers(10, 99, size=2).tolist()
    return worldmtp.envs.Example(prompt=f"{one}+{other}=", answer=str(one + other))
''',
    ),
    Route(
        "Data",
        "worldmtp envs check worldmtp/Data-v0 --kwargs task_kwargs.path=questions.jsonl "
        "task_kwargs.reward=my_rewards:share_right task_kwargs.probe_bound=0.2",
        "worldmtp train env=data env.kwargs.task_kwargs.path=questions.jsonl "
        "+env.kwargs.task_kwargs.reward=my_rewards:share_right",
        "my_rewards.py",
        """\
def share_right(example, text):
    return sum(a == b for a, b in zip(text, example.answer)) / max(len(text), len(example.answer))
""",
        """\
{"prompt": "cat=", "answer": "CAT"}
{"prompt": "dog=", "answer": "DOG"}
{"prompt": "cow=", "answer": "COW"}
{"prompt": "pig=", "answer": "PIG"}
""",
    ),
    Route(
        "Gymnasium",
        "worldmtp envs check my_pkg:NextNumber-v0 --kwargs max_new=6 max_turn=5",
        "worldmtp train env=custom env.id=my_pkg:NextNumber-v0 +env.kwargs.max_new=6 +env.kwargs.max_turn=5 "
        "sft.num_steps=0",
        "my_pkg.py",
        """\
import gymnasium


class NextNumber(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Text(8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number = self.np_random.integers(1000)
        return f"{self.number}+1=", {"hidden": ""}

    def step(self, text):
        return "", float(text == str(self.number + 1)), True, False, {}


gymnasium.register("NextNumber-v0", entry_point="my_pkg:NextNumber")
""",
    ),
    Route(
        "reasoning-gym",
        "worldmtp envs check worldmtp/ReasoningGym-v0 "
        "--kwargs task=gcd task_kwargs.max_value=50 max_prompt=9 max_new=4",
        "worldmtp train env=reasoning_gym env.kwargs.task=gcd +env.kwargs.task_kwargs.max_value=50",
    ),
    Route(
        "World",
        "worldmtp envs check worldmtp/HotCold-v0 --import ./my_worlds.py",
        "worldmtp train imports=[./my_worlds.py] env=custom env.id=worldmtp/HotCold-v0 sft.num_steps=0",
        "my_worlds.py",
        """\
import random
import worldmtp


@worldmtp.register_task("HotCold", max_prompt=1, max_new=40, max_turn=4, tokenizer="char:0123456789?<>")
class HotCold:
    def reset(self, seed):
        self.number = f"{random.Random(seed).randrange(1000):03}"
        return "?", {"hidden": self.number}

    def step(self, text):
        reply = "<" if text < self.number else ">" if text > self.number else ""
        return reply, float(not reply), not reply, False, {}
""",
    ),
)
BY_HEADING = {route.heading: route for route in ROUTES}
HEADINGS = tuple(BY_HEADING)


@pytest.fixture
def here(tmp_path):
    """An otherwise empty directory with a route's file, and the questions that one of them asks."""

    def prepared(route):
        if route.file:
            (tmp_path / route.file).write_text(route.text)
        if route.rows:
            (tmp_path / "questions.jsonl").write_text(route.rows)
        return tmp_path

    return prepared


def run_script(command, directory, *more):
    """The finished process of a line of the page, started as a shell would, with further arguments."""
    name, *arguments = shlex.split(command)
    assert name == "worldmtp"
    words = [sys.executable, "-m", "worldmtp.cli", *arguments, *more]
    return subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=300, check=False)


# A class of gymnasium's is asked for 256 openings of each split, eight times over, to find out how long they are.
@pytest.mark.parametrize(
    "heading", [pytest.param(name, marks=[pytest.mark.slow] * (name == "Gymnasium")) for name in HEADINGS]
)
def test_route_is_checked(heading, here):
    route = BY_HEADING[heading]
    # Few rows are asked for fewer as it is.
    fewer = () if route.rows else ("--examples", "8", "--kwargs", "pool_size=32")
    done = run_script(route.check, here(route), "--episodes", "20", *fewer)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("PASS ")
    assert "random answer" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("heading", HEADINGS)
def test_route_is_trained(heading, here, tiny_overrides):
    route = BY_HEADING[heading]
    directory = here(route)
    chosen = {argument.partition("=")[0] for argument in shlex.split(route.train)}
    tiny = [value for value in tiny_overrides if value.partition("=")[0] not in chosen]
    done = run_script(route.train, directory, *tiny, "hydra.run.dir=run", "seed=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (directory / "run" / "DONE").exists()


@pytest.mark.parametrize("heading", HEADINGS)
def test_route_takes_ten_lines(heading):
    route = BY_HEADING[heading]
    lines = [line for line in route.text.splitlines() if line.strip()]
    assert len(lines) <= MAX_LINES


def test_the_page_has_these_texts(project_root):
    page = (project_root / "docs" / "own_environments.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^##+ (.+?)\n(.*?)(?=^## |^### |\Z)", page, flags=re.DOTALL | re.MULTILINE))
    assert tuple(sections) == HEADINGS
    for heading, section in sections.items():
        route = BY_HEADING[heading]
        files = re.findall(r"[Ii]n `([\w.]+)`:\n\n```python\n(.*?)```", section, flags=re.DOTALL)
        commands = re.findall(r"^```\n(worldmtp.*?)```", section, flags=re.DOTALL | re.MULTILINE)
        assert files == ([(route.file, route.text)] if route.file else [])
        assert commands == [f"{route.check}\n{route.train}\n"]
        assert re.findall(r"^```json\n(.*?)```", section, flags=re.DOTALL | re.MULTILINE) == (
            [route.rows] if route.rows else []
        )
