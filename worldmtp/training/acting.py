"""Who acts in a run: the policy, or a search of what would follow its tokens, and whether the run can search so."""

from worldmtp.agents.acting_search import check_search
from worldmtp.agents.evaluation import EvaluationSearch
from worldmtp.agents.imagination.known_replies import SEARCH_SETTING
from worldmtp.agents.search_config import ActingSearch
from worldmtp.envs import TextVectorEnv
from worldmtp.model import MTPModel
from worldmtp.random import stream_seed
from worldmtp.training.config import TrainConfig


def search_of(config: TrainConfig) -> ActingSearch:
    """Return how the run searches: as ``search`` says, with the discount of the values that are read."""
    return config.search.discounted_by(config.agent.ppo.gamma)


def evaluation_search(config: TrainConfig) -> EvaluationSearch | None:
    """Return how the run's evaluations search; None where the policy answers by itself."""
    if config.eval.act == "policy":
        return None
    return EvaluationSearch(search_of(config), stream_seed(config.seed, "search in evaluation"))


def check_acting(config: TrainConfig, model: MTPModel, env: TextVectorEnv) -> None:
    """Raise if the run is to act by a search that has nothing to look for, or none that can be made.

    Raises:
        ValueError: a trainer of TRL's acts, which searches nothing; the values that a search reads say nothing of what
            follows, or are never learnt; the heads are blind to actions or do not look so far; there is nobody to ask
            for replies; or replies are learnt from episodes that a search of the real world has acted.
    """
    asked = {"agent.rollout.act": config.agent.rollout.act, "eval.act": config.eval.act}
    asks = " and ".join(f"{name}=search" for name, act in asked.items() if act == "search")
    if not asks:
        return
    trainer, use = config.post_training.trainer, config.imagination.use
    if config.agent.rollout.act == "search" and trainer is not None:
        raise ValueError(
            f"agent.rollout.act=search with post_training.trainer={trainer}: trainers of TRL's sample by themselves; "
            "set agent.rollout.act=policy, or leave the trainer out."
        )
    config.agent.ppo.check_searched(asks)
    if config.search.verify:
        raise ValueError(
            f"{asks} with search.verify={config.search.verify}: a run draws tokens from the distribution of the "
            "search, and no law is known of those that a verification would choose; set search.verify=0, and verify in "
            "worldmtp eval --search gumbel --verify K."
        )
    _check_learnt_replies(config)
    if not (config.trains_world_heads or config.search.through_replies):
        teaches = "imagination=counterfactual or agent.rollout.act=search, which do"
        if trainer is not None:
            teaches = "imagination=counterfactual with post_training.trainer=ppo, which do"
        raise ValueError(
            f"{asks} with search.dynamics={config.search.dynamics} reads the heads of reward and continuation, which "
            f"imagination={use} never trains; set {teaches}, or eval.act=policy."
        )
    try:
        check_search(search_of(config), model, env, config.imagination.learns_replies)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{asks}, by search.dynamics={config.search.dynamics}: {error}") from error


def _check_learnt_replies(config: TrainConfig) -> None:
    """Raise ValueError if a model of replies would learn from episodes that knew what is hidden.

    With ``world_model.backend=oracle`` none is learnt, as the real world is asked.
    """
    acts_by_world = config.agent.rollout.act == "search" and config.search.dynamics == "world"
    if not acts_by_world or not config.imagination.learns_replies or config.world_model.backend == "oracle":
        return
    use = config.imagination.use
    raise ValueError(
        f"agent.rollout.act=search by search.dynamics=world with imagination={use}"
        f"{f' and {SEARCH_SETTING}' if use == 'search' else ''}: a search of the real world knows what is hidden, and "
        "what it says tells of it, which the model of replies that learns from those episodes would take for an effect "
        "of the words; set search.dynamics=replies, imagination=off, or agent.rollout.act=policy."
    )


def search_notes(config: TrainConfig) -> tuple[str, ...]:
    """Return what the closing table needs to say of who chose the tokens."""
    if config.eval.act == "policy":
        return ()
    until = ", and by the policy until replies have been learnt" if config.search.dynamics == "replies" else ""
    return (
        f"exact and sampled are of answers by search, {config.search.way} a token{until}; the policy's own stand "
        "in the log, as eval/policy/exact",
    )
