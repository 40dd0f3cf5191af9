"""What every trainer of the room refuses at its construction."""

import warnings

import pytest
import torch
from trl import SFTConfig

from worldmtp.post_training import MTPSFTConfig
from worldmtp.post_training.guards import check_config, check_model, warn_of_half_precision


def test_a_model_without_heads_or_a_name_is_refused(make_trunk, make_model):
    check_model(make_model())
    with pytest.raises(TypeError, match="model is a Qwen3ForCausalLM, expected an MTPModel; make one with"):
        check_model(make_trunk())
    with pytest.raises(TypeError, match="model is a str, expected an MTPModel"):
        check_model("some/name")


def test_trls_own_configuration_is_refused(make_config):
    check_config(make_config(), MTPSFTConfig)
    with pytest.raises(TypeError, match="args is of type SFTConfig, expected MTPSFTConfig; it takes the same"):
        check_config(make_config(SFTConfig, bf16=False, activation_checkpointing=False), MTPSFTConfig)


def test_weights_in_half_precision_are_warned_of(make_model):
    model = make_model()
    torch.nn.Module.to(model, torch.bfloat16)
    with pytest.warns(UserWarning, match=r"weights kept in bfloat16, where small steps .* Trainer has bf16=True"):
        warn_of_half_precision(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_half_precision(model.float())
        for weight in model.bfloat16().parameters():
            weight.requires_grad_(False)  # under adapters, say
        warn_of_half_precision(model)
