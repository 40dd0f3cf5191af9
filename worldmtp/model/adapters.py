"""PEFT's adapters inside a trunk: putting them in, finding them, taking them out, and what a checkpoint says of them.

A saved ``MTPModel`` names its adapters in its config, so that loading puts them back. PEFT is optional
(``pip install 'worldmtp[lora]'``) and only this module imports it. ``worldmtp.model.lora`` adds, saves and merges them.
"""

import json
import sys
import warnings
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from worldmtp.model.config import MTPConfig

if TYPE_CHECKING:
    from peft import LoraConfig

_REFUSED = {
    "modules_to_save": "it would train whole layers of the trunk",
    "trainable_token_indices": "it would train the embedding, which the heads read too",
    "layer_replication": "it would change the number of the trunk's layers",
    "target_parameters": "weights outside of layers are not merged here",
    "alora_invocation_tokens": "it depends on the tokens of a call, which only PEFT's wrapper hands on",
    "arrow_config": "it takes several adapters",
}

_PLAIN_STARTS = (True, False, "gaussian", "orthogonal")
"""What A and B may start as: products of zero, or random ones on request, beside untouched weights."""


def trunk_with_adapters(config: MTPConfig) -> PreTrainedModel:
    """Return a fresh trunk of a saved config, with fresh adapters in the places that it names."""
    trunk: PreTrainedModel = AutoModelForCausalLM.from_config(config.trunk_config)
    if config.adapters is not None:
        insert_adapters(trunk, config.adapters)
    return trunk


def adapters_to_save(model: Any) -> dict[str, dict[str, Any]] | None:
    """Return what ``MTPConfig.adapters`` is to be in a checkpoint of the model.

    Raises:
        TypeError: an adapter that ``worldmtp.model.lora.add_lora`` would not take, and so could not put back.
        ValueError: several adapters, or the model is inside PEFT's wrapper, which saves them itself.
    """
    if hasattr(model, "peft_config"):
        raise ValueError(
            "this MTPModel is inside PEFT's wrapper, which saves its adapters itself: call save_pretrained of the "
            "wrapper, or merge them with its merge_and_unload() first."
        )
    if not hasattr(model.trunk, "peft_config"):
        return None
    return described_adapters(model.trunk)


def freeze_beside_adapters(model: Any) -> None:
    """Freeze the trunk's own weights where it has adapters, as they were: loading makes all of them trainable."""
    trunk: nn.Module = model.trunk
    if hasattr(trunk, "peft_config"):
        for name, parameter in trunk.named_parameters():
            parameter.requires_grad_("lora_" in name)


def described_adapters(trunk: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """Return the adapter's config by its name, as JSON holds it; ``insert_adapters`` takes it.

    Raises:
        ImportError: PEFT is not installed.
        TypeError: the adapter is not one that ``add_lora`` takes.
        ValueError: there are several adapters, or its config reaches beyond matrices beside the trunk's layers.
    """
    name = adapter_name(trunk)
    config: Any = trunk.peft_config[name]
    check_lora_config(config)
    described: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=sorted))
    return {name: described}


def insert_adapters(trunk: PreTrainedModel, adapters: dict[str, dict[str, Any]]) -> None:
    """Put fresh adapters into a trunk, as ``described_adapters`` says; their weights are the caller's to load.

    Raises:
        ImportError: PEFT is not installed.
    """
    peft = require_peft()
    for name, config in adapters.items():
        inject_adapter(trunk, peft.LoraConfig.from_peft_type(**config), name)


def without_peft_wrapper(model: Any) -> Any:
    """Return the model inside PEFT's wrapper, whose layers hold the active adapters; anything else as it is.

    Nothing is copied: which adapters are active, and whether they are, stays the wrapper's to say.

    Raises:
        ValueError: the wrapper computes something that its layers do not, such as prompts that are learnt.
    """
    peft = sys.modules.get("peft")  # what PEFT has made cannot be here before it
    if peft is None or not isinstance(model, (peft.PeftModel, peft.PeftMixedModel)):
        return model
    from peft.tuners.tuners_utils import BaseTuner

    tuner = model.base_model
    configs = list(model.peft_config.values())
    in_layers = isinstance(tuner, BaseTuner) and type(tuner).forward is BaseTuner.forward
    if not in_layers or any(getattr(config, "alora_invocation_tokens", None) for config in configs):
        kinds = sorted({str(getattr(config.peft_type, "value", config.peft_type)) for config in configs})
        raise ValueError(
            f"{type(model).__name__} with {', '.join(kinds)} does more than the layers inside it, and the model runs "
            "without the wrapper here; use adapters in layers, such as LoRA, or merge them with merge_and_unload()."
        )
    return without_peft_wrapper(tuner.model)


def inject_adapter(trunk: PreTrainedModel, config: "LoraConfig", name: str = "default") -> None:
    """Put a fresh adapter into a trunk, and freeze the trunk's own weights; after an error the trunk is as it was.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: the config names the LM head, the embedding, or no layer at all.
    """
    peft = require_peft()
    trained = {name: parameter.requires_grad for name, parameter in trunk.named_parameters()}
    plain = {id(trunk.get_output_embeddings()): "the LM head", id(trunk.get_input_embeddings()): "the embedding"}
    try:
        with warnings.catch_warnings():
            # A tied embedding is refused below.
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
            peft.inject_adapter_in_model(config, trunk, name)
        for place, layer in adapted_layers(trunk).items():
            what = plain.get(id(layer.get_base_layer()))
            if what is not None:
                raise ValueError(
                    f"target_modules puts an adapter on {what} ({place}), which the losses of all depths read as a "
                    "plain layer; leave it out of target_modules or name it in exclude_modules."
                )
    except BaseException:
        remove_adapters(trunk)
        for weight, parameter in trunk.named_parameters():
            parameter.requires_grad_(trained[weight])
        raise
    trunk._hf_peft_config_loaded = True  # so that the trunk's own save_pretrained writes its adapters


def adapted_layers(trunk: PreTrainedModel) -> dict[str, Any]:
    """Return the layers that have adapters, by name; the outermost where one is wrapped in another."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: layer for name, layer in trunk.named_modules() if isinstance(layer, BaseTunerLayer)}


def remove_adapters(trunk: PreTrainedModel) -> None:
    """Put every layer back in the place of the one that wraps it."""
    for name, layer in adapted_layers(trunk).items():
        trunk.set_submodule(name, layer.get_base_layer())
    if hasattr(trunk, "peft_config"):
        del trunk.peft_config
    trunk._hf_peft_config_loaded = False


def adapter_name(trunk: PreTrainedModel) -> str:
    """Return the name of the one adapter.

    Raises:
        ValueError: there is none, or more than one.
    """
    names = list(getattr(trunk, "peft_config", {}))
    if len(names) != 1:
        raise ValueError(
            f"the trunk has the adapters {names}, expected one; "
            + ("call add_lora(model, config)." if not names else "delete the others with model.trunk.delete_adapter.")
        )
    return str(names[0])


def check_lora_config(config: Any) -> None:
    """Raise unless the config trains nothing but matrices beside the trunk's layers.

    Raises:
        ImportError: PEFT is not installed.
        TypeError: it is no ``LoraConfig``.
        ValueError: it reaches further.
    """
    if not isinstance(config, require_peft().LoraConfig):
        raise TypeError(f"config is a {type(config).__name__}, expected a peft.LoraConfig.")
    for name, reason in _REFUSED.items():
        value = getattr(config, name, None)
        if value:
            raise ValueError(f"LoraConfig({name}={value!r}) is not supported: {reason}; leave it out.")
    if config.init_lora_weights not in _PLAIN_STARTS:
        raise ValueError(
            f"LoraConfig(init_lora_weights={config.init_lora_weights!r}) is not supported: it would change the trunk's "
            f"own weights, or needs data; choose from {list(_PLAIN_STARTS)}."
        )
    if config.bias != "none":
        raise ValueError(
            f"LoraConfig(bias={config.bias!r}) would train the trunk's own biases, which are frozen here; use 'none'."
        )


def require_peft() -> Any:
    """Return the module ``peft``.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("adapters need PEFT, which is not installed: pip install 'worldmtp[lora]'.") from error
    return peft
