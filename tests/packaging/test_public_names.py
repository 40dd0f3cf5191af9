"""`import worldmtp` is cheap and its public names load on first use."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

import worldmtp

HEAVY = "torch numpy transformers gymnasium trl hydra omegaconf matplotlib tensorboard"


def test_import_pulls_no_framework(tmp_path: Path) -> None:
    code = f"import sys, worldmtp; dir(worldmtp); print(sorted(set({HEAVY.split()!r}) & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "home"),
    [("MTPConfig", "worldmtp.model.config"), ("MTPModel", "worldmtp.model.model"), ("register_task", "worldmtp.envs")],
)
def test_public_object_is_the_one_of_its_room(name: str, home: str) -> None:
    module = __import__(home, fromlist=[name])
    assert getattr(worldmtp, name) is getattr(module, name)
    assert name in dir(worldmtp)
    assert name in worldmtp.__all__


@pytest.mark.parametrize("room", ["agents", "analysis", "decoding", "envs", "heads", "post_training", "returns"])
def test_room_loads_as_an_attribute(room: str) -> None:
    # Called by name: once another test has imported the room, plain attribute access no longer comes here.
    assert worldmtp.__getattr__(room) is sys.modules[f"worldmtp.{room}"]
    assert room in dir(worldmtp)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        AttributeError, match=r"module 'worldmtp' has no attribute 'MTPModell'; did you mean 'MTPModel'\?"
    ):
        worldmtp.MTPModell  # noqa: B018 - the access is what is tested


def test_unknown_name_without_a_near_one_lists_the_public_names() -> None:
    with pytest.raises(AttributeError, match="'zzz'; public names: MTPConfig, MTPModel, agents, "):
        worldmtp.zzz  # noqa: B018 - the access is what is tested


def test_version_is_the_distribution_s() -> None:
    assert worldmtp.__version__ == version("worldmtp")


def test_console_scripts_point_at_functions_that_exist() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    scripts = pyproject["project"]["scripts"]
    assert list(scripts) == ["worldmtp"]
    for script, target in scripts.items():
        module, function = target.split(":")
        spec = find_spec(module)
        assert spec is not None, f"{script}: there is no module {module}"
        assert spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert function in names, f"{script}: {module} has no function {function}"
