"""``MTPModel``: any Hugging Face causal LM as trunk, multi-token heads and world heads on it, one checkpoint.

The trunk runs once per forward; depth 1 is its own LM head, depths 2 .. K are the heads'. Hidden state means the
trunk's last one after its final norm, for which the LM head gives the logits.

Padding may be on either side. Packed documents are marked by ``position_ids`` that restart; neither the trunk nor the
heads look across them. Where position i + k - 1 lies beyond the row (or the document), the latent of depth k at i has
read a token it should not have: no target of ``worldmtp.objective.targets`` points at it and no other position sees it.

Left out: heads over a cached trunk pass (decoding and world models chain ``heads.forward_depth``); encoder-decoders.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, Cache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from worldmtp.heads.base import ZeroLinear, head_latents
from worldmtp.heads.block import resolve_head_block
from worldmtp.heads.registry import bind, make_head
from worldmtp.model import guards
from worldmtp.model.adapters import adapters_to_save, freeze_beside_adapters, trunk_with_adapters
from worldmtp.model.config import MTPConfig
from worldmtp.model.global_draws import global_draws_from
from worldmtp.model.trunk import (
    LogitChanges,
    Recording,
    TrunkFeatures,
    backbone_of,
    causal_mask,
    document_ids_from_position_ids,
    position_ids_from_attention_mask,
    real_tokens,
    record_features,
    run_trunk,
    trunk_inputs,
)
from worldmtp.model.world_heads import WorldHeads
from worldmtp.objective.loss import training_loss
from worldmtp.objective.objective import MTPObjective
from worldmtp.objective.plan import Progress
from worldmtp.objective.targets import DepthTargets, depth_targets

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
        if config.trunk_config is None:
            raise ValueError("MTPConfig has no trunk_config; use MTPModel.from_trunk(trunk, config).")
        if trunk is None:
            trunk = trunk_with_adapters(config)
        else:
            for module in trunk.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]  # a flag of Hugging Face's
        config = bind(config, config.trunk_config, resolve_head_block(config.head_block, trunk))
        super().__init__(config)
        self.trunk = trunk
        self.logit_changes = LogitChanges.of(trunk.config)
        self._token_limit: int | None = None
        self.heads = make_head(config, trunk)
        self.world_heads = WorldHeads(config)
        if trunk.can_generate():
            self.generation_config = trunk.generation_config
        self.post_init()

    @classmethod
    def from_trunk(cls, trunk: nn.Module, config: MTPConfig, generator: torch.Generator | None = None) -> "MTPModel":
        """Put fresh heads on ``trunk``, which is taken in, not copied; its weights, dtype and device stay.

        The heads' initial weights are drawn from ``generator``, or from torch's global state as Hugging Face does.

        Raises:
            TypeError: ``trunk`` is not a causal LM of Hugging Face, or has heads already.
            ValueError: its logits are not its LM head's output on the last hidden state, or it serves no such heads.
        """
        if isinstance(trunk, MTPModel):
            raise TypeError("trunk is an MTPModel already; pass its .trunk to replace the heads.")
        trunk = guards.checked_trunk(trunk)
        guards.check_logits(trunk)
        bound = bind(config, trunk.config, resolve_head_block(config.head_block, trunk))
        with global_draws_from(generator):
            model = cls(bound, trunk)
        for fresh in (model.heads.to(trunk.device), model.world_heads.to(trunk.device)):
            # Weights only: rotary frequencies keep their precision, as they do in a trunk loaded in half precision.
            for weight in fresh.parameters():
                weight.data = weight.data.to(trunk.dtype)
            fresh.train(trunk.training)
        model.heads.initialize_from(trunk)  # in the trunk's precision, so that copies are exact
        model.training = trunk.training  # the trunk's own modules stay in their modes
        return model

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load as Hugging Face does, but refuse missing weights (ValueError) instead of drawing them at random."""
        path = guards.unpublished(args[0] if args else kwargs["pretrained_model_name_or_path"])
        kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True}  # refused below, by name
        loaded: Any = super().from_pretrained(*args, **kwargs)
        guards.check_weights_loaded(loaded[0], loaded[1], path)
        freeze_beside_adapters(loaded[0])
        return loaded if output_loading_info else loaded[0]

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "batch _"] | None = None,
        position_ids: Int[Tensor, "_ time"] | None = None,
        labels: Int[Tensor, "batch time"] | None = None,
        objective: MTPObjective | None = None,
        compute_depth_logits: bool = True,
        num_items_in_batch: int | Shaped[Tensor, "..."] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> MTPOutput:
        """Return teacher-forced logits of all depths and, with ``labels``, their ``training_loss``.

        ``labels`` are Hugging Face's: not shifted, -100 where a token is not to be predicted. The loss is that of
        ``objective``'s first step, by default DeepSeek-V3's; trainers follow its schedules. It keeps no logits, which
        are None without ``compute_depth_logits``; without labels too, it is the trunk alone, with its logits.
        ``num_items_in_batch`` is Trainer's. Other keywords go to the trunk's backbone.

        Raises:
            ValueError: heads over a cached prefix, whose latents they would need; a mask of another shape.
        """
        needs_heads = compute_depth_logits or labels is not None
        if past_key_values is not None and needs_heads:
            raise ValueError(
                "depths 2 .. K need the whole prefix and past_key_values holds a part of it; pass "
                "compute_depth_logits=False and no labels, or no past_key_values."
            )
        kwargs.setdefault("use_cache", past_key_values is not None)
        features, cache = self._run_trunk(
            input_ids, attention_mask, position_ids, past_key_values=past_key_values, **kwargs
        )
        if not needs_heads:
            logits = self.logits_of(features.post_norm)
            return MTPOutput(logits=logits, hidden_states=(features.post_norm,), past_key_values=cache)
        latents = self.latents(input_ids, attention_mask, position_ids, features=features)
        output = MTPOutput(hidden_states=tuple(latents), past_key_values=cache)
        depth_logits = None
        if compute_depth_logits:
            depth_logits = tuple(
                self.logits_of(latent, depth, self.config.detach_lm_head and depth > 1)
                for depth, latent in enumerate(latents, start=1)
            )
            output.logits, output.depth_logits = depth_logits[0], depth_logits
        if labels is not None:
            objective = objective or MTPObjective()
            output.loss, output.depth_losses = training_loss(
                self,
                features,
                input_ids,
                labels,
                objective,
                objective.plan(self.config.depth, Progress(step=0, max_steps=1), seed=0),
                attention_mask,
                position_ids,
                num_items_in_batch,
                latents=dict(enumerate(latents, start=1)),
            )
        return output

    def trunk_features(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "batch _"] | None = None,
        position_ids: Int[Tensor, "_ time"] | None = None,
        cache: Cache | None = None,
    ) -> TrunkFeatures:
        """Return all that the heads read of one pass of the trunk over text.

        A ``cache`` may be empty or hold a prefix, which the mask then covers too; the text's keys are appended to it.
        """
        kwargs = {"past_key_values": cache, "use_cache": True} if cache is not None else {"use_cache": False}
        return self._run_trunk(input_ids, attention_mask, position_ids, **kwargs)[0]

    def latents(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "batch time"] | None = None,
        position_ids: Int[Tensor, "_ time"] | None = None,
        depths: int | None = None,
        features: TrunkFeatures | None = None,
    ) -> list[Float[Tensor, "batch time hidden"]]:
        """Return latents of depths 1 .. ``depths`` (all K by default), teacher-forced; the first is the trunk's.

        ``features`` saves the trunk's forward where they are at hand. The config's detach switches apply to what depths
        2 .. K read, never to the first entry.

        Raises:
            ValueError: more depths than the model has.
        """
        num_depths = self.config.depth if depths is None else depths
        if not 1 <= num_depths <= self.config.depth:
            raise ValueError(
                f"depths={num_depths} is outside 1 .. {self.config.depth}; train a model with MTPConfig(depth=...)."
            )
        if features is None:
            features = self.trunk_features(input_ids, attention_mask, position_ids)
        chosen = range(2, num_depths + 1)
        later = self.head_latents(features, input_ids, attention_mask, position_ids, chosen)
        return [features.post_norm, *(later[depth] for depth in chosen)]

    def head_latents(
        self,
        features: TrunkFeatures,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "batch time"] | None,
        position_ids: Int[Tensor, "_ time"] | None,
        depths: Iterable[int],
    ) -> dict[int, Float[Tensor, "batch time hidden"]]:
        """Return teacher-forced latents of some depths of 2 .. K; parallel heads compute no other."""
        real = real_tokens(input_ids, attention_mask)
        document_ids = None
        if position_ids is None:
            position_ids = position_ids_from_attention_mask(real)
        else:
            position_ids = position_ids.expand(input_ids.shape)
            document_ids = document_ids_from_position_ids(position_ids)

        def embed_ahead(num_tokens: int) -> Tensor:
            embeds = self.embed(torch.roll(input_ids, -num_tokens, dims=1))
            return embeds.detach() if self.config.detach_embedding else embeds

        source = features.detach() if self.config.detach_trunk else features
        return head_latents(self.heads, source, embed_ahead, causal_mask(real, document_ids), position_ids, depths)

    def embed(self, input_ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch hidden"]:
        """Return the trunk's input embeddings."""
        return self.get_input_embeddings()(input_ids)

    def output_layer(self, depth: int) -> nn.Linear:
        """Return what makes logits of a depth's latents: the trunk's LM head, or the head's own."""
        own = self.heads.unembedding(depth) if depth > 1 else None
        return self.get_output_embeddings() if own is None else own

    def logits_of(
        self, latent: Float[Tensor, "*batch hidden"], depth: int = 1, detach_lm_head: bool = False
    ) -> Float[Tensor, "*batch vocab"]:
        """Return logits of a depth's latents; with ``detach_lm_head`` the trunk's LM head gets no gradient."""
        layer = self.output_layer(depth)
        if not detach_lm_head or layer is not self.get_output_embeddings():
            return self.policy_logits(layer(latent))
        bias = None if layer.bias is None else layer.bias.detach()
        return self.policy_logits(functional.linear(latent, layer.weight.detach(), bias))

    def policy_logits(self, raw: Float[Tensor, "*batch rows"]) -> Float[Tensor, "*batch vocab"]:
        """Return an LM head's output as logits: changed as the trunk changes them, and of ``num_tokens`` ids."""
        return self.logit_changes(raw[..., : self.num_tokens])

    @property
    def num_tokens(self) -> int:
        """Return the number of ids that logits are over: the whole vocabulary, or what ``limit_tokens`` left of it."""
        vocab_size: int = self.trunk.config.get_text_config().vocab_size
        return vocab_size if self._token_limit is None else self._token_limit

    def limit_tokens(self, num_tokens: int) -> None:
        """End the logits at ``num_tokens``, so that later ids have probability zero.

        Embeddings are often padded beyond the ids of their tokenizer, and no environment takes what has no text.
        Acting, learning, imagination and decoding all read ``logits_of``, and so stay one policy; the loss of
        ``forward`` is that of the whole vocabulary, as Hugging Face's. A checkpoint does not hold the limit.

        Raises:
            ValueError: the vocabulary has fewer ids.
        """
        self._token_limit = guards.checked_token_limit(num_tokens, self.trunk.config.get_text_config().vocab_size)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate by Hugging Face's code on the trunk alone, with this model's ``generation_config``."""
        self.trunk.generation_config = self.generation_config
        return self.trunk.generate(*args, **kwargs)  # type: ignore[operator]  # a causal LM is a GenerationMixin

    @property
    def base_model(self) -> nn.Module:
        """Return the trunk's backbone, whose ``last_hidden_state`` the LM head reads."""
        return backbone_of(self.trunk)

    def get_input_embeddings(self) -> nn.Module:
        """Return the trunk's."""
        return self.trunk.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the trunk's."""
        self.trunk.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        """Return the trunk's LM head, shared by all depths."""
        return self.trunk.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the trunk's."""
        self.trunk.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the trunk's vocabulary; ValueError if heads have output layers of their own, which would keep it."""
        if self.config.unembedding == "own" and self.config.depth > 1:
            raise ValueError(
                f"head={self.config.head!r} has unembeddings of its own; resize the trunk, then add heads with "
                "MTPModel.from_trunk(model.trunk, config)."
            )
        embeddings = self.trunk.resize_token_embeddings(*args, **kwargs)
        self.config.vocab_size = self.trunk.config.get_text_config().vocab_size
        self._token_limit = None
        return embeddings

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as Hugging Face does: trunk, heads and adapters of ``add_lora``; other adapters are refused."""
        self.config.adapters = adapters_to_save(self)
        super().save_pretrained(*args, **kwargs)

    def add_model_tags(self, tags: list[str] | str) -> None:
        """Add tags, and warn of heads that are not trained: every TRL trainer passes its tags when it is made."""
        guards.warn_of_untrained_heads([tags] if isinstance(tags, str) else tags, self.config.depth)
        super().add_model_tags(tags)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif type(module).__module__.startswith("torch.nn") or self.config.head_block != "trunk":
            super()._init_weights(module)
        else:
            # What the trunk's layers define themselves starts as in the trunk: some norms are centred on zero, not one.
            self.trunk._init_weights(module)

    def _run_trunk(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, **kwargs: Any
    ) -> tuple[TrunkFeatures, Cache | None]:
        layers, pre_norm = self.heads.feature_layers, self.heads.reads_pre_norm
        return run_trunk(self.trunk, input_ids, attention_mask, position_ids, layers, pre_norm, **kwargs)

    def trunk_inputs(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "batch _"] | None = None,
        position_ids: Int[Tensor, "_ time"] | None = None,
    ) -> dict[str, Any]:
        """Return the backbone's inputs: positions that count real tokens, a mask that keeps documents apart."""
        return trunk_inputs(self.trunk, input_ids, attention_mask, position_ids)

    def recording(self) -> AbstractContextManager[Recording]:
        """Record what the heads read of the passes that the trunk's backbone makes inside."""
        return record_features(self.base_model, self.heads.feature_layers, self.heads.reads_pre_norm)

    def targets(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "batch time"] | None,
        position_ids: Int[Tensor, "_ time"] | None,
        labels: Int[Tensor, "batch time"],
    ) -> DepthTargets:
        """Return each depth's targets by Hugging Face's labels: not shifted, -100 where a token does not count."""
        document_ids = None
        if position_ids is not None:
            document_ids = document_ids_from_position_ids(position_ids.expand(input_ids.shape))
        counted = labels != IGNORE_INDEX
        return depth_targets(
            torch.where(counted, labels, input_ids),
            real_tokens(input_ids, attention_mask),
            self.config.offsets,
            loss_mask=counted,
            document_ids=document_ids,
        )


AutoModelForCausalLM.register(MTPConfig, MTPModel, exist_ok=True)
