"""``EMATrunk``: a slow copy of the trunk's backbone, whose hidden states are targets that do not chase the heads.

    average <- decay * average + (1 - decay) * weights          after each optimiser step; it starts as a copy

The mean teacher of Tarvainen & Valpola 2017 (arXiv 1703.01780), as self-predictive models of latents use it (BYOL,
arXiv 2006.07733). Decay 0 is a plain copy of the last update. Buffers are copied, never averaged.

Left out: sharded backbones, whose parameters are not whole on any rank, and a warm-up of the decay.
"""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_LOW_PRECISION = (torch.bfloat16, torch.float16)


class EMATrunk:
    """The exponential moving average of a backbone: never trained, in eval mode, no part of any module's tree.

    Parameters in half precision are averaged in float32: 0.001 of a change is lost in bfloat16, whose steps are a
    128th of the value, and the average would stand still. ``hidden`` answers in the backbone's own dtype.
    """

    def __init__(self, backbone: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must lie in [0, 1); 0 copies the backbone at each update, 1 would never.")
        self.decay = decay
        self._average = copy.deepcopy(backbone).eval().requires_grad_(False)
        self._output_dtype = next(backbone.parameters()).dtype
        for weight in self._average.parameters():
            if weight.dtype in _LOW_PRECISION:
                weight.data = weight.data.float()

    @torch.no_grad()
    def update(self, backbone: nn.Module) -> None:
        """Move the average towards the backbone's weights; call it once after each optimiser step.

        Raises:
            ValueError: the backbone has other parameters or buffers than the one averaged.
        """
        averages, weights = dict(self._average.named_parameters()), dict(backbone.named_parameters())
        buffers, sources = dict(self._average.named_buffers()), dict(backbone.named_buffers())
        differing = sorted((averages.keys() ^ weights.keys()) | (buffers.keys() ^ sources.keys()))
        if differing:
            raise ValueError(
                f"the backbone is not the one averaged: {len(differing)} names are in one alone, {differing[0]!r} "
                "first; make EMATrunk after adapters are added or layers replaced."
            )
        for name, average in averages.items():
            weight = weights[name].to(average)
            average.mul_(self.decay).add_(weight, alpha=1 - self.decay)
        for name, buffer in buffers.items():
            buffer.copy_(sources[name])

    @torch.no_grad()
    def hidden(self, **inputs: Any) -> Float[Tensor, "batch time hidden"]:
        """Return the averaged backbone's last hidden states, normed; inputs are the backbone's keywords."""
        inputs.setdefault("use_cache", False)
        mask = inputs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.is_floating_point():  # additive, made for the trunk's own precision
            inputs["attention_mask"] = mask.to(next(self._average.parameters()).dtype)
        return self._average(**inputs).last_hidden_state.to(self._output_dtype)

    def to(self, device: torch.device | str) -> "EMATrunk":
        """Move the average to a device and return itself, as a module does."""
        self._average.to(device)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights and buffers, for a checkpoint; the decay belongs to the config."""
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state_dict`` gave.

        Raises:
            RuntimeError: names or shapes differ from the backbone's.
        """
        self._average.load_state_dict(state)
