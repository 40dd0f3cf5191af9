"""What was probably meant, from the messages that Hydra really gives."""

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from worldmtp.cli.errors import explain, nearest_hint
from worldmtp.cli.resume import resumed_config
from worldmtp.cli.schema import flat_keys, known_keys, twin
from worldmtp.training.config import TrainConfig
from worldmtp.training.run_dir import claim

KEYS = flat_keys(OmegaConf.structured(twin(TrainConfig)))


def explanation(compose, *overrides):
    with pytest.raises(HydraException) as caught:
        compose(*overrides)
    return explain(caught.value, overrides, KEYS)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("agent.ppo.lerning_rate=1", "agent.ppo.learning_rate"),
        ("env=chain_sm", "chain_sum"),
        ("imagination=counterfactal", "counterfactual"),
        ("experiment=quickstrt", "quickstart"),
        ("world_modle=mtp", "world_model"),
        ("imagination.horizn=2", "imagination.horizon"),
        ("~env.idd", "env.id"),
        ("head=latnt", "latent"),
        ("objective=deepseek", "deepseek_v3"),
        ("objective.terms.k1=1", "objective.terms.kl"),
        ("objective.windw.last=2", "objective.window.last"),
        ("model.head_spec.strid=2", "model.head_spec.stride"),
        ("study=path_sta", "path_star"),
    ],
)
def test_a_typo_names_the_nearest(compose, override, meant):
    # Behind the line that says what is wrong, before all that exists.
    assert explanation(compose, override).splitlines()[1] == f"Did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        (
            "env=worldmtp/ChainSum-v0",
            "Did you mean 'chain_sum'? An id is chosen by env=custom env.id=worldmtp/ChainSum-v0",
        ),
        ("env=my_pkg:Next-v0", "An id is chosen by env=custom env.id=my_pkg:Next-v0"),
    ],
)
def test_an_id_where_an_option_belongs_is_told_its_place(compose, override, hint):
    assert explanation(compose, override).splitlines()[1] == hint


def test_a_wrong_type_names_its_cause(compose):
    text = explanation(compose, "seed=abc")
    assert "seed=abc" in text
    assert "'abc' of type 'str' could not be converted to Integer" in text


@pytest.mark.parametrize(
    ("override", "brackets"),
    [("imports=./my_envs.py", "imports=[./my_envs.py]"), ("++env.wrappers=action_mask", "env.wrappers=[action_mask]")],
)
def test_a_list_without_brackets_is_shown_with_them(compose, override, brackets):
    assert explanation(compose, override).endswith(f"\nA list is written in brackets: {brackets}")


def test_a_list_of_a_resumption_is_shown_with_brackets(compose_tiny, tmp_path):
    claim(tmp_path, OmegaConf.to_container(compose_tiny(), resolve=True), resumes=False).release()
    with pytest.raises(HydraException) as caught:
        resumed_config(tmp_path, ["imports=1"])
    assert explain(caught.value, ["imports=1"], KEYS).endswith("\nA list is written in brackets: imports=[1]")


def test_what_belongs_to_the_task_is_looked_for_there(compose):
    typed = ("env=data", "env.kwargs.path=questions.jsonl")
    with pytest.raises(HydraException) as caught:
        compose(*typed)
    hint = "Did you mean 'env.kwargs.task_kwargs.path=questions.jsonl'?"
    assert explain(caught.value, typed, known_keys(typed)).splitlines()[1] == hint


@pytest.mark.parametrize("world", ["frozen_lake", "guess_number"])  # settings of the registry, and of a file
def test_what_belongs_to_a_world_is_looked_for_there(compose, world):
    typed = (f"env={world}", "env.kwarg.max_turn=2")
    with pytest.raises(HydraException) as caught:
        compose(*typed)
    assert explain(caught.value, typed, known_keys(typed)).splitlines()[1] == "Did you mean 'env.kwargs.max_turn'?"


@pytest.mark.parametrize("override", ["qqqqqqqq=1", "env=zzzzzzzz", "env.kwargs.max_new=3", "model.config.depht=1"])
def test_nothing_near_gives_no_hint(compose, override):
    assert "Did you mean" not in explanation(compose, override)


def test_a_typo_in_a_file_is_found_without_an_override():
    message = "In 'experiment/x': ConfigKeyError\nKey 'sead' not in 'TrainConfigSchema'\n    full_key: sead\n"
    assert nearest_hint(message, [], KEYS) == "Did you mean 'seed'?"


def test_only_the_override_in_the_message_is_blamed():
    message = "Could not override 'agent.ppo.gama'."
    assert nearest_hint(message, ["naem=x", "agent.ppo.gama=1"], KEYS) == "Did you mean 'agent.ppo.gamma'?"


def test_flat_keys_are_dotted_and_hold_the_nodes_themselves():
    config = OmegaConf.create({"a": {"b": {"c": 1}}, "d": "???"})
    assert flat_keys(config) == ["a", "a.b", "a.b.c", "d"]
