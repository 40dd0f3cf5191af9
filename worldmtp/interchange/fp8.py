"""Weights stored in eight bits with a scale for each block, as DeepSeek-V3's (arXiv 2412.19437, section 3.3).

    w[i, j] = q[i, j] * s[i // b, j // b]          b = 128, the last blocks of a row or column may be ragged

The scale is called ``<weight>_scale_inv``, although it multiplies: it is the inverse of the one that quantised.

Left out: quantising; heads are trained and written in the precision of their trunk.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

SCALE_SUFFIX = "_scale_inv"
DEFAULT_BLOCK = (128, 128)
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)


def dequantize(
    weight: Shaped[Tensor, "rows columns"],
    scale: Float[Tensor, "row_blocks column_blocks"],
    block: Sequence[int] = DEFAULT_BLOCK,
) -> Float[Tensor, "rows columns"]:
    """Return the weight in float32.

    Raises:
        ValueError: not one scale for each block.
    """
    rows, columns = weight.shape
    wanted = (-(-rows // block[0]), -(-columns // block[1]))
    if tuple(scale.shape) != wanted:
        raise ValueError(
            f"scale is {tuple(scale.shape)}, expected {wanted} for a weight {tuple(weight.shape)} in blocks of "
            f"{tuple(block)}"
        )
    spread = scale.float().repeat_interleave(block[0], dim=0).repeat_interleave(block[1], dim=1)
    return weight.float() * spread[:rows, :columns]


def dequantize_all(
    tensors: dict[str, Shaped[Tensor, "..."]], dtype: torch.dtype, block: Sequence[int] = DEFAULT_BLOCK
) -> tuple[dict[str, Shaped[Tensor, "..."]], list[str]]:
    """Return the tensors without eight-bit ones and their scales, and what was wrong with those."""
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE_SUFFIX)}
    problems = []
    for name in tensors.keys() - plain.keys():
        weight = tensors.get(name.removesuffix(SCALE_SUFFIX))
        if weight is None or weight.dtype not in _EIGHT_BITS:
            problems.append(f"unexpected: {name}, which scales no eight-bit weight")
    for name, weight in plain.items():
        if weight.dtype not in _EIGHT_BITS:
            continue
        scale = tensors.get(name + SCALE_SUFFIX)
        if scale is None:
            problems.append(f"missing: {name}{SCALE_SUFFIX}, the scale of an eight-bit weight")
            plain[name] = weight.to(dtype)
            continue
        try:
            plain[name] = dequantize(weight, scale, block).to(dtype)
        except ValueError as error:
            problems.append(f"shape: {name}{SCALE_SUFFIX}: {error}")
            plain[name] = weight.to(dtype)
    return plain, problems
