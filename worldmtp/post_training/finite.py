"""Stop at the first loss or weight that is not finite, and say from where to go on.

The Trainer's own ``logging_nan_inf_filter`` hides such a loss in the log and trains on.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def check_finite(terms: Mapping[str, Shaped[Tensor, ""]], step: int, output_dir: str) -> None:
    """Raise where a term of the loss is NaN or infinite.

    Raises:
        FloatingPointError: names the step, every such term with its value, and the last good checkpoint.
    """
    broken = {name: value.item() for name, value in terms.items() if not torch.isfinite(value)}
    if broken:
        listed = ", ".join(f"{name}={value}" for name, value in broken.items())
        raise FloatingPointError(
            f"Non-finite loss at step {step + 1}: term {listed}. The last good checkpoint is "
            f"{_last_checkpoint(output_dir, step)}; resume from it with a lower learning rate or max_grad_norm > 0."
        )


def check_finite_weights(parameters: Iterable[tuple[str, Tensor]], step: int, output_dir: str) -> None:
    """Raise where a weight is NaN or infinite, so that no checkpoint ever holds one.

    Raises:
        FloatingPointError: names the step, the first such parameter and the last good checkpoint.
    """
    for name, parameter in parameters:
        if not torch.isfinite(parameter).all():
            raise FloatingPointError(
                f"Non-finite weights after step {step}: term {name}. Nothing was saved; the last good checkpoint is "
                f"{_last_checkpoint(output_dir, step - 1)}; resume from it with a lower learning rate or "
                "max_grad_norm > 0."
            )


def _last_checkpoint(output_dir: str, step: int) -> str:
    """The newest checkpoint of ``output_dir`` that is not past ``step``: one past it belongs to another run."""
    found = {}
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.rpartition("-")[2]
        if number.isdecimal() and int(number) <= step:
            found[int(number)] = path
    return str(found[max(found)]) if found else f"none (no checkpoint in {output_dir})"
