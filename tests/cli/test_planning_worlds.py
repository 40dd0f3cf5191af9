"""``worldmtp eval --search`` where a world replies: by the model of replies that a run has learnt, or in the world."""

import json
import re
from functools import partial

import pytest
import torch

from worldmtp.checkpoint import latest_checkpoint, load_checkpoint
from worldmtp.cli import __main__ as command
from worldmtp.cli.train import run
from worldmtp.dynamics.turns import NOTHING, Turns
from worldmtp.model import MTPModel
from worldmtp.training.make import make_env
from worldmtp.training.run_dir import read_config
from worldmtp.training.saved_replies import run_replies

ENV = "worldmtp/FrozenLakeSlippery-v0"
SEARCH = ("--search", "puct", "--simulations", "2", "--width", "4")


@pytest.fixture
def evaluate(run_main):
    """Runs ``worldmtp eval`` in this process; (exit code, stdout, stderr)."""
    return partial(run_main, command.main, "worldmtp", "eval")


def lake(tiny_overrides, *overrides):
    kept = [one for one in tiny_overrides if not one.startswith(("env=", "sft."))]
    return ("env=frozen_lake_slippery", "sft.num_steps=0", *kept, "+env.kwargs.max_new=12", *overrides)


@pytest.mark.usefixtures("no_report")
@pytest.mark.filterwarnings("ignore")
def test_a_run_is_planned_in_by_its_own_model_of_replies_and_in_the_world(compose, tiny_overrides, tmp_path, evaluate):
    run(compose(*lake(tiny_overrides, "imagination=episodes", "seed=1")), tmp_path / "run")
    words = ("--model", tmp_path / "run", "--env", ENV, "--num-prompts", "2", "--device", "cpu", "--json")
    # Two iterations have not paid anything, so that its value heads are as they were made: what they say is no matter.
    model = MTPModel.from_pretrained(tmp_path / "run" / "model")
    generator = torch.Generator().manual_seed(0)
    for head in (model.world_heads.value, model.world_heads.reward):
        torch.nn.init.normal_(head[-1].weight, std=0.1, generator=generator)
    model.save_pretrained(tmp_path / "run" / "model")
    code, out, err = evaluate(*words, *SEARCH, "--dynamics", "replies", "world")
    assert code == 0, err
    ways = {record["way"]: record for record in map(json.loads, out.splitlines())}
    assert list(ways)[2:] == [
        "puct through replies, 2 simulations",
        "puct through world, 2 simulations",
    ]
    assert all(0 <= way["score"] <= 1 for way in ways.values())

    # The same search, plan by plan: a plan a move, and under each move the replies that were drawn.
    code, out, err = evaluate(
        *words[:4], *words[6:8], *SEARCH, "--dynamics", "replies", "--explain", "--tree-html", tmp_path / "trees.html"
    )
    assert code == 0, err
    *plans, text = re.split(r"^(?=plan \d+ )|^(?=«)", out, flags=re.MULTILINE)[1:]
    assert re.fullmatch(r"(«\d+»\S)+«\S*»  score [\d.]+(, exact)?\n", text)
    assert [int(plan.split()[1]) for plan in plans] == list(range(1, len(text.split("»")) - 1))
    for number, plan in enumerate(plans, start=1):
        before = "»".join(text.split("»", number)[:number]) + "»"
        assert plan.startswith(f"plan {number} after {before}" if len(before) <= 60 else f"plan {number} after …")
        rows = re.findall(r"^  [→ ] +(\d+) +(?:[\d.]+% +-?[\d.]+|(drawn) {8})  ( *)\S", plan, re.MULTILINE)
        moves = [(int(visits), len(indent)) for visits, drawn, indent in rows if not drawn]
        assert sum(visits for visits, indent in moves if indent == 0) == 2
        assert sum(int(visits) for visits, drawn, _ in rows if drawn) == sum(visits for visits, _ in moves)
    page = (tmp_path / "trees.html").read_text()
    assert page.count("<h2>Plan ") == len(plans)
    assert page.count("<span>drawn</span>") == sum(plan.count(" drawn ") for plan in plans)
    assert "puct through replies, 2 simulations, worldmtp/FrozenLakeSlippery-v0" in page

    # What is asked are the very weights of the newest checkpoint, for as many turns as there have been.
    config = read_config(tmp_path / "run")
    env = make_env(config.env, 1)
    replies = run_replies(tmp_path / "run", env, model)
    saved = load_checkpoint(latest_checkpoint(tmp_path / "run" / "checkpoints"))["trainer"]["episodes"]
    learnt = saved["models"]["learners"][saved["models"]["context"]]["model"]
    assert replies.max_reply == config.world_model.replies.max_reply
    for name, weight in replies._model.state_dict().items():
        if name != "_extra_state":
            torch.testing.assert_close(weight, learnt[name], atol=0, rtol=0)
    most = saved["seen"]["most_turns"]
    nobody = Turns(
        torch.tensor([[2]]), *(torch.full((1, 1, 1), NOTHING),) * 2, torch.zeros(1, 1), *(torch.zeros(1, 1).bool(),) * 2
    )
    assert replies.turns_left(replies.begin(nobody, torch.tensor([0]))).tolist() == [most]

    # Another world's replies are not foretold by this run.
    code, out, err = evaluate(*words[:3], "worldmtp/GridWorld-v0", *words[4:], *SEARCH, "--dynamics", "replies")
    assert (code != 0, out) == (True, "")
    assert "is no run in worldmtp/GridWorld-v0; give --model a run with imagination=episodes there" in err


@pytest.mark.usefixtures("no_report")
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_has_searched_through_replies_has_a_model_of_them(compose, tiny_overrides, tmp_path):
    """Its newest weights, in rows of its environment."""
    searches = ("imagination=search", "imagination.search.through_replies=true", "agent.rollout.num_iterations=1")
    run(compose(*lake(tiny_overrides, *searches)), tmp_path / "run")
    env = make_env(read_config(tmp_path / "run").env, 1)
    replies = run_replies(tmp_path / "run", env, MTPModel.from_pretrained(tmp_path / "run" / "model"))
    saved = load_checkpoint(latest_checkpoint(tmp_path / "run" / "checkpoints"))["trainer"]["estimator"]["replies"]
    learnt = saved["models"]["learners"][saved["models"]["context"]]["model"]
    for name, weight in replies._model.state_dict().items():
        if name != "_extra_state":
            torch.testing.assert_close(weight, learnt[name], atol=0, rtol=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--explain"], "--explain shows the trees of a search; add --search gumbel or --search puct"),
        (["--tree-html", "page"], "--tree-html shows the trees of a search; add --search gumbel"),
        (
            ["--search", "puct", "--explain", "--simulations", "2", "4"],
            "--explain shows one search, and 2 were asked for",
        ),
        (["--search", "puct", "--explain", "--best-of", "2"], "compares nothing; leave out --best-of"),
        (["--search", "puct", "--tree-html", "page", "--json"], "compares nothing; leave out --json"),
        (["--search", "puct", "--tree-html", "not/there.html"], "would lie in not, which is no directory; give a file"),
        (["--search", "puct", "--tree-html", "."], "--tree-html . is a directory; give a file"),
    ],
)
def test_what_is_explained_is_one_search(words, message, evaluate):
    code, out, err = evaluate("--model", "nowhere", "--env", "worldmtp/Reverse-v0", *words)
    assert (code != 0, out) == (True, "")
    assert message in err


@pytest.mark.usefixtures("no_report")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            (),
            "has no model of replies: imagination=off, and what learns one is imagination=episodes, or imagination=se",
        ),
        (("imagination=episodes", "world_model=oracle"), "the run has learnt no model of replies: world_model.backend"),
        (("agent.ppo.gamma=0.0",), "trained with agent.ppo.gamma=0.0, so that its values say nothing of what comes"),
    ],
)
def test_a_run_that_cannot_be_planned_in_is_told(overrides, told, compose, tiny_overrides, tmp_path, evaluate):
    run(compose(*lake(tiny_overrides, *overrides, "agent.rollout.num_iterations=1")), tmp_path / "run")
    model = MTPModel.from_pretrained(tmp_path / "run" / "model")
    torch.nn.init.ones_(model.world_heads.value[-1].weight)
    model.save_pretrained(tmp_path / "run" / "model")
    words = ("--model", tmp_path / "run", "--env", ENV, "--num-prompts", "2", "--device", "cpu")
    code, out, err = evaluate(*words, *SEARCH, "--dynamics", "replies")
    assert (code != 0, out) == (True, "")
    assert told in err
