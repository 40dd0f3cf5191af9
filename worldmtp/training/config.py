"""The config of a training run: frozen dataclasses, from and to plain nested dicts.

Each config stands beside what it configures and is declared there alone: those of the agent in ``worldmtp.agents``,
the objective's in ``worldmtp.objective``, the stages' here. The command line composes the same classes from YAML. No
torch is needed to read or check a config.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.search_config import ACTS, ActingSearch
from worldmtp.choices import check_choice
from worldmtp.objective.objective import MTPObjective

Config = TypeVar("Config")

_COMPUTE_DTYPES = ("float32", "bfloat16")
"""Those of ``worldmtp.model.precision``, which needs torch."""

TRAINERS = ("sft", "dpo", "kto", "grpo", "rloo", "ppo")
"""Of ``worldmtp.post_training``."""


def _at_least(smallest: int, **values: int | float) -> None:
    for name, value in values.items():
        if not value >= smallest:
            raise ValueError(f"{name}={value} must be at least {smallest}.")


def _positive(**values: int | float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be positive and finite.")


@dataclass(frozen=True)
class EnvConfig:
    """Which environment, what it is made with, and its wrappers; see ``worldmtp.envs.text_env``."""

    id: str
    """A gymnasium id, or ``module:id`` to import the module first."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keywords the environment is made with; ``worldmtp envs check ID`` tries them."""
    wrappers: list[Any] = field(default_factory=list)
    """Wrappers by name, or a mapping of a name and keywords; the first is innermost."""

    def __post_init__(self) -> None:
        for wrapper in self.wrappers:
            if not isinstance(wrapper, str | Mapping):
                raise ValueError(f"wrappers={self.wrappers}: {wrapper!r} is neither a name nor a mapping of a name.")


@dataclass(frozen=True)
class HeadSpecConfig:
    """Fields of ``worldmtp.MTPConfig`` that say how a family's heads are built and how far gradients go.

    None is the default of ``MTPConfig``, whose import takes transformers and torch.
    """

    share_depths: bool | None = None
    stride: int | None = None
    concat_order: str | None = None
    hidden_stage: str | None = None
    recycle_stage: str | None = None
    output_norm: str | None = None
    unembedding: str | None = None
    feature_layers: list[int] | None = None
    head_block: str | None = None
    head_width: int | None = None
    head_layers: int | None = None
    head_init: str | None = None
    detach_trunk: bool | None = None
    detach_embedding: bool | None = None
    detach_lm_head: bool | None = None

    def given(self) -> dict[str, Any]:
        """Return the fields that are set, for ``MTPConfig``."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class ModelConfig:
    """The trunk, made from a transformers config or loaded from ``path``, and its heads.

    Weights are loaded, trained and saved in float32, whatever a checkpoint holds. ``compute_dtype=bfloat16`` computes
    with them by autocast, in the warm start, in reinforcement and in evaluation.
    """

    architecture: str | None = None
    """The ``model_type`` of a transformers config, for a trunk with random weights."""
    path: str | None = None
    """A directory that ``save_pretrained`` wrote, to load a causal LM from instead."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the transformers config of that architecture, such as ``hidden_size``."""
    depth: int = 4
    """K: head k predicts token t + k, and depth 1 is the trunk's own LM head."""
    head: str = "sequential"
    """Family of the heads; ``docs/heads.md`` lists them."""
    head_spec: HeadSpecConfig = field(default_factory=HeadSpecConfig)
    num_value_bins: int | None = None
    """Bins of the distributions of value and reward; None is the default of ``MTPConfig``."""
    compute_dtype: str = "float32"
    """``bfloat16`` computes products in it by autocast; weights stay float32."""

    def __post_init__(self) -> None:
        check_choice("compute_dtype", self.compute_dtype, _COMPUTE_DTYPES)


@dataclass(frozen=True)
class SFTStageConfig:
    """The warm start on the task's own answers."""

    num_demonstrations: int = 4000
    """Prompts with answers to learn from; a task that has fewer gives what it has, and says so."""
    num_steps: int = 160
    """Optimiser steps; 0 leaves the warm start out, as worlds need, which have no answers."""
    batch_size: int = 64
    """Demonstrations a step."""
    learning_rate: float = 2e-3
    """AdamW's, after its warm-up."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises linearly."""
    log_steps: int = 20
    """Steps a logged mean is over."""
    save_steps: int = 100
    """Steps between two checkpoints; a multiple of ``log_steps``, so that no mean is cut by a resumption."""
    eval_steps: int | None = None
    """Optimiser steps between two held-out evaluations of the warm start, the first before any; None makes none."""
    load: str | None = None
    """The ``sft/model`` of another run, or any saved ``MTPModel``: its model replaces the warm start."""
    share_prompts: bool = False
    """Reinforcement may train on the prompts whose answers the warm start has shown."""

    def __post_init__(self) -> None:
        _at_least(0, num_steps=self.num_steps, warmup_steps=self.warmup_steps)
        _at_least(1, num_demonstrations=self.num_demonstrations, batch_size=self.batch_size, log_steps=self.log_steps)
        _at_least(1, eval_steps=1 if self.eval_steps is None else self.eval_steps)
        _positive(learning_rate=self.learning_rate)
        if self.save_steps < 1 or self.save_steps % self.log_steps:
            raise ValueError(
                f"save_steps={self.save_steps} must be a multiple of log_steps={self.log_steps}; else a resumed run "
                "would log other means."
            )


@dataclass(frozen=True)
class EvalConfig:
    """Held-out evaluation: greedy and sampled answers to the same ``num_prompts`` prompts each time."""

    num_prompts: int = 512
    """Held-out prompts, the same at each evaluation."""
    every_iterations: int = 10
    """Iterations of reinforcement between two evaluations."""
    num_imagined: int = 8
    """Imagined rollouts a root, in the comparison with what was realized."""
    num_attention: int = 64
    """Sampled answers whose attention is read; 0 reads none."""
    act: str = "policy"
    """``search`` chooses every held-out token by ``search``, and the policy's own answers are counted beside it."""

    def __post_init__(self) -> None:
        check_choice("eval.act", self.act, ACTS)
        _at_least(0, num_attention=self.num_attention)
        _at_least(2, num_prompts=self.num_prompts)
        _at_least(1, every_iterations=self.every_iterations, num_imagined=self.num_imagined)


@dataclass(frozen=True)
class AgentConfig:
    """How much real experience, and how PPO learns from it."""

    rollout: RolloutConfig
    ppo: PPOConfig


@dataclass(frozen=True)
class ProfileConfig:
    """The machine."""

    device: str = "cpu"
    """A torch device: ``cpu``, ``cuda``, ``cuda:1``."""
    num_threads: int = 2
    """Threads of torch; small matrices are faster with one."""
    num_jobs: int = 1
    """Arms of a study at work at once; with more than one, each has a process of its own and one thread."""

    def __post_init__(self) -> None:
        _at_least(1, num_threads=self.num_threads, num_jobs=self.num_jobs)


@dataclass(frozen=True)
class LoggerConfig:
    """What is written besides metrics.jsonl, which always is."""

    tensorboard: bool = True
    """Write scalars, pictures and texts for TensorBoard."""
    num_strips: int = 8
    """Token strips drawn at each evaluation."""

    def __post_init__(self) -> None:
        _at_least(0, num_strips=self.num_strips)


@dataclass(frozen=True)
class CheckpointConfig:
    """How often the run can be taken up again."""

    every_iterations: int = 10
    """Iterations between two checkpoints."""
    keep_last: int = 2
    """Checkpoints kept."""
    stop_after: int | None = None
    """Iteration at which to stop, as if killed; ``resume=`` goes on from there."""

    def __post_init__(self) -> None:
        _at_least(1, every_iterations=self.every_iterations, keep_last=self.keep_last)


@dataclass(frozen=True)
class PostTrainingHeadsConfig:
    """What the heads do in a trainer of TRL's; their losses and depths are those of ``objective``."""

    coef: float | None = None
    """Lambda; None is the schedule of ``objective.coef``, and 0 measures the heads without training them."""
    tokens: str = "policy"
    """What they learn: ``policy``, ``completion``, ``observation`` or ``all``; see ``docs/post_training.md``."""
    detach: bool | None = None
    """Their loss moves the heads alone; None is the trainer's default: not in ``sft``, else yes."""
    draft: str = "mtp"
    """What drafts while ``grpo``, ``ppo`` and ``rloo`` sample: ``mtp``, ``none`` or ``trl``."""
    num_draft: int | None = None
    """Tokens of a draft; None is all that the heads can."""

    def __post_init__(self) -> None:
        if self.coef is not None and not 0 <= self.coef < math.inf:
            raise ValueError(f"coef={self.coef} must be finite and at least 0, or null for that of objective.coef.")


@dataclass(frozen=True)
class PostTrainingConfig:
    """A trainer of TRL's in the place of the project's own agent, after the same warm start.

    ``checkpoint.every_iterations`` and ``eval.every_iterations`` then count its optimiser steps.
    """

    trainer: str | None = None
    """``sft``, ``dpo``, ``kto``, ``grpo``, ``rloo`` or ``ppo``; None leaves reinforcement to ``agent``."""
    num_steps: int = 100
    """Optimiser steps."""
    batch_size: int = 64
    """Rows a step: texts of ``sft``, pairs of ``dpo``, scored answers of ``kto``, sampled answers of the others."""
    learning_rate: float = 5e-4
    """AdamW's, after its warm-up; it falls linearly to zero."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises linearly."""
    beta: float | None = None
    """Weight of the KL to the model after the warm start; None is TRL's default of the trainer."""
    num_prompts: int = 1024
    """Training prompts, from the pool that the warm start has not shown."""
    group_size: int = 4
    """Answers to a prompt: in a batch of ``grpo``, ``rloo`` and ``ppo``, and of those scored for ``dpo``, ``kto``."""
    mtp: PostTrainingHeadsConfig = field(default_factory=PostTrainingHeadsConfig)
    options: dict[str, Any] = field(default_factory=dict)
    """Any other option of the trainer's config, by TRL's name."""

    def __post_init__(self) -> None:
        if self.trainer is not None:
            check_choice("trainer", self.trainer, TRAINERS)
        _at_least(0, warmup_steps=self.warmup_steps)
        counts = ("num_steps", "batch_size", "num_prompts", "group_size")
        _at_least(1, **{name: getattr(self, name) for name in counts})
        _positive(learning_rate=self.learning_rate)
        if self.beta is not None and not 0 <= self.beta < math.inf:
            raise ValueError(f"beta={self.beta} must be finite and at least 0, or null for TRL's default.")


@dataclass(frozen=True)
class TrainConfig:
    """A training run, or a study, which needs nothing of this but ``study``, ``profile`` and ``imports``."""

    env: EnvConfig
    model: ModelConfig
    agent: AgentConfig
    sft: SFTStageConfig = field(default_factory=SFTStageConfig)
    objective: MTPObjective = field(default_factory=MTPObjective)
    """How the warm start trains depths 2 .. K."""
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)
    post_training: PostTrainingConfig = field(default_factory=PostTrainingConfig)
    """A trainer of TRL's in the agent's place."""
    search: ActingSearch = field(default_factory=ActingSearch)
    """How a search acts, where ``agent.rollout.act`` or ``eval.act`` asks for one."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    name: str = "train"
    """Folder of the run under ``runs/``."""
    seed: int = 0
    """Every random stream of the run is derived from it."""
    study: dict[str, Any] = field(default_factory=dict)
    """``name`` of a study and the fields of its config; empty is one training run."""
    imports: list[str] = field(default_factory=list)
    """Modules or ``./files.py`` to import first: where your own environments register themselves."""
    resume: str | None = None
    """A run directory to go on with; everything else is then taken from its own config."""

    def __post_init__(self) -> None:
        _at_least(0, seed=self.seed)

    @property
    def trains_world_heads(self) -> bool:
        """Whether the heads of reward and continuation learn: they imagine, or a search that acts reads them."""
        acts = self.post_training.trainer is None and self.agent.rollout.act == "search"
        return self.imagination.reads_latents or (acts and not self.search.through_replies)


_COMPARED = (
    *("seed", "env.id", "model.path", "model.head", "model.depth"),
    *("sft.num_demonstrations", "sft.num_steps", "sft.learning_rate"),
    *("agent.rollout.num_iterations", "agent.rollout.num_prompts", "agent.rollout.group_size"),
    *("agent.rollout.temperature", "agent.rollout.act"),
    *("agent.ppo.learning_rate", "agent.ppo.advantage", "agent.ppo.kl_coef"),
    *("world_model.backend", "world_model.num_updates", "imagination.use", "imagination.horizon"),
)


def config_from_dict(kind: type[Config], values: Mapping[str, Any], place: str = "") -> Config:
    """Return the dataclass of nested plain values, as ``dataclasses.asdict`` gives them.

    Fields that are left out have their defaults. ``place`` says in messages where the values stand in the whole.

    Raises:
        ValueError: a key is unknown (the nearest is suggested), a field without a default is left out, or a value is
            out of range; the message names the place.
    """
    known = {column.name: column.type for column in fields(kind)}  # type: ignore[arg-type]  # always a dataclass
    made: dict[str, Any] = {}
    for key, value in values.items():
        inner = f"{place}.{key}".lstrip(".")
        check_choice(f"a key of {place or 'the config'}", str(key), known)
        nested: Any = known[key]
        is_nested = isinstance(nested, type) and is_dataclass(nested)
        made[key] = config_from_dict(nested, value, inner) if is_nested else value
    try:
        return kind(**made)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}: {error}" if place else str(error)) from error


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return the config as nested plain values, as YAML and JSON give them back: a tuple is a list there."""
    return {key: _plain(value) for key, value in asdict(config).items()}


def hyperparameters(config: TrainConfig) -> dict[str, int | float | str]:
    """Return the settings that runs are compared by, as TensorBoard's page HParams shows them."""
    values = config_to_dict(config)
    found: dict[str, int | float | str] = {}
    for key in _COMPARED:
        value: Any = values
        for part in key.split("."):
            value = value[part]
        found[key] = value if isinstance(value, int | float) else str(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def complete_earlier(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved config with the settings that it lacks because it is older than they are.

    Each has the value that does what was done then, so that an old run goes on as it began. Sections that are not there
    and settings whose default changes nothing are left to the defaults.
    """
    completed = dict(saved)
    for section, earlier in _before_they_existed(saved).items():
        if isinstance(saved.get(section), Mapping):
            completed[section] = earlier | dict(saved[section])
    return completed


def _before_they_existed(saved: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return by section the settings whose default is not what was done without them, and what was done."""
    world_model: dict[str, Any] = {"warmup_updates": 0, "kl_coef": 0.0, "detach_world_heads": False}
    rates = saved.get("world_model")
    if isinstance(rates, Mapping) and "learning_rate" in rates:
        world_model["world_heads_learning_rate"] = rates["learning_rate"]  # there was one for all heads
    return {"imagination": {"tail": False}, "world_model": world_model}
