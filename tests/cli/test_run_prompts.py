"""What a run is trained and measured on: streams of the run's seed, nothing shown twice, small data as they are."""

import io
import json
import re
from dataclasses import replace

import pytest

from worldmtp.cli.schema import build
from worldmtp.cli.train import run
from worldmtp.envs import Example, register_task, split_of
from worldmtp.random import stream_seed
from worldmtp.tracking import JsonlWriter, MultiWriter, ProgressReporter
from worldmtp.training.config import TrainConfig
from worldmtp.training.make import make_env
from worldmtp.training.pipeline import _STAGES as STAGES
from worldmtp.training.pipeline import Pipeline
from worldmtp.training.run_prompts import choose_pool, draw_run_prompts, rows_of_run
from worldmtp.training.trainers import make_trainer


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
    for seed in (0, 1):
        config = config_of("experiment=quickstart", f"seed={seed}", "sft.num_demonstrations=3000")
        env, prompts, overlap, notes = prompts_of(config)
        pool = env.dataset.pool("train").examples
        assert (len(prompts.demonstrations), len(prompts.held_out), len(pool)) == (3000, 512, 4096)
        assert not keys(prompts.demonstrations) & keys(pool)
        assert (overlap, notes) == (0.0, ())
        assert not keys(prompts.held_out) & (keys(prompts.demonstrations) | keys(pool))
        shown.append(keys(prompts.demonstrations))
        pools.append(keys(pool))
        held_out.append(keys(prompts.held_out))
    for drawn in (shown, pools, held_out):  # what two seeds have in common is chance: the task has some 10^4 words
        assert len(drawn[0] & drawn[1]) < 0.5 * len(drawn[0])


def test_prompts_are_shared_where_the_config_says_so(config_of):
    config = config_of("env=reverse", "sft.share_prompts=true", "sft.num_demonstrations=500")
    env, prompts, overlap, _ = prompts_of(config)
    pool = keys(env.dataset.pool("train").examples)
    assert overlap == pytest.approx(len(pool & keys(prompts.demonstrations)) / len(pool))
    free = replace(config, env=replace(config.env, kwargs={"pool_seed": 7}))
    assert keys(prompts_of(free)[0].dataset.pool("train").examples) != pool


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
    train, held_out = env.dataset.task.universe_size - len(prompts.held_out), len(prompts.held_out)
    assert train + held_out == 200
    assert len(prompts.demonstrations) == train // 2
    assert overlap == 0.0
    assert len(keys(env.dataset.pool("train").examples)) == train - train // 2
    assert [note.partition(":")[0] for note in notes] == ["eval.num_prompts=512", "sft.num_demonstrations=4000"]
    assert f"few held-out prompts; evaluation takes the {held_out} that were found" in notes[0]
    assert f"takes {train // 2} and leaves the others to reinforcement" in notes[1]


def test_one_training_prompt_is_shared_and_said(config_of, tmp_path):
    prompts = [f"q{i}=" for i in range(40)]
    held_out = [prompt for prompt in prompts if split_of(Example(prompt).key) == "heldout"]
    train = next(prompt for prompt in prompts if prompt not in held_out)
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": "a"}) + "\n" for prompt in [*held_out, train]))
    env, _, overlap, notes = prompts_of(config_of("env=data", f"env.kwargs.task_kwargs.path={path}"))
    assert {example.prompt for example in env.dataset.pool("train").examples} == {train}
    assert overlap == 1.0
    assert notes[-1].startswith("sft.share_prompts=false: the task has no training prompt beyond")


def test_a_task_without_answers_has_no_warm_start(config_of):
    _, prompts, overlap, notes = prompts_of(config_of("env=pig", "sft.num_steps=160"))
    assert (prompts.demonstrations, overlap) == ([], 0.0)
    assert notes == (
        "sft.num_steps=160: no prompt of worldmtp/Pig-v0 comes with an answer to imitate, so there is no warm start; "
        "sft.num_steps=0 says the same.",
    )


def test_an_empty_answer_is_left_out_of_the_warm_start_and_said(config_of, tmp_path):
    """It has no token to learn; whether a run meets one is a matter of its seed."""
    path = tmp_path / "vowels.jsonl"
    rows = [{"prompt": f"q{i}=", "answer": "" if i % 4 else "a"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = (f"env.kwargs.task_kwargs.path={path}", "+env.kwargs.task_kwargs.reward=worldmtp.envs:exact_match")
    config = config_of("env=data", *task, "sft.share_prompts=true")
    env, prompts, _, notes = prompts_of(config)
    train = [row for row in rows if split_of(Example(row["prompt"]).key) == "train"]
    assert {example.answer for example in prompts.demonstrations} == {"a"}
    assert len(prompts.demonstrations) == sum(row["answer"] == "a" for row in train)
    assert len(keys(env.dataset.pool("train").examples)) == len(train)  # reinforcement asks them all
    left = len(train) - len(prompts.demonstrations)
    assert f"{left} of {len(train)} prompts have no answer, or an empty one, and are left out." in notes[1]


@pytest.fixture
def words(tmp_path):
    """A file of questions, of which those of cat and cow are held out."""

    def written(*names):
        assert [name for name in names if split_of(Example(f"{name}=").key) == "heldout"] == [
            name for name in names if name in ("cat", "cow")
        ]
        path = tmp_path / "words.jsonl"
        rows = [{"prompt": f"{name}=", "answer": name.upper()} for name in names]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ("env=data", f"env.kwargs.task_kwargs.path={path}")

    return written


def test_a_file_of_two_rows_is_enough_where_one_is_held_out(config_of, words):
    env, prompts, overlap, notes = prompts_of(config_of(*words("cat", "dog")))
    assert [example.prompt for example in prompts.held_out] == ["cat="]
    assert [example.prompt for example in prompts.demonstrations] == ["dog="]
    assert {example.prompt for example in env.dataset.pool("train").examples} == {"dog="}
    assert overlap == 1.0
    assert [note.partition(":")[0] for note in notes] == ["eval.num_prompts=512", "sft.share_prompts=false"]
    assert "evaluation takes the 1 that were found" in notes[0]


@pytest.mark.parametrize("names", [("dog", "hen"), ("cat", "cow")])
def test_a_file_of_two_rows_is_enough_where_the_hash_puts_both_into_one_split(config_of, words, names):
    env, prompts, _, notes = prompts_of(config_of(*words(*names)))
    asked = [{example.prompt for example in examples} for examples in (prompts.held_out, prompts.demonstrations)]
    assert sorted(map(len, asked)) == [1, 1]
    assert set.union(*asked) == {f"{name}=" for name in names}
    assert {example.prompt for example in env.dataset.pool("train").examples} == asked[1]
    share = env.dataset.heldout_fraction
    assert notes[0] == (
        "env.kwargs.heldout_fraction=0.2: by it one split of so few prompts would be empty; the share that is held out "
        f"is {share:g} instead."
    )


def test_one_row_is_refused_since_no_share_could_fill_both_splits(config_of, words):
    with pytest.raises(ValueError, match=r"DataTask has no held-out prompt, .*; give it more questions\.$"):
        prompts_of(config_of(*words("dog")))


@pytest.mark.parametrize(("names", "empty"), [(("dog=", "hen="), "held-out"), (("cat=", "cow="), "training")])
def test_a_function_of_two_questions_is_refused_with_a_share_that_works(config_of, names, empty):
    """Nothing says that there are no more, so that the split of all others' questions stays as it is."""

    @register_task("TwoWords", max_prompt=4, max_new=4)
    def two_words(rng):
        return Example(str(rng.choice(names)), "a")

    config = ("env=custom", "env.id=worldmtp/TwoWords-v0")
    with pytest.raises(ValueError, match=f"FunctionTask has no {empty} prompt") as caught:
        prompts_of(config_of(*config))
    (pasted,) = re.findall(r"by (\S+) \(worldmtp train\)", str(caught.value))
    _, prompts, _, _ = prompts_of(config_of(*config, pasted))
    assert (len(prompts.held_out), len(prompts.demonstrations)) == (1, 1)


def test_every_purpose_of_every_run_has_a_stream_of_its_own(compose_tiny, no_report, tmp_path, monkeypatch):
    asked = []

    def recorded(seed, purpose):
        asked.append((seed, purpose))
        return stream_seed(seed, purpose)

    for module in ("pipeline", "trainers"):
        monkeypatch.setattr(f"worldmtp.training.{module}.stream_seed", recorded)
    run(compose_tiny("seed=5", "agent.rollout.num_iterations=1", "world_model=shuffled"), tmp_path / "run")
    assert {seed for seed, _ in asked} == {5}
    purposes = {purpose for _, purpose in asked}
    # What is drawn in a run: weights, batches, actions and updates, answers, a placebo's permutations, imagined tokens,
    # futures that a head's loss is split by.
    assert len(purposes) == 7
    seeds = {stream_seed(seed, purpose) for seed in range(100) for purpose in purposes}
    assert len(seeds) == 700
    assert len({seed % 2**32 for seed in seeds}) == 700  # as the warm start takes them
    assert all(0 <= seed < 2**63 for seed in seeds)
    with pytest.raises(ValueError, match="seed=-1 must be at least 0"):
        stream_seed(-1, "model")


def test_a_warm_start_that_is_loaded_says_what_it_was_shown(compose_tiny, no_report, config_of, tmp_path):
    """Of another seed, it was shown other prompts than this run's own warm start would show."""
    few = ("+env.kwargs.task_kwargs={alphabet: ab, min_length: 1, max_length: 6}", "env.kwargs.pool_size=200")
    run(compose_tiny(*few, "seed=1", "sft.num_demonstrations=30"), tmp_path / "other")
    load = f"sft.load={tmp_path / 'other' / 'sft' / 'model'}"
    known = set(json.loads((tmp_path / "other" / "sft" / "demonstrations.json").read_text()))
    config = build(TrainConfig, compose_tiny(*few, "seed=0", load))
    env, prompts, overlap, notes = prompts_of(config)
    drawn = keys(make_env(config.env, 4).examples("train", 30, 1, "demonstrations", fewer=True))
    assert known == drawn
    assert (prompts.shown, prompts.demonstrations, overlap, notes) == (known, [], 0.0, ())
    assert not known & keys(env.dataset.pool("train").examples)
    # Where all are shared, the share is counted against what was really shown.
    config = build(TrainConfig, compose_tiny(*few, "seed=0", load, "sft.share_prompts=true"))
    env, _, overlap, _ = prompts_of(config)
    pool = keys(env.dataset.pool("train").examples)
    assert overlap == pytest.approx(len([key for key in pool if key in known]) / len(pool))
    assert 0.0 < overlap < 1.0
    (tmp_path / "other" / "sft" / "demonstrations.json").unlink()
    _, prompts, _, notes = prompts_of(build(TrainConfig, compose_tiny(*few, "seed=0", load)))
    assert "no demonstrations.json beside it says which prompts it was shown" in notes[0]


def test_a_run_without_a_warm_start_says_what_it_started_from(compose_tiny, no_report, tmp_path, capsys):
    run(compose_tiny("env=pig", "sft.num_steps=3", "imagination=off"), tmp_path / "run")
    told = capsys.readouterr()
    assert "note: sft.num_steps=3: no prompt of worldmtp/Pig-v0 comes with an answer to imitate" in told.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [arm["arm"] for arm in summary["arms"]] == ["before PPO", "PPO, no imagination"]
    assert summary["arms"][0]["artefact"] == "start"
    assert not any("training prompts are those of the warm start" in note for note in summary["notes"])
    assert any("there is no warm start" in note for note in summary["notes"])
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["rollout/prompt_overlap_sft"] for record in log if "rollout/prompt_overlap_sft" in record] == [0.0]
    assert not (tmp_path / "run" / "sft").exists()


def test_more_rows_ask_from_the_pool_of_the_run(config_of):
    """A pool that leaves out what the warm start shows is another than that of the environment as it is made."""
    config = config_of("env=reverse", "sft.num_demonstrations=500")
    env, prompts, _, _ = prompts_of(config)
    pool = env.dataset.pool("train").fingerprint()
    assert rows_of_run(3, prompts, config).dataset.pool("train").fingerprint() == pool
    assert make_env(config.env, 3).dataset.pool("train").fingerprint() != pool


@pytest.mark.filterwarnings("ignore")
def test_the_true_world_is_imagined_from_the_runs_own_pool(config_of, tiny_overrides, tmp_path):
    tiny = [override for override in tiny_overrides if override not in ("env=reverse", "sft.num_steps=3")]
    overrides = ["env=pig", "imagination=episodes", "world_model=oracle", "seed=3"]
    config = config_of(*overrides, *tiny)
    directory = tmp_path / "run"
    with (
        MultiWriter(directory, [JsonlWriter(directory)]) as writer,
        ProgressReporter(STAGES, io.StringIO()) as progress,
    ):
        pipeline = Pipeline(config, directory, writer, progress)
        trainer = make_trainer(config, pipeline._model, pipeline._env, pipeline._prompts)
        imagined = trainer.episodes._world
    assert imagined.dataset.pool("train").fingerprint() == pipeline._env.dataset.pool("train").fingerprint()
    assert make_env(config.env, 3).dataset.pool("train").fingerprint() != imagined.dataset.pool("train").fingerprint()
