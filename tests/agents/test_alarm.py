"""The alarm for stale heads, and the counter that says whose weights changed."""

from itertools import pairwise

import pytest
import torch

from worldmtp.agents.alarm import AcceptanceAlarm, AcceptanceDropWarning, weights_versions


def test_the_counters_grow_with_every_way_of_writing(tiny_model):
    heads = tiny_model().heads
    versions = [weights_versions(heads)]
    optimizer = torch.optim.SGD(heads.parameters(), lr=0.1)
    for parameter in heads.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    versions.append(weights_versions(heads))
    heads.load_state_dict(heads.state_dict())
    versions.append(weights_versions(heads))
    for before, after in pairwise(versions):
        assert all(then < now for then, now in zip(before, after, strict=True))
    assert weights_versions(heads) == versions[2]
    with torch.no_grad():
        next(iter(heads.parameters())).add_(0.0)
    assert weights_versions(heads) != versions[2]


def test_it_rings_once_and_says_whose_weights_changed(tiny_model):
    model = tiny_model(seed=11)
    alarm = AcceptanceAlarm(model)
    alarm.observe(2.0)
    alarm.observe(3.0)
    alarm.observe(2.01)  # 1.01 of 2 are left
    alarm.observe(float("nan"))
    with torch.no_grad():
        for parameter in model.trunk.parameters():  # written once each, whatever their number
            parameter.add_(0.0)
    message = (
        r"a trunk forward yields 1\.90 tokens with drafts, and yielded 3\.00\. Since then the trunk's weights were "
        r"written 1 times and the heads' 0 times"
    )
    with pytest.warns(AcceptanceDropWarning, match=message):
        alarm.observe(1.9)
    alarm.observe(1.8)  # said already
    alarm.observe(2.9)
    with pytest.warns(AcceptanceDropWarning, match=r"yields 1\.50 tokens"):
        alarm.observe(1.5)


def test_what_was_best_outlives_the_process(tiny_model):
    alarm, resumed = (AcceptanceAlarm(tiny_model()) for _ in range(2))
    alarm.observe(3.0)
    resumed.load_state_dict(alarm.state_dict())
    with pytest.warns(AcceptanceDropWarning, match=r"and yielded 3\.00\. Since this run was resumed the trunk"):
        resumed.observe(1.5)
    alarm.load_state_dict(resumed.state_dict())
    alarm.observe(1.5)  # said already


def test_heads_that_were_never_right_ring_nothing(tiny_model):
    alarm = AcceptanceAlarm(tiny_model())
    for _ in range(3):
        alarm.observe(1.0)
