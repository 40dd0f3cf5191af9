"""``imagination=episodes``: PPO on whole imagined conversations, beside PPO on the real ones. Dreamer in text.

After each real batch:

    PPO on it (once returns have differed) -> the model of replies learns -> gates
    -> num_batches times: imagine a batch with the policy of the moment, PPO on it with a KL stop of its own
    -> the next real batch measures what the last imagined one promised

Imagined conversations begin with real openings; the policy's turns are its own, by the same loop and with the same
action masks; the world's replies, rewards and ends are the model's (``envs.imagined_world``). The update is the agent's
own, so PPO is written once.

Biased: the policy is trained on whatever the model gets wrong. So it is off by default, gated (``gates``) and shown
beside its placebos, which ``world_model.backend`` names: ``shuffled`` learns from the words of other turns, and
``identity`` sees none. ``oracle`` imagines in the real world itself: the upper bound, whose turns are not counted.

Before two real returns have differed, imagination explores instead (``exploring``). After that it is optimistic about
what it hardly knows; then one batch more, neither paid for the unknown nor trained on, makes the promise.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from worldmtp.agents.advantages import PlainAdvantages, monte_carlo_returns
from worldmtp.agents.config import PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.episodes_config import EpisodesConfig
from worldmtp.agents.imagination.exploring import Exploration, check_bonus
from worldmtp.agents.imagination.gates import OptimismGap
from worldmtp.agents.imagination.known_replies import KnownReplies
from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.ppo import PPOAgent, policy_stats
from worldmtp.agents.rollout import Rollout, collect_rollout, episode_returns, trimmed
from worldmtp.agents.turns import cut_replies
from worldmtp.dynamics.replies import ReplyModel
from worldmtp.dynamics.reply_predictions import ReplyPredictions, out_of_fold
from worldmtp.dynamics.turns import NOTHING, Turns
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.imagined_world import ImaginedWorldVectorEnv, Novelty, turn_limit
from worldmtp.envs.wrappers.action_mask import same_masks


class EpisodeImagination:
    """Imagined conversations and what they are made of.

    Args:
        agent: whose policy acts and learns.
        env: the real environment.
        rollout: how it acts.
        ppo: of both updates.
        world_model: of the replies.
        config: of this use.
        generators: streams "imagination", of acting and drawing, and "world_model", of learning.
        make_real: more rows of the real environment, for ``oracle``.
        reference: whom ``ppo.kl_coef`` leashes both updates to; read only where it is positive.

    Raises:
        ValueError: nobody replies in the environment; the back-end is unknown to this use; ``oracle`` has no world.
    """

    def __init__(
        self,
        agent: PPOAgent,
        env: TextVectorEnv,
        rollout: RolloutConfig,
        ppo: PPOConfig,
        world_model: WorldModelConfig,
        config: EpisodesConfig,
        generators: dict[str, torch.Generator],
        make_real: Callable[[int], TextVectorEnv] | None = None,
        reference: PreTrainedModel | None = None,
    ) -> None:
        self._heard = KnownReplies(env, agent.model, world_model, generators["world_model"], "imagination=episodes")
        check_real_observations(ppo)
        check_bonus(config.novelty_bonus, agent.model.config.value_range)
        self._agent, self._env, self._rollout, self._config = agent, env, rollout, config
        self._replies, self._acting = world_model.replies, generators["imagination"]
        self._max_turn = turn_limit(env)
        self._reference = reference if ppo.kl_coef else None
        self._estimator, self._ppo = PlainAdvantages(ppo), ppo
        self._exploration, self._is_masked = Exploration(config, self._heard), False
        low, high = agent.model.config.value_range
        self._least_gap = config.least_gap * (high - low)
        self._gap = OptimismGap(config.gap_batches, config.num_batches, self._least_gap)
        self._promised: float | None = None
        self._world: TextVectorEnv | None = None
        if self._heard.is_real:
            if make_real is None:
                raise ValueError("world_model=oracle imagines in the real world; give make_real, which makes its rows.")
            self._world = make_real(config.batch_size)
            self._world.reset(seed=int(torch.randint(2**31, (), generator=self._acting)))

    @property
    def heard(self) -> KnownReplies:
        """What is known of the world's replies."""
        return self._heard

    @property
    def trains_on_real(self) -> bool:
        """Whether PPO may train on real batches."""
        return self._exploration.trains_on_real

    @property
    def num_prompts(self) -> int:
        """Prompts of the next real batch."""
        return self._exploration.num_prompts(self._rollout.num_prompts)

    def observe(self, rollout: Rollout) -> dict[str, float]:
        """Take in a real batch, before anything trains on it; return what it says of the last promise."""
        returns = episode_returns(rollout)
        self._is_masked = rollout.is_masked
        self._heard.observe(rollout)
        if self._promised is None:
            return {}
        real = float(returns.mean())
        self._gap.measure(self._promised, real)
        return {
            "imagination/return_imagined": self._promised,
            "imagination/return_realized": real,
            "imagination/return_bias": self._promised - real,
            "imagination/optimism_gap": self._gap.mean,
        }

    def run(self, generator: torch.Generator, remaining: float) -> dict[str, float]:
        """Learn the replies, ask the gates, and train on imagined batches; return metrics, none before the first turn.

        ``generator`` orders the minibatches. ``remaining`` is as in ``PPOAgent.update``.
        """
        self._promised = None
        if self._world is None and not len(self._heard.replay):
            return {}  # no real turn has come to its end: nobody knows of any reply
        metrics, ratio = self._heard.learn()
        totals = {"imagination/imagined_turns": 0.0, "imagination/imagined_tokens": 0.0}
        explores = self._explores(totals)
        novelty = self._what_is_new(explores)
        is_open = explores or not self._config.gated or ratio >= self._config.min_action_ratio
        batches = self._gap.num_batches if self._config.gated and not explores else self._config.num_batches
        may_learn = explores or self.trains_on_real
        trained = flat = 0
        of_last: dict[str, float] = {}  # nothing is told of an imagined batch where there was none
        # One batch at least is imagined, so that the gap is measured while the gate is shut.
        for number in range(max(1, batches) if may_learn else 0):
            imagined, doubt, unknown = self._imagine(totals, novelty, is_small=explores)
            returns = float(episode_returns(imagined).mean())
            of_last = {"imagination/disagreement": doubt, "imagination/return_promised": returns}
            if novelty is not None:
                of_last["imagination/unknown_fraction"] = unknown
            sure = explores or not self._config.gated or doubt < self._config.max_disagreement
            if number >= batches or not (is_open and sure):
                break
            is_flat = self._is_flat(imagined) and not explores  # nothing is lost where nothing has been found
            flat += is_flat
            if is_flat and not (self._config.unlearns_lost_ways and self._is_lost(imagined)):
                continue
            metrics |= self._update(imagined, generator, remaining, unlearns=is_flat)
            trained += 1
        if of_last and not explores:
            if of_last.get("imagination/unknown_fraction"):  # what was paid for the unknown is no promise
                imagined, doubt, _ = self._imagine(totals)
                returns = float(episode_returns(imagined).mean())
                of_last |= {"imagination/disagreement": doubt, "imagination/return_promised": returns}
            self._promised = of_last["imagination/return_promised"]
        return (
            metrics
            | totals
            | of_last
            | {
                "imagination/batches_trained": float(trained),
                "imagination/batches_flat": float(flat),
                "imagination/batches_trusted": float(batches),
                "imagination/explores": float(explores),
            }
        )

    def _explores(self, totals: dict[str, float]) -> bool:
        """Return whether this iteration explores; where the way may be lost, a batch that is left out tells."""
        self._exploration.ask(self._exploration.may_be_lost and self._is_lost(self._imagine(totals)[0]))
        return self._exploration.is_on

    def _imagine(
        self, totals: dict[str, float], novelty: Novelty | None = None, is_small: bool = False
    ) -> tuple[Rollout, float, float]:
        """Return a batch of imagined episodes, and count its turns and tokens.

        With it the ensemble's mean disagreement, over the turns that are believed, and the share of the episodes that
        were paid for the unknown.
        """
        config, rollout, unknown = self._config, self._rollout, 0.0
        if self._world is not None:
            policy = TrunkPolicy(self._agent.model, rollout.temperature, rollout.draft, rollout.num_draft)
            imagined = collect_rollout(self._world, policy, self._acting, {"split": "train", "group_size": 1})
            turns, doubt = float(self._heard.turns_of(imagined).mask.sum()), 0.0
        else:
            recent, _ = self._heard.replay.newest(self._replies.recent_episodes)
            size = config.exploring_batch_size if is_small else config.batch_size
            chosen = torch.randint(len(recent), (size,), generator=self._acting)
            imagined, world = self._from_openings(recent.opening[chosen], self._acting, novelty)
            turns, unknown, doubt = float(world.num_turns), world.num_novel / size, world.believed_disagreement
        imagined = trimmed(imagined)
        totals["imagination/imagined_turns"] += turns
        totals["imagination/imagined_tokens"] += imagined.num_tokens
        return imagined.to(self._agent.model.device), doubt, unknown

    def _what_is_new(self, explores: bool) -> Novelty | None:
        """Return what imagination is paid for beside the world's rewards, or None in the real world, which is known."""
        if self._world is not None:
            return None
        find = self._exploration.novelty if explores else self._exploration.optimism
        return find(self._heard.replay.turns, self._heard.models.settled)

    def _from_openings(
        self, openings: Int[Tensor, "row opening"], generator: torch.Generator, novelty: Novelty | None = None
    ) -> tuple[Rollout, ImaginedWorldVectorEnv]:
        """Return an imagined episode from each opening, and the world that they were in."""
        rollout, seen = self._rollout, self._heard.seen
        policy = TrunkPolicy(self._agent.model, rollout.temperature, rollout.draft, rollout.num_draft)
        world = ImaginedWorldVectorEnv(
            self._env, self._heard.models.best.model, len(openings), seen.most_turns, generator, novelty
        )
        rows = same_masks(self._env, world)
        imagined = collect_rollout(rows, policy, generator, {"openings": openings.numpy()})
        if imagined.is_masked != self._is_masked:
            raise ValueError(
                "the real environment masks actions and imagined rows do not: of the wrappers, only action_mask "
                "(VectorActionMask) is put around them. Give your rule to it, or use imagination=off."
            )
        return imagined, world

    def foretold(self, num_episodes: int) -> tuple[Turns, ReplyPredictions] | None:
        """Return the newest real conversations and what the model foretells of them; None if no reply was learnt from.

        Each is foretold by the member that has not trained on it.
        """
        found = self.newest(num_episodes)
        if found is None:
            return None
        model, turns, folds = found
        return turns, out_of_fold(model, turns, folds)

    def newest(self, num_episodes: int) -> tuple[ReplyModel, Turns, Int[Tensor, " episode"]] | None:
        """Return the model of replies, the newest real conversations and their numbers; None if it has learnt none."""
        if self._world is not None or not len(self._heard.replay):
            return None
        return self._heard.models.best.model, *self._heard.replay.newest(num_episodes)

    def imaginable(self, rollout: Rollout) -> tuple[Turns, Bool[Tensor, " batch"]]:
        """Return the whole turns of real episodes, and which episodes could have been imagined as they came.

        Not those with more turns than imagination allows, and not those whose last reply may have been cut.
        """
        turns = self._heard.turns_of(rollout)
        cut = cut_replies(rollout, self._env.tokenizer.eos_id, self._max_turn, self._env.dataset.max_new)
        return turns, (turns.num_turns <= self._heard.seen.most_turns) & ~cut

    def imagine_beside(self, real: Rollout, generator: torch.Generator) -> Rollout:
        """Return an imagined episode from the opening of each real one, by the present policy."""
        prompts, lengths = real.input_ids.cpu(), real.prompt_length.cpu()
        width = int(lengths.max())
        openings = torch.where(torch.arange(width) < lengths[:, None], prompts[:, :width], NOTHING)
        return self._from_openings(openings, generator)[0]

    def num_turns(self, rollout: Rollout) -> Int[Tensor, " batch"]:
        """Return how many whole turns each episode has."""
        return self._heard.turns_of(rollout).num_turns

    def _is_flat(self, imagined: Rollout) -> bool:
        """Return whether returns differ by so little that nothing could be learnt from the batch but noise.

        What is left of the advantages is then the error of the critic, and all batches of an iteration follow it. A
        smaller gradient would not help, as with ``min_advantage_scale``: Adam divides by the size of what it is fed,
        and goes on by its momentum where that is nothing. So the batch is left out. Returns are discounted, as those of
        the update are: of two ways to the reward the shorter one is worth more.
        """
        returns = monte_carlo_returns(imagined, self._ppo)[:, 0]
        return float(returns.max() - returns.min()) <= self._least_gap

    def _is_lost(self, imagined: Rollout) -> bool:
        """Return whether all imagined episodes end as badly as the worst real one, though better ones are known."""
        worst = self._heard.seen.lowest + self._least_gap
        return self._heard.seen.returns_differ and float(episode_returns(imagined).max()) <= worst

    def _update(
        self, imagined: Rollout, generator: torch.Generator, remaining: float, unlearns: bool
    ) -> dict[str, float]:
        """Train on an imagined batch; to unlearn is to follow the entropy alone, no advantage."""
        micro = self._agent.config.micro_batch_size
        stats = policy_stats(
            self._agent.model, self._reference, imagined, self._rollout.temperature, micro_batch_size=micro
        )
        plan, _ = self._estimator.estimate(imagined, stats)
        if unlearns:
            plan = replace(plan, advantages=torch.zeros_like(plan.advantages))
        unsure = self._exploration.is_on or unlearns
        ent_coef = max(self._ppo.ent_coef, self._config.novelty_ent_coef) if unsure else None
        metrics = self._agent.update(imagined, stats, plan, generator, remaining, self._config.num_epochs, ent_coef)
        return {
            "imagination/losses/policy": metrics["losses/policy"],
            "imagination/losses/entropy": metrics["losses/entropy"],
            "imagination/losses/approx_kl": metrics["losses/approx_kl"],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs.

        The oracle's world goes on from where its own generator stands.
        """
        return {
            **self._heard.state_dict(),
            "exploration": self._exploration.state_dict(),
            "gap": self._gap.state_dict(),
            "promised": self._promised,
            "world": None if self._world is None else self._world.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._heard.load_state_dict(state)
        self._exploration.load_state_dict(state["exploration"])
        self._gap.load_state_dict(state["gap"])
        self._promised = state["promised"]
        if self._world is not None:
            self._world.load_state(state["world"])


def check_real_observations(ppo: PPOConfig) -> None:
    """Raise if the policy would be taught to foresee replies that were imagined.

    Raises:
        ValueError: the term of observed replies is on.
    """
    if ppo.observation_coef:
        raise ValueError(
            f"agent.ppo.observation_coef={ppo.observation_coef} with imagination=episodes: most replies are imagined "
            "there, and would be learnt as if a world had given them. Set one of the two to off."
        )
