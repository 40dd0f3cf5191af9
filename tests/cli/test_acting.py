"""Acting by search in a run: what a config gets wrong is said before anything is trained."""

import re
import shlex

import pytest
import torch

from worldmtp.agents.search_config import ActingSearch
from worldmtp.cli.schema import build
from worldmtp.cli.train import run
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.search import SearchConfig
from worldmtp.training import TrainConfig
from worldmtp.training.acting import check_acting, search_of
from worldmtp.training.make import make_env

pytestmark = pytest.mark.usefixtures("no_report")

PIG = ("env=pig", "env.wrappers=[]")
"""A world that replies."""

REFUSED = [
    (r"eval: eval\.act='serch' is unknown; did you mean 'search'\?", "eval.act=serch"),
    (r"search: search\.rule='gumbell' is unknown; did you mean 'gumbel'\?", "search.rule=gumbell"),
    (r"search: search\.dynamics='orcale' is unknown; did you mean 'oracle'\?", "search.dynamics=orcale"),
    (r"search\.tree: num_simulations=0 must be at least 1", "search.tree.num_simulations=0"),
    (
        r"eval\.act=search with search\.dynamics=mtp reads the heads of reward .* imagination=off never trains; set "
        r"imagination=counterfactual or agent\.rollout\.act=search, which do, or eval\.act=policy\.$",
        *("eval.act=search", "imagination=off"),
    ),
    (
        r"imagination=off never trains; set imagination=counterfactual with post_training\.trainer=ppo, which do, or "
        r"eval\.act=policy\.$",
        *("eval.act=search", "imagination=off", "post_training.trainer=grpo"),
    ),
    (
        r"eval\.act=search, by search\.dynamics=mtp: max_depth=4 is beyond the world model, which takes 3 steps",
        *("eval.act=search", "search.tree.max_depth=4"),
    ),
    (
        r"bootstrap_truncated=True with eval\.act=search",
        *("eval.act=search", "imagination=latent", "agent.ppo.bootstrap_truncated=true"),
    ),
    (
        r"agent\.rollout: act=search with draft=mtp: drafts decide tokens that nobody has searched for",
        *("agent.rollout.act=search", "agent.rollout.draft=mtp"),
    ),
    (
        r"imagination=counterfactual takes .* agent\.rollout\.act=search draws otherwise; set imagination=off, ",
        *("agent.rollout.act=search", "imagination=counterfactual"),
    ),
    (
        r"^agent\.rollout\.act=search with post_training\.trainer=grpo: trainers of TRL's sample by themselves",
        *("agent.rollout.act=search", "imagination=off", "post_training.trainer=grpo"),
    ),
    (
        r"agent\.rollout\.act=search and eval\.act=search, by search\.dynamics=mtp: head='medusa' gives the",
        *("agent.rollout.act=search", "eval.act=search", "imagination=off", "head=medusa"),
    ),
    (
        r"eval\.act=search, by search\.dynamics=replies: a search through replies needs a model of them",
        *("env=pig", "imagination=counterfactual", "env.wrappers=[]", "agent.ppo.gamma=1"),
        *("eval.act=search", "search.dynamics=replies"),
    ),
    (
        r"eval\.act=search, by search\.dynamics=world: Reverse has no world that replies",
        *("eval.act=search", "search.dynamics=world"),
    ),
    (
        r"^agent\.rollout\.act=search by search\.dynamics=world with imagination=episodes: a search of the real world "
        r"knows .*; set search\.dynamics=replies, imagination=off, or agent\.rollout\.act=policy\.$",
        *(*PIG, "imagination=episodes", "agent.rollout.act=search", "search.dynamics=world"),
    ),
    (
        r"search\.dynamics=world with imagination=search and imagination\.search\.through_replies=true: a search of",
        *(*PIG, "imagination=search", "imagination.search.through_replies=true"),
        *("agent.rollout.act=search", "search.dynamics=world"),
    ),
    (r"eval\.act=search with search\.verify=2: a run draws tokens", *("eval.act=search", "search.verify=2")),
]


@pytest.mark.parametrize(("message", "overrides"), [(first, rest) for first, *rest in REFUSED])
def test_refused(message, overrides, compose_tiny, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(compose_tiny(*overrides), tmp_path / "run")
    assert not (tmp_path / "run" / "sft").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ("imagination=episodes", "agent.rollout.act=search", "search.dynamics=replies"),
        ("imagination=off", "agent.rollout.act=search", "search.dynamics=world"),
        ("imagination=search", "agent.rollout.act=search", "search.dynamics=world"),
        ("imagination=episodes", "world_model=oracle", "agent.rollout.act=search", "search.dynamics=world"),
        ("imagination=episodes", "eval.act=search", "search.dynamics=world"),
    ],
)
def test_the_real_world_is_searched_where_no_reply_is_learnt_from_it(overrides, compose_tiny, tiny_trunk):
    config = build(TrainConfig, compose_tiny(*PIG, *overrides))
    env = make_env(config.env, 2)
    trunk = tiny_trunk("llama", vocab_size=env.tokenizer.vocab_size)
    model = MTPModel.from_trunk(trunk, MTPConfig(depth=2), torch.Generator().manual_seed(0))
    check_acting(config, model, env)


def test_the_search_discounts_as_the_run_does_unless_it_is_told(compose_tiny):
    given = build(TrainConfig, compose_tiny("agent.ppo.gamma=0.9", "search.rule=puct", "search.tree.width=3"))
    assert search_of(given) == ActingSearch("puct", "mtp", SearchConfig(width=3, gamma=0.9))
    told = build(TrainConfig, compose_tiny("agent.ppo.gamma=0.9", "search.tree.gamma=0.5"))
    assert search_of(told).tree.gamma == 0.5


def test_the_command_lines_of_the_page_compose(project_root, compose):
    page = (project_root / "docs" / "acting.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"^```bash\n(.*?)^```$", page, re.M | re.S) for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        program, command, *overrides = shlex.split(line)
        assert (program, command) == ("worldmtp", "train")
        config = build(TrainConfig, compose(*overrides))
        assert "search" in (config.agent.rollout.act, config.eval.act)
