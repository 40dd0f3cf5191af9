"""Numbers that arrive late are checked in their order, each once, and none is lost."""

import pytest
import torch

from worldmtp.tracking.late_numbers import HostCopy, LateNumbers


def refuse_negative(numbers, step):
    if min(numbers.values()) < 0:
        raise ValueError(f"step {step}: {numbers}")


def add(late, step, **numbers):
    late.add({name: torch.tensor(value) for name, value in numbers.items()}, step)


def test_what_has_arrived_is_checked_at_once():
    late = LateNumbers(refuse_negative)
    add(late, 0, a=1.0, b=2.0)
    assert not late.is_coming
    with pytest.raises(ValueError, match=r"step 1: \{'a': -3.0\}"):
        add(late, 1, a=-3.0)


def test_what_has_not_arrived_waits_for_the_take(monkeypatch):
    monkeypatch.setattr(HostCopy, "has_arrived", False)
    late, seen = LateNumbers(lambda numbers, step: seen.append(step)), []
    add(late, 5, a=1.0)
    add(late, 6, b=2.5)
    assert late.is_coming
    assert seen == []
    assert late.take() == [{"a": 1.0}, {"b": 2.5}]
    assert seen == [5, 6]
    assert late.take() == []
    assert not late.is_coming


def test_numbers_are_checked_in_their_order(monkeypatch):
    """The second has arrived and the first has not: it waits."""
    there, seen = {2.0}, []
    monkeypatch.setattr(HostCopy, "has_arrived", property(lambda copy: float(copy._values[0]) in there))
    late = LateNumbers(lambda numbers, step: seen.append(step))
    add(late, 1, a=1.0)
    add(late, 2, a=2.0)
    assert seen == []
    there.add(1.0)
    late.poll()
    assert seen == [1, 2]


def test_values_are_those_of_the_tensors_and_keep_their_precision():
    late = LateNumbers(lambda numbers, step: None)
    late.add({"single": torch.tensor(0.1), "double": torch.tensor(0.1, dtype=torch.float64)})
    assert late.take() == [{"single": 0.10000000149011612, "double": 0.1}]


def test_a_later_change_of_a_tensor_does_not_reach_what_was_added(monkeypatch):
    monkeypatch.setattr(HostCopy, "has_arrived", False)
    late, value = LateNumbers(lambda numbers, step: None), torch.tensor(1.0)
    late.add({"a": value})
    value.fill_(2.0)
    assert late.take() == [{"a": 1.0}]


def test_what_is_only_checked_is_not_kept():
    """A trainer that never logs would collect a dictionary a micro-batch."""
    seen = []
    late = LateNumbers(lambda numbers, step: seen.append((numbers, step)), keeps=False)
    add(late, 3, a=1.0)
    assert seen == [({"a": 1.0}, 3)]
    assert late.take() == []


@pytest.mark.gpu
def test_a_copy_from_the_device_arrives():
    values = torch.arange(3.0, device="cuda") * 2
    assert HostCopy(values).read() == [0.0, 2.0, 4.0]
