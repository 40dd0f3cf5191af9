"""``experiment=grpo_chain_sum`` and its like: composed, refused where they cannot be, killed and taken up again."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

import worldmtp
from worldmtp.checkpoint import CheckpointError
from worldmtp.cli.__main__ import main
from worldmtp.cli.resume import resumed_config
from worldmtp.cli.schema import build
from worldmtp.training import TrainConfig
from worldmtp.training import run as run_config
from worldmtp.training.evaluation import evaluate_model
from worldmtp.training.make import make_env
from worldmtp.training.trl_log import StepCallback
from worldmtp.training.trl_stage import TrainerStage

pytestmark = pytest.mark.filterwarnings("ignore")

EXPERIMENTS = {
    "sft_code": "sft",
    "dpo_chain_sum": "dpo",
    "kto_chain_sum": "kto",
    "grpo_chain_sum": "grpo",
    "rloo_chain_sum": "rloo",
    "ppo_chain_sum": "ppo",
    "ppo_guess_number": "ppo",
}
SMALL = (
    "imagination=off",
    "post_training.num_steps=4",
    "post_training.batch_size=4",
    "post_training.group_size=2",
    "post_training.num_prompts=16",
    "checkpoint.every_iterations=2",
    "eval.every_iterations=1",
)


def records(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_experiment_is_composed_and_its_trainer_accepts_it(compose, tmp_path, experiment):
    config = build(TrainConfig, compose(f"experiment={experiment}"))
    assert (config.name, config.post_training.trainer) == (experiment, EXPERIMENTS[experiment])
    stage = TrainerStage(config, make_env(config.env, 1), tmp_path)
    assert type(stage.args).__name__ == f"MTP{EXPERIMENTS[experiment].upper()}Config"
    assert stage.args.max_steps == config.post_training.num_steps
    assert not list(tmp_path.iterdir())


def test_a_device_that_a_trainer_would_not_take_is_refused(compose, tmp_path):
    config = build(TrainConfig, compose("experiment=grpo_chain_sum", "profile=gpu", "profile.device=cuda:1"))
    with pytest.raises(ValueError, match=r"device=cuda:1: .* set profile\.device=cuda and CUDA_VISIBLE"):
        TrainerStage(config, make_env(config.env, 1), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["imagination=counterfactual"],
            "counterfactual makes advantages .*=grpo has none of; set imagination=off, or post_training.trainer=ppo",
        ),
        (
            ["post_training.trainer=ppo", "imagination=search"],
            "trainer=ppo: imagination=search acts in the agent's own loop; set imagination=counterfactual or baseline",
        ),
        (
            ["post_training.trainer=ppo", "imagination=counterfactual", "+post_training.options.gamma=0.9"],
            r"trainer=ppo: gamma=0\.9 with imagination=counterfactual: .*; set gamma=1",
        ),
        (
            ["post_training.trainer=ppo", "imagination=counterfactual", "imagination.completions=trunk"],
            "trainer=ppo: imagination.completions=trunk asks .* set imagination.completions=none",
        ),
        (["+post_training.options.los_type=grpo"], "'los_type' is unknown; did you mean 'loss_type'"),
        (["+post_training.options.max_steps=3"], r"post_training\.options\.max_steps has a key of its own"),
        (["+post_training.options.save_only_model=true"], r"options\.save_only_model: a run saves, logs and evaluates"),
        (["+post_training.options.eval_strategy=steps"], r"options\.eval_strategy: a run saves, logs and evaluates"),
        (
            ["post_training.group_size=3"],
            r"trainer=grpo: generation_batch_size \(4\) must be divisible by num_generations \(3\)",
        ),
        (["post_training.mtp.tokens=polcy"], "mtp_tokens='polcy' is unknown; did you mean 'policy'"),
        (["env.wrappers=[action_mask]"], "env.wrappers=.'action_mask'.: TRL's losses"),
        (["post_training.trainer=sft", "post_training.beta=0.1"], "post_training.beta=0.1: sft has no reference"),
        (["env=guess_number", "env.wrappers=[]", "post_training.trainer=rloo"], "rloo: .* is a conversation, which"),
        (
            ["post_training.trainer=dpo", "post_training.group_size=1"],
            "group_size=1: dpo pairs .* set at least 2, or post_training.trainer=kto",
        ),
        (["post_training.trainer=kto", "post_training.batch_size=1"], "batch_size=1: kto estimates its KL from"),
        (
            ["post_training.num_prompts=1"],
            r"there are 1 training prompts \(post_training.num_prompts=1\) and a sampled batch has 2",
        ),
        (  # more are asked for than the task has
            [
                "post_training.batch_size=128",
                "post_training.group_size=1",
                "post_training.num_prompts=4096",
                "post_training.trainer=ppo",
            ],
            r"there are \d\d training prompts .*=4096\) and a sampled batch has 128",
        ),
    ],
)
def test_what_a_trainer_cannot_do_is_refused_before_anything_is_trained(compose_tiny, tmp_path, overrides, message):
    config = compose_tiny(*SMALL, "post_training.trainer=grpo", *overrides)
    with pytest.raises(ValueError, match=message):
        run_config(build(TrainConfig, config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Killed(BaseException):
    """As a signal would end the process: nothing catches it on the way."""


def killed_after(monkeypatch, step):
    end = StepCallback.on_step_end

    def dies(self, args, state, control, **kwargs):
        end(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise Killed

    monkeypatch.setattr(StepCallback, "on_step_end", dies)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("trainer", "more"),
    [
        ("sft", ()),
        ("dpo", ()),
        ("grpo", ("post_training.beta=0.1",)),
        # Two epochs of two minibatches: every checkpoint but the last stands in the middle of a batch.
        (
            "ppo",
            ("+post_training.options={num_iterations: 2, steps_per_generation: 2}", "checkpoint.every_iterations=1"),
        ),
        ("ppo", ("imagination=counterfactual", "imagination.horizon=1")),
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(compose_tiny, results_of, tmp_path, monkeypatch, trainer, more):
    node = compose_tiny(*SMALL, f"post_training.trainer={trainer}", *more)
    config = build(TrainConfig, node)
    run_config(config, tmp_path / "whole")
    killed = tmp_path / "killed"
    for step in (1, 3):  # with checkpoints at 2 and 4, before the first and behind it
        with monkeypatch.context() as patch:
            killed_after(patch, step)
            with pytest.raises(Killed):
                run_config(config, killed)
        assert not (killed / "DONE").exists()
    answers = killed / "post_training" / "answers.jsonl"
    assert answers.exists() == (trainer == "dpo")
    run_config(build(TrainConfig, resumed_config(killed, [])), killed, resumes=True)
    assert results_of(killed) == results_of(tmp_path / "whole")
    steps = [record["step"] for record in records(killed) if "trl/loss" in record]
    assert steps == [1, 2, 3, 4]


@pytest.mark.usefixtures("no_report")
def test_a_run_logs_evaluates_saves_and_opens(compose_tiny, tmp_path, capsys):
    overrides = (*SMALL, "post_training.trainer=grpo", "post_training.num_steps=2")
    config = build(TrainConfig, compose_tiny(*overrides, "post_training.mtp.coef=0.5"))
    result = run_config(config, tmp_path)
    assert result.summary is not None
    assert [arm.arm for arm in result.summary.arms] == ["SFT", "GRPO, TRL, heads' lambda 0.5"]
    found = records(tmp_path)
    assert [record["step"] for record in found if "eval/exact" in record] == [0, 1, 2]
    steps = [record for record in found if "trl/loss" in record]
    assert [record["step"] for record in steps] == [1, 2]
    logged = {"rollout/return_mean", "rollout/exact_mean", "losses/entropy", "trl/mtp/loss_depth_2", "trl/mtp/coef"}
    assert logged <= steps[0].keys()
    assert steps[0]["trl/mtp/coef"] == 0.5
    kinds = [{*record.get("text", {}), *record.get("histogram", {})} for record in found if record["step"] == 2]
    assert {"samples/heldout", "eval/entropy"} <= set().union(*kinds)
    # What was measured inside the trainer is what the saved model does.
    opened = worldmtp.open_run(tmp_path)
    measured = evaluate_model(opened.model, config.env, config.eval.num_prompts, seed=config.seed)
    assert (measured.exact, measured.exact_sampled) == (
        result.summary.arms[1].exact,
        result.summary.arms[1].exact_sampled,
    )
    last = [record for record in found if "eval/exact" in record][-1]
    assert (last["eval/score"], last["eval/score_sampled"]) == (measured.score, measured.score_sampled)
    with pytest.raises(ValueError, match=r"this run is done; read its report\.html"):
        resumed_config(tmp_path, [])


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("use", ["counterfactual", "baseline"])
def test_ppo_on_trl_imagines_and_logs_as_the_agent(compose_tiny, tmp_path, use):
    overrides = (*SMALL, "post_training.trainer=ppo", "post_training.num_steps=2", f"imagination={use}")
    config = build(TrainConfig, compose_tiny(*overrides, "imagination.horizon=1", "post_training.mtp.coef=0.5"))
    result = run_config(config, tmp_path)
    assert [arm.arm for arm in result.summary.arms] == ["SFT", f"PPO, TRL, {use}, heads' lambda 0.5"]
    assert result.summary.arms[1].imagined_return is not None
    steps = [record for record in records(tmp_path) if "trl/loss" in record]
    assert [record["imagination/gate_open"] for record in steps] == [0.0, 0.0]
    own = "imagination/tail_taken_fraction" if use == "counterfactual" else "imagination/weight_h0"
    assert {"imagination/r2", "imagination/rung_0/r2"} & steps[0].keys()
    assert {own, "imagination/return_corr", "losses/policy"} <= steps[0].keys()
    assert ["world_model/loss" in record for record in steps] == [False, True]


@pytest.mark.usefixtures("no_report")
def test_a_run_stops_where_it_was_asked_to(compose_tiny, tmp_path):
    config = compose_tiny(*SMALL, "post_training.trainer=sft", "checkpoint.stop_after=2", "sft.num_steps=0")
    result = run_config(build(TrainConfig, config), tmp_path)
    assert result.closing == f"stopped after step 2; go on with resume={tmp_path}"
    assert [record["step"] for record in records(tmp_path) if "trl/loss" in record] == [1, 2]
    shutil.rmtree(tmp_path / "post_training")
    opened_under = tmp_path / "metrics.jsonl"
    opened_under.write_text(opened_under.read_text().replace("every_iterations: 2", "every_iterations: 1"))
    with pytest.raises(CheckpointError, match=r"has logged 2 iterations and .*trainer holds no checkpoint"):
        run_config(build(TrainConfig, config), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_experiment_runs_to_its_report_and_its_model_is_opened(compose, tmp_path, monkeypatch, capsys, experiment):
    config = build(TrainConfig, compose(f"experiment={experiment}", "profile=debug"))
    result = run_config(config, tmp_path)
    assert result.summary is not None
    assert result.summary.arms[-1].arm.startswith(f"{EXPERIMENTS[experiment].upper()}, TRL")
    assert [record["step"] for record in records(tmp_path) if "trl/loss" in record] == [1, 2]
    report = (tmp_path / "report.html").read_text()
    assert "Not in this report" not in report
    assert "Learning" in report
    assert {"tensorboard", "model", "post_training"} <= {path.name for path in tmp_path.iterdir()}
    model = worldmtp.open_run(tmp_path).model
    assert model.config.depth == config.model.depth

    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["worldmtp", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    arguments = (
        "eval",
        "--model",
        tmp_path,
        "--env",
        config.env.id,
        "--num-prompts",
        config.eval.num_prompts,
        "--json",
    )
    evaluated = json.loads(command(*arguments))
    assert evaluated["exact"] == asdict(result.summary.arms[-1].exact)
    if experiment != "ppo_guess_number":
        assert command("generate", "--model", tmp_path, "1+1=").startswith("1+1=")
