"""Names from a closed set: which mistake gets which hint."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from worldmtp.choices import check_choice, did_you_mean, env_settings, nearest
from worldmtp.cli.arguments import parse_kwargs


def test_a_known_name_passes_and_an_unknown_one_is_answered_with_the_nearest():
    check_choice("colour", "red", ["red", "green"])
    with pytest.raises(
        ValueError, match=r"^colour='gren' is unknown; did you mean 'green'\? choose from \['red', 'green'\]\.$"
    ):
        check_choice("colour", "gren", ["red", "green"])
    with pytest.raises(ValueError, match=r"^colour='zzz' is unknown; choose from \['red', 'green'\]\.$"):
        check_choice("colour", "zzz", iter(["red", "green"]))


def test_a_hint_ends_the_message_and_what_is_not_text_has_one_too():
    assert did_you_mean("gren", ["red", "green"]) == "; did you mean 'green'?"
    assert did_you_mean("zzz", ["red"]) == "."
    assert did_you_mean("zzz", ["red"], "; only red.") == "; only red."
    assert did_you_mean(11, ["10", "zzz"], "!") == "!"  # ratio 2 * 1 / 4 = .5 is below .6
    assert did_you_mean(None, ["none"]) == "; did you mean 'none'?"  # 3 of 4 letters: .75


def test_the_cutoff_is_the_least_similarity():
    # 2 * (common characters) / (all characters): "ab" and "ax" share one of four, .5.
    assert nearest("ab", ["ax"]) is None
    assert nearest("ab", ["ax"], cutoff=0.5) == "ax"
    assert nearest("ab", [], cutoff=0.0) is None


def test_settings_of_an_environment_are_printed_as_commands_take_them():
    assert env_settings({"max_new": 9, "task_kwargs.path": "a/b.jsonl"}) == (
        "++env.kwargs.max_new=9 ++env.kwargs.task_kwargs.path=a/b.jsonl (worldmtp train), "
        "--kwargs max_new=9 task_kwargs.path=a/b.jsonl (worldmtp envs, eval)"
    )
    assert env_settings({"x": "a b"}).startswith("'++env.kwargs.x=\"a b\"' (worldmtp train), --kwargs 'x=a b' ")


VALUES = st.text(st.sampled_from("\\\"$'{}a =,é:[]1\n"), max_size=8) | st.sampled_from(["null", "True", "1e3", "nan"])


PLAIN = VALUES | st.integers() | st.booleans() | st.none()
NAMES = st.sampled_from(["kind", "alphabet"])


@given(st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner), max_leaves=4))
def test_a_pasted_setting_gives_back_its_value_in_both_commands(value):
    """A shell, Hydra's grammar and OmegaConf's interpolation read the one; a shell and JSON, or text, the other."""
    override, _, rest = env_settings({"tokenizer": value}).partition(" (worldmtp train), --kwargs ")
    parsed = OverridesParser.create().parse_override(*shlex.split(override))
    assert (parsed.key_or_group, parsed.is_force_add()) == ("env.kwargs.tokenizer", True)
    for read in (
        OmegaConf.to_container(OmegaConf.create({"it": parsed.value()}), resolve=True)["it"],
        parse_kwargs(shlex.split(rest.removesuffix(" (worldmtp envs, eval)")))["tokenizer"],
    ):
        assert (read, type(read)) == (value, type(value))
