"""Which use of imagination suits which environment. What does not is refused once, with all that is to be changed.

    answers                  off, counterfactual (with completions), baseline, latent, search; drafts
    a world that replies     off, episodes, search, counterfactual and baseline without completions; drafts
    where actions are masked off, and in a world episodes, and search through replies

Masks are known of places that an observation has shown, so that whatever chooses tokens further ahead has none.
"""

from collections.abc import Mapping
from typing import Any

from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.agents.imagination.known_replies import SEARCH_SETTING
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.task import TurnTask
from worldmtp.envs.wrappers.action_mask import masks_around


def check_use(
    env: TextVectorEnv,
    infos: Mapping[str, Any],
    imagination: ImaginationConfig,
    ppo: PPOConfig,
    draft: str,
    act: str = "policy",
) -> None:
    """Raise unless imagination, completions and drafts suit the environment, whose ``infos`` of a reset these are.

    ``act`` says who acts; with a search the action taken is not the policy's draw.

    Raises:
        ValueError: they do not; the message has each fault, with what to set. Who does all of it is not refused again.
    """
    use, completions = imagination.use, imagination.completions
    replies, masks = isinstance(env.task, TurnTask), "action_mask" in infos
    # Whether counterfactuals would start.
    compares = not (replies or masks or ppo.gamma < 1 or ppo.bootstrap_truncated or act == "search")
    faults = []
    through = imagination.searches_replies
    if through and not replies:
        faults.append(
            f"{SEARCH_SETTING} goes on through what a world replies, and nobody replies in this environment; set "
            "imagination.search.through_replies=false."
        )
        through = False
    if fault := _unsuited(use, env, replies, masks, through):
        others = ["imagination=counterfactual"] if compares else []
        if replies and not _unsuited("episodes", env, replies, masks):
            others = ["imagination=episodes"]
            if use == "search" and not through:
                others.append(SEARCH_SETTING)
        if completions == "none" or not compares:
            others.append("imagination=off")
        use = others[0].removeprefix("imagination=")  # what else is said fits what is advised
        faults.append(f"imagination={imagination.use} {fault}; set {' or '.join(others)}.")
    if completions != "none" and (use != "counterfactual" or replies):
        why = f"is read by imagination=counterfactual alone, and imagination is {imagination.use}"
        if replies and imagination.use == "counterfactual":
            why = "scores imagined answers, and what a world would reply to one is not known"
        instead = ", or imagination=counterfactual" if compares and not faults else ""
        faults.append(f"imagination.completions={completions} {why}; set imagination.completions=none{instead}.")
    try:
        if use == "counterfactual":
            ppo.check_whole_episodes("imagination=counterfactual")
        elif use == "search":
            ppo.check_searched()
    except ValueError as error:
        faults.append(str(error))
    if act == "search" and use in _NEEDS_DRAWS:
        alone = "" if completions == "none" else ", each with imagination.completions=none"
        faults.append(
            f"imagination={use} {_NEEDS_DRAWS[use]}, and agent.rollout.act=search draws otherwise; set "
            f"imagination=off, imagination=baseline or imagination=search{alone}, or agent.rollout.act=policy."
        )
    if draft != "none" and masks:
        faults.append(f"agent.rollout.draft={draft} {_BLIND}; set agent.rollout.draft=none.")
    if faults:
        raise ValueError(" ".join(faults))


_NEEDS_DRAWS = {
    "counterfactual": "takes from a return what it knows of the answer's other tokens, which is 0 on average over the "
    "policy's own draws",
    "latent": "trains on what the policy would draw from real states, at values of its own drawing on",
}
"""Why a use of imagination is for tokens that the policy has drawn."""

_BLIND = "would choose tokens where no mask is known, and the environment masks actions"


def _unsuited(use: str, env: TextVectorEnv, replies: bool, masks: bool, through: bool = False) -> str:
    """Return why this use is not for this environment; empty where it is. ``through`` is a search through replies."""
    asks_replies = use == "episodes" or through
    if use == "episodes" and not replies:
        return "is for worlds that reply, and nobody replies in this environment"
    if asks_replies and masks and not masks_around(env):
        return (
            "puts no wrapper but action_mask (VectorActionMask) around imagined rows, and another one masks actions "
            "here, whose rule may be given to it"
        )
    if use == "latent" and not env.eos_terminates:
        other = "a world replies in this environment" if replies else "this task may end a text before EOS"
        return f"is for answers without replies, which EOS ends, and {other}"
    return _BLIND if masks and use != "off" and not asks_replies else ""
