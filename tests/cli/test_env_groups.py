"""Every shipped ``env=`` option starts as it is: nothing else is given but a tiny model, and fewer steps of it."""

import json
from importlib import resources

import gymnasium
import pytest
from omegaconf import OmegaConf

from worldmtp.cli.options import generated_options, option_name
from worldmtp.cli.schema import build
from worldmtp.cli.train import run
from worldmtp.envs.catalogue import EXACT_WORLDS, WORLD_TASKS
from worldmtp.envs.make import make_text_vec
from worldmtp.training import TrainConfig, pipeline

FILES = {
    entry.name.removesuffix(".yaml")
    for entry in (resources.files("worldmtp.configs") / "env").iterdir()
    if entry.name.endswith(".yaml")
}
OPTIONS = sorted(FILES | {option_name(env_id) for env_id in gymnasium.registry if env_id.startswith("worldmtp/")})
WORLDS = tuple(option_name(f"worldmtp/{name}-v0") for name in WORLD_TASKS)
SOURCES = tuple(option_name(f"worldmtp/{name}-v0") for name in EXACT_WORLDS)
NOTED = {
    "brackets": ["eval.num_prompts=512", "sft.num_demonstrations=4000"],
    "caesar_cipher": ["eval.num_prompts=512", "sft.num_demonstrations=4000"],
    "increasing_numbers": ["sft.num_demonstrations=4000"],
    "data": ["eval.num_prompts=512", "sft.num_demonstrations=4000"],
    "reward_model": ["sft.num_steps=160"],
    "taxi_dry": ["eval.num_prompts=64"],
}
"""What asks for more prompts or answers than the task has, and is said so."""
FAST = (*sorted(FILES - {"path_star"}), "chain_sum", "copy", "frozen_lake", "increasing_numbers", "mess3", "pig")
"""One of each kind; generated options differ in the id alone, and all others start with the slow tests."""

MODEL = (
    "model.config.hidden_size=16",
    "model.config.intermediate_size=32",
    "model.config.num_hidden_layers=1",
    "model.config.num_attention_heads=2",
    "model.config.num_key_value_heads=2",
    "model.config.head_dim=8",
)
BUDGET = (
    "agent.rollout.num_iterations=1",
    "agent.rollout.num_prompts=2",
    "agent.rollout.group_size=2",
    "world_model.num_updates=1",
    "sft.batch_size=8",
    "eval.num_prompts=8",
    "logger=jsonl",
)


@pytest.fixture
def compose_option(compose, tmp_path):
    """The option with what it cannot do without."""

    def composed(option, *overrides):
        needed = {"custom": lambda: ["env.id=worldmtp/Reverse-v0"], "data": file, "reward_model": checkpoint}
        return compose(f"env={option}", *needed.get(option, list)(), *MODEL, *overrides)

    def file():
        path = tmp_path / "questions.jsonl"
        rows = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(800)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [f"env.kwargs.task_kwargs.path={path}"]

    def checkpoint():
        from transformers import LlamaConfig, LlamaForSequenceClassification

        from worldmtp.envs import CharTokenizer

        tokenizer = CharTokenizer().to_transformers()  # a judge must be able to read what a policy can write
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
        path = tmp_path / "classifier"
        LlamaForSequenceClassification(config).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return [f"env.kwargs.task_kwargs.checkpoint={path}"]

    return composed


@pytest.mark.parametrize(
    "option", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS]
)
def test_every_option_starts_with_defaults(compose_option, tmp_path, monkeypatch, capsys, option):
    monkeypatch.setattr(pipeline.Pipeline, "run", lambda self: 0.5)
    config = compose_option(option)
    if option in WORLDS:
        assert (config.sft.num_steps, config.agent.ppo.advantage, config.imagination.use) == (0, "gae", "off")
        assert config.env.kwargs.max_turn == 1
    assert run(config, tmp_path / "run") == 0.5
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert [note.removeprefix("note: ").partition(":")[0] for note in notes] == NOTED.get(option, [])


def test_every_generated_option_chooses_a_registered_environment():
    made = [option for option in generated_options() if option.group == "env"]
    generated = {option.name: option.node for option in made if option.name in OPTIONS}  # other tests register more
    assert set(OPTIONS) == FILES | set(generated)
    for name, node in generated.items():
        env = node.get("env", node)
        assert option_name(env["id"]) == name
        assert env["id"] in gymnasium.registry
        # Sources show what a command line may change; what they are made with stays as it is registered.
        assert ("task_kwargs" in env["kwargs"]) == (name in SOURCES)
        known = {key: gymnasium.spec(env["id"]).kwargs[key] for key in env["kwargs"] if name in SOURCES}
        assert env["kwargs"] == ({"max_turn": 1} if name in WORLDS else known)


@pytest.mark.parametrize("option", ["path_star", "taxi", "grid_world"])
def test_an_option_that_starts_with_the_slow_tests_composes(compose_option, option):
    assert build(TrainConfig, compose_option(option)).env.id in gymnasium.registry


@pytest.mark.parametrize("option", ["pig", "guess_number"])
def test_settings_of_a_world_give_way_to_the_command_line(compose, option):
    assert compose(f"env={option}").model.config.hidden_size == 64
    chosen = compose(f"env={option}", "agent=ppo", "imagination=baseline", "env.kwargs.max_turn=3", "sft.num_steps=4")
    assert (chosen.sft.num_steps, chosen.agent.ppo.advantage, chosen.imagination.use) == (4, "gae", "baseline")
    assert chosen.env.kwargs.max_turn == 3


@pytest.mark.parametrize("option", ["dyck", "mess3"])
def test_worlds_of_a_known_law_bring_settings_of_their_own(compose, option):
    config = compose(f"env={option}")
    assert (config.model.config.hidden_size, config.sft.num_steps, config.agent.rollout.num_iterations) == (64, 800, 10)
    chosen = compose(f"env={option}", "model=qwen3_tiny", "sft.num_steps=4")
    assert (chosen.model.config.hidden_size, chosen.sft.num_steps) == (128, 4)


def test_a_world_of_a_known_law_stays_the_same_source_with_another_length(compose):
    """As docs/environments.md has it."""
    task_kwargs = ("+env.kwargs.task_kwargs.source_kwargs.max_depth=2", "env.kwargs.task_kwargs.prefix_length=8")
    env = compose("env=dyck", *task_kwargs).env
    law = make_text_vec(env.id, 1, **OmegaConf.to_container(env.kwargs)).task.law
    # Stacks of at most two of two kinds, 1 + 2 + 4, and the end.
    assert (law.symbols, law.source.num_states, law.prefix_length) == ("([)].", 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_trains(compose_option, no_report, tmp_path, option):
    steps = () if option in WORLDS else ("sft.num_steps=1",)
    run(compose_option(option, *BUDGET, *steps), tmp_path / "run")
    assert (tmp_path / "run" / "DONE").exists()
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum("rollout/return_mean" in record for record in log) == 1
