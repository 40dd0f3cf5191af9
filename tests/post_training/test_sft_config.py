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


def test_what_the_user_sets_wins(tmp_path):
    config = MTPSFTConfig(str(tmp_path), use_cpu=True, bf16=True, activation_checkpointing=True)
    assert config.bf16
    assert config.gradient_checkpointing


@pytest.mark.parametrize("options", [{"packing": True}, {"eval_packing": True}])
def test_wrapped_packing_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"'wrapped' cuts documents .* use packing_strategy='bfd'"):
        MTPSFTConfig(str(tmp_path), packing_strategy="wrapped", **options)


@pytest.mark.parametrize("coef", [-0.1, float("nan"), float("inf")])
def test_a_coefficient_below_zero_or_not_finite_is_refused(tmp_path, coef):
    with pytest.raises(ValueError, match=r"coef\.start=.* must be finite and not negative"):
        MTPSFTConfig(str(tmp_path), mtp_objective={"coef": {"start": coef}})


def test_label_smoothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0\.1"):
        MTPSFTConfig(str(tmp_path), label_smoothing_factor=0.1)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"term": {"kl": 1.0}}, r"a key of the objective='term' is unknown.*[Dd]id you mean 'terms'\?"),
        ({"terms": {"latnt": 1.0}}, r"a key of terms='latnt' is unknown.*[Dd]id you mean 'latent'\?"),
        ({"latent_target": "emma", "terms": {"latent": 1.0}}, r"latent_target='emma' is unknown.*'ema'"),
        ({"window": {"first": 1}}, r"window\.first=1 must be at least 2"),
    ],
)
def test_an_objective_that_is_none_is_refused_when_it_is_configured(tmp_path, objective, message):
    with pytest.raises(ValueError, match=message):
        MTPSFTConfig(str(tmp_path), mtp_objective=objective)


@pytest.mark.parametrize("objective", ["nextlat", ["kl"]])
def test_an_objective_is_a_mapping(tmp_path, objective):
    with pytest.raises(TypeError, match=r"mtp_objective=.* must be a mapping of MTPObjective's fields, or None"):
        MTPSFTConfig(str(tmp_path), mtp_objective=objective)


def test_a_schedule_by_tokens_has_them_counted(tmp_path):
    by_tokens = {"coef": {"kind": "step", "start": 0.3, "end": 0.1, "begin": 100, "unit": "tokens"}}
    assert MTPSFTConfig(str(tmp_path), mtp_objective=by_tokens).include_num_input_tokens_seen == "non_padding"
    chosen = MTPSFTConfig(str(tmp_path), mtp_objective=by_tokens, include_num_input_tokens_seen="all")
    assert chosen.include_num_input_tokens_seen == "all"
    assert MTPSFTConfig(str(tmp_path)).include_num_input_tokens_seen == "no"
