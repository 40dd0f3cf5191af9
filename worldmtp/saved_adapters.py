"""Adapters in the trunk of a saved ``MTPModel``: what its config says of them, and how loading puts them back.

``worldmtp.lora`` has the rest, and is imported where there are adapters only: it imports the model.
"""

from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from worldmtp.config import MTPConfig


def trunk_with_adapters(config: MTPConfig) -> PreTrainedModel:
    """A fresh trunk of a saved config, with fresh adapters in the places that it names."""
    trunk: PreTrainedModel = AutoModelForCausalLM.from_config(config.trunk_config)
    if config.adapters is not None:
        from worldmtp.lora import insert_adapters

        insert_adapters(trunk, config.adapters)
    return trunk


def adapters_to_save(model: Any) -> dict[str, dict[str, Any]] | None:
    """What ``MTPConfig.adapters`` is to be in a checkpoint of the model.

    Raises:
        TypeError: an adapter that ``worldmtp.lora.add_lora`` would not take, and so could not put back.
        ValueError: several adapters, or the model is inside PEFT's wrapper, which saves them itself.
    """
    if hasattr(model, "peft_config"):
        raise ValueError(
            "this MTPModel is inside PEFT's wrapper, which saves its adapters itself: call save_pretrained of the "
            "wrapper, or merge them with its merge_and_unload() first."
        )
    if not hasattr(model.trunk, "peft_config"):
        return None
    from worldmtp.lora import described_adapters

    return described_adapters(model)


def freeze_beside_adapters(model: Any) -> None:
    """Freeze the trunk's own weights where it has adapters, as they were: loading makes all of them trainable."""
    trunk: nn.Module = model.trunk
    if hasattr(trunk, "peft_config"):
        for name, parameter in trunk.named_parameters():
            parameter.requires_grad_("lora_" in name)
