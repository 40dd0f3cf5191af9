"""Every combination of imagination, completions, drafts and kind of environment starts, or is refused just once."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.agents.uses import check_use
from worldmtp.envs import CharTokenizer, TextGenVectorEnv, TextVectorEnv
from worldmtp.envs.tasks.strings import Reverse
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.envs.wrappers.action_mask import VectorActionMask

USES = ("off", "counterfactual", "baseline", "latent", "episodes", "search")
COMPLETIONS = ("none", "heads", "trunk")
DRAFTS = ("none", "mtp")
SUIT = {
    "answers": ("off", "counterfactual", "baseline", "latent", "search"),
    "world": ("off", "counterfactual", "baseline", "episodes", "search"),
    "masked answers": ("off",),
    "masked world": ("off", "episodes"),
}
"""Uses that each kind of environment has, without completions or drafts."""


class Echo:
    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        return "ab=", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "=", 0.0, False, True, {}


@pytest.fixture(scope="module")
def environments() -> Mapping[str, TextVectorEnv]:
    sizes = {"tokenizer": CharTokenizer("abcdefghijklmnopqrstuvwxyz="), "pool_size": 4}
    answers, world = (
        partial(TextGenVectorEnv, 2, task=Reverse(), max_prompt=9, max_new=9, **sizes),
        partial(TextGenVectorEnv, 2, task=WorldTask(Echo, num_seeds=40), max_prompt=3, max_new=6, max_turn=1, **sizes),
    )
    masked = {"masked answers": VectorActionMask(answers()), "masked world": VectorActionMask(world())}
    return {"answers": answers(), "world": world()} | masked


def check(kind: str, environments: Mapping[str, TextVectorEnv], settings: Mapping[str, str]) -> None:
    env = environments[kind]
    check_use(
        env,
        env.reset(seed=0)[1],
        ImaginationConfig(use=settings["imagination"], completions=settings["imagination.completions"]),
        PPOConfig(gamma=float(settings["agent.ppo.gamma"])),
        settings["agent.rollout.draft"],
    )


def starts(kind: str, settings: Mapping[str, str]) -> bool:
    use, completions = settings["imagination"], settings["imagination.completions"]
    if use not in SUIT[kind] or (settings["agent.rollout.draft"] != "none" and kind.startswith("masked")):
        return False
    if completions != "none" and (use, kind) != ("counterfactual", "answers"):
        return False
    return use != "counterfactual" or settings["agent.ppo.gamma"] == "1"


@pytest.mark.parametrize("kind", SUIT)
@pytest.mark.parametrize("gamma", ["1", "0.9"])
def test_each_combination_starts_or_is_refused_once(
    kind: str, gamma: str, environments: Mapping[str, TextVectorEnv]
) -> None:
    """Who sets what the message says, each of its first advices or each of its last ones, is not refused again."""
    for use, completions, draft in itertools.product(USES, COMPLETIONS, DRAFTS):
        settings = {
            "imagination": use,
            "imagination.completions": completions,
            "agent.rollout.draft": draft,
            "agent.ppo.gamma": gamma,
        }
        if starts(kind, settings):
            check(kind, environments, settings)
            continue
        with pytest.raises(ValueError, match="set ") as refused:
            check(kind, environments, settings)
        message = str(refused.value)
        advice = [re.findall(r"([\w.]*\w)=(\w+)", part) for part in re.findall(r"; set ([^;]*)\.(?: |$)", message)]
        assert all(advice)
        assert len(advice) == message.count("; set "), message
        for which in (0, -1):
            mended = settings | dict(options[which] for options in advice)
            assert mended != settings
            check(kind, environments, mended)


def test_a_masked_world_is_not_sent_to_what_it_cannot_have(environments: Mapping[str, TextVectorEnv]) -> None:
    """All faults at once, and nothing of a discount, since no counterfactual is advised."""
    settings = {"imagination": "counterfactual", "imagination.completions": "trunk"}
    with pytest.raises(ValueError, match="masks actions") as refused:
        check("masked world", environments, settings | {"agent.rollout.draft": "mtp", "agent.ppo.gamma": "0.9"})
    assert str(refused.value) == (
        "imagination=counterfactual would choose tokens where no mask is known, and the environment masks actions; set "
        "imagination=episodes or imagination=off. imagination.completions=trunk scores imagined answers, and what a "
        "world would reply to one is not known; set imagination.completions=none. agent.rollout.draft=mtp would choose "
        "tokens where no mask is known, and the environment masks actions; set agent.rollout.draft=none."
    )


SEARCH = {
    "imagination": "search",
    "imagination.completions": "none",
    "agent.rollout.draft": "none",
    "agent.ppo.gamma": "1",
}


def test_a_search_where_a_world_replies_is_sent_through_its_replies(
    environments: Mapping[str, TextVectorEnv],
) -> None:
    with pytest.raises(ValueError, match="masks actions") as refused:
        check("masked world", environments, SEARCH)
    assert str(refused.value).endswith(
        "; set imagination=episodes or imagination.search.through_replies=true or imagination=off."
    )


def test_values_that_go_on_are_refused_beside_whole_episodes(environments: Mapping[str, TextVectorEnv]) -> None:
    ppo, imagination = PPOConfig(bootstrap_truncated=True), ImaginationConfig(use="counterfactual")
    with pytest.raises(ValueError, match=r"set agent\.ppo\.bootstrap_truncated=false\.$"):
        check_use(environments["world"], {}, imagination, ppo, "none")
    check_use(environments["world"], {}, replace(imagination, use="baseline"), ppo, "none")


def test_returns_that_a_search_cannot_follow_are_refused(environments: Mapping[str, TextVectorEnv]) -> None:
    imagination = ImaginationConfig(use="search")
    with pytest.raises(ValueError, match=r"set agent\.ppo\.bootstrap_truncated=false\.$"):
        check_use(environments["answers"], {}, imagination, PPOConfig(bootstrap_truncated=True), "none")
    with pytest.raises(ValueError, match=r"set agent\.ppo\.gamma=1\.$"):
        check_use(environments["answers"], {}, imagination, PPOConfig(gamma=0.0), "none")
