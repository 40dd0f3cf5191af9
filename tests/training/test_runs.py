"""A run from a dataclass: to its report, in a directory that is opened again; a failed start leaves nothing there."""

import re
from dataclasses import replace

import pytest
import torch

import worldmtp
from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig
from worldmtp.agents.flat_returns import FlatReturnsWarning
from worldmtp.analysis import load_artefact
from worldmtp.analysis.conversations import episode_of, episodes_markdown
from worldmtp.checkpoint import latest_checkpoint, load_checkpoint
from worldmtp.tracking import read_records
from worldmtp.training import (
    AgentConfig,
    CheckpointConfig,
    EnvConfig,
    EvalConfig,
    LoggerConfig,
    ModelConfig,
    ProfileConfig,
    SFTStageConfig,
    TrainConfig,
    run,
)
from worldmtp.training.config import config_from_dict, config_to_dict
from worldmtp.training.run_dir import read_config

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = TrainConfig(
    env=EnvConfig("worldmtp/Reverse-v0", {"pool_size": 64}),
    model=ModelConfig(architecture="qwen3", config=SIZES | {"num_key_value_heads": 2, "head_dim": 8}),
    agent=AgentConfig(RolloutConfig(num_iterations=1, num_prompts=2, group_size=2), PPOConfig()),
    sft=SFTStageConfig(num_demonstrations=16, num_steps=1, batch_size=8, log_steps=1, save_steps=1),
    eval=EvalConfig(num_prompts=4, num_imagined=1),
    checkpoint=CheckpointConfig(every_iterations=1),
    profile=ProfileConfig(num_threads=1),
    logger=LoggerConfig(tensorboard=False, num_strips=0),
)


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("worldmtp.training.pipeline.write_report", lambda run_dir: run_dir / "report.html")


def test_a_run_from_a_dataclass_is_done_and_opened_again(tmp_path, monkeypatch):
    directory = tmp_path / "runs" / "mine"
    result = run(CONFIG, directory)
    assert result.directory == directory
    assert (directory / "DONE").exists()
    assert result.summary is not None
    assert [arm.arm for arm in result.summary.arms] == ["SFT", "PPO, counterfactual, mtp"]
    assert result.headline == result.summary.arms[-1].exact.estimate
    assert "exact match, sampled" in result.closing
    assert read_config(directory) == CONFIG
    model, tokenizer, environment, config = worldmtp.open_run(directory)
    assert config == CONFIG
    assert not model.training
    assert tokenizer is not None
    assert tokenizer.decode(environment.tokenizer.encode("abc")) == "abc"
    assert environment.num_envs == 1
    last = latest_checkpoint(directory / "checkpoints")
    assert last is not None
    trained = load_checkpoint(last)["trainer"]["model"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, trained[name]), name

    def trains(*args):
        raise AssertionError("a run that is done does not train again")

    monkeypatch.setattr("worldmtp.training.pipeline.execute", trains)
    again = run(CONFIG, directory)
    assert (again.headline, again.summary) == (result.headline, result.summary)
    other = replace(CONFIG, agent=AgentConfig(CONFIG.agent.rollout, replace(CONFIG.agent.ppo, gamma=0.5)), seed=1)
    with pytest.raises(ValueError, match=r"so \['agent\.ppo\.gamma', 'seed'\] cannot be changed"):
        run(other, directory, resumes=True)


def test_a_run_whose_returns_never_differ_says_so_in_its_log_and_at_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("worldmtp.agents.trainer.episode_returns", lambda rollout: torch.zeros(len(rollout)))
    monkeypatch.setattr("worldmtp.agents.flat_returns.NUM_FLAT_ITERATIONS", 1)
    with pytest.warns(FlatReturnsWarning):
        result = run(CONFIG, tmp_path / "run")
    said = "all returns of iterations 1 to 1 were 0, so that nothing could be learnt from them. Try easier questions"
    assert result.closing.count(said) == 1
    assert f"[WARNING] {said}" in (tmp_path / "run" / "train.log").read_text()


def test_a_world_is_told_turn_by_turn_at_each_evaluation(tmp_path):
    """Before the first iteration, after it and at the end: as the artefacts of the first and the last have it."""
    agent = AgentConfig(replace(CONFIG.agent.rollout, num_iterations=2), PPOConfig(observation_coef=0.5))
    world = EnvConfig("worldmtp/GuessNumber-v0", {"pool_size": 16, "max_turn": 2})
    sft, evaluation = replace(CONFIG.sft, num_steps=0), replace(CONFIG.eval, every_iterations=1)
    config = replace(CONFIG, env=world, agent=agent, sft=sft, eval=evaluation, imagination=ImaginationConfig(use="off"))
    run(config, tmp_path / "run")
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    told = [record["text"]["samples/heldout"] for record in records if "samples/heldout" in record.get("text", {})]
    assert len(told) == 3
    assert [one.count("**Episode") for one in told] == [4, 4, 4]
    assert all(one.count("\nworld ") > 4 < one.count("\npolicy ") for one in told)
    for name, text in (("start", told[0]), ("final", told[2])):
        artefact = load_artefact(tmp_path / "run" / "artefacts", name)
        assert text == episodes_markdown([episode_of(artefact, row) for row in range(4)])
    assert sum(record.get("losses/observation", 0.0) > 0 for record in records) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": EnvConfig("worldmtp/Revers-v0")}, "env.id="),
        ({"profile": ProfileConfig(device="cpuu")}, "profile.device='cpuu' is no device"),
        ({"model": ModelConfig(architecture="qwen3", config={"hidden_sizes": 16})}, "model.config.hidden_sizes"),
        (
            {"agent": AgentConfig(RolloutConfig(num_iterations=1), PPOConfig(observation_coef=0.1))},
            r"agent\.ppo\.observation_coef=0\.1 with Reverse, which writes nothing after the prompt",
        ),
    ],
)
def test_a_failed_start_leaves_no_directory(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(replace(CONFIG, **change), "runs/mine")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_start_leaves_what_was_there(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no device"):
        run(replace(CONFIG, profile=ProfileConfig(device="cpuu")), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "config.yaml").exists()


def test_a_run_that_has_started_keeps_its_directory_when_it_fails(tmp_path, monkeypatch):
    def fails(self):
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr("worldmtp.training.pipeline.Pipeline.run", fails)
    with pytest.raises(FloatingPointError, match="not finite"):
        run(CONFIG, tmp_path / "run")
    assert read_config(tmp_path / "run") == CONFIG
    assert "failed: the loss is not finite" in (tmp_path / "run" / "train.log").read_text()


def test_a_config_is_its_plain_values():
    assert config_from_dict(TrainConfig, config_to_dict(CONFIG)) == CONFIG
    values = config_to_dict(CONFIG)
    values["agent"]["ppo"]["lerning_rate"] = 1.0
    with pytest.raises(ValueError, match=r"a key of agent\.ppo='lerning_rate' is unknown; did you mean 'learning_ra"):
        config_from_dict(TrainConfig, values)
    agent = values["agent"] | {"ppo": {"gamma": 2.0}}
    with pytest.raises(ValueError, match=r"agent\.ppo: gamma=2\.0 must be in"):
        config_from_dict(TrainConfig, values | {"agent": agent})


@pytest.mark.parametrize("content", [None, "- a\n"])
def test_a_directory_that_is_no_run_is_not_opened(tmp_path, content):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match="give the directory of a run"):
        worldmtp.open_run(tmp_path)


def test_the_readme_trains_and_opens_its_run(tmp_path, monkeypatch, project_root, capsys):
    """The block of the page as it is, but for its sizes."""
    text = (project_root / "README.md").read_text(encoding="utf-8")
    (block,) = [one for one in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "TrainConfig" in one]
    monkeypatch.chdir(tmp_path)
    for large, small in (("num_iterations=40", "num_iterations=0"), ("128", "16"), ("384", "32")):
        assert large in block
        block = block.replace(large, small)
    sft = ", sft=SFTStageConfig(num_demonstrations=64, num_steps=1), eval=EvalConfig(num_prompts=4, num_imagined=1))"
    block = block.replace("PPOConfig()),\n)", f"PPOConfig()){sft}")
    block = block.replace("import AgentConfig", "import EvalConfig, SFTStageConfig, AgentConfig")
    scope = {}
    exec(compile(block, "README.md", "exec"), scope)
    assert capsys.readouterr().out.startswith(str(scope["result"].headline))
    assert (tmp_path / "runs" / "mine" / "DONE").exists()
    assert scope["config"].model.architecture == "llama"


@pytest.mark.parametrize("content", [b"env: [", b"\xff\xfe\x00"], ids=["yaml", "bytes"])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.yaml is damaged: (.|\n)*; put back the file that the run wrote"):
        read_config(tmp_path)
