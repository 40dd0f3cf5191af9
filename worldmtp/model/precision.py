"""In what precision weights are kept, and in what they are computed with.

    weights that are trained    float32 (or float64), whatever a checkpoint holds
    matrix products             float32, or bfloat16 by autocast
    log-softmax, entropy, KL    float32 (or float64)

Adam's step is about the learning rate, 1e-5 say. The spacing of bfloat16 is a 128th of the value, so most such steps
round to nothing. Autocast casts a copy for each product and leaves the weight alone.

Left out: float16, which needs its gradients scaled, and optimisers that keep float32 copies of half-precision weights.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from worldmtp.choices import check_choice

COMPUTE_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
"""Name to what autocast computes in; None is no autocast."""

_FULL = (torch.float32, torch.float64)


def full_precision(values: Tensor) -> Tensor:
    """Return the values in float32 at least; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def computing_in(compute_dtype: str, device: torch.device) -> torch.autocast:
    """Return a context in which products are computed in that dtype, with the weights as they are.

    Its casts are not cached: a cached one would outlive an optimiser's step inside the context, and be the old weight.

    Raises:
        ValueError: there is no such dtype here.
    """
    check_choice("compute_dtype", compute_dtype, COMPUTE_DTYPES)
    dtype = COMPUTE_DTYPES[compute_dtype]
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False)


def check_trained_weights(owner: str, parameters: Iterable[nn.Parameter]) -> None:
    """Raise unless the weights that an optimiser moves are kept in float32 at least.

    Raises:
        ValueError: some are not, so small steps would be lost.
    """
    low = [parameter for parameter in parameters if parameter.requires_grad and parameter.dtype not in _FULL]
    if low:
        name = str(low[0].dtype).removeprefix("torch.")
        raise ValueError(
            f"{owner} is to train {len(low)} tensors of weights kept in {name}, where small steps of Adam round to "
            "nothing. Call model.float() first, or load with dtype=torch.float32; to compute in bfloat16, train inside "
            "worldmtp.model.precision.computing_in('bfloat16', model.device)."
        )
