"""Every file of the shipped tree composes and builds the frozen dataclasses; wrong names and types do not compose."""

import re
from dataclasses import FrozenInstanceError, asdict, fields, replace
from importlib import resources

import gymnasium
import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.cli.options import generated_options, option_name
from worldmtp.cli.schema import build, twin
from worldmtp.objective.objective import LossTerms, MTPObjective
from worldmtp.objective.plan import CoefSchedule, DepthWindow
from worldmtp.training.config import CheckpointConfig, HeadSpecConfig, SFTStageConfig, TrainConfig

TREE = resources.files("worldmtp.configs")
GROUPS = sorted(entry.name for entry in TREE.iterdir() if entry.is_dir() and not entry.name.startswith("__"))
FILES = {
    (group, entry.name.removesuffix(".yaml"))
    for group in GROUPS
    for entry in (TREE / group).iterdir()
    if entry.name.endswith(".yaml")
}
OPTIONS = sorted(FILES | {(option.group, option.name) for option in generated_options()})
MANDATORY = {"model=pretrained": ["model.path=somewhere"]}


def test_groups_are_these():
    assert " ".join(GROUPS) == (
        "agent env experiment head imagination logger model objective profile size study world_model"
    )


@pytest.mark.parametrize(("group", "option"), [one for one in OPTIONS if one[0] != "env"])
def test_option_composes_and_builds(compose, group, option):
    """Those of ``env`` are started by ``test_env_groups``."""
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


def test_memory_is_bounded_apart_from_minibatches(compose):
    built = build(TrainConfig, compose("agent.ppo.micro_batch_size=8"))
    assert (built.agent.ppo.micro_batch_size, built.agent.ppo.num_minibatches) == (8, 2)
    assert build(TrainConfig, compose()).agent.ppo.micro_batch_size is None


def test_no_node_leaves_the_command_line(compose):
    built = build(TrainConfig, compose("experiment=quickstart"))
    assert type(built.env.kwargs) is dict
    assert type(built.env.kwargs["task_kwargs"]) is dict
    assert type(built.imports) is list


def test_schema_has_the_defaults_of_the_dataclass():
    schema = OmegaConf.structured(twin(ImaginationConfig))
    assert OmegaConf.to_container(schema) == asdict(ImaginationConfig())


@pytest.mark.parametrize(
    "override",
    [
        "seed=abc",
        "seed=1.5",
        "sft.num_steps=many",
        "agent.ppo.learning_rate=fast",
        "logger.tensorboard=3.7",
        "imports=1",
        "objective.terms.kl=lots",
        "objective.window.last=2.5",
        "model.head_spec.head_width=wide",
        "model.head_spec.feature_layers=3",
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
        ("profile.num_jobs=0", r"profile: num_jobs=0 must be at least 1"),
        ("env=custom", r"the config lacks env\.id; give a value on the command line, as env\.id=\.\.\."),
        ("env=data", r"the config lacks env\.kwargs\.task_kwargs\.path; give a value on the command line"),
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
    with pytest.raises(ValueError, match=r"lacks agent\.rollout\.num_iterations, env\.id;"):
        build(TrainConfig, node)


def test_plain_dataclass_of_agents_builds(compose):
    node = compose("agent.ppo.gamma=0.5").agent.ppo
    assert build(PPOConfig, node).gamma == 0.5


def test_an_objective_is_its_file_and_single_fields(compose):
    # The file says depth_weighting and the coefficient; what it does not list can be given all the same.
    built = build(
        TrainConfig,
        compose("objective=gloeckle", "objective.terms.kl=1", "objective.window.last=3", "objective.coef.start=0.5"),
    )
    assert built.objective == MTPObjective(
        terms=LossTerms(kl=1.0), depth_weighting="uniform", coef=CoefSchedule(start=0.5), window=DepthWindow(last=3)
    )


def test_the_default_objective_and_head_say_nothing(compose):
    built = build(TrainConfig, compose())
    assert built.objective == MTPObjective()
    assert (built.model.head, built.model.head_spec.given()) == ("sequential", {})


def test_a_head_is_its_file_and_single_fields(compose):
    built = build(TrainConfig, compose("head=fastmtp", "model.depth=6", "model.head_spec.feature_layers=[-1,0]"))
    assert (built.model.head, built.model.depth) == ("sequential", 6)
    assert built.model.head_spec.given() == {"share_depths": True, "feature_layers": [-1, 0]}


def test_false_and_zero_are_given(compose):
    built = build(
        TrainConfig,
        compose("head=latent", "model.head_spec.share_depths=false", "objective.terms.ce=0", "objective.terms.kl=1"),
    )
    assert built.model.head_spec.given() == {"share_depths": False}
    assert built.objective.terms.ce == 0


def test_the_command_line_knows_every_field_of_a_head():
    from worldmtp.model.config import MTPConfig

    elsewhere = {"head", "depth", "num_value_bins"}  # of ModelConfig
    derived = {"value_range", "reward_range", "trunk_config", "vocab_size", "hidden_size", "adapters"}
    training = {"initializer_range"}
    own = {column.name for column in fields(MTPConfig) if column.name in MTPConfig.__annotations__}
    assert {column.name for column in fields(HeadSpecConfig)} == own - elsewhere - derived - training


@pytest.mark.parametrize("group", ["llama_tiny", "qwen3_tiny", "pretrained"])
def test_bins_and_ranges_have_one_source(compose, group):
    """The command line says nothing of bins or ranges, so a model has what Python gives: 21 bins over [0, 1]."""
    from worldmtp.model.config import MTPConfig

    assert compose(f"model={group}").model.num_value_bins is None
    config = MTPConfig()
    assert (config.num_value_bins, config.value_range, config.reward_range) == (21, (0.0, 1.0), (0.0, 1.0))


@pytest.mark.parametrize("family", sorted(name for group, name in OPTIONS if group == "head"))
def test_a_family_is_chosen_by_its_name(compose, family):
    head = build(TrainConfig, compose(f"head={family}")).model.head
    assert head == {"fastmtp": "sequential"}.get(family, family)


def test_every_family_has_a_file():
    from worldmtp.heads import available_heads

    assert set(available_heads()) <= {name for group, name in OPTIONS if group == "head"}


def test_every_ablation_of_the_page_composes(compose, project_root):
    """The overrides that docs/heads.md lists: each changes the objective, and nothing else."""
    page = (project_root / "docs" / "heads.md").read_text(encoding="utf-8")
    table = page.partition("| question | overrides |")[2].partition("\n\n")[0]
    rows = re.findall(r"`(objective[.=][^`]*)`", table)
    assert len(rows) > 10
    default = build(TrainConfig, compose())
    for row in rows:
        built = build(TrainConfig, compose(*row.split()))
        assert built.objective != default.objective, row
        assert replace(built, objective=default.objective) == default, row


def test_every_registered_environment_has_the_option_of_its_name():
    """``test_env_groups`` starts each; a file of the name chooses the same environment."""
    names = {"worldmtp/SpellBackward-v0": "spell_backward", "worldmtp/Pig-v0": "pig", "worldmtp/Copy-v0": "copy"}
    assert {env_id: option_name(env_id) for env_id in names} == names
    files = {
        env_id: OmegaConf.create(file.read_text(encoding="utf-8"))
        for env_id in gymnasium.registry
        if env_id.startswith("worldmtp/") and (file := TREE / "env" / f"{option_name(env_id)}.yaml").is_file()
    }
    assert {"worldmtp/PathStar-v0", "worldmtp/Data-v0"} <= files.keys()
    assert {env_id: chosen.get("env", chosen).id for env_id, chosen in files.items()} == {one: one for one in files}


@pytest.mark.parametrize("first", ["experiment=quickstart", "env=reverse"])
def test_the_debug_profile_makes_every_size_small(compose, first):
    built = build(TrainConfig, compose(first, "profile=debug"))
    assert (built.sft.num_steps, built.agent.rollout.num_iterations, built.eval.num_prompts) == (20, 2, 16)
    chosen = build(TrainConfig, compose(first, "profile=debug", "sft.num_steps=7"))
    assert chosen.sft.num_steps == 7  # the command line comes last
