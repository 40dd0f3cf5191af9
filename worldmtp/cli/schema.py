"""The shape of a training config: what Hydra checks types and names against when it composes.

The agents' own frozen dataclasses are the single source of names and defaults; OmegaConf cannot fill a frozen one, so
the schema is an unfrozen twin of each, made by ``twin``. ``build`` goes back: plain values into the frozen dataclass,
whose ``__post_init__`` checks them. No DictConfig leaves this package.
"""

import dataclasses
import math
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from typing import Any, TypeVar

import omegaconf
from omegaconf import DictConfig, OmegaConf

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.choices import check_choice
from worldmtp.cli.given import HeadSpecConfig, ObjectiveConfig

Config = TypeVar("Config")

_COMPUTE_DTYPES = ("float32", "bfloat16")
"""Those of ``worldmtp.model.precision``, which needs torch; ``--help`` is answered without."""


def twin(frozen: type) -> type:
    """An unfrozen dataclass with the fields, types and defaults of a frozen one; nested dataclasses are twinned too."""
    columns: list[tuple[str, Any, Any]] = []
    for column in fields(frozen):
        if isinstance(column.type, type) and is_dataclass(column.type):
            nested = twin(column.type)
            columns.append((column.name, nested, field(default_factory=nested)))
        elif column.default_factory is not dataclasses.MISSING:
            columns.append((column.name, column.type, field(default_factory=column.default_factory)))
        else:
            default = omegaconf.MISSING if column.default is dataclasses.MISSING else column.default
            columns.append((column.name, column.type, field(default=default)))
    return make_dataclass(f"{frozen.__name__}Schema", columns)


def build(frozen: type[Config], node: DictConfig, place: str = "") -> Config:
    """The frozen dataclass of a composed config node; ``place`` is where that stands in the whole.

    Raises:
        ValueError: a value is missing or out of range; the message names it.
    """
    missing = sorted(str(name) for name in OmegaConf.missing_keys(node))
    if missing:
        raise ValueError(
            f"the config lacks {', '.join(missing)}; give a value on the command line, as {missing[0]}=..."
        )
    values: dict[str, Any] = {}
    for column in fields(frozen):  # type: ignore[arg-type]
        value = node[column.name]
        if isinstance(column.type, type) and is_dataclass(column.type):
            values[column.name] = build(column.type, value, f"{place}.{column.name}".lstrip("."))
        else:
            is_node = OmegaConf.is_config(value)
            values[column.name] = OmegaConf.to_container(value, resolve=True) if is_node else value
    try:
        return frozen(**values)
    except ValueError as error:
        raise ValueError(f"{place}: {error}" if place else str(error)) from error


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
    """Which environment: a gymnasium id, ``module:id`` to import first, what it is made with, and its wrappers.

    A wrapper is a name, or a mapping of its name and keywords; the first is innermost. See ``worldmtp.envs.text_env``.
    """

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    wrappers: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class ModelConfig:
    """The trunk, made from a transformers config or loaded from ``path``, and its heads.

    Weights are loaded, trained and saved in float32, whatever a checkpoint holds. ``compute_dtype=bfloat16`` computes
    with them by autocast, in the warm start, in reinforcement and in evaluation.
    """

    architecture: str | None
    path: str | None
    config: dict[str, Any]
    depth: int = 4
    head: str = "sequential"
    head_spec: HeadSpecConfig = field(default_factory=HeadSpecConfig)
    num_value_bins: int | None = None
    """None is the default of ``MTPConfig``."""
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_choice("compute_dtype", self.compute_dtype, _COMPUTE_DTYPES)


@dataclass(frozen=True)
class SFTStageConfig:
    """The warm start on the task's own answers. ``load`` takes the model of another run's warm start instead."""

    num_demonstrations: int = 4000
    num_steps: int = 160
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 20
    log_steps: int = 20
    """Steps a logged mean is over."""
    save_steps: int = 100
    """Steps between two checkpoints; a multiple of ``log_steps``, so that no mean is cut by a resumption."""
    load: str | None = None
    share_prompts: bool = False
    """Reinforcement may train on the prompts whose answers the warm start has shown."""

    def __post_init__(self) -> None:
        _at_least(0, num_steps=self.num_steps, warmup_steps=self.warmup_steps)
        _at_least(1, num_demonstrations=self.num_demonstrations, batch_size=self.batch_size, log_steps=self.log_steps)
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
    every_iterations: int = 10
    num_imagined: int = 8
    """Imagined rollouts a root, in the comparison with what was realized."""

    def __post_init__(self) -> None:
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
    num_threads: int = 2
    num_jobs: int = 1
    """Arms of a study at work at once; with more than one, each has a process of its own and one thread."""

    def __post_init__(self) -> None:
        _at_least(1, num_threads=self.num_threads, num_jobs=self.num_jobs)


@dataclass(frozen=True)
class LoggerConfig:
    """What is written besides metrics.jsonl, which always is."""

    tensorboard: bool = True
    num_strips: int = 8

    def __post_init__(self) -> None:
        _at_least(0, num_strips=self.num_strips)


@dataclass(frozen=True)
class CheckpointConfig:
    """How often the run can be taken up again. ``stop_after`` ends it early, at that iteration, as a kill would."""

    every_iterations: int = 10
    keep_last: int = 2
    stop_after: int | None = None

    def __post_init__(self) -> None:
        _at_least(1, every_iterations=self.every_iterations, keep_last=self.keep_last)


@dataclass(frozen=True)
class TrainConfig:
    """A training run, or a study, which needs nothing of this but ``study``, ``profile`` and ``imports``."""

    env: EnvConfig
    model: ModelConfig
    sft: SFTStageConfig
    objective: ObjectiveConfig
    world_model: WorldModelConfig
    agent: AgentConfig
    imagination: ImaginationConfig
    eval: EvalConfig
    profile: ProfileConfig
    logger: LoggerConfig
    checkpoint: CheckpointConfig
    name: str
    seed: int
    study: dict[str, Any] = field(default_factory=dict)
    """``name`` of a study and the fields of its config; empty is one training run."""
    imports: list[str] = field(default_factory=list)
    """Modules or ``./files.py`` to import first: where your own environments register themselves."""
    resume: str | None = None
    """A run directory to go on with; everything else is then taken from its own config."""

    def __post_init__(self) -> None:
        _at_least(0, seed=self.seed)
