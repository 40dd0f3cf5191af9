"""A run from a dataclass: to its report, in a directory that is opened again; a failed start leaves nothing there."""

import errno
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import worldmtp
from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig
from worldmtp.agents.flat_returns import FlatReturnsWarning
from worldmtp.analysis import load_artefact
from worldmtp.analysis.conversations import episode_of, episodes_markdown
from worldmtp.checkpoint import latest_checkpoint, load_checkpoint
from worldmtp.cli.arguments import model_directory
from worldmtp.envs import CharTokenizer, read_episodes
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
from worldmtp.training.config import config_from_dict, config_to_dict, hyperparameters
from worldmtp.training.evaluation import evaluate_model
from worldmtp.training.run_dir import RunResult, read_config
from worldmtp.training.saved_model import load_model

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
NO_ITERATION = replace(CONFIG.agent.rollout, num_iterations=0)


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("worldmtp.training.pipeline.write_report", lambda run_dir: run_dir / "report.html")


def test_evaluating_the_warm_start_changes_no_weight(tmp_path):
    config = replace(CONFIG, sft=replace(CONFIG.sft, num_steps=3), agent=replace(CONFIG.agent, rollout=NO_ITERATION))
    run(config, tmp_path / "plain")
    run(replace(config, sft=replace(config.sft, eval_steps=2)), tmp_path / "watched")
    plain, watched = (load_file(tmp_path / name / "sft/model/model.safetensors") for name in ("plain", "watched"))
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    records = read_records(tmp_path / "watched" / "sft" / "metrics.jsonl")
    expected = ("eval/exact", "world_model/depth_4/wci", "attention/layer_1/goal", "heads/depth_3/drift")
    assert all([record["step"] for record in records if tag in record] == [0, 2] for tag in expected)
    drift = [record["heads/depth_3/drift"] for record in records if "heads/depth_3/drift" in record]
    assert drift[0] == 0.0
    assert drift[1] > 0.0
    entropies = [record["step"] for record in records if "eval/entropy" in record.get("histogram", {})]
    assert entropies == [0, 2]


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


def test_a_run_with_scored_completions_says_what_they_cost(tmp_path):
    imagination = ImaginationConfig(max_rung=0, horizon=1, completions="trunk", completion_samples=0)
    result = run(replace(CONFIG, imagination=imagination), tmp_path / "run")
    (note,) = [one for one in result.summary.notes if one.startswith("completions took ")]
    assert "times its real answers, and lifted r2 from" in note
    assert note in result.closing
    (record,) = [one for one in read_records(tmp_path / "run" / "metrics.jsonl") if "rollout/return_mean" in one]
    assert record["env/scorer_calls"] == 4
    assert 0 < record["env/imagined_scores"] <= record["imagination/completions"]


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"env": EnvConfig("worldmtp/Reverse-v0", {"heldout_fraction": np.float64(0.5)})},
            r"env\.kwargs\.heldout_fraction=.* is a float64, which",
        ),
        (
            {"model": ModelConfig(config={"torch_dtype": torch.float32})},
            r"model\.config\.torch_dtype=torch.float32 is a dtype, which config",
        ),
        (
            {"env": EnvConfig("worldmtp/Reverse-v0", {"tokenizer": CharTokenizer("ab")})},
            r"env\.kwargs\.tokenizer=<.* Char",
        ),
        ({"study": {"name": "a", "paths": [0, Path("b")]}}, r"study\.paths\.1=PosixPath\('b'\) is a PosixPath, which"),
    ],
)
def test_what_a_file_cannot_hold_is_named_before_there_is_a_directory(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(replace(CONFIG, **change), "runs/mine")
    assert list(tmp_path.iterdir()) == []


def test_a_start_on_a_full_disk_leaves_no_directory(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("worldmtp.training.run_dir.write_text", full)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"runs/mine cannot be written \(.*No space left.*\); choose another\.$"):
        run(CONFIG, "runs/mine")
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


def test_a_config_with_tuples_is_recognised_as_itself(tmp_path, monkeypatch):
    """A file has lists for them; the run is the same."""
    wrappers = [{"name": "action_mask", "ids": (1, (2,))}]
    config = replace(CONFIG, env=EnvConfig("worldmtp/Reverse-v0", {"levels": {"widths": (1, 2)}}, wrappers))
    found = RunResult(tmp_path, 0.5, "the closing table")
    monkeypatch.setattr("worldmtp.training.pipeline.execute", lambda *args: found)
    for resumes in (False, False, True):
        assert run(config, tmp_path / "run", resumes=resumes) == found
    with pytest.raises(
        ValueError, match=r"holds a run with another config\. Go on with .*, or choose another directory\.$"
    ):
        run(replace(config, seed=1), tmp_path / "run")


def test_a_run_that_goes_on_gives_the_model_of_its_earlier_end_and_says_so(tmp_path, capsys):
    run(CONFIG, tmp_path)
    more = replace(CONFIG.agent, rollout=replace(CONFIG.agent.rollout, num_iterations=3))
    stopped = CheckpointConfig(every_iterations=1, stop_after=2)
    run(replace(CONFIG, agent=more, checkpoint=stopped), tmp_path, resumes=True)
    last = latest_checkpoint(tmp_path / "checkpoints")
    assert last is not None
    went_on = load_checkpoint(last)["trainer"]["model"]
    earlier = load_model(tmp_path / "model").state_dict()
    capsys.readouterr()
    note = f"note: {tmp_path} has gone on and is not done; {tmp_path / 'model'} is what it was when last it came to an"
    model = worldmtp.open_run(tmp_path).model
    assert note in capsys.readouterr().err
    assert all(torch.equal(weight, earlier[name]) for name, weight in model.state_dict().items())
    assert not all(torch.equal(weight, earlier[name]) for name, weight in went_on.items())
    assert model_directory(tmp_path, "--model") == tmp_path / "model"
    assert note in capsys.readouterr().err
    run(replace(CONFIG, agent=more), tmp_path, resumes=True)
    capsys.readouterr()
    worldmtp.open_run(tmp_path)
    assert model_directory(tmp_path, "--model") == tmp_path / "model"
    assert "note:" not in capsys.readouterr().err


def test_an_opened_model_ends_its_logits_with_the_tokenizer_and_records_nothing(tmp_path):
    """Embeddings padded beyond the ids of Reverse, as many checkpoints have them; 10 letters, =, EOS and padding."""
    wide = replace(CONFIG.model, config={**CONFIG.model.config, "vocab_size": 64})
    recorder = {"name": "episode_recorder", "path": str(tmp_path / "episodes.jsonl")}
    config = replace(CONFIG, model=wide, env=replace(CONFIG.env, wrappers=[recorder]))
    run(config, tmp_path)
    model, _, env, _ = worldmtp.open_run(tmp_path)
    assert model.config.vocab_size == 64
    assert env.tokenizer.vocab_size == 13
    assert model(torch.tensor([[1, 2]])).logits.shape[-1] == 13
    evaluate_model(model, config.env, 4)
    # Two prompts, two answers to each, one iteration; held-out episodes are not of the training.
    assert [episode["split"] for episode in read_episodes(tmp_path / "episodes.jsonl")] == ["train"] * 4


def test_a_study_has_no_model_to_open(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_to_dict(replace(CONFIG, study={"name": "any"}))))
    (tmp_path / "DONE").touch()
    for opens in (worldmtp.open_run, lambda path: model_directory(path, "--model")):
        with pytest.raises(ValueError, match="is a study, which leaves tables and no model; give a training run"):
            opens(tmp_path)


def test_a_config_is_its_plain_values():
    assert config_from_dict(TrainConfig, config_to_dict(CONFIG)) == CONFIG
    values = config_to_dict(CONFIG)
    values["agent"]["ppo"]["lerning_rate"] = 1.0
    with pytest.raises(ValueError, match=r"a key of agent\.ppo='lerning_rate' is unknown; did you mean 'learning_ra"):
        config_from_dict(TrainConfig, values)
    with pytest.raises(ValueError, match=r"env: wrappers=\[3\]: 3 is neither a name nor a mapping of a name"):
        config_from_dict(TrainConfig, config_to_dict(CONFIG) | {"env": {"id": "x", "wrappers": [3]}})
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
    quick = "sft=SFTStageConfig(num_demonstrations=64, num_steps=1), eval=EvalConfig(num_prompts=4, num_imagined=1),"
    assert "    profile=" in block
    block = block.replace("    profile=", f"    {quick}\n    profile=")
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


def test_a_run_keeps_scenes_at_every_evaluation_and_a_resumed_one_the_same(tmp_path):
    rollout = replace(CONFIG.agent.rollout, num_iterations=3)
    logged = replace(CONFIG.logger, num_strips=2)
    config = replace(CONFIG, agent=replace(CONFIG.agent, rollout=rollout), logger=logged)
    config = replace(config, eval=replace(config.eval, every_iterations=1))
    run(config, tmp_path / "whole")
    whole = read_records(tmp_path / "whole" / "imagination.jsonl")
    log = read_records(tmp_path / "whole" / "metrics.jsonl")
    # TensorBoard draws a margin only where the value and both of its ends have the same steps.
    steps, *ends = (
        [record["step"] for record in log if tag in record]
        for tag in ("eval/exact", "eval/exact_lo90", "eval/exact_hi90")
    )
    assert ends == [steps, steps]
    assert [record["step"] for record in whole] == steps
    assert len(whole) == 4
    artefact = load_artefact(tmp_path / "whole" / "artefacts", "final")
    for row, scene in enumerate(whole[-1]["scenes"]):
        texts = [artefact.tokens_text[token] for token in artefact.input_ids[row][artefact.attention_mask[row]]]
        assert scene["tokens"] == texts
        assert all(len(guess["top"]) == 5 for said in scene["predicted"] for guess in said["guesses"] if guess)
        assert len(scene["imagined"]) > 0
    # Nothing has taught the world heads before the first iteration.
    assert {value for scene in whole[0]["scenes"] for value in scene["imagined_return"]} == {None}
    assert any(value is not None for value in whole[-1]["scenes"][0]["imagined_return"])

    stops = replace(config, checkpoint=replace(config.checkpoint, stop_after=2))
    run(stops, tmp_path / "cut")
    with (tmp_path / "cut" / "imagination.jsonl").open("a") as file:  # killed while it wrote, after its last checkpoint
        file.write(json.dumps(whole[-1] | {"scenes": []}) + '\n{"step": 3, "sce')
    run(config, tmp_path / "cut", resumes=True)
    assert read_records(tmp_path / "cut" / "imagination.jsonl") == whole


def test_without_strips_no_scenes_are_kept(tmp_path):
    run(CONFIG, tmp_path / "run")
    assert not (tmp_path / "run" / "imagination.jsonl").exists()


def test_the_settings_that_runs_are_compared_by():
    found = hyperparameters(CONFIG)
    assert (found["env.id"], found["seed"], found["model.path"]) == ("worldmtp/Reverse-v0", 0, "None")
    assert (found["imagination.use"], found["sft.learning_rate"]) == ("counterfactual", 2e-3)
    assert found["agent.rollout.act"] == "policy"
