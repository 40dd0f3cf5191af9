"""Meta's original Llama layout, that of facebook/multi-token-prediction: names, rotary order, ``params.json``.

Both layouts rotate pairs of channels of a head of width d. Meta's pair is (2i, 2i+1), Hugging Face's (i, i + d/2), so
the rows of the query and key projections are in another order:

    hf[i] = meta[2 i]        hf[i + d/2] = meta[2 i + 1]        i = 0 .. d/2 - 1, for each head

The inner width of the MLP is not written down but computed (Llama 2, ``FeedForward``): with m = ``multiple_of``,
inner = m * ceil(int(ffn_dim_multiplier * int(8 dim / 3)) / m).
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig

from worldmtp.interchange.problems import LayoutError, whole_number

_ROOT = {"tok_embeddings.": "model.embed_tokens.", "norm.": "model.norm.", "output.": "lm_head."}
_LAYER = {
    "attention.wq.": "self_attn.q_proj.",
    "attention.wk.": "self_attn.k_proj.",
    "attention.wv.": "self_attn.v_proj.",
    "attention.wo.": "self_attn.o_proj.",
    "feed_forward.w1.": "mlp.gate_proj.",
    "feed_forward.w2.": "mlp.down_proj.",
    "feed_forward.w3.": "mlp.up_proj.",
    "attention_norm.": "input_layernorm.",
    "ffn_norm.": "post_attention_layernorm.",
}
_COMPUTED = "rope.freqs"  # some files carry the rotary frequencies, which every reader computes
_PLAIN_THETA = 10000.0


def to_half_split(weight: Float[Tensor, "rows columns"], num_heads: int) -> Float[Tensor, "rows columns"]:
    """Return the rows of a query or key projection from Meta's order of rotary pairs to Hugging Face's."""
    rows, columns = weight.shape
    return weight.view(num_heads, rows // num_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def to_interleaved(weight: Float[Tensor, "rows columns"], num_heads: int) -> Float[Tensor, "rows columns"]:
    """Undo ``to_half_split``."""
    rows, columns = weight.shape
    return weight.view(num_heads, 2, rows // num_heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def from_llama(
    tensors: Mapping[str, Shaped[Tensor, "..."]], config: PreTrainedConfig
) -> dict[str, Shaped[Tensor, "..."]]:
    """Return Meta's names and order as Hugging Face's; extra heads keep their prefix, unknown names stay as is."""
    converted = {}
    for name, tensor in tensors.items():
        if name == _COMPUTED:
            continue
        renamed = _rename(name, _LAYER, _ROOT)
        renamed = f"model.{renamed}" if renamed.startswith("layers.") else renamed
        num_heads = _rotated_heads(renamed, config)
        # Odd shapes are left for the comparison of shapes, which names them.
        fits = num_heads and tensor.ndim == 2 and tensor.shape[0] % (2 * num_heads) == 0
        converted[renamed] = to_half_split(tensor, num_heads) if fits else tensor
    return converted


def to_llama(
    tensors: Mapping[str, Shaped[Tensor, "..."]], config: PreTrainedConfig
) -> dict[str, Shaped[Tensor, "..."]]:
    """Undo ``from_llama``."""
    layer = {theirs: ours for ours, theirs in _LAYER.items()}
    root = {theirs: ours for ours, theirs in _ROOT.items()}
    converted = {}
    for name, tensor in tensors.items():
        num_heads = _rotated_heads(name, config)
        renamed = _rename(name, layer, root).removeprefix("model.")
        converted[renamed] = to_interleaved(tensor, num_heads) if num_heads else tensor
    return converted


def config_from_params(params: Mapping[str, Any], tensors: Mapping[str, Shaped[Tensor, "..."]]) -> LlamaConfig:
    """Return the trunk's config, its vocabulary read off the weights: released files have -1, for the tokenizer's.

    ``n_layers`` counts the extra heads too: with n future tokens, n_layers - n + 1 layers are the trunk's.

    Raises:
        LayoutError: a size is missing, or no whole number.
    """
    dim, num_layers, num_heads = (_size(params, key) for key in ("dim", "n_layers", "n_heads"))
    embedding = tensors.get("tok_embeddings.weight")
    return LlamaConfig(
        # Without the weight, which is reported as missing, any size serves.
        vocab_size=len(embedding) if embedding is not None else max(1, params.get("vocab_size", 1)),
        hidden_size=dim,
        intermediate_size=inner_size(params),
        num_hidden_layers=num_layers - num_future_tokens(params) + 1,
        num_attention_heads=num_heads,
        num_key_value_heads=params.get("n_kv_heads") or num_heads,
        rms_norm_eps=params.get("norm_eps", 1e-5),
        max_position_embeddings=params.get("max_seq_len", 4096),
        rope_parameters={"rope_type": "default", "rope_theta": float(params.get("rope_theta", _PLAIN_THETA))},
        tie_word_embeddings=False,
    )


def num_future_tokens(params: Mapping[str, Any]) -> int:
    """Return K by ``params.json``.

    Raises:
        LayoutError: it is missing, or no whole number.
    """
    return _size(params, "n_future_tokens")


def _size(params: Mapping[str, Any], key: str) -> int:
    if key not in params:
        raise LayoutError(f"params.json has no {key!r}; copy it again, or add it.")
    return whole_number(key, params[key])


def params_from_config(config: PreTrainedConfig, num_future_tokens: int) -> dict[str, Any]:
    """Return ``params.json`` of a trunk with heads up to depth ``num_future_tokens``."""
    params: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers + num_future_tokens - 1,
        "n_heads": config.num_attention_heads,
        "vocab_size": config.vocab_size,
        # With the inner width itself as the multiple, rounding up gives it from anything smaller.
        "multiple_of": config.intermediate_size,
        "norm_eps": config.rms_norm_eps,
        "n_future_tokens": num_future_tokens,
    }
    plain = int(8 * config.hidden_size / 3)
    if plain > config.intermediate_size:
        params["ffn_dim_multiplier"] = config.intermediate_size / (2 * plain)
    if config.num_key_value_heads != config.num_attention_heads:
        params["n_kv_heads"] = config.num_key_value_heads
    if config.rope_parameters["rope_theta"] != _PLAIN_THETA:
        params["rope_theta"] = config.rope_parameters["rope_theta"]
    return params


def inner_size(params: Mapping[str, Any]) -> int:
    """Return the inner width of the MLP, as the equation above has it."""
    inner = int(8 * params["dim"] / 3)
    if params.get("ffn_dim_multiplier") is not None:
        inner = int(params["ffn_dim_multiplier"] * inner)
    multiple: int = params.get("multiple_of", 256)
    return multiple * -(-inner // multiple)


def _rename(name: str, layer: Mapping[str, str], root: Mapping[str, str]) -> str:
    found = re.match(r"((?:model\.)?layers\.\d+\.|extra_heads\.\d+\.)(.*)", name)
    prefix, rest, table = (found[1], found[2], layer) if found else ("", name, root)
    for source, target in table.items():
        if rest.startswith(source):
            return prefix + target + rest.removeprefix(source)
    return name


def _rotated_heads(name: str, config: PreTrainedConfig) -> int:
    """Number of heads whose rows are in rotary order, in Hugging Face's names; 0 for all other weights."""
    if name.endswith("self_attn.q_proj.weight"):
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if name.endswith("self_attn.k_proj.weight") else 0
