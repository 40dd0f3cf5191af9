"""``worldmtp`` as one command, and its ``eval`` and ``envs play --model`` held to what a run found itself."""

import json
import sys
from functools import partial

import pytest
import torch
import yaml

from worldmtp.analysis.summary import read_summary
from worldmtp.cli import __main__ as command
from worldmtp.cli.arguments import run_config
from worldmtp.cli.envs_play import play_env
from worldmtp.cli.evaluate import environment_of
from worldmtp.cli.train import run
from worldmtp.envs import CharTokenizer
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.training.config import EnvConfig
from worldmtp.training.evaluation import evaluate_model


@pytest.fixture
def worldmtp(run_main):
    """Runs ``worldmtp ...`` in this process; (exit code, stdout, stderr)."""
    return partial(run_main, command.main, "worldmtp")


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


@pytest.mark.parametrize(
    ("name", "shown", "page"),
    [
        ("eval", "--num-prompts", "python.md"),
        ("analyze", "run_dir", "analysis.md"),
        ("envs", "check", "own_environments.md"),
        ("generate", "--explain", "decoding.md"),
    ],
)
def test_each_command_has_its_help_and_leads_to_its_page(worldmtp, name, shown, page):
    code, out, _ = worldmtp(name, "--help")
    assert code == 0
    assert out.startswith(f"usage: worldmtp {name}")
    assert shown in out
    assert page in out


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
    path = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["agent"]["ppo"]["gamma"] = 0.9
    path.write_text(yaml.safe_dump(config))
    searched = ("--search", "puct", "--simulations", "2", "--dynamics", "mtp", "oracle", "--best-of", "2")
    searched = (*searched, "--beam", "1", "--scale", "node")
    code, out, err = worldmtp("eval", *words, "--device", "cpu", "--json", *searched)
    assert code == 0, err
    ways = {record["way"]: record for record in map(json.loads, out.splitlines())}
    assert "searches discount by 0.9, as the run's agent.ppo.gamma, and measure values by node" in err
    assert [record.get("scale") for record in ways.values()] == [None, None, "node", "node", None, None, None]
    assert [record.get("gamma") for record in ways.values()] == [None, None, 0.9, 0.9, None, None, None]
    assert ways["greedy"]["exact"] == found["exact"]
    assert ways["sampled"]["exact"] == found["exact_sampled"]
    assert list(ways)[2:] == [
        "puct over mtp, 2 simulations",
        "puct over oracle, 2 simulations",
        "beam of 1",
        "best of 2, by the task's scorer",
        "best of 2, by the model's own rewards",
    ]
    assert {**ways["beam of 1"], "way": "greedy", "seconds": 0} == {**ways["greedy"], "seconds": 0}
    code, out, err = worldmtp("eval", *words, *searched, "--gamma", "0.5")
    assert code == 0, err
    assert "searches discount by 0.5, as --gamma says" in err
    assert out.count("\n") == 2 + len(ways)
    code, out, err = worldmtp("eval", *words, "--simulations", "2")
    assert code != 0
    assert "--simulations belongs to a search" in err
    verifying = ("--search", "gumbel", "--simulations", "4", "--verify", "2")
    code, out, err = worldmtp("eval", *words, "--device", "cpu", "--json", *verifying)
    assert code == 0, err
    verified = json.loads(out.splitlines()[-1])
    assert verified["way"] == "gumbel over mtp, 4 simulations, 2 verified"
    assert verified["verified"]["decisions"] >= 8
    assert verified["trunk_tokens"] > ways["greedy"]["trunk_tokens"]
    code, out, err = worldmtp("eval", *words, "--gamma", "0.5")
    assert code != 0
    assert "--gamma belongs to a search" in err
    code, out, err = worldmtp("eval", *words, *searched, "--depth", "99")
    assert code != 0
    assert out == ""  # refused before anything is answered
    assert "max_depth=99 is beyond the world model" in err
    blank = MTPModel.from_pretrained(tmp_path / "run" / "model")
    for head in (blank.world_heads.value, blank.world_heads.reward):
        torch.nn.init.zeros_(head[-1].weight)
    blank.save_pretrained(tmp_path / "run" / "model")
    code, out, err = worldmtp("eval", *words, *searched)
    assert (code != 0, out) == (True, "")
    assert "value and reward heads are as they were made" in err
    code, out, err = worldmtp("envs", "play", "worldmtp/Reverse-v0", "--model", tmp_path / "run")
    assert code == 0, err
    assert "\npolicy> " in out
    assert "\nscore " in out


def test_an_environment_is_made_as_the_run_made_it(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "env: {id: worldmtp/Pig-v0, kwargs: {max_turn: 1, pool_size: 8}, wrappers: [action_mask]}\n"
        "model: {}\nagent: {rollout: {num_iterations: 1}, ppo: {}}\n"
    )
    model = tmp_path / "model"
    spec = {"tokenizer": f"transformers:{model}"}
    for path in (tmp_path, model):  # the run, and the model in it
        found = environment_of(run_config(path), model, "worldmtp/Pig-v0", {"pool_size": 4})
        assert found.kwargs == spec | {"max_turn": 1, "pool_size": 4}
        assert found.wrappers == ["action_mask"]
    other = environment_of(run_config(tmp_path), model, "worldmtp/Taxi-v0", {})
    assert (other.kwargs, other.wrappers) == (spec, [])
    assert run_config(tmp_path / "elsewhere") is None
    assert environment_of(None, model, "worldmtp/Pig-v0", {}) == EnvConfig("worldmtp/Pig-v0", spec)


def test_an_environment_in_whose_tokens_the_checkpoint_reads_other_texts_is_refused(tmp_path):
    CharTokenizer("abc=").to_transformers().save_pretrained(tmp_path)
    for tokenizer in ("char:abc=", "char:ab", {"kind": "transformers", "path": str(tmp_path)}):
        given = {"tokenizer": tokenizer}
        assert environment_of(None, tmp_path, "worldmtp/Reverse-v0", given).kwargs == given
    with pytest.raises(ValueError, match=r"^--model=.* in which 2 of the environment's 5 tokens are .*: id 3 is 'b'"):
        environment_of(None, tmp_path, "worldmtp/Reverse-v0", {"tokenizer": "char:acb=d"})


@pytest.fixture
def model_with(tiny_trunk):
    """A model with a vocabulary of so many ids more than the tokenizer of Reverse has, and a context."""

    def make(num_more, context=128):
        trunk = tiny_trunk("llama", vocab_size=13 + num_more)
        trunk.config.max_position_embeddings = context
        return MTPModel.from_trunk(trunk, MTPConfig(head="latent", depth=2), torch.Generator().manual_seed(0)).eval()

    return make


def test_a_model_with_padded_embeddings_plays(model_with, capsys):
    model = model_with(300)
    play_env(EnvConfig("worldmtp/Reverse-v0"), "heldout", 3, 0, model)
    assert capsys.readouterr().out.count("policy> ") == 3
    assert model.num_tokens == 13


@pytest.mark.parametrize(("num_more", "context", "message"), [(-4, 128, "13 ids"), (0, 6, "context")])
def test_a_model_that_does_not_fit_is_refused_before_it_plays(model_with, num_more, context, message):
    with pytest.raises(ValueError, match=message):
        play_env(EnvConfig("worldmtp/Reverse-v0"), "heldout", 1, 0, model_with(num_more, context))


def test_wrappers_are_in_force_in_evaluation_and_play(model_with, monkeypatch, capsys):
    """A mask that forbids EOS and padding for two tokens: no answer is shorter, and none has padding in it."""
    env = EnvConfig("worldmtp/Reverse-v0", {}, [{"name": "action_mask", "min_new": 2}])
    model = model_with(0)
    with torch.no_grad():
        model.trunk.lm_head.weight.zero_()  # every token is as likely: the first allowed one is the greedy one
    assert evaluate_model(model, env, 4).length_mean >= 2
    assert evaluate_model(model, EnvConfig(env.id), 4).length_mean != evaluate_model(model, env, 4).length_mean
    play_env(env, "heldout", 2, 0, model)
    assert "\ufffd" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="no_such_wrapper"):
        evaluate_model(model, EnvConfig(env.id, {}, ["no_such_wrapper"]), 4)


@pytest.mark.parametrize("command", ["eval", "generate", "envs"])
@pytest.mark.usefixtures("no_report")
def test_what_a_run_imported_is_imported_for_its_model(command, compose_tiny, tmp_path, worldmtp, monkeypatch):
    name = f"own_task_{command}"
    (tmp_path / f"{name}.py").write_text(
        "import worldmtp\n\n\n"
        f"@worldmtp.register_task('Own{command}', max_prompt=4, max_new=2)\n"
        "def task(rng):\n"
        "    return worldmtp.envs.Example(''.join(rng.choice(list('abcdef'), size=3)) + '=', 'a')\n"
    )
    monkeypatch.chdir(tmp_path)
    run(compose_tiny(f"imports=[./{name}.py]", "env=custom", f"env.id=worldmtp/Own{command}-v0"), tmp_path / "run")
    for_good = sys.modules.pop(name)
    import gymnasium

    from worldmtp.envs import registry

    gymnasium.registry.pop(f"worldmtp/Own{command}-v0")
    registry._factories.pop(f"Own{command}")
    words = {
        "eval": ["eval", "--model", "run", "--env", f"worldmtp/Own{command}-v0", "--num-prompts", "2"],
        "generate": ["generate", "--model", "run", "a="],
        "envs": ["envs", "play", f"worldmtp/Own{command}-v0", "--model", "run"],
    }
    code, _, err = worldmtp(*words[command])
    assert code == 0, err
    assert sys.modules[name] is not for_good


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
