"""What every trainer of the room refuses at its construction."""

import pytest
from trl import SFTConfig

from worldmtp.post_training import MTPSFTConfig
from worldmtp.post_training.checks import check_config, check_model


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
