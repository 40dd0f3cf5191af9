"""The arrows between the rooms are enforced: a planted violation of each is caught, through the links too."""

import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="needs the dev extra")
grimp = pytest.importorskip("grimp", reason="comes with import-linter")


def lint_imports(project: Path) -> tuple[int, str]:
    # -c puts the working directory first on the path: the copy is what is read, not the installed package.
    code = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache', '--no-logo'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_tree_keeps_every_contract(project_copy: Path) -> None:
    code, output = lint_imports(project_copy)
    assert code == 0, output


PLANTED = [
    ("worldmtp/returns.py", "import gymnasium", "worldmtp", "gymnasium"),
    ("envs/vector_env.py", "import worldmtp.envs.tasks.strings", "worldmtp.envs.vector_env", "worldmtp.envs.tasks"),
    ("worldmtp/analysis/__init__.py", "import worldmtp.envs", "worldmtp.analysis", "worldmtp.envs"),
    ("worldmtp/returns.py", "import worldmtp.agents", "worldmtp.returns", "worldmtp.agents"),
    ("worldmtp/returns.py", "import worldmtp.cli", "worldmtp.returns", "worldmtp.cli"),
    ("worldmtp/returns.py", "import hydra", "worldmtp", "hydra"),
    ("worldmtp/returns.py", "import trl", "worldmtp", "trl"),
    ("worldmtp/returns.py", "import reasoning_gym", "worldmtp", "reasoning_gym"),
    ("worldmtp/returns.py", "from worldmtp.envs import tasks", "worldmtp.returns", "worldmtp.envs"),
    ("envs/__init__.py", "import worldmtp.agents", "worldmtp.envs", "worldmtp.agents"),
    ("envs/__init__.py", "import worldmtp.cli", "worldmtp.envs", "worldmtp.cli"),
    ("envs/__init__.py", "from worldmtp.heads import anything", "worldmtp.envs", "worldmtp.heads"),
    ("envs/tasks/__init__.py", "def later():\n    import trl", "worldmtp", "trl"),
    ("envs/rewards.py", "import worldmtp.envs.worlds.task", "worldmtp.envs.vector_env", "worldmtp.envs.worlds"),
    ("agents/__init__.py", "from omegaconf import DictConfig", "worldmtp", "omegaconf"),
    ("agents/__init__.py", "import trl", "worldmtp", "trl"),
    ("agents/__init__.py", "import worldmtp.configs", "worldmtp.agents", "worldmtp.configs"),
    ("agents/__init__.py", "import worldmtp.post_training", "worldmtp.agents", "worldmtp.post_training"),
    ("worldmtp/analysis/__init__.py", "import worldmtp.agents", "worldmtp.analysis", "worldmtp.agents"),
    ("worldmtp/analysis/__init__.py", "import gymnasium", "worldmtp.analysis", "gymnasium"),
    ("agents/ppo.py", "import worldmtp.agents.imagination", "worldmtp.agents.ppo", "worldmtp.agents.imagination"),
    ("worldmtp/studies/__init__.py", "import worldmtp.envs", "worldmtp.studies", "worldmtp.envs"),
    ("worldmtp/studies/__init__.py", "import worldmtp.agents", "worldmtp.studies", "worldmtp.agents"),
    ("worldmtp/post_training/sft.py", "import worldmtp.agents.ppo", "worldmtp.post_training", "worldmtp.agents"),
    ("envs/__init__.py", "import worldmtp.post_training", "worldmtp.envs", "worldmtp.post_training"),
]
SLOW = [pytest.param(*planted, marks=pytest.mark.slow) for planted in PLANTED[3:]]


@pytest.mark.parametrize(("file", "line", "importer", "imported"), [*PLANTED[:3], *SLOW])
def test_planted_violation_is_caught(project_copy: Path, file: str, line: str, importer: str, imported: str) -> None:
    with (project_copy / file).open("a", encoding="utf-8") as source:
        source.write(f"\n\n{line}\n")
    code, output = lint_imports(project_copy)
    assert code == 1
    assert f"{importer} is not allowed to import {imported}:" in output


def test_a_module_without_a_room_is_caught(project_copy: Path) -> None:
    (project_copy / "worldmtp" / "homeless.py").write_text('"""Named in no layer."""\n', encoding="utf-8")
    code, output = lint_imports(project_copy)
    assert code == 1
    assert "worldmtp.homeless" in output


def test_no_module_imports_itself_through_others() -> None:
    """Imports inside functions and those for type checkers count: they are the same tie, only better hidden."""
    graph = grimp.build_graph("worldmtp", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    order = list(graphlib.TopologicalSorter(imports).static_order())  # raises CycleError, which names the circle
    assert order.index("worldmtp.model.config") < order.index("worldmtp.model.model")


def test_the_environments_are_six_floors_high() -> None:
    """The longest chain of imports among their modules, each counted once; the package itself names them all."""
    graph = grimp.build_graph("worldmtp", cache_dir=None)
    rooms = {module for module in graph.modules if module.startswith("worldmtp.envs.")}
    imports = {module: graph.find_modules_directly_imported_by(module) & rooms for module in rooms}
    floors: dict[str, int] = {}
    for module in graphlib.TopologicalSorter(imports).static_order():
        floors[module] = 1 + max((floors[below] for below in imports[module]), default=0)
    assert max(floors.values()) == 6, sorted(floors.items(), key=lambda item: -item[1])[:8]
