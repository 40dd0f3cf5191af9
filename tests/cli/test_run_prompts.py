"""What a run is trained and measured on: streams of the run's seed, nothing shown twice, small data as they are."""

import json
from dataclasses import replace

import pytest

from worldmtp.cli.make import make_env
from worldmtp.cli.run_prompts import choose_pool, draw_run_prompts
from worldmtp.cli.schema import TrainConfig, build
from worldmtp.cli.train import run
from worldmtp.envs import Example, split_of
from worldmtp.random import stream_seed


@pytest.fixture
def config_of(compose):
    def config(*overrides):
        return build(TrainConfig, compose(*overrides))

    return config


def keys(examples):
    return {example.key for example in examples}


def prompts_of(config):
    env = make_env(config.env, 4)
    prompts = draw_run_prompts(env, config)
    overlap, notes = choose_pool(env, prompts, config)
    return env, prompts, overlap, prompts.notes + notes


def test_the_quickstart_trains_on_nothing_that_the_warm_start_has_shown(config_of):
    shown, pools, held_out = [], [], []
    for seed in (0, 1, 2):
        config = config_of("experiment=quickstart", f"seed={seed}", "sft.num_demonstrations=3000")
        env, prompts, overlap, notes = prompts_of(config)
        pool = env.problem.pool("train").examples
        assert (len(prompts.demonstrations), len(prompts.held_out), len(pool)) == (3000, 512, 4096)
        assert not keys(prompts.demonstrations) & keys(pool)
        assert (overlap, notes) == (0.0, ())
        assert not keys(prompts.held_out) & (keys(prompts.demonstrations) | keys(pool))
        shown.append(keys(prompts.demonstrations))
        pools.append(keys(pool))
        held_out.append(keys(prompts.held_out))
    for drawn in (shown, pools, held_out):  # what two seeds have in common is chance: the task has some 10^4 words
        assert all(len(drawn[i] & drawn[j]) < 0.5 * len(drawn[i]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_prompts_are_shared_where_the_config_says_so(config_of):
    config = config_of("env=reverse", "sft.share_prompts=true", "sft.num_demonstrations=500")
    env, prompts, overlap, _ = prompts_of(config)
    pool = keys(env.problem.pool("train").examples)
    assert overlap == pytest.approx(len(pool & keys(prompts.demonstrations)) / len(pool))
    free = replace(config, env=replace(config.env, kwargs={"pool_seed": 7}))
    assert keys(prompts_of(free)[0].problem.pool("train").examples) != pool


@pytest.fixture
def sums(tmp_path):
    """So many questions in a file."""

    def written(count):
        path = tmp_path / "sums.jsonl"
        rows = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ("env=data", f"env.kwargs.task_kwargs.path={path}")

    return written


def test_small_data_are_halved_and_a_note_names_the_key(config_of, sums):
    env, prompts, overlap, notes = prompts_of(config_of(*sums(200)))
    train, held_out = env.problem.task.universe_size - len(prompts.held_out), len(prompts.held_out)
    assert train + held_out == 200
    assert len(prompts.demonstrations) == train // 2
    assert overlap == 0.0
    assert len(keys(env.problem.pool("train").examples)) == train - train // 2
    assert [note.partition(":")[0] for note in notes] == ["eval.num_prompts=512", "sft.num_demonstrations=4000"]
    assert f"the task has {held_out} held-out prompts; all are used" in notes[0]
    assert f"takes {train // 2} and leaves the others to reinforcement" in notes[1]


def test_one_training_prompt_is_shared_and_said(config_of, tmp_path):
    prompts = [f"q{i}=" for i in range(40)]
    held_out = [prompt for prompt in prompts if split_of(Example(prompt).key) == "heldout"]
    train = next(prompt for prompt in prompts if prompt not in held_out)
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": "a"}) + "\n" for prompt in [*held_out, train]))
    env, _, overlap, notes = prompts_of(config_of("env=data", f"env.kwargs.task_kwargs.path={path}"))
    assert {example.prompt for example in env.problem.pool("train").examples} == {train}
    assert overlap == 1.0
    assert notes[-1].startswith("sft.share_prompts=false: the task has no training prompt beyond")


def test_a_task_without_answers_has_no_warm_start(config_of):
    _, prompts, overlap, notes = prompts_of(config_of("env=pig"))
    assert (prompts.demonstrations, overlap) == ([], 0.0)
    assert notes == (
        "sft.num_steps=160: no prompt of worldmtp/Pig-v0 comes with an answer to imitate, so there is no warm start; "
        "sft.num_steps=0 says the same.",
    )


def test_too_few_held_out_prompts_are_refused(config_of, sums):
    with pytest.raises(
        ValueError, match=r"has . held-out prompts of 512 asked for, and needs at least 2; give it more"
    ):
        prompts_of(config_of(*sums(2)))


def test_every_purpose_of_every_run_has_a_stream_of_its_own():
    purposes = ("model", "warm start", "reinforcement", "evaluation", "imagination in evaluation")
    seeds = {stream_seed(seed, purpose) for seed in range(100) for purpose in purposes}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)
    with pytest.raises(ValueError, match="seed=-1 must be at least 0"):
        stream_seed(-1, "model")


def test_a_run_without_a_warm_start_says_what_it_started_from(compose_tiny, no_report, tmp_path, capsys):
    run(compose_tiny("env=pig", "sft.num_steps=3", "imagination=off", "+env.kwargs.max_turn=1"), tmp_path / "run")
    told = capsys.readouterr()
    assert "note: sft.num_steps=3: no prompt of worldmtp/Pig-v0 comes with an answer to imitate" in told.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [arm["arm"] for arm in summary["arms"]] == ["before PPO", "PPO, no imagination"]
    assert summary["arms"][0]["artefact"] == "start"
    assert summary["notes"][1] == "0.000 of the training prompts are those of the warm start"
    assert any("there is no warm start" in note for note in summary["notes"])
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["rollout/prompt_overlap_sft"] for record in log if "rollout/prompt_overlap_sft" in record] == [0.0]
    assert not (tmp_path / "run" / "sft").exists()
