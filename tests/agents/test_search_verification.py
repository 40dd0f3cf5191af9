"""Verification of a search over heads by the trunk: exact where the trunk was searched, one forward, and its price."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmtp.agents.acting_search import make_search_policy
from worldmtp.agents.answers import Answering
from worldmtp.agents.rollout import Rollout, collect_rollout
from worldmtp.agents.search_config import ActingSearch
from worldmtp.agents.search_policy import SearchPolicy
from worldmtp.decoding.cache import CachedTexts
from worldmtp.dynamics import make_world_model
from worldmtp.envs import TextGenVectorEnv
from worldmtp.model import MTPModel
from worldmtp.search import SearchConfig

MakeEnv = Callable[..., TextGenVectorEnv]
MakeModel = Callable[..., MTPModel]


@pytest.fixture
def model(tiny_model: MakeModel) -> MTPModel:
    """In float64, with world heads that tell latents apart."""
    model, generator = tiny_model().double(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def played(env: TextGenVectorEnv, model: MTPModel, how: ActingSearch, backend: str) -> tuple[Rollout, SearchPolicy]:
    """Return held-out episodes, acted by a search of ``backend`` under the name of the heads."""
    world_model = make_world_model(backend, model, torch.Generator().manual_seed(0))
    policy = make_search_policy(how, model, env, 1.0, torch.Generator(), world_model=world_model)
    assert isinstance(policy, SearchPolicy)
    options = {"split": "heldout", "prompts": env.examples("heldout", env.num_envs, seed=0)}
    return collect_rollout(env, policy, None, options), policy


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
@pytest.mark.parametrize("world", ["text_env", "steps_env"])
def test_where_the_trunk_was_searched_it_confirms_every_choice(
    rule: str, world: str, model: MTPModel, request: pytest.FixtureRequest
) -> None:
    """Texts of several lengths where a world replies, lines that end, and values behind turns: all as in the search."""
    make: MakeEnv = request.getfixturevalue(world)
    tree = SearchConfig(num_simulations=10, width=7, gamma=0.9)
    plain, _ = played(make(4), model, ActingSearch(rule, "mtp", tree), "oracle")
    verified, policy = played(make(4), model, ActingSearch(rule, "mtp", tree, verify=3), "oracle")
    assert torch.equal(verified.input_ids, plain.input_ids)
    share = policy.verified_share
    assert share is not None
    assert share.decisions == int(plain.step_mask.sum())
    assert share.overturned == 0
    assert share.q_change < 1e-10


def test_wrong_heads_are_corrected_by_one_forward_a_step(
    text_env: MakeEnv, model: MTPModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A placebo that steps by somebody else's tokens, one token ahead, of two root tokens: two tokens are read.

    With one token ahead the values become those that the trunk has where it is searched itself, and so do the choices
    between the two tokens. The text is read once, by the forward that the lines are read behind.
    """
    forwards, passes = list[int](), list[int]()
    forward, features = CachedTexts.forward, MTPModel.trunk_features

    def counted(texts: CachedTexts, tokens: Tensor, *rest: Any) -> Any:
        forwards.append(tokens.shape[1])
        return forward(texts, tokens, *rest)

    def passed(model: MTPModel, *inputs: Any, **options: Any) -> Any:
        passes.append(1)
        return features(model, *inputs, **options)

    monkeypatch.setattr(CachedTexts, "forward", counted)
    tree = SearchConfig(num_simulations=2, max_depth=1, width=2)
    by_trunk, _ = played(text_env(4), model, ActingSearch("gumbel", "mtp", tree), "oracle")
    assert not forwards
    monkeypatch.setattr(MTPModel, "trunk_features", passed)
    verified, policy = played(text_env(4), model, ActingSearch("gumbel", "mtp", tree, verify=2), "shuffled")
    assert not passes
    assert torch.equal(verified.input_ids, by_trunk.input_ids)
    share = policy.verified_share
    assert share is not None
    assert share.overturned > 0
    assert share.q_change > 1e-3
    assert policy.tokens_read == 2 * share.decisions
    assert forwards[1::2] == [2] * (len(forwards) // 2)  # after each text's forward one of the two lines, of a token


def test_an_answer_tells_what_its_verification_cost_and_changed(text_env: MakeEnv, model: MTPModel) -> None:
    env = text_env(4)
    ways = Answering(model, env, env.examples("heldout", 4, seed=0), 1.0, seed=0)
    tree = SearchConfig(num_simulations=2, max_depth=1, width=2)
    plain, verified = (ways.searched(ActingSearch("gumbel", "mtp", tree, verify=lines)) for lines in (0, 2))
    assert plain.verified is None
    assert verified.verified is not None
    assert verified.way == "gumbel over mtp, 2 simulations, 2 verified"
    written = verified.trunk_tokens - 2 * verified.verified.decisions / 4
    texts, _ = played(text_env(4), model, ActingSearch("gumbel", "mtp", tree, verify=2), "mtp")
    assert written == pytest.approx(float(texts.attention_mask.sum()) / 4)


def test_what_cannot_be_verified_is_refused(text_env: MakeEnv, model: MTPModel) -> None:
    for dynamics in ("oracle", "replies", "world"):
        with pytest.raises(ValueError, match=rf"verify=2 with search\.dynamics={dynamics}: the trunk has read all"):
            ActingSearch("gumbel", dynamics, verify=2)
    with pytest.raises(ValueError, match=r"search\.verify=-1 must be at least 0"):
        ActingSearch(verify=-1)
    how = ActingSearch("gumbel", "mtp", SearchConfig(num_simulations=2), verify=1)
    env = text_env(2)
    policy = make_search_policy(how, model, env, 1.0, torch.Generator())
    obs, infos = env.reset(options={"split": "heldout"})
    with pytest.raises(ValueError, match=r"draws are by the search alone; act greedily, or set search\.verify=0"):
        policy.act(obs, infos, torch.Generator())
