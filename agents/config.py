"""Frozen configs of PPO, rollouts, world-model training and imagination; each checks its own values.

They stand in a file that needs no torch, apart from the classes that read them: the command line's schema is made of
them, and ``--help`` and a misspelt option are answered without loading a library of seconds.
"""

import math
from dataclasses import dataclass, field

from worldmtp.agents.episodes_config import EpisodesConfig
from worldmtp.agents.search_config import ACTS, SearchTargetConfig
from worldmtp.choices import check_choice
from worldmtp.dynamics.reply_config import ReplyModelConfig


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_coefficients(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(0 <= value < math.inf, f"{name}={value} must be finite and not negative; 0 turns the term off.")


def _require_rates(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(0 < value < math.inf, f"{name}={value} must be positive and finite.")


def _require_at_least(config: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value >= least, f"{name}={value} must be at least {least}.")


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017) on text.

    gamma defaults to one: an answer is short, its reward comes at the end, and a terminal reward discounted over tokens
    would pay for brevity. gae_lambda defaults to .95 (Schulman et al. 2016).
    """

    learning_rate: float = 3e-4
    warmup_updates: int = 0
    """Gradient steps over which the learning rate rises linearly: Adam's first steps are sign steps of full size."""
    anneals_learning_rate: bool = False
    """The learning rate falls linearly to zero over the run's iterations: late noise is averaged out."""
    gamma: float = 1.0
    gae_lambda: float = 0.95
    """Of ``advantage="gae"``; groups, ``counterfactual`` and ``baseline`` take real returns, lambda 1."""
    clip_coef: float = 0.2
    vf_coef: float = 0.5
    ent_coef: float = 0.0
    kl_coef: float = 0.02
    observation_coef: float = 0.0
    """Of the cross-entropy of what a world replies, in the same forward (ECHO). 0: off; try .005 to 1.

    The policy then also learns to foresee its world. Only where one replies.
    """
    num_epochs: int = 2
    num_minibatches: int = 2
    micro_batch_size: int | None = None
    """Episodes in memory at once: gradients add up over the micro-batches of a minibatch. None: the whole minibatch.

    Memory alone depends on it; the update is that of the minibatch.
    """
    max_grad_norm: float = 1.0
    target_kl: float | None = None
    """Epochs end when a minibatch's approximate KL to the acting policy exceeds it, so that many are safe. None: never.

    That minibatch is not trained on, and the step before it is taken back to where the limit is.
    """
    adam_beta2: float = 0.999
    """Adam's second-moment decay; .99 forgets sooner, for runs of few hundred updates."""
    advantage: str = "gae"
    """``gae``: the value head is the baseline; ``group``: the shrunk group baseline, one advantage per episode.

    A group compares whole episodes, so it takes neither gamma < 1 nor ``bootstrap_truncated``. ``counterfactual``
    and ``baseline`` bring an estimator of their own, and this is not read.
    """
    scale_advantages: bool = True
    """Divide by the root mean square of the batch; the mean is never subtracted."""
    min_advantage_scale: float = 1e-6
    """The least that advantages are divided by: above the noise of a critic, reward-less batches move little."""
    detach_value: bool = True
    """The value loss trains the value head only, not the trunk."""
    bootstrap_truncated: bool = False
    """A truncated episode goes on in value. Off where its end was paid a score: that would count twice."""
    max_importance_weight: float = 10.0
    """Most that an action counts by pi / b, where ``agent.rollout.act=search`` drew it from b (Wang et al. 2017, ACER).

    Above it a mean over actions is biased: towards what the search does more often than the policy.
    """

    def __post_init__(self) -> None:
        _require_rates(self, "learning_rate")
        _require_coefficients(self, "vf_coef", "ent_coef", "kl_coef", "observation_coef")
        _require(self.warmup_updates >= 0, f"warmup_updates={self.warmup_updates} cannot be negative.")
        _require(0 <= self.gamma <= 1, f"gamma={self.gamma} must be in [0, 1].")
        _require(0 <= self.gae_lambda <= 1, f"gae_lambda={self.gae_lambda} must be in [0, 1].")
        _require(self.clip_coef > 0, f"clip_coef={self.clip_coef} must be positive.")
        _require(self.max_grad_norm > 0, f"max_grad_norm={self.max_grad_norm} must be positive.")
        _require(
            self.target_kl is None or 0 < self.target_kl < math.inf,
            f"target_kl={self.target_kl} must be positive and finite, or null for no stop.",
        )
        _require_rates(self, "min_advantage_scale")
        _require(
            1 <= self.max_importance_weight < math.inf,
            f"max_importance_weight={self.max_importance_weight} must be finite and at least 1, what an action counts "
            "that the policy itself has drawn.",
        )
        _require(0 < self.adam_beta2 < 1, f"adam_beta2={self.adam_beta2} must be in (0, 1).")
        _require_at_least(self, 1, "num_epochs", "num_minibatches")
        _require(
            self.micro_batch_size is None or self.micro_batch_size >= 1,
            f"micro_batch_size={self.micro_batch_size} must be at least 1, or null for whole minibatches.",
        )
        _require(
            self.advantage in ("gae", "group"), f"advantage={self.advantage!r} is unknown; choose 'gae' or 'group'."
        )
        if self.advantage == "group":
            self.check_whole_episodes("advantage='group'")

    def check_whole_episodes(self, name: str, prefix: str = "agent.ppo.") -> None:
        """Raise if these settings cannot be followed by what compares the undiscounted returns of whole episodes.

        ``prefix`` stands before the names of settings in the message.

        Raises:
            ValueError: gamma is below 1, or truncated episodes are to go on in value.
        """
        instead = "" if self.advantage == "gae" else f", or {prefix}advantage=gae"
        _require(
            self.gamma == 1,
            f"{prefix}gamma={self.gamma} with {name}: it compares whole episodes, one advantage each, and discounts "
            f"nothing; set {prefix}gamma=1{instead}.",
        )
        _require(
            not self.bootstrap_truncated,
            f"{prefix}bootstrap_truncated=True with {name}: it compares what whole episodes were paid, and "
            f"bootstraps nothing; set {prefix}bootstrap_truncated=false{instead}.",
        )

    def check_searched(self, name: str = "imagination=search") -> None:
        """Raise if these returns are not those of a search, in which a text ends for good with its tokens.

        ``name`` says in the message who searches.

        Raises:
            ValueError: truncated episodes are to go on in value, or nothing that follows a token counts.
        """
        _require(
            not self.bootstrap_truncated,
            f"agent.ppo.bootstrap_truncated=True with {name}: a text that is searched ends for good where "
            "its tokens are used up; set agent.ppo.bootstrap_truncated=false.",
        )
        _require(
            self.gamma > 0,
            f"agent.ppo.gamma=0.0 with {name}: nothing that follows a token would count; set agent.ppo.gamma=1.",
        )


@dataclass(frozen=True)
class RolloutConfig:
    """Real experience of one iteration: ``num_prompts`` prompts, ``group_size`` answers to each."""

    num_iterations: int
    num_prompts: int = 64
    group_size: int = 4
    temperature: float = 1.0
    draft: str = "none"
    """The draft while acting, as in ``worldmtp.decoding.generate``; answers have the same distribution with any."""
    num_draft: int | None = None
    act: str = "policy"
    """``search`` chooses every token by ``search``, from a distribution b; PPO weighs what was chosen by pi / b."""
    search_after: int = 8
    """Iterations in which the policy acts, before a search does: what a search reads must be learnt first."""

    def __post_init__(self) -> None:
        check_choice("agent.rollout.act", self.act, ACTS)
        _require(self.search_after >= 0, f"search_after={self.search_after} cannot be negative.")
        _require(
            self.act == "policy" or self.draft == "none",
            f"act=search with draft={self.draft}: drafts decide tokens that nobody has searched for; set "
            "agent.rollout.draft=none, or agent.rollout.act=policy.",
        )
        _require(self.num_iterations >= 0, f"num_iterations={self.num_iterations} cannot be negative.")
        _require_at_least(self, 1, "num_prompts", "group_size")
        _require(
            self.num_prompts * self.group_size >= 2,
            "one episode an iteration has nothing to be compared with; raise num_prompts or group_size.",
        )
        _require_rates(self, "temperature")


@dataclass(frozen=True)
class WorldModelConfig:
    """Training of the MTP heads and world heads on replayed real episodes; the trunk is never touched.

    ``replies`` is of the model of what a world writes, an ensemble of its own; ``imagination=episodes`` asks it.
    """

    backend: str = "mtp"
    learning_rate: float = 3e-4
    """Of the layers that foresee tokens, which the warm start has trained already."""
    warmup_updates: int = 30
    """Gradient steps over which that rate rises linearly: Adam's first steps are sign steps of full size."""
    world_heads_learning_rate: float = 1e-3
    """Of the heads for reward, continuation and value, which know nothing at first."""
    num_updates: int = 4
    """Gradient steps an iteration."""
    batch_size_episodes: int = 128
    replay_iterations: int = 8
    """Iterations of real episodes kept."""
    ce_coef: float = 0.0
    """Cross-entropy of the heads with the tokens that followed."""
    kl_coef: float = 1.0
    """KL of the heads from the trunk's own distribution at the place they foresee: all tokens teach, not one draw."""
    reward_coef: float = 1.0
    continuation_coef: float = 1.0
    value_coef: float = 1.0
    detach_world_heads: bool = True
    """Reward, continuation and value train the world heads alone, not the layers that foresee tokens."""
    max_grad_norm: float = 1.0
    measure_every: int = 8
    """Iterations from one measurement of what the heads know of a fresh batch to the next; nothing learns from it."""
    replies: ReplyModelConfig = field(default_factory=ReplyModelConfig)

    def __post_init__(self) -> None:
        _require_rates(self, "learning_rate", "world_heads_learning_rate")
        _require_coefficients(self, "ce_coef", "kl_coef", "reward_coef", "continuation_coef", "value_coef")
        _require(self.warmup_updates >= 0, f"warmup_updates={self.warmup_updates} cannot be negative.")
        _require(self.max_grad_norm > 0, f"max_grad_norm={self.max_grad_norm} must be positive.")
        _require(self.num_updates >= 0, f"num_updates={self.num_updates} cannot be negative.")
        _require_at_least(self, 1, "replay_iterations", "measure_every")
        _require(self.batch_size_episodes >= 1, f"batch_size_episodes={self.batch_size_episodes} must be positive.")


@dataclass(frozen=True)
class LatentConfig:
    """``imagination=latent``: PPO on tokens imagined in the heads' latents, beside PPO on the real answers.

    Biased by whatever the heads get wrong, so that a gate decides when it is trained on. The steps imagined from each
    state are ``imagination.horizon``.
    """

    num_starts: int = 128
    """States of real answers that an iteration imagines from: an answer at random, and a step of it, with repeats."""
    replay_iterations: int = 1
    """Real batches that states are sampled from. 1: the fresh one alone; more branch from prefixes of earlier ones."""
    lambda_: float = 0.95
    """Of the lambda-returns: 0 looks one imagined step ahead, 1 as far as imagination goes, then at the value."""
    mixed: bool = False
    """One update on real and imagined rows together, by ``agent.ppo``; otherwise imagined rows have one of their own.

    That one has ``num_epochs``, ``kl_coef`` and ``ent_coef`` of its own, which are not read where rows are mixed.
    """
    num_epochs: int = 1
    """Passes over the imagined rows."""
    kl_coef: float = 0.1
    """Coefficient of the KL to the policy that acted the last real batch: the leash."""
    ent_coef: float = 0.0
    """Coefficient of the entropy, which is added."""
    min_return_range: float = 0.1
    """The least that advantages are divided by, in units of the reward.

    The divisor is the running range, 5th to 95th percentile, of the imagined returns.
    """
    gated: bool = True
    """Off for placebos, whose gate would be shut. They too wait for ``gate_batches``."""
    gate_batches: int = 8
    """Real batches over which skill is averaged: the gate is open where the mean exceeds two standard errors."""

    def __post_init__(self) -> None:
        _require_at_least(self, 1, "num_starts", "replay_iterations", "num_epochs")
        _require_at_least(self, 2, "gate_batches")
        _require(0 <= self.lambda_ <= 1, f"lambda_={self.lambda_} must be in [0, 1].")
        _require_coefficients(self, "kl_coef", "ent_coef")
        _require_rates(self, "min_return_range")


@dataclass(frozen=True)
class ImaginationConfig:
    """What imagination is used for, and how far.

    ``off``: plain PPO. ``counterfactual``: an all-action policy term, doubly robust. ``baseline``: imagined value
    expansion as a state-only baseline. ``latent``: PPO on tokens imagined in the heads' latents beside the real ones.
    ``episodes``: PPO on imagined conversations beside the real ones. ``search``: a policy improved by search, to learn
    beside PPO. Each is explained in the file of that name in
    ``agents/imagination``.
    """

    use: str = "counterfactual"
    horizon: int = 3
    max_live: int = 8
    min_probability: float = 0.005
    tail: bool = True
    """All tokens that are not live are one action together, so that a mistake with one of them is judged as well."""
    max_rung: int = 2
    """Highest rung of the critic ladder: 0 surprisals, 1 + imagined steps, 2 + imagined latents."""
    completions: str = "none"
    """One more rung: answers imagined to their end by the ``heads`` or the ``trunk``, and scored by the task; ``none``.

    ``heads``: by the world model, which needs ``model.depth`` as large as the longest answer. ``trunk``: dearer where
    it is deep. The scorer is asked about a dozen times for each real answer, so where it is paid this is refused.
    """
    completion_samples: int = 2
    """Completions drawn for each likely token, beside the greedy one."""
    completion_candidates: int | None = None
    """Likely tokens completed in each state, most likely first. None: all that are live."""
    completion_states: int | None = None
    """States of an episode whose tokens are completed: the first with two live tokens or more. None: every state."""
    critic_learning_rate: float = 3e-3
    critic_updates: int = 4
    critic_replay_iterations: int = 20
    critic_hidden_size: int = 32
    num_rollouts: int = 4
    """Imagined rollouts a root, for ``baseline``."""
    slope_decay: float = 0.9
    min_batches: int = 3
    """Batches whose skill is measured before the gate may open."""
    gradient_norm_every: int = 0
    """Iterations between two measurements of what ``counterfactual`` makes of the gradient's norm; 0: never.

    Each costs two passes forward and backward over the batch.
    """
    chunk_states: int = 2048
    """States stepped at once: bounds memory, changes nothing."""
    latent: LatentConfig = field(default_factory=LatentConfig)
    episodes: EpisodesConfig = field(default_factory=EpisodesConfig)
    search: SearchTargetConfig = field(default_factory=SearchTargetConfig)

    @property
    def searches_replies(self) -> bool:
        """Whether a search goes on through what the world replies."""
        return self.use == "search" and self.search.searches and self.search.through_replies

    @property
    def learns_replies(self) -> bool:
        """Whether a model of what the world replies is learnt."""
        return self.use == "episodes" or self.searches_replies

    @property
    def reads_latents(self) -> bool:
        """Whether the policy's own heads are what imagines, and so are trained."""
        searches = self.use == "search" and self.search.searches
        return (searches and not self.search.through_replies) or self.use in ("counterfactual", "baseline", "latent")

    def __post_init__(self) -> None:
        _require(
            self.use in ("off", "counterfactual", "baseline", "latent", "episodes", "search"),
            f"use={self.use!r} is unknown; choose 'off', 'counterfactual', 'baseline', 'latent', 'episodes' or "
            "'search'.",
        )
        _require_at_least(self, 1, "horizon")
        _require(self.max_live >= 1, f"max_live={self.max_live} must be at least 1.")
        _require(
            self.max_live >= 2 or self.tail,
            f"max_live={self.max_live} with tail=False must be at least 2: one token has no alternative.",
        )
        _require(0 <= self.min_probability < 1, f"min_probability={self.min_probability} must be in [0, 1).")
        _require(0 <= self.max_rung <= 2, f"max_rung={self.max_rung} must be 0, 1 or 2.")
        _require(
            self.completions in ("none", "heads", "trunk"),
            f"completions={self.completions!r} is unknown; choose 'none', 'heads' or 'trunk'.",
        )
        _require_at_least(self, 0, "completion_samples")
        for name in ("completion_candidates", "completion_states"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name}={value} must be at least 1, or null for all.")
        _require_at_least(self, 1, "critic_replay_iterations", "critic_hidden_size", "num_rollouts")
        _require_rates(self, "critic_learning_rate")
        _require(self.critic_updates >= 0, f"critic_updates={self.critic_updates} cannot be negative.")
        _require(self.min_batches >= 0, f"min_batches={self.min_batches} cannot be negative.")
        _require(
            self.gradient_norm_every >= 0,
            f"gradient_norm_every={self.gradient_norm_every} cannot be negative; 0 measures nothing.",
        )
        _require(0 < self.slope_decay < 1, f"slope_decay={self.slope_decay} must be in (0, 1).")
        _require(self.chunk_states >= 1, f"chunk_states={self.chunk_states} must be positive.")
