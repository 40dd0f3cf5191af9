"""A loss or weight that is not finite stops with the step, the term and the last good checkpoint."""

import re

import pytest
import torch

from worldmtp.post_training.guards import check_finite, check_finite_weights

NAN, INF, ONE = float("nan"), float("inf"), 1.0


def test_finite_terms_pass():
    check_finite({"loss": ONE, "mtp/loss_depth_2": ONE}, step=4, output_dir="unused")
    check_finite_weights([("weight", torch.ones(2))], step=4, output_dir="unused")


def test_the_error_names_step_terms_and_the_newest_checkpoint_of_this_run(tmp_path):
    # checkpoint-30 is past the failing step 11, so it was left by another run; 9 < 10 as numbers, not as text
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-30", "checkpoint-best"):
        (tmp_path / name).mkdir()
    expected = (
        "Non-finite loss at step 11: term mtp/loss_depth_2=nan, mtp/loss_depth_3=inf. "
        f"The last good checkpoint is {tmp_path / 'checkpoint-10'};"
    )
    terms = {"loss": ONE, "mtp/loss_depth_2": NAN, "mtp/loss_depth_3": INF}
    with pytest.raises(FloatingPointError, match=re.escape(expected)):
        check_finite(terms, step=10, output_dir=str(tmp_path))


def test_without_a_checkpoint_the_error_says_so(tmp_path):
    with pytest.raises(FloatingPointError, match="last good checkpoint is none"):
        check_finite({"loss": NAN}, step=0, output_dir=str(tmp_path))


def test_broken_weights_name_the_parameter_and_the_checkpoint_before_this_step(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-4").mkdir()
    parameters = [("good", torch.ones(2)), ("heads.bad", torch.tensor([1.0, float("inf")]))]
    with pytest.raises(FloatingPointError, match=r"after step 4: term heads.bad\. .*checkpoint-2;"):
        check_finite_weights(parameters, step=4, output_dir=str(tmp_path))
