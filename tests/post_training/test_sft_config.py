"""MTPSFTConfig: what follows the machine, what the user set, what is refused."""

import pytest
import torch

from worldmtp.post_training import MTPSFTConfig


def test_defaults_without_an_accelerator_cost_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *args, **kwargs: False)
    config = MTPSFTConfig(str(tmp_path))
    assert (config.bf16, config.gradient_checkpointing, config.dataloader_pin_memory) == (False, False, False)
    assert config.use_cpu
    assert config.report_to == []
    assert config.mtp_coef is None


def test_what_the_user_sets_wins(tmp_path):
    config = MTPSFTConfig(str(tmp_path), use_cpu=True, bf16=True, activation_checkpointing=True, mtp_coef=0.0)
    assert config.bf16
    assert config.gradient_checkpointing
    assert config.mtp_coef == 0.0


@pytest.mark.parametrize("options", [{"packing": True}, {"eval_packing": True}])
def test_wrapped_packing_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"'wrapped' cuts documents .* use packing_strategy='bfd'"):
        MTPSFTConfig(str(tmp_path), packing_strategy="wrapped", **options)


@pytest.mark.parametrize("coef", [-0.1, float("nan"), float("inf")])
def test_a_coefficient_below_zero_or_not_finite_is_refused(tmp_path, coef):
    with pytest.raises(ValueError, match=r"mtp_coef=.*expected a finite number >= 0"):
        MTPSFTConfig(str(tmp_path), mtp_coef=coef)


def test_label_smoothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0\.1"):
        MTPSFTConfig(str(tmp_path), label_smoothing_factor=0.1)
