"""A user's own environment, registered as the README says, trained from the command line's point of view."""

import json
import re
import sys

import pytest

from worldmtp.analysis.summary import read_summary
from worldmtp.cli.train import run
from worldmtp.envs import read_episodes
from worldmtp.training.imports import import_user_modules

pytestmark = pytest.mark.usefixtures("no_report")

TIMES = ("time_seconds", "time/")

OWN = """\
import worldmtp


@worldmtp.register_task("{name}", max_prompt=6, max_new=6, tokenizer={{"kind": "char", "alphabet": "abcd="}})
def task(rng):
    word = "".join(rng.choice(list("abcd"), size=4))
    return worldmtp.envs.Example(prompt=word + "=", answer=word[::-1])
"""


@pytest.fixture
def here(monkeypatch, tmp_path):
    """An empty current directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_file(here, compose_tiny):
    (here / "my_envs.py").write_text(OWN.format(name="MineInAFile"))
    run(compose_tiny("imports=[./my_envs.py]", "env=custom", "env.id=worldmtp/MineInAFile-v0"), here / "run")
    assert (here / "run" / "DONE").exists()


def test_file_in_another_directory_twice(here):
    (here / "sub").mkdir()
    (here / "sub" / "sub_envs.py").write_text("NUMBER = 1\n")
    import_user_modules(["sub/sub_envs.py"])
    first = sys.modules["sub_envs"]
    import_user_modules(["./sub/sub_envs.py"])
    assert sys.modules["sub_envs"] is first


def test_module_before_the_colon(here, compose_tiny):
    (here / "my_package").mkdir()
    (here / "my_package" / "__init__.py").write_text(OWN.format(name="MineInAPackage"))
    run(compose_tiny("env=custom", "env.id=my_package:worldmtp/MineInAPackage-v0"), here / "run")
    assert (here / "run" / "DONE").exists()


def test_own_gymnasium_id(here, compose_tiny):
    (here / "own_id.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('MyEnv-v0', entry_point='worldmtp.envs:TextGenEnv',\n"
        "    vector_entry_point='worldmtp.envs:TextGenVectorEnv',\n"
        "    kwargs={'task': 'Reverse', 'max_prompt': 9, 'max_new': 9})\n"
    )
    run(compose_tiny("sft.num_steps=0", "env=custom", "env.id=own_id:MyEnv-v0"), here / "run")
    assert (here / "run" / "DONE").exists()


TWINS = """\
import gymnasium
from gymnasium import spaces


class Twins(gymnasium.Env):
    observation_space = action_space = spaces.Text(8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.asked = "".join(self.np_random.choice(list("abcdefghijklmnopqrst"), size=2))
        return self.asked + "=", {"hidden": ""}

    def step(self, action):
        return "", sum(a == b for a, b in zip(action, self.asked)) / 2, True, False, {}


gymnasium.register("Twins-v0", entry_point="twins_module:Twins")
"""


def test_own_gymnasium_class_with_a_stop_on_the_way(here, compose_tiny):
    (here / "twins_module.py").write_text(TWINS)
    rooms = [f"+env.kwargs.{name}" for name in ("max_prompt=3", "max_new=4", "max_turn=3")]
    kwargs = [*rooms, "+env.kwargs.tokenizer='char:abcdefghijklmnopqrst='"]
    own = ("env=custom", "env.id=twins_module:Twins-v0", *kwargs, "sft.num_steps=0", "imagination=off")
    run(compose_tiny(*own), here / "whole")
    run(compose_tiny(*own, "checkpoint.stop_after=1"), here / "stopped")
    assert not (here / "stopped" / "DONE").exists()
    run(compose_tiny(*own), here / "stopped", resumes=True)
    stopped, whole = (
        [json.loads(line) for line in (here / name / "metrics.jsonl").read_text().splitlines()[1:]]  # but the config
        for name in ("stopped", "whole")
    )
    assert len(whole) > 1
    for one, other in zip(stopped, whole, strict=True):
        assert one.keys() == other.keys()
        assert all(one[key] == other[key] for key in one if not key.startswith(TIMES))


def test_wrappers_named_in_the_config_are_in_force_and_saved(here, compose_tiny, monkeypatch):
    """A mask of one letter: every answer that is sampled is written with it alone."""
    masked = "env.wrappers=[{name: action_mask, alphabet: a, min_new: 1}, {name: episode_recorder, path: played.jsonl}]"
    run(compose_tiny(masked, "imagination=off", "agent.rollout.draft=none", "sft.num_steps=0"), here / "run")
    played = read_episodes("played.jsonl")
    assert len(played) > 4
    assert all(set(episode["text"]) == {"a"} for episode in played)
    logged = set().union(*(json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()))
    assert "eval/return_realized" in logged
    assert "eval/return_imagined" not in logged  # no mask is known of states that are imagined
    with pytest.raises(ValueError, match="wrapper='action_mak' is unknown; did you mean 'action_mask'"):
        run(compose_tiny("env.wrappers=[action_mak]"), here / "other")


def test_error_inside_a_user_file_keeps_its_traceback(here):
    (here / "broken_envs.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        import_user_modules(["./broken_envs.py"])


def test_the_readme(here, project_root, compose_tiny):
    text = (project_root / "README.md").read_text()
    (block,) = [one for one in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "register_task" in one]
    assert len(block.strip().splitlines()) <= 10
    (identifier,) = re.findall(r"env\.id=(worldmtp/\w+-v0)", text)
    (here / "my_envs.py").write_text(block)
    assert "imports=[./my_envs.py]" in text
    run(compose_tiny("imports=[./my_envs.py]", "env=custom", f"env.id={identifier}"), here / "run")
    assert (here / "run" / "DONE").exists()


def test_answers_that_could_not_be_scored_are_told_at_the_end(here, compose_tiny):
    (here / "breaking.py").write_text(
        "import worldmtp\n\n\n"
        "def score(example, text):\n"
        "    raise KeyError('oh')\n\n\n"
        "@worldmtp.register_task('Breaking', max_prompt=4, max_new=4, score=score)\n"
        "def task(rng):\n"
        "    return worldmtp.envs.Example(''.join(rng.choice(list('abcdef'), size=3)) + '=', 'a')\n"
    )
    overrides = ("imports=[./breaking.py]", "env=custom", "env.id=worldmtp/Breaking-v0", "sft.num_steps=0")
    with pytest.warns(RuntimeWarning, match="oh"):
        run(compose_tiny(*overrides), here / "run")
    log = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    errors = int(max(record.get("env/scorer_errors", 0) for record in log))
    assert errors > 0
    (note,) = [one for one in read_summary(here / "run" / "summary.json").notes if "scorer" in one]
    assert note == f"of the scorer's calls {errors} raised: these answers were paid 0, and the first was warned of"
