"""Numbers of the heads' weights: by hand, of every family, and against numpy."""

import math

import numpy as np
import pytest
import torch

from worldmtp.heads import available_heads
from worldmtp.heads.weights import copied_weights, stable_rank, weight_scalars, weights_by_depth


def test_stable_rank_by_hand():
    # Singular values 3, 1, 1 and 0: (9 + 1 + 1) / 9. Of one direction it is 1, of the identity the rank.
    rotated = torch.tensor([[0.6, -0.8, 0.0, 0.0], [0.8, 0.6, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    diagonal = torch.diag(torch.tensor([3.0, 1.0, 1.0, 0.0]))
    assert stable_rank((rotated @ diagonal).double()) == pytest.approx(11 / 9, rel=1e-6)
    assert stable_rank(torch.outer(torch.arange(1.0, 4.0), torch.ones(5)).double()) == pytest.approx(1.0)
    assert stable_rank(torch.eye(7)) == pytest.approx(7.0)
    assert stable_rank(torch.zeros(3, 2)) == 0.0


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_stable_rank_equals_that_of_numpys_singular_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    singular = np.linalg.svd(matrix.numpy(), compute_uv=False)
    assert stable_rank(matrix) == pytest.approx((singular**2).sum() / singular[0] ** 2, rel=1e-12)


@pytest.mark.parametrize("head", available_heads())
def test_every_weight_of_every_family_is_in_one_group(make_model, head):
    heads = make_model("llama", head=head, unembedding="own", share_depths=False).heads
    groups = weights_by_depth(heads)
    assert sum(weight.numel() for group in groups.values() for weight in group.values()) == sum(
        weight.numel() for weight in heads.parameters()
    )
    assert {"depth_2", "depth_3", "depth_4"} <= set(groups)
    assert set(groups["depth_2"]) == set(groups["depth_3"]) == set(groups["depth_4"])
    shared = {"eagle": {"fuse"}, "blockwise": {"wide"}}
    assert {name.partition(".")[0] for name in groups.get("shared", {})} <= shared.get(head, set())


@pytest.mark.parametrize("head", available_heads())
def test_moving_one_depth_moves_its_numbers_alone(make_model, head):
    heads = make_model("llama", head=head, unembedding="own", share_depths=False, shaken=True).heads
    start = copied_weights(heads)
    before = weight_scalars(heads, start)
    assert {value for tag, value in before.items() if tag.endswith("drift")} == {0.0}
    for weight in weights_by_depth(heads)["depth_3"].values():
        weight.mul_(1.5)  # |1.5 W - W| / |W| = 1/2; directions, and so ranks and cosines, stay
    after = weight_scalars(heads, start)
    assert after["heads/depth_3/drift"] == pytest.approx(0.5, rel=1e-12)
    assert after["heads/depth_3/norm"] == pytest.approx(1.5 * before["heads/depth_3/norm"], rel=1e-12)
    for weight in weights_by_depth(heads)["depth_3"].values():
        weight.mul_(-1)  # |-1.5 W - W| / |W| = 5/2, of the same norm
    assert weight_scalars(heads, start)["heads/depth_3/drift"] == pytest.approx(2.5, rel=1e-12)
    moved = {tag for tag in after if after[tag] != pytest.approx(before[tag], rel=1e-9, nan_ok=True)}
    assert moved == {"heads/depth_3/drift", "heads/depth_3/norm"}


def test_cosine_between_depths_by_hand(make_model):
    heads = make_model("llama", head="medusa").heads
    groups = weights_by_depth(heads)
    name = next(name for name, weight in groups["depth_2"].items() if weight.dim() == 2)
    for group in groups.values():
        for weight in group.values():
            weight.zero_()
    nothing = weight_scalars(heads, copied_weights(heads))
    assert math.isnan(nothing["heads/depth_3/cosine"])
    groups["depth_2"][name][0, 0] = 2.0
    groups["depth_3"][name][0, :2] = torch.tensor([3.0, 4.0], dtype=torch.float64)
    groups["depth_4"][name][1, 1] = 5.0
    found = weight_scalars(heads, copied_weights(heads))
    assert found["heads/depth_3/cosine"] == pytest.approx(3 / 5)
    assert found["heads/depth_4/cosine"] == 0.0
    assert found["heads/depth_3/norm"] == 5.0
    assert "heads/depth_2/cosine" not in found


def test_drift_from_zero_is_infinite_and_none_is_none(make_model):
    heads = make_model("llama", head="blockwise").heads
    start = {name: torch.zeros_like(weight) for name, weight in copied_weights(heads).items()}
    found = weight_scalars(heads, start)
    assert found["heads/shared/drift"] == math.inf
    with torch.no_grad():
        for weight in heads.parameters():
            weight.zero_()
    assert weight_scalars(heads, start)["heads/shared/drift"] == 0.0


def test_shared_depths_are_one_group(make_model):
    heads = make_model("llama", head="sequential", share_depths=True).heads
    assert set(weight_scalars(heads, copied_weights(heads))) == {
        f"heads/shared/{name}" for name in ("norm", "stable_rank", "drift")
    }


def test_one_depth_owns_all_and_no_depth_nothing(make_model):
    assert set(weights_by_depth(make_model("llama", head="eagle", depth=2).heads)) == {"depth_2"}
    alone = make_model("llama", depth=1).heads
    assert weight_scalars(alone, copied_weights(alone)) == {}


def test_start_of_other_heads_is_refused(make_model):
    heads = make_model("llama", head="medusa").heads
    with pytest.raises(ValueError, match="differ by the weights"):
        weight_scalars(heads, copied_weights(make_model("llama", head="sequential").heads))
    start = copied_weights(heads)
    name = next(iter(start))
    with pytest.raises(ValueError, match="in the shapes"):
        weight_scalars(heads, start | {name: start[name][:1]})
