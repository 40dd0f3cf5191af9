"""Drafted generation in the place of Hugging Face's: TRL's on-policy trainers sample by ``model.generate``.

The model's own ``generate`` is wrapped, so nothing of TRL's rollout code is overridden. Tokens are drawn by
``worldmtp.decoding.generate``: drafts of the heads, verified by the trunk, which leaves the policy's law as it is. That
matters here: TRL takes the trainer's own log-probabilities for those of the sampler, so that another law would be a
bias nobody sees. The model is in evaluation mode meanwhile; TRL samples in train mode, with dropout.

Draws are seeded from torch's global generator, which Trainer's checkpoints hold.
"""

import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from transformers import GenerationConfig

from worldmtp.decoding import AdaptiveLength, DecodingOutput, generate
from worldmtp.decoding.trunk import evaluation_mode
from worldmtp.model import MTPModel

DRAFTS = ("mtp", "none", "trl")
_READ = {
    "max_new_tokens": None,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""Options that are followed, and what stands for those left out."""
_NO_MATTER = {
    "bos_token_id",
    "disable_compile",
    "transformers_version",
    "use_cache",
    "_from_model_config",
    "max_length",
}


class DraftedGeneration:
    """The ``generate`` of one model.

    Args:
        model: whose ``generate`` is replaced.
        draft: "mtp" or "none"; with "trl" Hugging Face's code samples, in evaluation mode.
        num_draft: tokens of a draft; None is all depths, "auto" the fastest length, which may be none.
        on_output: called with what each call did.
    """

    def __init__(
        self, model: MTPModel, draft: str, num_draft: int | str | None, on_output: Callable[[DecodingOutput], None]
    ) -> None:
        self.model, self.draft = model, draft
        # One chooser for all calls, so that it learns once what is fastest.
        self.num_draft = AdaptiveLength() if num_draft == "auto" and draft != "none" else num_draft
        self.on_output = on_output
        self.num_calls = 0
        self._warned = False

    def install(self) -> None:
        """Replace the model's ``generate``; a copy of the model keeps its class's."""

        def sample(model: MTPModel, *args: Any, **kwargs: Any) -> Any:
            if model is not self.model:
                return type(model).generate(model, *args, **kwargs)
            self.num_calls += 1
            return self(*args, **kwargs)

        vars(self.model)["generate"] = types.MethodType(sample, self.model)

    def remove(self) -> None:
        """Restore the ``generate`` of the model's class."""
        vars(self.model).pop("generate", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return prompts and what follows them, as Hugging Face does."""
        unsupported = self._unsupported(args, kwargs)
        if self.draft != "trl" and not unsupported:
            return self._drafted(**kwargs)
        if unsupported and self.draft != "trl" and not self._warned:
            self._warned = True
            warnings.warn(
                f"generation with {unsupported} is Hugging Face's, one forward a token; leave that out for drafts, or "
                "set mtp_draft='trl' to say so.",
                stacklevel=3,
            )
        with evaluation_mode(self.model):
            return MTPModel.generate(self.model, *args, **kwargs)

    def _drafted(
        self,
        input_ids: Int[Tensor, "batch time"],
        generation_config: GenerationConfig,
        attention_mask: Shaped[Tensor, "batch time"] | None = None,
    ) -> Int[Tensor, "batch longer"]:
        options: dict[str, Any] = {name: getattr(generation_config, name, None) for name in _READ}
        options = {name: _READ[name] if value is None else value for name, value in options.items()}
        seed = int(torch.randint(2**62, (1,)))
        output = generate(
            self.model,
            input_ids,
            attention_mask,
            draft=self.draft if self.model.config.depth > 1 else "none",
            num_draft=None if self.draft == "none" or self.model.config.depth == 1 else self.num_draft,
            generator=torch.Generator(input_ids.device).manual_seed(seed) if options["do_sample"] else None,
            **{name: value for name, value in options.items() if name != "pad_token_id"},
            pad_token_id=options["pad_token_id"] or 0,
        )
        self.on_output(output)
        return output.sequences

    def _unsupported(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return what is asked for and not followed by drafted generation."""
        config = kwargs.get("generation_config")
        if args or config is None:
            return {"generation_config": None}
        asked = {name: value for name, value in kwargs.items() if name not in ("input_ids", "attention_mask")}
        del asked["generation_config"]
        changed = config.to_diff_dict()
        asked |= {name: value for name, value in changed.items() if name not in _NO_MATTER | _READ.keys()}
        if config.max_new_tokens is None:
            asked["max_new_tokens"] = None
        return {name: value for name, value in asked.items() if value is not None}
