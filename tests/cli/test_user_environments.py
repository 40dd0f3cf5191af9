"""A user's own environment, registered as the README says, trained from the command line's point of view."""

import re
import sys

import pytest

from worldmtp.cli.train import run
from worldmtp.training.imports import import_user_modules

pytestmark = pytest.mark.usefixtures("no_report")

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
import numpy as np
from gymnasium import spaces
from worldmtp.envs import make_tokenizer


class Twins(gymnasium.Env):
    def __init__(self):
        self.tokenizer = make_tokenizer("char:abcdefghijklmnopqrst=")
        one = spaces.Box(0, 7, (1,), np.int64)
        self.observation_space = spaces.Dict(
            tokens=spaces.Box(0, 22, (7,), np.int64), length=one, prompt_length=one
        )
        self.action_space = spaces.Discrete(23)

    def observation(self):
        tokens = np.array(self.ids + [0] * (7 - len(self.ids)))
        return {"tokens": tokens, "length": np.array([len(self.ids)]), "prompt_length": np.array([3])}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.asked = self.np_random.integers(2, 22, size=2).tolist()
        self.ids = [*self.asked, 22]
        return self.observation(), {"answer": self.tokenizer.decode(self.asked)}

    def step(self, action):
        place = len(self.ids) - 3
        self.ids.append(int(action))
        is_right = place < 2 and int(action) == self.asked[place]
        return self.observation(), 0.5 * is_right, int(action) == 1, place == 3 and int(action) != 1, {}


gymnasium.register("Twins-v0", entry_point="twins_module:Twins", max_episode_steps=4)
"""


def test_own_gymnasium_class_with_a_stop_on_the_way(here, compose_tiny, results_of):
    (here / "twins_module.py").write_text(TWINS)
    own = ("env=custom", "env.id=twins_module:Twins-v0", "imagination=baseline")
    run(compose_tiny(*own), here / "whole")
    run(compose_tiny(*own, "checkpoint.stop_after=1"), here / "stopped")
    assert not (here / "stopped" / "DONE").exists()
    run(compose_tiny(*own), here / "stopped", resumes=True)
    stopped, whole = (results_of(here / name) for name in ("stopped", "whole"))
    for results in (stopped, whole):
        del results["metrics.jsonl"][0]  # the config, in which the stop stands
    assert stopped == whole


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
