"""Per-depth metrics against enumeration by hand, and mutants that must trip them."""

import math
import re

import numpy as np
import pytest

from worldmtp.analysis import metrics
from worldmtp.analysis.artefacts import token_strip
from worldmtp.analysis.metrics import depth_scalars, rooted_predictions
from worldmtp.tracking.tags import TAGS


def means(artefact):
    rooted = rooted_predictions(artefact)
    names = ["acceptance", "survival", "path_consistency", "path_divergence", "agreement", "cross_entropy", "gap"]
    return {name: getattr(metrics, name)(rooted).mean() for name in names}


def test_roots_need_the_whole_window_to_be_the_policys(make_artefact, marginal_heads):
    rooted = rooted_predictions(make_artefact(marginal_heads))
    # Four tokens, the first the prompt's: roots 0, 1, 2 see 3, 2, 1 policy tokens ahead; root 3 none.
    assert rooted.valid[0].astype(int).tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_a_token_of_the_environment_closes_the_windows_over_it(make_artefact, marginal_heads):
    artefact = make_artefact(marginal_heads)
    artefact.action_mask[:, 2] = False
    rooted = rooted_predictions(artefact)
    # Token 2 is the environment's: only (root 0, token 1) and (root 2, token 3) remain.
    assert rooted.valid[0].astype(int).tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_acceptance_of_the_exact_marginal_by_hand(make_artefact, marginal_heads):
    # A^2 = [[.6875, .3125], [.625, .375]]. sum_v min(A[x1, v], A^2[x0, v]) for (x0, x1):
    #   (0,0) .6875 + .25 = .9375   (0,1) .5 + .3125 = .8125   (1,0) .625 + .25 = .875   (1,1) .5 + .375 = .875
    # E | x0=0 = .75 * .9375 + .25 * .8125 = .90625;  E | x0=1 = .875.
    # Root 0: x0 uniform -> .890625. Root 1: x1 = 0 with .5*.75 + .5*.5 = .625 -> .625*.90625 + .375*.875 = .89453125.
    # Both roots count 128 times: the mean is .892578125.
    values = means(make_artefact(marginal_heads))["acceptance"]
    assert values[0] == pytest.approx(1.0)
    assert values[1] == pytest.approx(0.892578125)


def test_joint_metrics_equal_the_enumeration_of_path_laws(make_artefact, marginal_heads, transition):
    """Root 0 of depth 3 is the only one: P and Q over (x1, x2, x3) given x0 can be written out."""
    total_variation = kl = survival = 0.0
    for x0 in (0, 1):
        for x1 in (0, 1):
            for x2 in (0, 1):
                for x3 in (0, 1):
                    p = [transition[x0, x1], transition[x1, x2], transition[x2, x3]]
                    q = [marginal_heads[0][x0, x1], marginal_heads[1][x0, x2], marginal_heads[2][x0, x3]]
                    probability = 0.5 * math.prod(p)
                    total_variation += 0.5 * abs(math.prod(p) - math.prod(q)) / 2
                    kl += probability * math.log(math.prod(p) / math.prod(q))
                    survival += probability * math.prod(min(1, b / a) for a, b in zip(p, q, strict=True))
    values = means(make_artefact(marginal_heads))
    assert values["path_consistency"][2] == pytest.approx(1 - total_variation)
    assert values["path_divergence"][2] == pytest.approx(kl)
    assert values["survival"][2] == pytest.approx(survival)
    assert np.all(values["survival"] <= values["path_consistency"] + 1e-12)


def test_cross_entropy_and_agreement_by_hand(make_artefact, marginal_heads):
    values = means(make_artefact(marginal_heads))
    # Depth 2, root 0: x0 uniform, x2 ~ A^2[x0]; root 1: x1 = 0 with .625. So x = 0 at a root with (.5 + .625) / 2.
    weight = 0.5625
    entropies = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.6875, 0.625)]
    assert values["cross_entropy"][1] == pytest.approx(weight * entropies[0] + (1 - weight) * entropies[1])
    # Both laws prefer token 0, which comes with .6875 and .625.
    assert values["agreement"][1] == pytest.approx(weight * 0.6875 + (1 - weight) * 0.625)
    # Floor, depth 2: the trunk's entropy at the token before the target; x1 = 0 with .625, x2 = 0 with
    # .625 * .75 + .375 * .5 = .65625.
    floor = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.75, 0.5)]
    share = (0.625 + 0.65625) / 2
    expected_gap = values["cross_entropy"][1] - (share * floor[0] + (1 - share) * floor[1])
    assert values["gap"][1] == pytest.approx(expected_gap)


def test_sequential_heads_that_equal_the_trunk_are_perfect(make_artefact):
    values = means(make_artefact([None, None, None]))
    for name in ["acceptance", "survival", "path_consistency"]:
        assert values[name] == pytest.approx([1, 1, 1])
    for name in ["gap", "path_divergence"]:
        assert values[name] == pytest.approx([0, 0, 0], abs=1e-12)
    horizon = metrics.effective_horizon(rooted_predictions(make_artefact([None, None, None])), generator=0)
    assert (horizon.estimate, horizon.low, horizon.high) == pytest.approx((3, 3, 3))


def test_mutants_trip(make_artefact, marginal_heads):
    first, second, third = marginal_heads
    sharpened = second**2 / (second**2).sum(axis=1, keepdims=True)
    oracle = depth_scalars(make_artefact([first, second, third]))
    sharp = depth_scalars(make_artefact([first, sharpened, third]))
    # A head one depth off: it states A, the law of the token before.
    confused = depth_scalars(make_artefact([first, first, third]))
    rolled = make_artefact([first, None, None])
    rolled.head_logprob[:, 1:, 1] = rolled.head_logprob[:, :-1, 1].copy()
    shifted = depth_scalars(rolled)
    sequential = depth_scalars(make_artefact([first, None, None]))

    tag = "world_model/depth_2"
    assert oracle[f"{tag}/ece"] == pytest.approx(0, abs=1e-12)
    # T = .5: it states .6875^2 / (.6875^2 + .3125^2) = .829 and .735 where .6875 and .625 are right.
    assert sharp[f"{tag}/ece"] > 0.1
    for mutant in (sharp, confused):
        assert mutant[f"{tag}/ce"] > oracle[f"{tag}/ce"] + 0.005
        assert mutant[f"{tag}/gap"] > oracle[f"{tag}/gap"] + 0.005
    assert sharp[f"{tag}/accept"] < oracle[f"{tag}/accept"] - 0.02
    assert sequential[f"{tag}/accept"] == pytest.approx(1)
    assert shifted[f"{tag}/accept"] < 0.95


def test_a_shifted_trunk_is_refused(make_artefact, marginal_heads):
    artefact = make_artefact(marginal_heads)
    shifted = artefact.chain_logprob.copy()
    shifted[:, 1:] = np.roll(shifted[:, 1:], 1, axis=1)
    with pytest.raises(ValueError, match=r"depth 1 differs from chain_logprob by .* one of the two is shifted"):
        make_artefact(marginal_heads, chain_logprob=shifted)


def test_tokens_weigh_alike_and_sequences_are_resampled(make_artefact, marginal_heads):
    sums = metrics.agreement(rooted_predictions(make_artefact(marginal_heads)))
    assert sums.count[:, 0].tolist() == [3] * 128
    interval = sums.interval(1, generator=0)
    assert interval.n == 128
    assert interval.unit == "sequence"
    assert interval.low < sums.mean()[0] == pytest.approx(interval.estimate)
    assert interval.high > interval.estimate


def test_depths_without_a_root_are_nan_and_have_no_interval(make_artefact, marginal_heads):
    # Without the last policy token no root sees three of them.
    artefact = make_artefact(marginal_heads)
    artefact.action_mask[:, 3] = False
    sums = metrics.survival(rooted_predictions(artefact))
    assert np.isnan(sums.mean()[2])
    assert sums.interval(3, generator=0) is None
    assert metrics.effective_horizon(rooted_predictions(artefact), generator=0) is None
    scalars = depth_scalars(artefact)
    assert {int(found[1]) for tag in scalars if (found := re.match(r"world_model/depth_(\d)", tag))} == {1, 2}
    assert "world_model/h_eff" not in scalars  # a sum over all depths
    assert all(math.isfinite(value) for value in scalars.values())


def test_entropy_strata_by_hand(make_artefact, marginal_heads):
    rooted = rooted_predictions(make_artefact(marginal_heads))
    edges, strata = metrics.by_chain_entropy(rooted, metrics.acceptance_probability(rooted), num_bins=2)
    # The trunk's entropy takes two values: H(3/4) = .562 after token 0 and log 2 after token 1. More than half of the
    # targets follow a 0, so the median is .562 and the lower bin is "after a 0".
    assert edges[1] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    # Depth 2 after a 0 (x1 = 0): .9375 if x0 = 0, .875 if x0 = 1; root 0: (.5*.75, .5*.5) -> weights .6, .4;
    # root 1 the same with x1 in place of x0: (.625*.75, .375*.5). Total weights .375 + .46875 and .25 + .1875.
    low = (0.84375 * 0.9375 + 0.4375 * 0.875) / (0.84375 + 0.4375)
    assert strata[0].mean()[1] == pytest.approx(low)
    # After a 1: .8125 with .125 + .15625, .875 with .25 + .1875.
    high = (0.28125 * 0.8125 + 0.4375 * 0.875) / (0.28125 + 0.4375)
    assert strata[1].mean()[1] == pytest.approx(high)
    assert sum(stratum.count.sum() for stratum in strata) == rooted.valid.sum()


def test_scalars_are_documented_tags(make_artefact, marginal_heads):
    scalars = depth_scalars(make_artefact(marginal_heads))
    for tag in scalars:
        TAGS.check(tag, "scalar")
    assert sum(bool(re.fullmatch(r"world_model/depth_3/\w+", tag)) for tag in scalars) == 10
    assert scalars["world_model/depth_2/accept"] == pytest.approx(0.892578125)


def test_strips_do_not_run_over_a_reply(make_artefact, marginal_heads):
    """Token 2 is the world's: depths 2 and 3 would have spoken over it, nobody speaks of it, and empty rows go."""
    artefact = make_artefact(marginal_heads)
    spoken = [[token is not None for token in row.tokens] for row in token_strip(artefact, 0).rows]
    assert spoken == [[False, True, True, True], [False, False, True, True], [False, False, False, True]]
    artefact.action_mask[0, 2] = False
    spoken = [[token is not None for token in row.tokens] for row in token_strip(artefact, 0).rows]
    assert spoken == [[False, True, False, True]]
