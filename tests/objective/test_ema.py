"""The moving average of a trunk: two updates by hand, decay 0, half precision, buffers, a real backbone."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from worldmtp.model.ema import EMATrunk


class Scale(nn.Module):
    """Multiplies its input by one weight and adds a buffer; the least that is a backbone."""

    def __init__(self, weight, dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight], dtype=dtype))
        self.register_buffer("offset", torch.zeros(1, dtype=dtype))
        self.dropout = nn.Dropout(0.5)

    def forward(self, values, use_cache):
        assert not use_cache
        return SimpleNamespace(last_hidden_state=self.dropout(values.to(self.weight.dtype) * self.weight + self.offset))


ONES = torch.ones((1, 2, 3), dtype=torch.float64)


def set_weight(backbone, weight):
    backbone.weight.data.fill_(weight)


def test_two_updates_by_hand():
    backbone = Scale(1.0)
    trunk = EMATrunk(backbone, decay=0.75)
    assert trunk.hidden(values=ONES).tolist() == [[[1.0] * 3] * 2]
    set_weight(backbone, 5.0)
    assert trunk.hidden(values=ONES)[0, 0, 0] == 1.0  # not before an update
    trunk.update(backbone)  # 0.75 * 1 + 0.25 * 5 = 2
    assert trunk.hidden(values=ONES)[0, 0, 0] == 2.0
    set_weight(backbone, -4.0)
    trunk.update(backbone)  # 0.75 * 2 - 0.25 * 4 = 0.5
    assert trunk.hidden(values=ONES)[0, 0, 0] == 0.5
    assert backbone.weight.tolist() == [-4.0]


def test_decay_zero_copies():
    backbone = Scale(1.0)
    trunk = EMATrunk(backbone, decay=0.0)
    set_weight(backbone, 1 / 3)
    trunk.update(backbone)
    assert trunk.hidden(values=ONES)[0, 0, 0] == 1 / 3


def test_buffers_are_copied_not_averaged():
    backbone = Scale(1.0)
    trunk = EMATrunk(backbone, decay=0.75)
    backbone.offset.fill_(8.0)
    trunk.update(backbone)
    assert trunk.hidden(values=ONES)[0, 0, 0] == 9.0


def test_small_changes_add_up_in_half_precision():
    backbone = Scale(1.0, dtype=torch.bfloat16)
    trunk = EMATrunk(backbone, decay=0.999)
    set_weight(backbone, 2.0)
    for _ in range(1000):
        trunk.update(backbone)
    # 2 - 0.999^1000 = 1.6323, to bfloat16's steps of 1/128; averaged in bfloat16 itself it would still be 1.
    hidden = trunk.hidden(values=ONES.bfloat16())
    assert hidden.dtype == torch.bfloat16
    assert float(hidden[0, 0, 0]) == pytest.approx(1.6323, abs=1 / 128)


def test_no_gradient_and_no_dropout():
    backbone = Scale(1.0).train()
    trunk = EMATrunk(backbone, decay=0.5)
    hidden = trunk.hidden(values=ONES.clone().requires_grad_())
    assert not hidden.requires_grad
    assert hidden.tolist() == [[[1.0] * 3] * 2]
    assert backbone.training
    assert backbone.weight.requires_grad


def test_a_checkpoint_goes_on():
    backbone = Scale(1.0)
    trunk = EMATrunk(backbone, decay=0.75)
    set_weight(backbone, 5.0)
    backbone.offset.fill_(1.0)
    trunk.update(backbone)
    saved = {name: value.clone() for name, value in trunk.state_dict().items()}
    resumed = EMATrunk(backbone, decay=0.75)
    resumed.load_state_dict(saved)
    for each in (trunk, resumed):
        each.update(backbone)
        # 0.75 * 2 + 0.25 * 5 = 2.75, and the offset
        assert each.hidden(values=ONES)[0, 0, 0] == 3.75
    with pytest.raises(RuntimeError, match=r"Missing key"):
        resumed.load_state_dict({})


def test_real_backbone_follows_and_answers_as_itself(tiny_trunk):
    trunk = tiny_trunk("llama", dtype=torch.float64)
    slow = EMATrunk(trunk.model, decay=0.0)
    input_ids = torch.arange(10).reshape(2, 5)
    before = slow.hidden(input_ids=input_ids)
    assert torch.equal(before, trunk.model(input_ids=input_ids).last_hidden_state)
    with torch.no_grad():
        for weight in trunk.model.parameters():
            weight.add_(0.01)
    assert torch.equal(slow.hidden(input_ids=input_ids), before)
    slow.update(trunk.model)
    assert torch.equal(slow.hidden(input_ids=input_ids), trunk.model(input_ids=input_ids).last_hidden_state)


def test_a_half_precision_backbone_runs(tiny_trunk):
    trunk = tiny_trunk("qwen3", dtype=torch.bfloat16)
    slow = EMATrunk(trunk.model, decay=0.999)
    slow.update(trunk.model)
    hidden = slow.hidden(input_ids=torch.arange(6).reshape(1, 6), attention_mask=torch.ones((1, 6), dtype=torch.int64))
    assert hidden.dtype == torch.bfloat16
    assert hidden.shape == (1, 6, 32)


def test_refuses():
    with pytest.raises(ValueError, match=r"decay=1\.0 must lie in \[0, 1\)"):
        EMATrunk(Scale(1.0), decay=1.0)
    changed = Scale(1.0)
    trunk = EMATrunk(changed, decay=0.5)
    changed.adapter = nn.Linear(1, 1, bias=False)
    with pytest.raises(ValueError, match=r"not the one averaged: 1 names are in one alone, 'adapter\.weight' first"):
        trunk.update(changed)
