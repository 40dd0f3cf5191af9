"""``worldmtp`` as one command, and its ``eval`` and ``envs play --model`` held to what a run found itself."""

import json
import sys

import pytest

from worldmtp.analysis.summary import read_summary
from worldmtp.cli import __main__ as command
from worldmtp.cli.evaluate import environment_kwargs
from worldmtp.cli.train import run


@pytest.fixture
def worldmtp(monkeypatch, capsys):
    """Runs ``worldmtp ...`` in this process; (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["worldmtp", *map(str, arguments)])
        capsys.readouterr()  # what came before this command
        code = 0
        try:
            command.main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command(worldmtp, arguments):
    code, out, _ = worldmtp(*arguments)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == [
        "train",
        "eval",
        "analyze",
        "generate",
        "envs",
    ]


def test_a_typo_names_the_nearest_command(worldmtp):
    code, _, err = worldmtp("trian", "seed=1")
    assert code == 2
    assert "there is no command 'trian'. Did you mean 'train'?" in err


@pytest.mark.parametrize(("name", "shown"), [("eval", "--num-prompts"), ("analyze", "run_dir"), ("envs", "check")])
def test_each_command_has_its_help(worldmtp, name, shown):
    code, out, _ = worldmtp(name, "--help")
    assert code == 0
    assert out.startswith(f"usage: worldmtp {name}")
    assert shown in out


@pytest.mark.usefixtures("no_report")
def test_a_checkpoint_is_evaluated_as_its_run_did_and_plays(compose_tiny, tmp_path, worldmtp):
    run(compose_tiny("seed=5"), tmp_path / "run")
    (_, trained) = read_summary(tmp_path / "run" / "summary.json").arms
    words = ("--model", tmp_path / "run", "--env", "worldmtp/Reverse-v0", "--seed", "5", "--num-prompts", "8")
    code, out, err = worldmtp("eval", *words, "--device", "cpu", "--json")
    assert code == 0, err
    found = json.loads(out)
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in log if "eval/score" in record][-1]
    assert found["num_prompts"] == 8
    assert found["exact"]["estimate"] == trained.exact.estimate
    assert trained.exact_sampled is not None
    assert found["exact_sampled"]["estimate"] == trained.exact_sampled.estimate
    for name in ("score", "score_sampled", "length_mean", "truncated_fraction"):
        assert found[name] == pytest.approx(last[f"eval/{name}"], abs=1e-12), name
    code, out, err = worldmtp("eval", *words, "--device", "cpu")
    assert code == 0, err
    assert f"exact match, greedy             {trained.exact}" in out
    code, out, err = worldmtp("envs", "play", "worldmtp/Reverse-v0", "--model", tmp_path / "run")
    assert code == 0, err
    assert "\npolicy> " in out
    assert "\nscore " in out


def test_an_environment_is_made_as_the_run_made_it(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "env: {id: worldmtp/Pig-v0, kwargs: {max_turn: 1, pool_size: 8}}\n"
        "model: {}\nagent: {rollout: {num_iterations: 1}, ppo: {}}\n"
    )
    model = tmp_path / "model"
    spec = {"tokenizer": f"transformers:{model}"}
    found = environment_kwargs(tmp_path, model, "worldmtp/Pig-v0", {"pool_size": 4})
    assert found == spec | {"max_turn": 1, "pool_size": 4}
    assert environment_kwargs(tmp_path, model, "worldmtp/Taxi-v0", {}) == spec
    assert environment_kwargs(model, model, "worldmtp/Pig-v0", {}) == spec


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nowhere", "--env", "worldmtp/Reverse-v0"], "--model nowhere is not a directory"),
        (["--model", ".", "--env", "worldmtp/Reverse-v0", "--temperature", "0"], r"--temperature 0.0 must be positive"),
    ],
)
def test_an_evaluation_that_cannot_be_is_an_error(worldmtp, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    code, _, err = worldmtp("eval", *words)
    assert code == 1
    assert message in err
