"""Names from a closed set: which mistake gets which hint."""

import pytest

from worldmtp.choices import check_choice, did_you_mean, nearest


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
