"""The table of tags, and the document made from it."""

import runpy

import pytest

from worldmtp.tracking.tag_table import TagRow, TagTable
from worldmtp.tracking.tags import TAGS

DOCUMENTED = """
rollout/return_mean rollout/exact_mean rollout/length_mean rollout/truncated_fraction losses/policy
losses/value losses/entropy losses/kl_reference losses/approx_kl losses/clip_fraction losses/grad_norm
losses/explained_variance losses/counterfactual world_model/loss world_model/reward_loss world_model/continuation_loss
world_model/value_loss world_model/action_shuffle_loss_ratio world_model/depth_1/ce world_model/depth_12/top1
world_model/depth_2/accept world_model/depth_2/survival world_model/depth_2/kl imagination/slope imagination/r2
imagination/gate_open imagination/kappa imagination/corr imagination/rung
imagination/return_imagined imagination/return_realized imagination/return_bias imagination/return_corr
imagination/imagined_tokens imagination/num_live_mean imagination/weight_h0 imagination/skill_h4 imagination/rung_0/r2
imagination/rung_3/slope eval/exact eval/exact_lo90 eval/exact_hi90 eval/exact_sampled eval/score
eval/length_mean time/rollout_seconds time/scoring_seconds time/world_model_seconds time/imagination_seconds
time/update_seconds time/eval_seconds time/total_seconds time/env_fraction env/episodes env/tokens env/scorer_calls
env/scorer_errors env/scorer_timeouts sft/loss sft/mtp/loss_depth_2 sft/anything
"""


@pytest.mark.parametrize("tag", DOCUMENTED.split())
def test_documented_scalars_pass(tag):
    TAGS.check(tag, "scalar")


@pytest.mark.parametrize(
    ("tag", "nearest"),
    [
        ("losses/polcy", "losses/policy"),
        ("rollout/return_meen", "rollout/return_mean"),
        ("world_model/depth_3/acept", "world_model/depth_{k}/accept"),
        ("imagination/weight_hx", "imagination/weight_h{h}"),
    ],
)
def test_unknown_tags_name_the_nearest(tag, nearest):
    with pytest.raises(ValueError, match=rf"No scalar tag '{tag}' .*Did you mean '{nearest.replace('{', '.')}'\?"):
        TAGS.check(tag, "scalar")


def test_placeholders_do_not_cross_a_slash_and_numbers_are_digits():
    table = TagTable((TagRow("a/{name}", "-", "-"), TagRow("b/depth_{k}", "-", "-")))
    table.check("a/word.2", "scalar")
    table.check("b/depth_10", "scalar")
    for tag in ["a/b/c", "a/", "b/depth_", "b/depth_x", "xa/word", "a/word\n"]:
        with pytest.raises(ValueError, match="No scalar tag"):
            table.check(tag, "scalar")


def test_kinds_are_apart_and_a_table_can_have_rows_of_ones_own():
    with pytest.raises(ValueError, match="No image tag 'losses/policy'"):
        TAGS.check("losses/policy", "image")
    with pytest.raises(ValueError, match="No scalar tag 'mine/x'"):
        TAGS.check("mine/x", "scalar")
    TagTable((*TAGS.rows, TagRow("mine/x", "my estimator", "1"))).check("mine/x", "scalar")


def test_rows_are_unique_and_complete():
    keys = [(row.tag, row.kind) for row in TAGS.rows]
    assert len(set(keys)) == len(keys)
    assert all(row.estimator and row.unit for row in TAGS.rows)


@pytest.fixture
def page(project_root):
    return runpy.run_path(str(project_root / "docs" / "metrics.py"))["page"]


def test_the_document_is_made_from_the_table(page, project_root):
    document = (project_root / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert document == page(), "make it again: python docs/metrics.py > docs/metrics.md"


def test_the_document_has_a_line_per_row_and_escapes_bars(page):
    table = TagTable((TagRow("a/b", "KL(p|q)", "nats"), TagRow("a/c", "strip", "-", "image")))
    document = page(table)
    assert "| `a/b` | KL(p\\|q) | nats |" in document
    assert (
        document.index("## Scalars") < document.index("`a/b`") < document.index("## Images") < document.index("`a/c`")
    )
