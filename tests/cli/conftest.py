"""Composed configs of a run that takes a second: the built-in reversal task, a model of a few thousand weights."""

import copy
import functools
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from worldmtp.cli.schema import register

TINY = (
    "env=reverse",
    "+env.kwargs.pool_size=64",
    "model.config.hidden_size=16",
    "model.config.intermediate_size=32",
    "model.config.num_hidden_layers=1",
    "model.config.num_attention_heads=2",
    "model.config.num_key_value_heads=2",
    "model.config.head_dim=8",
    "sft.num_steps=3",
    "sft.num_demonstrations=64",
    "sft.batch_size=8",
    "sft.log_steps=1",
    "sft.save_steps=1",
    "agent.rollout.num_iterations=2",
    "agent.rollout.num_prompts=4",
    "agent.rollout.group_size=2",
    "world_model.num_updates=1",
    "eval.num_prompts=8",
    "checkpoint.every_iterations=1",
    "profile=cpu_smoke",
    "logger=jsonl",
)

_TIME = ("time_seconds", "time/")


@pytest.fixture
def run_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """Runs a command's ``main`` with a command line in this process; (exit code, stdout, stderr) of it alone."""

    def run(main: Callable[[], None], *argv: Any) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", [*map(str, argv)])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def tiny_overrides() -> tuple[str, ...]:
    """The command line of the run."""
    return TINY


@pytest.fixture(scope="session")
def compose() -> Callable[..., DictConfig]:
    """Composes as the command line does; the same options of groups once, which takes a fifth of a second.

    Hydra composes the options and then sets the values, one after another, by the function that is called here.
    """
    register()
    groups = "|".join(entry.name for entry in resources.files("worldmtp.configs").iterdir() if entry.is_dir())
    chosen = re.compile(rf"[+~]*((/?({groups})([/@].*)?)(=|$)|hydra[./])")
    parser = OverridesParser.create()

    @functools.cache
    def composed_by_hydra(overrides: tuple[str, ...]) -> DictConfig:
        with hydra.initialize_config_module("worldmtp.configs", version_base="1.3"):
            return hydra.compose("train", list(overrides))

    def composed(*overrides: str) -> DictConfig:
        options = [override for override in overrides if chosen.match(override)]
        values = [override for override in overrides if not chosen.match(override)]
        shared = [*itertools.takewhile(TINY.__contains__, values)]
        config = copy.deepcopy(composed_by_hydra((*options, *shared)))
        ConfigLoaderImpl._apply_overrides_to_config(parser.parse_overrides(values[len(shared) :]), config)
        return config

    return composed


@pytest.fixture(scope="session")
def compose_tiny(compose: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """The tiny run with further overrides; a model that is not made from a config is not given one."""

    def composed(*overrides: str) -> DictConfig:
        made = not any(override.startswith("model=") for override in overrides)
        return compose(*(value for value in TINY if made or not value.startswith("model.config.")), *overrides)

    return composed


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the report, which takes longer than the run and has tests of its own."""
    monkeypatch.setattr("worldmtp.training.pipeline.write_report", lambda run_dir: run_dir / "report.html")


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """A run sets the number of threads of its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def results_of() -> Callable[[Path], dict[str, Any]]:
    """Everything a run found: both logs without times, every array of the artefacts, every weight of both models."""
    return _results_of


def _results_of(run_dir: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = {name: _records(run_dir / name) for name in ("metrics.jsonl", "sft/metrics.jsonl")}
    for folder in ("artefacts", "attention", "sft/attention"):
        for path in sorted((run_dir / folder).glob("*.npz")):
            with np.load(path) as arrays:
                found[f"{folder}/{path.name}"] = {key: arrays[key].tobytes() for key in sorted(arrays.files)}
    for name in ("sft/model", "model"):
        weights = load_file(run_dir / name / "model.safetensors")
        found[name] = {key: weights[key].numpy().tobytes() for key in sorted(weights)}
    # Two logs, the artefacts of warm start and end, two models.
    assert len([name for name in found if "attention/" not in name]) == 6
    assert any(name.startswith("attention/") for name in found)
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        # The text of the config names nothing that differs; times do.
        {key: value for key, value in record.items() if not key.startswith(_TIME)}
        for record in records
    ]
