"""Names that a user wrote as "<module>:<name>"."""

import collections

import pytest

from worldmtp.lazy import import_name


def test_a_name_is_what_its_module_defines():
    assert import_name("collections:OrderedDict", "x") is collections.OrderedDict
    assert import_name("collections:OrderedDict.fromkeys", "x") == collections.OrderedDict.fromkeys


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no_such_module:x", "No module named 'no_such_module'"),
        ("collections:NoSuchName", "module 'collections' has no attribute 'NoSuchName'"),
        ("collections", "the module or the name is missing"),
        ("collections:", "the module or the name is missing"),
        (":x", "invalid format: ':x'"),
        ("a b:c", "invalid format: 'a b:c'"),
    ],
)
def test_what_leads_nowhere_is_told_with_its_reason(path, reason):
    with pytest.raises(ValueError, match=f"^task 'it' cannot be imported: {reason}. Expected '<module>:<class>'.$"):
        import_name(path, "task 'it'")
