"""The seams of TRL and transformers that this room is built on, checked by signature.

TRL promises nothing about underscore names, and a subclass that drifts from its base drifts in silence: a renamed
method is simply never called again. So every name that the trainers override, call or read is written down here once
and compared with what is installed; what differs is an error that names the version.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import transformers
import trl
import trl.trainer.utils


class IncompatibleTRLError(ImportError):
    """The installed TRL or transformers does not have a seam this room needs."""


@dataclass(frozen=True)
class Seam:
    """A callable of ``owner``, and the parameters that this room calls it with."""

    owner: Any
    name: str
    parameters: tuple[str, ...]


SEAMS = (
    Seam(trl.trainer.utils, "add_fused_lm_head", ("model", "outputs")),
    Seam(
        trl.trainer.utils,
        "FusedCausalLMOutput",
        ("loss", "log_probs", "entropy", "is_top1", "label_mask"),
    ),
    Seam(trl.SFTTrainer, "compute_loss", ("self", "model", "inputs", "return_outputs", "num_items_in_batch")),
    Seam(trl.SFTTrainer, "log", ("self", "logs", "start_time")),
    Seam(trl.SFTTrainer, "evaluate", ("self", "eval_dataset", "ignore_keys", "metric_key_prefix")),
    Seam(trl.SFTTrainer, "_remove_unused_columns", ("self", "dataset", "description")),
    Seam(trl.SFTTrainer, "_save_checkpoint", ("self", "model", "trial")),
    Seam(trl.SFTTrainer, "_send_telemetry", ("self",)),
    Seam(trl.SFTTrainer, "_clip_grad_norm", ("self", "model")),
    Seam(trl.SFTTrainer, "_save", ("self", "output_dir", "state_dict")),
    Seam(trl.SFTTrainer, "_load_best_model", ("self",)),
    Seam(trl.SFTTrainer, "_load_from_checkpoint", ("self", "resume_from_checkpoint", "model")),
    Seam(trl.SFTTrainer, "_get_output_dir", ("self", "trial")),
    Seam(transformers.Trainer, "get_tp_size", ("self",)),
)

TRAINER_ATTRIBUTES = ("_metrics", "accelerator", "model_accepts_loss_kwargs", "_loss_shifts_labels")


def check_seams(seams: tuple[Seam, ...] = SEAMS) -> None:
    """Raise if the installed TRL or transformers lacks what this room calls.

    Raises:
        IncompatibleTRLError: a callable or one of its parameters is gone.
    """
    problems = [problem for seam in seams for problem in _problems(seam)]
    if problems:
        raise IncompatibleTRLError(_message(problems))


def check_trainer(trainer: trl.SFTTrainer) -> None:
    """Raise if a constructed trainer lacks an attribute, or its model a forward that TRL has fused.

    Raises:
        IncompatibleTRLError: an attribute is gone, or TRL no longer patches the forward.
    """
    problems = [f"the trainer has no {name!r}" for name in TRAINER_ATTRIBUTES if not hasattr(trainer, name)]
    patched = vars(trainer.model).get("forward")
    if patched is None or "fused_lm_head" not in inspect.signature(patched, follow_wrapped=False).parameters:
        problems.append("the trainer did not give its model a forward with 'fused_lm_head'")
    if problems:
        raise IncompatibleTRLError(_message(problems))


def _problems(seam: Seam) -> Iterator[str]:
    owner = getattr(seam.owner, "__name__", repr(seam.owner))
    function = getattr(seam.owner, seam.name, None)
    if function is None:
        yield f"{owner}.{seam.name} is gone"
        return
    parameters = inspect.signature(function).parameters
    for name in seam.parameters:
        if name not in parameters:
            yield f"{owner}.{seam.name} has no parameter {name!r}, only ({', '.join(parameters)})"


def _message(problems: list[str]) -> str:
    return (
        f"worldmtp.post_training does not fit trl {trl.__version__} with transformers {transformers.__version__}: "
        f"{'; '.join(problems)}. Install a version that the package metadata allows (trl>=1.15,<2), "
        "or report this version as unsupported."
    )
