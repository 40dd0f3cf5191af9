"""Every file of the shipped tree composes and builds the frozen dataclasses; wrong names and types do not compose."""

from dataclasses import FrozenInstanceError, fields
from importlib import resources

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.cli.schema import CheckpointConfig, SFTStageConfig, TrainConfig, build, twin

TREE = resources.files("worldmtp.configs")
GROUPS = sorted(entry.name for entry in TREE.iterdir() if entry.is_dir() and not entry.name.startswith("__"))
OPTIONS = sorted(
    (group, entry.name.removesuffix(".yaml"))
    for group in GROUPS
    for entry in (TREE / group).iterdir()
    if entry.name.endswith(".yaml")
)
MANDATORY = {"env=custom": ["env.id=worldmtp/Reverse-v0"], "model=pretrained": ["model.path=somewhere"]}


def test_groups_are_these():
    expected = ["agent", "env", "experiment", "imagination", "logger", "model", "profile", "world_model"]
    assert expected == GROUPS


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_composes_and_builds(compose, group, option):
    choice = f"{group}={option}"
    built = build(TrainConfig, compose(choice, *MANDATORY.get(choice, [])))
    assert isinstance(built, TrainConfig)
    with pytest.raises(FrozenInstanceError):
        built.seed = 1


@pytest.mark.parametrize("group", GROUPS)
def test_group_is_a_package(group):
    assert (TREE / group / "__init__.py").is_file()  # a wheel would leave it out otherwise


def test_choices_reach_the_dataclasses(compose):
    built = build(TrainConfig, compose("imagination=baseline", "world_model=oracle", "agent=ppo_group", "seed=7"))
    assert (built.imagination.use, built.world_model.backend, built.agent.ppo.advantage, built.seed) == (
        "baseline",
        "oracle",
        "group",
        7,
    )


def test_no_node_leaves_the_command_line(compose):
    built = build(TrainConfig, compose("experiment=quickstart"))
    assert type(built.env.kwargs) is dict
    assert type(built.env.kwargs["task_kwargs"]) is dict
    assert type(built.imports) is list


def test_schema_has_the_defaults_of_the_dataclass():
    schema = OmegaConf.structured(twin(ImaginationConfig))
    assert dict(schema) == {column.name: column.default for column in fields(ImaginationConfig)}


@pytest.mark.parametrize(
    "override",
    [
        "seed=abc",
        "seed=1.5",
        "sft.num_steps=many",
        "agent.ppo.learning_rate=fast",
        "logger.tensorboard=3.7",
        "imports=1",
    ],
)
def test_wrong_type_does_not_compose(compose, override):
    with pytest.raises(ConfigCompositionException):
        compose(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("agent.ppo.clip_coef=0", r"agent\.ppo: clip_coef=0\.0 must be positive"),
        ("agent.rollout.num_prompts=0", r"agent\.rollout: num_prompts=0 must be at least 1"),
        ("imagination.use=of", r"imagination: use='of' is unknown"),
        ("seed=-1", r"seed=-1 must be at least 0"),
        ("eval.num_prompts=1", r"eval: num_prompts=1 must be at least 2"),
        ("profile.num_threads=0", r"profile: num_threads=0 must be at least 1"),
        ("logger.num_strips=-1", r"logger: num_strips=-1 must be at least 0"),
        ("checkpoint.every_iterations=0", r"checkpoint: every_iterations=0 must be at least 1"),
        ("sft.learning_rate=0", r"sft: learning_rate=0\.0 must be positive"),
        ("env=custom", r"the config lacks env\.id; give a value on the command line, as env\.id=\.\.\."),
    ],
)
def test_value_out_of_range_names_its_place(compose, override, message):
    with pytest.raises(ValueError, match=message):
        build(TrainConfig, compose(override))


def test_save_steps_are_a_multiple_of_log_steps():
    assert SFTStageConfig(save_steps=40, log_steps=20).save_steps == 40
    with pytest.raises(ValueError, match="save_steps=30 must be a multiple of log_steps=20"):
        SFTStageConfig(save_steps=30, log_steps=20)


def test_a_twin_can_be_changed_and_the_original_not():
    twin(CheckpointConfig)().keep_last = 5
    with pytest.raises(FrozenInstanceError):
        CheckpointConfig().keep_last = 5


def test_a_missing_value_of_a_nested_node_is_named_in_full():
    node = OmegaConf.structured(twin(TrainConfig))
    with pytest.raises(ValueError, match=r"lacks .*agent\.rollout\.num_iterations.*env\.id.*seed"):
        build(TrainConfig, node)


def test_plain_dataclass_of_agents_builds(compose):
    node = compose("agent.ppo.gamma=0.5").agent.ppo
    assert build(PPOConfig, node).gamma == 0.5
