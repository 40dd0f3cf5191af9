"""All that is known of a trunk, any Hugging Face causal LM: how its backbone is called and what is read of a pass.

Inputs: positions count real tokens, and a mask keeps packed documents apart. Features: the backbone returns its last
hidden state after the final norm; some heads read it before that norm (EAGLE-1, some released checkpoints) or read
layers further down (Gloeckle et al. 2024, EAGLE-3). Hooks record those in the same pass, only while they are asked for,
so there is one trunk forward per micro-batch whatever the heads read. Logits: some trunks scale or cap them.

Left out: packed documents with padding on a trunk with sliding attention, whose backbone takes no mask of ours.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel


def real_tokens(
    input_ids: Int[Tensor, "batch time"], attention_mask: Shaped[Tensor, "batch time"] | None
) -> Bool[Tensor, "batch time"]:
    """Return where there is no padding; without a mask, everywhere."""
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    return attention_mask.bool()


def check_mask_shape(
    input_ids: Int[Tensor, "batch time"], attention_mask: Shaped[Tensor, "..."] | None, cache: Cache | None = None
) -> None:
    """Raise unless the mask has an entry for each token and for each that is cached: a backbone would broadcast it.

    Raises:
        ValueError: it has another shape.
    """
    num_rows, length = input_ids.shape
    num_cached = 0 if cache is None else cache.get_seq_length()
    if attention_mask is not None and tuple(attention_mask.shape) != (num_rows, num_cached + length):
        cached = f" after {num_cached} cached tokens" if num_cached else ""
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected {(num_rows, num_cached + length)}: "
            f"input_ids has shape {tuple(input_ids.shape)}{cached}."
        )


def document_ids_from_position_ids(position_ids: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Number the documents packed into each row: a new one starts wherever positions do not go on by one."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return starts.long().cumsum(dim=1) - 1


def position_ids_from_attention_mask(attention_mask: Bool[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Return positions that count real tokens only, so that left and right padding agree."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp_min(0)


def trunk_inputs(
    trunk: PreTrainedModel,
    input_ids: Int[Tensor, "batch time"],
    attention_mask: Shaped[Tensor, "batch _"] | None,
    position_ids: Int[Tensor, "_ time"] | None,
) -> dict[str, Any]:
    """Return keywords for the backbone; packed documents are marked by ``position_ids`` that restart.

    Raises:
        ValueError: packed documents and an attention mask, on a trunk with sliding attention.
    """
    length = input_ids.shape[1]
    if attention_mask is not None and position_ids is None:
        # Over a cached prefix the mask is longer than the tokens; left alone, a backbone would count padding.
        position_ids = position_ids_from_attention_mask(attention_mask.bool())[:, -length:]
    elif attention_mask is not None and position_ids is not None and attention_mask.shape[1] == length:
        real = attention_mask.bool()
        attention_mask = _packed_mask(trunk, real, position_ids.expand(input_ids.shape), attention_mask)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}


def backbone_of(trunk: PreTrainedModel) -> nn.Module:
    """Return the part of a causal LM that ends in hidden states, which its LM head reads.

    It is transformers' ``base_model``, or the child called ``model`` where the class gives no name to it (Llama 4).

    Raises:
        ValueError: there is neither.
    """
    backbone: nn.Module = trunk.base_model
    if backbone is not trunk:
        return backbone
    if isinstance(inner := getattr(trunk, "model", None), PreTrainedModel):
        return inner
    raise ValueError(
        f"{type(trunk).__name__} has no backbone apart from its LM head: neither base_model nor a child called model; "
        "pass a causal LM, as AutoModelForCausalLM loads it."
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turn dropout off inside the block; afterwards every module is in its own former mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])
        for module, was_training in modes:
            module.training = was_training


def last_hidden_states(
    trunk: PreTrainedModel, input_ids: Int[Tensor, "batch time"], attention_mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time hidden"]:
    """Return the backbone's last hidden states, after its final norm, without recording what else heads may read."""
    output = backbone_of(trunk)(
        input_ids=input_ids,
        attention_mask=attention_mask.long(),
        position_ids=position_ids_from_attention_mask(attention_mask),
        use_cache=False,
    )
    return output.last_hidden_state


def has_sliding_attention(config: PreTrainedConfig) -> bool:
    """Return whether a layer attends to a window; older configs say so without naming the layers' types."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None:
        return "sliding_attention" in layer_types
    return bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True) is not False


def _packed_mask(trunk: PreTrainedModel, real: Tensor, position_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return a mask that tells the backbone of boundaries, which it sees in position_ids only without a mask."""
    document_ids = document_ids_from_position_ids(position_ids)
    boundary = document_ids[:, 1:] != document_ids[:, :-1]
    if not (boundary & real[:, 1:] & real[:, :-1]).any():
        return attention_mask
    if has_sliding_attention(trunk.config.get_text_config()):
        raise ValueError(
            "packed documents with an attention_mask are not supported for a trunk with sliding attention; pack "
            "without padding and pass no attention_mask."
        )
    return additive_mask(causal_mask(real, document_ids), trunk.dtype)


def causal_mask(
    attention_mask: Bool[Tensor, "batch time"], document_ids: Int[Tensor, "batch time"] | None = None
) -> Bool[Tensor, "batch 1 time time"]:
    """Return whether query i may attend to key j: j <= i, j is a real token, and both are of one document.

    Everyone may attend to itself, padding too: what stands there is nobody's, but it is finite and a function of
    nothing but itself.
    """
    length = attention_mask.shape[1]
    square = torch.ones((length, length), dtype=torch.bool, device=attention_mask.device)
    allowed = square.tril() & attention_mask[:, None, None, :]
    if document_ids is not None:
        allowed = allowed & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    return allowed | torch.eye(length, dtype=torch.bool, device=attention_mask.device)


def additive_mask(allowed: Bool[Tensor, "*axes"], dtype: torch.dtype) -> Float[Tensor, "*axes"]:
    """Return zero where allowed, and the dtype's lowest finite value elsewhere.

    Finite, so that a query without any key averages all of them instead of becoming NaN: nobody reads it, but a NaN
    would reach the gradients of those who are read.
    """
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
_LAYER_LISTS = ("layers", "h", "blocks")


@dataclass(frozen=True)
class TrunkFeatures:
    """Hidden states of one trunk pass: ``post_norm`` is what the LM head reads; ``layers`` are those asked for."""

    post_norm: Float[Tensor, "batch time hidden"]
    pre_norm: Float[Tensor, "batch time hidden"] | None = None
    layers: tuple[Float[Tensor, "batch time hidden"], ...] = ()

    def map(self, function: Callable[[Tensor], Tensor]) -> "TrunkFeatures":
        """Return ``function`` of every hidden state."""
        return TrunkFeatures(
            post_norm=function(self.post_norm),
            pre_norm=None if self.pre_norm is None else function(self.pre_norm),
            layers=tuple(function(layer) for layer in self.layers),
        )

    def detach(self) -> "TrunkFeatures":
        """Return the same values outside the graph."""
        return self.map(lambda hidden: hidden.detach())


@dataclass
class Recording:
    """Filled by the hooks of ``record_features`` during a pass of the backbone."""

    num_layers: int
    reads_pre_norm: bool
    _post_norm: Tensor | None = None
    _pre_norm: Tensor | None = None
    _layers: dict[int, Tensor] = field(default_factory=dict)

    def features(self) -> TrunkFeatures:
        """Return what the pass left.

        Raises:
            RuntimeError: the backbone was not run, or a hook did not see what it waited for.
        """
        if self._post_norm is None or len(self._layers) < self.num_layers:
            raise RuntimeError("the trunk's backbone was not run to its end while its features were recorded.")
        if self.reads_pre_norm and self._pre_norm is None:
            raise RuntimeError("the trunk's final norm was not called; its input, which the heads read, is unknown.")
        return TrunkFeatures(self._post_norm, self._pre_norm, tuple(self._layers[i] for i in range(self.num_layers)))


@contextmanager
def record_features(backbone: nn.Module, layers: Sequence[int] = (), pre_norm: bool = False) -> Iterator[Recording]:
    """Record the passes of ``backbone`` made inside; the last one counts.

    Raises:
        ValueError: the backbone has no such layer, or a final norm or list of layers that is not known by name.
    """
    recording = Recording(len(layers), pre_norm)
    with ExitStack() as stack:

        def keep_last(module: nn.Module, args: Any, output: Any) -> None:
            recording._post_norm = output.last_hidden_state

        stack.callback(backbone.register_forward_hook(keep_last).remove)
        if pre_norm:

            def keep_norm_input(module: nn.Module, args: Any, kwargs: Any) -> None:
                recording._pre_norm = args[0] if args else next(iter(kwargs.values()))

            hook = final_norm(backbone).register_forward_pre_hook(keep_norm_input, with_kwargs=True)
            stack.callback(hook.remove)
        stacked = layer_list(backbone) if layers else nn.ModuleList()
        for place, index in enumerate(layers):

            def keep_layer(module: nn.Module, args: Any, output: Any, place: int = place) -> None:
                recording._layers[place] = output[0] if isinstance(output, tuple) else output

            stack.callback(stacked[index].register_forward_hook(keep_layer).remove)
        yield recording


def run_trunk(
    trunk: PreTrainedModel,
    input_ids: Int[Tensor, "batch time"],
    attention_mask: Shaped[Tensor, "batch _"] | None = None,
    position_ids: Int[Tensor, "_ time"] | None = None,
    layers: Sequence[int] = (),
    pre_norm: bool = False,
    **backbone_arguments: Any,
) -> tuple[TrunkFeatures, Cache | None]:
    """Return the features of one pass of the trunk's backbone, and the cache of keys that it kept, if any.

    Over a cached prefix the mask is that of the prefix and the tokens. Other keywords go to the backbone. What
    trunks without attention keep is of another kind, and not returned.

    Raises:
        ValueError: a mask of another shape, or what ``trunk_inputs`` and ``record_features`` refuse.
    """
    cache = backbone_arguments.get("past_key_values")
    if backbone_arguments.get("use_cache") and not cache and attention_mask is None:
        # Where they fill a cache, backbones do not look for documents in the positions: they are told by a mask.
        attention_mask = torch.ones_like(input_ids)
    check_mask_shape(input_ids, attention_mask, cache)
    backbone = backbone_of(trunk)
    with record_features(backbone, layers, pre_norm) as recorded:
        output = backbone(**trunk_inputs(trunk, input_ids, attention_mask, position_ids), **backbone_arguments)
    return recorded.features(), getattr(output, "past_key_values", None)


def final_norm(backbone: nn.Module) -> nn.Module:
    """Return the norm between the last layer and the LM head.

    Raises:
        ValueError: it goes by a name that is not known.
    """
    return _named(backbone, _FINAL_NORMS, "final norm", "read hidden_stage='post_norm' with an own norm")


def layer_list(backbone: nn.Module) -> nn.ModuleList:
    """Return the trunk's layers, in order.

    Raises:
        ValueError: they go by a name that is not known.
    """
    layers = _named(backbone, _LAYER_LISTS, "list of layers", "choose heads that read the last hidden state only")
    assert isinstance(layers, nn.ModuleList)
    return layers


def _named(backbone: nn.Module, names: tuple[str, ...], what: str, remedy: str) -> nn.Module:
    for owner in (backbone, getattr(backbone, "decoder", None)):
        for name in names:
            found = getattr(owner, name, None)
            if isinstance(found, nn.Module):
                return found
    raise ValueError(f"{type(backbone).__name__} has no {what} under the names {list(names)}; {remedy}.")


@dataclass(frozen=True)
class LogitChanges:
    """Applied in this order; None where the trunk has no such field."""

    scale: float | None
    divisor: float | None
    cap: float | None

    @classmethod
    def of(cls, trunk_config: PreTrainedConfig) -> "LogitChanges":
        """Return the changes that a trunk makes."""
        config = trunk_config.get_text_config()
        names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
        scale = next((value for name in names if (value := getattr(config, name, None)) is not None), None)
        divisor = getattr(config, "logits_scaling", None)
        if config.model_type == "hyperclovax":  # multiplies by what Granite, under the same name, divides by
            scale, divisor = divisor, None
        caps = (getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap"))
        return cls(scale, divisor, next((cap for cap in caps if cap is not None), None))

    def __bool__(self) -> bool:
        return any(change is not None for change in (self.scale, self.divisor, self.cap))

    def __call__(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """Return the logits as the trunk gives them."""
        if self.scale is not None:
            logits = logits * self.scale
        if self.divisor is not None:
            logits = logits / self.divisor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap
