"""``MTPModel``: any Hugging Face causal LM as trunk, multi-token heads and world heads on it, one checkpoint.

The trunk runs once per forward; depth 1 is its own LM head, depths 2 .. K are the heads'. Hidden state means the
trunk's last one after its final norm, for which the LM head gives the logits.

Padding may be on either side. Packed documents are told by ``position_ids`` that restart; neither the trunk nor the
heads look across them. Where position i + k - 1 lies beyond the row (or the document), the latent of depth k at i has
read a token it should not have: it is nobody's prediction, no target of ``worldmtp.targets`` points at it, and no
other position sees it.

Left out: heads over a cached trunk pass (the decoding session and the world models chain ``heads.forward_depth``
themselves), and encoder-decoder trunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, Cache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from worldmtp.config import MTPConfig
from worldmtp.heads.base import ActionConditionalHead
from worldmtp.heads.block import resolve_head_block
from worldmtp.heads.masks import additive_mask, causal_mask
from worldmtp.heads.registry import make_head
from worldmtp.losses import DepthLosses, combine_depth_losses, depth_cross_entropy, depth_losses_from_latents
from worldmtp.targets import (
    DepthTargets,
    depth_targets,
    document_ids_from_position_ids,
    position_ids_from_attention_mask,
)
from worldmtp.world_heads import WorldHeads, ZeroLinear

IGNORE_INDEX = -100


@dataclass
class MTPOutput(ModelOutput):
    """``depth_logits[k - 1]`` and ``hidden_states[k - 1]`` belong to depth k; ``depth_losses`` are means per target."""

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "batch time vocab"] | None = None
    depth_logits: tuple[Float[Tensor, "batch time vocab"], ...] | None = None
    hidden_states: tuple[Float[Tensor, "batch time hidden"], ...] | None = None
    depth_losses: Float[Tensor, " depth"] | None = None
    past_key_values: Cache | None = None


class MTPModel(PreTrainedModel, GenerationMixin):
    """A causal LM with heads for depths 2 .. K and for value, reward and continuation."""

    config: MTPConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MTPConfig, trunk: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.trunk_config is None:
            raise ValueError("MTPConfig has no trunk_config; use MTPModel.from_trunk(trunk, config).")
        if trunk is None:
            trunk = AutoModelForCausalLM.from_config(config.trunk_config)
        else:
            for module in trunk.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]  # a flag of Hugging Face's
        config.head_block = resolve_head_block(config.head_block, trunk)
        self.trunk = trunk
        self.heads = make_head(config, trunk)
        self.world_heads = WorldHeads(config)
        if trunk.can_generate():
            self.generation_config = trunk.generation_config
        self.post_init()

    @classmethod
    def from_trunk(cls, trunk: nn.Module, config: MTPConfig, generator: torch.Generator | None = None) -> "MTPModel":
        """Fresh heads on ``trunk``, which is taken in, not copied; its weights, dtype and device stay.

        The heads' initial weights are drawn from ``generator``, or from torch's global state as Hugging Face does.

        Raises:
            TypeError: ``trunk`` is not a causal LM of Hugging Face, or has heads already.
        """
        if isinstance(trunk, MTPModel):
            raise TypeError("trunk is an MTPModel already; pass its .trunk to replace the heads.")
        if not isinstance(trunk, PreTrainedModel) or trunk.get_output_embeddings() is None:
            raise TypeError(
                f"trunk is a {type(trunk).__name__}; from_trunk needs a Hugging Face causal LM with an LM head, such "
                "as AutoModelForCausalLM.from_pretrained(path)."
            )
        bound = config.for_trunk(trunk.config, resolve_head_block(config.head_block, trunk))
        if generator is None:
            model = cls(bound, trunk)
        else:
            # Modules draw their initial weights from the global state; it is lent a seed and restored.
            seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
            with torch.random.fork_rng(devices=[]):
                torch.random.default_generator.manual_seed(seed)
                model = cls(bound, trunk)
        for fresh in (model.heads.to(trunk.device), model.world_heads.to(trunk.device)):
            # Weights only: rotary frequencies keep their precision, as they do in a trunk loaded in half precision.
            for weight in fresh.parameters():
                weight.data = weight.data.to(trunk.dtype)
        model.train(trunk.training)
        return model

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "batch _"] | None = None,
        position_ids: Int[Tensor, "_ time"] | None = None,
        labels: Int[Tensor, "batch time"] | None = None,
        compute_depth_logits: bool = True,
        num_items_in_batch: int | Shaped[Tensor, "..."] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> MTPOutput:
        """Teacher-forced logits of all depths and, with ``labels``, their combined loss.

        ``labels`` are Hugging Face's: not shifted, -100 where a token is not to be predicted. Without
        ``compute_depth_logits`` the loss is the same, one depth's logits in memory at a time; without labels too, it
        is the trunk alone. ``num_items_in_batch`` is Trainer's. Other keywords go to the trunk's backbone.

        Raises:
            ValueError: the heads were asked for over a cached prefix, whose latents they would need.
        """
        needs_heads = compute_depth_logits or labels is not None
        if past_key_values is not None and needs_heads:
            raise ValueError(
                "depths 2 .. K need the whole prefix and past_key_values holds a part of it; pass "
                "compute_depth_logits=False and no labels, or no past_key_values."
            )
        kwargs.setdefault("use_cache", past_key_values is not None)
        hidden, cache = self._run_trunk(
            input_ids, attention_mask, position_ids, past_key_values=past_key_values, **kwargs
        )
        logits = self.logits_of(hidden)
        if not needs_heads:
            return MTPOutput(logits=logits, hidden_states=(hidden,), past_key_values=cache)
        latents = self.latents(input_ids, attention_mask, position_ids, trunk_hidden=hidden)
        depth_logits = None
        if compute_depth_logits:
            detach = self.config.detach_lm_head
            depth_logits = (logits, *(self.logits_of(latent, detach_lm_head=detach) for latent in latents[1:]))
        output = MTPOutput(
            logits=logits, depth_logits=depth_logits, hidden_states=tuple(latents), past_key_values=cache
        )
        if labels is not None:
            targets = self._targets(input_ids, attention_mask, position_ids, labels)
            if depth_logits is None:
                losses = self.depth_losses(latents, targets)
            else:
                losses = depth_cross_entropy(depth_logits, targets.targets, targets.mask)
            output.loss = combine_depth_losses(losses, self.config.mtp_loss_coef, num_items_in_batch)
            output.depth_losses = losses.means.detach()
        return output

    def latents(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "batch time"] | None = None,
        position_ids: Int[Tensor, "_ time"] | None = None,
        depths: int | None = None,
        trunk_hidden: Float[Tensor, "batch time hidden"] | None = None,
    ) -> list[Float[Tensor, "batch time hidden"]]:
        """Latents of depths 1 .. ``depths`` (all K by default), teacher-forced; the first is the trunk's.

        ``trunk_hidden`` saves the trunk's forward where its hidden states are at hand. The config's detach switches
        apply to what depths 2 .. K read, never to the first entry.

        Raises:
            ValueError: more depths than the model has.
        """
        num_depths = self.config.depth if depths is None else depths
        if not 1 <= num_depths <= self.config.depth:
            raise ValueError(
                f"depths={num_depths} is outside 1 .. {self.config.depth}; train a model with MTPConfig(depth=...)."
            )
        if trunk_hidden is None:
            trunk_hidden, _ = self._run_trunk(input_ids, attention_mask, position_ids, use_cache=False)
        real = _real_tokens(input_ids, attention_mask)
        document_ids = None
        if position_ids is None:
            position_ids = position_ids_from_attention_mask(real)
        else:
            position_ids = position_ids.expand(input_ids.shape)
            document_ids = document_ids_from_position_ids(position_ids)
        allowed = causal_mask(real, document_ids)
        source = trunk_hidden.detach() if self.config.detach_trunk else trunk_hidden
        latents, previous = [trunk_hidden], source
        for depth in range(2, num_depths + 1):
            if isinstance(self.heads, ActionConditionalHead):
                ahead = self.embed(torch.roll(input_ids, 1 - depth, dims=1))
                ahead = ahead.detach() if self.config.detach_embedding else ahead
                previous = self.heads.forward_depth(depth, previous, ahead, allowed, position_ids)
            else:
                previous = self.heads.forward_depth(depth, source, allowed, position_ids)
            latents.append(previous)
        return latents

    def embed(self, input_ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch hidden"]:
        """The trunk's input embeddings."""
        return self.get_input_embeddings()(input_ids)

    def logits_of(
        self, latent: Float[Tensor, "*batch hidden"], detach_lm_head: bool = False
    ) -> Float[Tensor, "*batch vocab"]:
        """Logits of a latent of any depth, through the trunk's LM head; with ``detach_lm_head`` it gets no gradient."""
        lm_head = self.get_output_embeddings()
        if not detach_lm_head:
            return self.final_logits(lm_head(latent))
        bias = None if lm_head.bias is None else lm_head.bias.detach()
        return self.final_logits(functional.linear(latent, lm_head.weight.detach(), bias))

    def depth_losses(self, latents: Sequence[Float[Tensor, "batch time hidden"]], targets: DepthTargets) -> DepthLosses:
        """Cross-entropy of every depth, one depth's logits in memory at a time."""
        lm_head = self.get_output_embeddings()
        return depth_losses_from_latents(
            latents,
            targets,
            lm_head.weight,
            lm_head.bias,
            transform=self.final_logits,
            detach_lm_head=self.config.detach_lm_head,
        )

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Hugging Face's generation of the trunk, with this model's ``generation_config``; the heads are not used."""
        self.trunk.generation_config = self.generation_config
        return self.trunk.generate(*args, **kwargs)  # type: ignore[operator]  # a causal LM is a GenerationMixin

    @property
    def base_model(self) -> nn.Module:
        """The trunk's backbone, whose ``last_hidden_state`` the LM head reads."""
        return self.trunk.base_model

    def get_input_embeddings(self) -> nn.Module:
        """The trunk's."""
        return self.trunk.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the trunk's."""
        self.trunk.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        """The trunk's LM head, shared by all depths."""
        return self.trunk.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the trunk's."""
        self.trunk.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the trunk's vocabulary; the heads have none of their own."""
        embeddings = self.trunk.resize_token_embeddings(*args, **kwargs)
        self.config.vocab_size = self.trunk.config.get_text_config().vocab_size
        return embeddings

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif type(module).__module__.startswith("torch.nn") or self.config.head_block != "trunk":
            super()._init_weights(module)
        else:
            # What the trunk's layers define themselves starts as in the trunk: some norms are centred on zero, not one.
            self.trunk._init_weights(module)

    def _run_trunk(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Cache | None]:
        if attention_mask is not None and attention_mask.shape[1] == input_ids.shape[1]:
            real = attention_mask.bool()
            if position_ids is None:
                position_ids = position_ids_from_attention_mask(real)
            else:
                attention_mask = self._packed_mask(real, position_ids.expand(input_ids.shape), attention_mask)
        output = self.base_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        return output.last_hidden_state, output.past_key_values

    def _packed_mask(self, real: Tensor, position_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Backbones see document boundaries in position_ids only where there is no mask; else they are told."""
        document_ids = document_ids_from_position_ids(position_ids)
        boundary = document_ids[:, 1:] != document_ids[:, :-1]
        if not (boundary & real[:, 1:] & real[:, :-1]).any():
            return attention_mask
        if "sliding_attention" in (getattr(self.trunk.config, "layer_types", None) or []):
            raise ValueError(
                "packed documents with an attention_mask are not supported for a trunk with sliding attention; pack "
                "without padding and pass no attention_mask."
            )
        return additive_mask(causal_mask(real, document_ids), self.trunk.dtype)

    def _targets(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, labels: Tensor
    ) -> DepthTargets:
        document_ids = None
        if position_ids is not None:
            document_ids = document_ids_from_position_ids(position_ids.expand(input_ids.shape))
        return depth_targets(
            labels,
            _real_tokens(input_ids, attention_mask),
            self.config.depth,
            loss_mask=labels != IGNORE_INDEX,
            document_ids=document_ids,
        )

    def final_logits(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """What some trunks do to the LM head's logits: Cohere and Granite scale, Gemma caps."""
        config = self.trunk.config.get_text_config()
        scale = getattr(config, "logit_scale", None)
        divisor = getattr(config, "logits_scaling", None)
        cap = getattr(config, "final_logit_softcapping", None)
        if scale is not None:
            logits = logits * scale
        if divisor is not None:
            logits = logits / divisor
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _real_tokens(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    return attention_mask.bool()


AutoModelForCausalLM.register(MTPConfig, MTPModel, exist_ok=True)
