"""The seams of TRL and transformers that this room is built on, checked by signature.

TRL promises nothing about underscore names, and a subclass that drifts from its base drifts in silence: a renamed
method is simply never called again. So every name that the trainers override, call or read is written down here once
and compared with what is installed; what differs is an error that names the version.
"""

import inspect
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import transformers
import trl
import trl.trainer.utils

# TRL 1.16 asks for it in every step, and transformers warns of the name: nothing that a user of either could mend.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


class IncompatibleTRLError(ImportError):
    """The installed TRL or transformers does not have a seam this room needs."""


@dataclass(frozen=True)
class Seam:
    """A callable of ``owner``, and the parameters that this room calls it with."""

    owner: Any
    name: str
    parameters: tuple[str, ...]


MODEL_SEAMS = (
    Seam(trl.trainer.utils, "add_fused_lm_head", ("model", "temperature", "outputs")),
    Seam(
        trl.trainer.utils,
        "FusedCausalLMOutput",
        ("loss", "log_probs", "entropy", "is_top1", "label_mask"),
    ),
)

TRAINER_METHODS = {
    "compute_loss": ("self", "model", "inputs", "return_outputs", "num_items_in_batch"),
    "log": ("self", "logs", "start_time"),
    "evaluate": ("self", "eval_dataset", "ignore_keys", "metric_key_prefix"),
    "get_batch_samples": ("self", "epoch_iterator", "num_batches", "device"),
    "_get_num_items_in_batch": ("self", "batch_samples", "device"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_send_telemetry": ("self",),
    "_clip_grad_norm": ("self", "model"),
    "_save": ("self", "output_dir", "state_dict"),
    "_load_best_model": ("self",),
    "_load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
    "_get_output_dir": ("self", "trial"),
    "get_tp_size": ("self",),
}
"""What the mixin overrides or calls of every trainer."""

_SAMPLING: dict[str, tuple[str, ...]] = {
    "_prepare_inputs": ("self", "generation_batch"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
}
OWN_METHODS: dict[str, dict[str, tuple[str, ...]]] = {
    "SFTTrainer": {"_remove_unused_columns": ("self", "dataset", "description")},
    "DPOTrainer": {},
    "KTOTrainer": {"_compute_kl_logps": ("self", "model", "batch")},
    "GRPOTrainer": _SAMPLING,
    "RLOOTrainer": _SAMPLING,
    "PPOTrainer": _SAMPLING
    | {
        "_generate_and_score_completions": ("self", "inputs"),
        "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
        "_compute_loss": ("self", "model", "inputs"),
        "_get_per_token_logps_and_entropies": (
            "self",
            "model",
            "input_ids",
            "attention_mask",
            "logits_to_keep",
            "batch_size",
            "compute_entropy",
        ),
    },
}
"""And of one trainer beyond that."""

BASES = {"PPOTrainer": "GRPOTrainer"}
"""Of trainers that TRL does not have, whose seams they are built on."""

TRAINER_ATTRIBUTES = ("_metrics", "accelerator", "model_accepts_loss_kwargs", "_loss_shifts_labels")
_SAMPLED = (
    "ref_model",
    "beta",
    "temperature",
    "num_iterations",
    "_step",
    "_buffered_inputs",
    "reward_funcs",
    "loss_is_scaled_for_ga",
)
OWN_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "SFTTrainer": (),
    "DPOTrainer": ("ref_model", "loss_is_scaled_for_ga"),
    "KTOTrainer": ("ref_model", "loss_is_scaled_for_ga"),
    "GRPOTrainer": _SAMPLED,
    "RLOOTrainer": _SAMPLED,
    "PPOTrainer": (*_SAMPLED, "reward_weights", "eos_token_ids"),
}


def trainer_seams(name: str) -> tuple[Seam, ...]:
    """Return the seams that the heads of the trainer of that name are built on.

    Raises:
        IncompatibleTRLError: there is no such trainer.
    """
    base = BASES.get(name, name)
    trainer = getattr(trl, base, None)
    if trainer is None:
        raise IncompatibleTRLError(_message([f"trl.{base} is gone"]))
    methods = TRAINER_METHODS | OWN_METHODS[name]
    return (*MODEL_SEAMS, *(Seam(trainer, method, parameters) for method, parameters in methods.items()))


def check_seams(seams: Iterable[Seam] | None = None) -> None:
    """Raise if the installed TRL or transformers lacks what this room calls; by default, for any of its trainers.

    Raises:
        IncompatibleTRLError: a callable or one of its parameters is gone.
    """
    if seams is None:
        seams = [seam for name in OWN_METHODS for seam in trainer_seams(name)]
    problems = [problem for seam in seams for problem in _problems(seam)]
    if problems:
        raise IncompatibleTRLError(_message(list(dict.fromkeys(problems))))


def check_trainer(trainer: transformers.Trainer, name: str) -> None:
    """Raise if a constructed trainer lacks an attribute, or its model a forward that TRL has fused.

    Raises:
        IncompatibleTRLError: an attribute is gone, or TRL no longer patches the forward.
    """
    names = (*TRAINER_ATTRIBUTES, *OWN_ATTRIBUTES[name])
    problems = [f"the trainer has no {name!r}" for name in names if not hasattr(trainer, name)]
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
