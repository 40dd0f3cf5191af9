"""``docs/extending.md``: each file of the page is written, its command line run on a tiny run, its checks executed."""

import re
import shlex
import sys
from types import SimpleNamespace

import pytest
import torch

from worldmtp import MTPConfig, MTPModel
from worldmtp.cli.train import run

pytestmark = pytest.mark.usefixtures("no_report")

FILES = ("my_heads.py", "my_world_models.py", "my_estimators.py", "my_studies.py")


@pytest.fixture
def page(project_root):
    return (project_root / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture
def here(page, monkeypatch, tmp_path):
    """The page's files in an empty directory on the path; what they register is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    from worldmtp.dynamics.backends import WORLD_MODELS
    from worldmtp.heads.registry import _FAMILIES

    for registry in (WORLD_MODELS, _FAMILIES):
        for name in dict(registry):
            monkeypatch.setitem(registry, name, registry[name])
    known = (set(WORLD_MODELS), set(_FAMILIES))
    written = re.findall(r"In `(my_\w+\.py)`:\n\n```python\n(.*?)```", page, flags=re.DOTALL)
    assert tuple(name for name, _ in written) == FILES
    for name, text in written:
        (tmp_path / name).write_text(text)
    yield tmp_path
    for registry, names in zip((WORLD_MODELS, _FAMILIES), known, strict=True):
        for name in set(registry) - names:
            del registry[name]
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def overrides_of(page, file):
    """The command line printed for a file, without the words before its overrides."""
    (line,) = [one for one in re.findall(r"^worldmtp train (.*)$", page, flags=re.MULTILINE) if file in one]
    return shlex.split(line)


@pytest.mark.parametrize("file", ["my_heads.py", "my_world_models.py"])
def test_the_command_trains(page, here, compose_tiny, file):
    run(compose_tiny(*overrides_of(page, file), "sft.num_steps=1", "agent.rollout.num_iterations=1"), here / "run")
    assert (here / "run" / "DONE").exists()


def test_the_study_runs_and_goes_on_after_a_result_is_lost(page, here, compose):
    overrides = overrides_of(page, "my_studies:Coins")
    run(compose(*overrides), here / "run")
    found = (here / "run" / "study.md").read_text()
    lost = sorted((here / "run" / "arms").glob("*.json"))[0]
    lost.unlink()
    (here / "run" / "DONE").unlink()
    run(compose(*overrides), here / "run")
    assert lost.exists()
    assert (here / "run" / "study.md").read_text() == found
    bent = [int(heads) for heads in re.findall(r"\| bent \| (\d+) \|", found)]
    # 1000 flips at 0.9: outside of 850 .. 950, five standard deviations, once in a million runs; the seeds are fixed.
    assert len(bent) == 2
    assert all(850 < heads < 950 for heads in bent)


def test_the_laws_of_a_world_model_hold(page, here, tiny_trunk):
    import my_world_models  # noqa: F401 - registers

    (block,) = [one for one in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "commute" in one]
    config = MTPConfig(head="sequential", depth=3)
    model = MTPModel.from_trunk(tiny_trunk("llama"), config, torch.Generator().manual_seed(0))
    exec(compile(block, "docs/extending.md", "exec"), {"model": model})


def test_the_estimator_bounds_what_plain_ppo_says(here, monkeypatch):
    from my_estimators import ClippedAdvantages

    from worldmtp.agents import PPOConfig
    from worldmtp.agents.advantages import AdvantageEstimator, PlainAdvantages

    said = SimpleNamespace(advantages=torch.tensor([[5.0, -5.0, 1.0]]))
    monkeypatch.setattr(PlainAdvantages, "estimate", lambda self, rollout, stats, states: (said, {}))
    estimator = ClippedAdvantages(PPOConfig())
    assert isinstance(estimator, AdvantageEstimator)
    plan, _ = estimator.estimate(None, None)
    assert plan.advantages.tolist() == [[3.0, -3.0, 1.0]]
