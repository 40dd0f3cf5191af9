"""The loop: real episodes, PPO on them, a world model learnt beside, and what it imagines fed back.

One iteration, in this order, because skill must be measured before anything has seen the batch:

    collect real episodes -> read them with the policy that acted -> estimate advantages (and measure imagination)
    -> PPO update -> world model update -> critics of the imagination

With ``imagination=latent`` rows are imagined while the batch is read, and PPO goes on with them after the real ones, or
takes both together. With ``imagination=episodes`` the model of replies learns after the PPO update, and PPO goes on in
imagined batches.

The trunk passes over the fresh batch once for all that is read and measured of it (``_read``). What that pass leaves is
never kept beyond, so nothing can look at the hidden states of weights that are gone.

Every random stream has its own generator: the ones of imagination and of the world model may be consumed or not
without moving a draw of acting or of the update. With ``imagination.use=off`` the result is plain PPO, to the bit.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from worldmtp.agents.advantages import same_return_fraction
from worldmtp.agents.alarm import AcceptanceAlarm
from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.flat_returns import FlatReturns
from worldmtp.agents.imagination.completions import ScoredCompletions, completions_of
from worldmtp.agents.imagination.counterfactual import control_plan
from worldmtp.agents.imagination.episodes import EpisodeImagination
from worldmtp.agents.imagination.estimators import make_estimator, random_streams, root_agreement
from worldmtp.agents.imagination.imagined_returns import Acting, acted_states
from worldmtp.agents.imagination.latent import LatentImagination
from worldmtp.agents.imagination.searched_world import ThroughReplies
from worldmtp.agents.observation import check_replies
from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.ppo import AdvantagePlan, PolicyStats, PPOAgent, policy_stats
from worldmtp.agents.rollout import PhaseClock, Rollout, collect_rollout, episode_returns
from worldmtp.agents.search_config import ActingSearch
from worldmtp.agents.searched_rollouts import SearchedRollouts, importance_weights
from worldmtp.agents.uses import check_use
from worldmtp.agents.world_learning import WorldModelLearner
from worldmtp.checkpoint import capture_rng, restore_rng
from worldmtp.decoding.drafts import make_drafter
from worldmtp.dynamics import WorldModel, check_horizon, make_world_model
from worldmtp.dynamics.conversations import ReplySource
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.task import TurnTask
from worldmtp.model import MTPModel


class ImaginationTrainer:
    """PPO with imagined rollouts beside the real reward. ``env`` holds num_prompts * group_size rows.

    The model is put into evaluation mode, here and at each step, and stays in it. Its logits end with the ids of the
    environment's tokenizer (``MTPModel.limit_tokens``): none past them is ever taken. ``make_real`` makes more rows of
    the environment, in which ``imagination=episodes`` with the oracle imagines. ``search`` says how is searched where
    ``rollout.act`` is ``search``.

    Raises:
        TypeError: the model has no heads.
        ValueError: model, environment and configs do not fit; the message says what does.
    """

    def __init__(
        self,
        model: nn.Module,
        env: TextVectorEnv,
        rollout: RolloutConfig,
        ppo: PPOConfig,
        world_model: WorldModelConfig,
        imagination: ImaginationConfig,
        seed: int,
        make_real: Callable[[int], TextVectorEnv] | None = None,
        search: ActingSearch | None = None,
    ) -> None:
        if not isinstance(model, MTPModel):
            raise TypeError(
                f"model is a {type(model).__name__}, expected an MTPModel; put heads on a causal LM with "
                "MTPModel.from_trunk(model, MTPConfig(depth=4))."
            )
        model.limit_tokens(env.tokenizer.vocab_size)
        if env.num_envs != rollout.num_prompts * rollout.group_size:
            raise ValueError(
                f"the environment has {env.num_envs} rows; num_prompts={rollout.num_prompts} times "
                f"group_size={rollout.group_size} needs {rollout.num_prompts * rollout.group_size}."
            )
        check_replies(env.task, ppo)
        check_use(env, env.reset(seed=seed)[1], imagination, ppo, rollout.draft, rollout.act)
        make_drafter(model, rollout.draft, rollout.num_draft, None)  # fail here rather than in the middle of a rollout
        self.model = model.eval()  # acting, reading and updating are one network: no dropout, from here on
        self.reference: PreTrainedModel | None = copy.deepcopy(model.trunk).requires_grad_(False).eval()
        self._env, self._config, self._ppo, self._imagination = env, rollout, ppo, imagination
        self._generators = random_streams(seed)
        self.agent = PPOAgent(model, ppo, rollout.temperature)
        self._learner = WorldModelLearner(model, world_model, ppo, rollout.temperature)
        # Without imagination there need be none: these heads may not have the back-end of the config.
        self._world_model: WorldModel[Any] | None = None
        if self.reads_latents:
            self._world_model = make_world_model(world_model.backend, model, self._generators["placebo"])
            check_horizon(self._world_model, imagination.horizon)
        low, high = model.config.value_range
        self._acting = Acting.of(env, rollout.temperature, (low, high))
        imagining = self._generators["imagination"]
        self._completions: ScoredCompletions | None = None
        if imagination.use == "counterfactual":
            assert self._world_model is not None
            self._completions = completions_of(env, model, self._world_model, self._acting, imagination, imagining)
        eos_id = env.tokenizer.eos_id
        through = env, model, self._acting, world_model, self._generators
        self._through = ThroughReplies(*through) if imagination.searches_replies else None
        imagines = imagining, self._completions, eos_id, self._through
        self._estimator = make_estimator(model, self._world_model, self._acting, imagination, ppo, *imagines)
        self._latent: LatentImagination | None = None
        if imagination.use == "latent":
            assert self._world_model is not None
            self._latent = LatentImagination(
                self.agent, self._world_model, self._acting, eos_id, imagination, ppo, imagining
            )
        self.episodes: EpisodeImagination | None = None
        """What imagines whole episodes, where ``imagination=episodes``."""
        if imagination.use == "episodes":
            self.episodes = EpisodeImagination(
                self.agent,
                env,
                rollout,
                ppo,
                world_model,
                imagination.episodes,
                self._generators,
                make_real,
                self.reference,
            )
        parts = search, model, env, rollout, ppo, seed, imagination.learns_replies
        self._search = SearchedRollouts(*parts) if rollout.act == "search" else None
        self._generators |= {} if self._search is None else {"search": self._search.generator}
        self.clock = PhaseClock()
        self.analysis_seconds = 0.0
        """Of the last step: what it measured for its numbers alone."""
        self._alarm = AcceptanceAlarm(model)
        self.flat_returns = FlatReturns(top=high, replies=isinstance(env.task, TurnTask))
        self.iteration = 0
        self.totals = {"env/episodes": 0.0, "env/tokens": 0.0, "imagination/imagined_tokens_total": 0.0}

    @property
    def reads_latents(self) -> bool:
        """Whether the policy's own heads imagine."""
        return self._imagination.reads_latents

    @property
    def trains_heads(self) -> bool:
        """Whether heads are trained beside the policy: they imagine, or a search that acts reads them."""
        return self.reads_latents or (self._search is not None and not self._search.how.through_replies)

    @property
    def replies(self) -> ReplySource | None:
        """Who says now what the world would reply; None while nobody knows."""
        learner = self.episodes or self._through
        return None if learner is None else learner.heard.source(self.model.device)

    def step(self) -> tuple[dict[str, float], Rollout]:
        """Run one iteration; return its metrics and its real episodes.

        Raises:
            FloatingPointError: a loss is not finite, with the iteration and the term.
        """
        try:
            return self._step()
        except FloatingPointError as error:
            raise FloatingPointError(f"iteration {self.iteration}: {error}") from error

    def _step(self) -> tuple[dict[str, float], Rollout]:
        clock = self.clock
        clock.take()
        self.model.eval()
        with clock.phase("total"):
            scored_before = self._env.scorer.counters.seconds
            rollout, acted = self._collect()
            scoring_seconds = self._env.scorer.counters.seconds - scored_before
            stats, plan, metrics = self._read(rollout)
            metrics |= self._gradient_norms(rollout, plan)
            remaining = 1 - self.iteration / max(self.iteration + 1, self._config.num_iterations)
            if self.episodes is not None:
                metrics |= self.episodes.observe(rollout)
            if self.episodes is None or self.episodes.trains_on_real:
                batch = (rollout, stats, plan) if self._latent is None else self._latent.joined(rollout, stats, plan)
                with clock.phase("update"):
                    metrics |= self.agent.update(*batch, self._generators["update"], remaining)
            if self._latent is not None:
                with clock.phase("update"):
                    metrics |= self._latent.update(remaining)
            if self.episodes is not None:
                with clock.phase("imagination"):
                    metrics |= self.episodes.run(self._generators["imagination"], remaining)
            if self.trains_heads:
                with clock.phase("world_model"):
                    metrics |= self._learner.learn(rollout, self._generators["world_model"])
            with clock.phase("imagination"):
                metrics |= self._estimator.learn()
        self.iteration += 1
        metrics |= acted | {"time/scoring_seconds": scoring_seconds}
        return metrics | self._bookkeeping(rollout, metrics), rollout

    def _collect(self) -> tuple[Rollout, dict[str, float]]:
        """Act; return the episodes, and what drafting or searching says of them."""
        config = self._config
        options: dict[str, Any] = {"split": "train", "group_size": config.group_size}
        if self.episodes is not None and self.episodes.num_prompts < config.num_prompts:
            options["reset_mask"] = np.arange(self._env.num_envs) < self.episodes.num_prompts * config.group_size
        self._env.scorer.take_components()  # those of answers before this rollout
        how: dict[str, float] = {}
        replies = None if self._search is None else self.replies
        if self._search is not None and self._search.acts(self.iteration, replies):
            searching = self._search.policy(replies)
            rollout = collect_rollout(self._env, searching, self._generators["acting"], options, self.clock)
            how = self._search.metrics(rollout, searching)
        else:
            policy = TrunkPolicy(self.model, config.temperature, config.draft, config.num_draft)
            rollout = collect_rollout(self._env, policy, self._generators["acting"], options, self.clock)
            if config.draft != "none":
                if policy.num_rounds:  # none where turns are one token: the prompt's or the reply's forward gives it
                    how["rollout/tokens_per_forward"] = policy.tokens_per_forward
                self._alarm.observe(policy.tokens_per_forward)
        check_returns(rollout, self.model.config.value_range)
        return rollout.to(self.model.device), how

    @torch.no_grad()
    def _read(self, rollout: Rollout) -> tuple[PolicyStats, AdvantagePlan, dict[str, float]]:
        """Read and measure a fresh rollout, from one pass of the trunk; no weight changes in here."""
        clock, model = self.clock, self.model
        with clock.phase("read"):
            features = model.trunk_features(rollout.input_ids, rollout.attention_mask)
            stats = policy_stats(
                model,
                self.reference,
                rollout,
                self._config.temperature,
                self._estimator.num_likely,
                features,
                self._ppo.micro_batch_size,
            )
        with clock.phase("imagination"):
            states = None if self._world_model is None else acted_states(self._world_model, rollout, features)
            plan, metrics = self._estimator.estimate(rollout, stats, states)
            if self._search is not None:
                plan = replace(plan, action_weights=importance_weights(rollout, self._ppo.max_importance_weight))
            metrics.setdefault("imagination/imagined_tokens", 0.0)
            if self._latent is not None:
                assert states is not None
                metrics |= self._latent.observe(rollout, stats, states)
            if states is not None:
                assert self._world_model is not None  # who has states has one
                horizon, imagining = self._imagination.horizon, self._generators["imagination"]
                with clock.phase("analysis"):
                    metrics |= root_agreement(
                        self._world_model, self._acting, rollout, states, stats.values, horizon, self._ppo, imagining
                    )
                metrics["imagination/imagined_tokens"] += len(rollout) * horizon
        if self.trains_heads:
            with clock.phase("world_model"), clock.phase("analysis"):
                metrics |= self._learner.measure(rollout, self._generators["world_model"], features, self.iteration)
        return stats, plan, metrics

    def _gradient_norms(self, rollout: Rollout, plan: AdvantagePlan) -> dict[str, float]:
        """Return |g|^2 of the plan over that of its control, in the iterations that measure it."""
        every, use = self._imagination.gradient_norm_every, self._imagination.use
        if use != "counterfactual" or not every or self.iteration % every:
            return {}
        with self.clock.phase("imagination"), self.clock.phase("analysis"):
            control = self.agent.squared_gradient_norm(rollout, control_plan(plan, rollout))
            if control == 0:  # all returns are equal
                return {}
            return {"imagination/gradient_norm_ratio": self.agent.squared_gradient_norm(rollout, plan) / control}

    def _bookkeeping(self, rollout: Rollout, metrics: dict[str, float]) -> dict[str, float]:
        seconds = self.clock.take()
        self.totals["env/episodes"] += len(rollout)
        self.totals["env/tokens"] += rollout.num_tokens
        self.totals["imagination/imagined_tokens_total"] += metrics.get("imagination/imagined_tokens", 0.0)
        counters = self._env.scorer.counters
        total, acting = seconds["total"], seconds.get("policy", 0.0)
        self.analysis_seconds = seconds.get("analysis", 0.0)
        returns = episode_returns(rollout)
        self.flat_returns.observe(self.iteration, returns, rollout.exact)
        return {
            "rollout/return_mean": float(returns.mean()),
            "rollout/return_std": float(returns.std(unbiased=False)),
            "rollout/same_return_group_fraction": same_return_fraction(returns, rollout.group),
            "rollout/exact_mean": float(rollout.exact.float().mean()),
            "rollout/length_mean": rollout.num_tokens / len(rollout),
            "rollout/truncated_fraction": float(rollout.truncated.any(dim=1).float().mean()),
            **{f"rollout/components/{name}": mean for name, mean in self._env.scorer.take_components().items()},
            "env/scorer_calls": float(counters.scored),
            "env/scorer_errors": float(counters.errors),
            "env/scorer_timeouts": float(counters.timeouts),
            **({} if self._completions is None else {"env/imagined_scores": float(self._env.scorer.imagined.scored)}),
            **self.totals,
            "imagination/imagined_to_real_ratio": metrics.get("imagination/imagined_tokens", 0.0) / rollout.num_tokens,
            "time/rollout_seconds": acting,
            "time/tokens_per_second": rollout.num_tokens / acting,
            "time/env_seconds": seconds.get("env", 0.0),
            "time/update_seconds": seconds.get("update", 0.0) + seconds.get("read", 0.0),
            "time/world_model_seconds": seconds.get("world_model", 0.0),
            "time/imagination_seconds": seconds.get("imagination", 0.0),
            "time/total_seconds": total,
            "time/env_fraction": seconds.get("env", 0.0) / total,
        }

    def _parts(self) -> dict[str, Any]:
        """Return what has a state of its own, by its name in a checkpoint."""
        parts = {
            "model": self.model,
            "agent": self.agent,
            "learner": self._learner,
            "estimator": self._estimator,
            "alarm": self._alarm,
            "flat_returns": self.flat_returns,
        }
        optional = {"latent": self._latent, "episodes": self.episodes}
        return parts | {name: part for name, part in optional.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next iteration depends on, the model included."""
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "reference": self.reference.state_dict() if self.reference is not None else None,
            "env": self._env.state(),
            "generators": capture_rng(self._generators),
            "iteration": self.iteration,
            "totals": dict(self.totals),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; the next iteration is the one that would have followed.

        Raises:
            ValueError: the state lacks a random stream, or has one that this trainer does not know; or it lacks
                something else, as one may that another version has written.
        """
        restore_rng(self._generators, state["generators"])
        for name, part in self._parts().items():
            try:
                part.load_state_dict(state[name])
            except KeyError as error:
                raise ValueError(
                    f"the checkpoint has no {error} for the trainer's {name}: another version of worldmtp has written "
                    "it, or a trainer with other parts; go on with the version and the settings that wrote it, or "
                    "start a new run."
                ) from error
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])
        self._env.load_state(state["env"])
        self.iteration = int(state["iteration"])
        self.totals = {name: float(value) for name, value in state["totals"].items()}


def check_returns(rollout: Rollout, value_range: tuple[float, float]) -> None:
    """Raise if a return lies outside the range of the values by more than rounding in float32.

    Each of T rewards is rounded to half an ulp of the range's larger end, which adds up to T ulps at most. Value bins
    clamp what is left (``model.world_heads.two_hot``).

    Raises:
        ValueError: a return is really outside.
    """
    returns, (low, high) = episode_returns(rollout), value_range
    tolerance = rollout.rewards.shape[1] * torch.finfo(torch.float32).eps * max(abs(low), abs(high))
    if float(returns.min()) < low - tolerance or float(returns.max()) > high + tolerance:
        raise ValueError(
            f"an episode's return of {float(returns.min())} .. {float(returns.max())} lies outside the model's "
            f"value_range ({low}, {high}), so its value bins cannot hold it; scale the task's score."
        )
