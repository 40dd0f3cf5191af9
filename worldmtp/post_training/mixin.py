"""What MTP adds to a TRL trainer: the multi-token loss, its metrics, and a stop at what is not finite.

    loss = TRL's loss + lambda * (sum over depths and valid positions, by the objective's plan of the step) / N

N is the number of depth 1 targets among the tokens that the heads learn, in the whole accumulated batch on all
processes, whatever TRL's loss divides by (rows, pairs, tokens): a token weighs the same at every depth and in every
micro-batch, and depth k, which has up to k - 1 targets fewer per document, is not blown up for it (DeepSeek-V3 2024,
eq. 24-25, divides by the length of the sequence too).

Gradients are clipped in two groups, the trunk's and the heads'. In one, a large gradient of fresh heads would shrink
the trunk's steps even where the heads are detached from it.

As little of TRL as possible is overridden; ``compat`` lists what is.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from worldmtp.model import IGNORE_INDEX, MTPModel
from worldmtp.model.ema import EMATrunk
from worldmtp.model.lora import has_lora, load_lora_weights, save_lora
from worldmtp.objective.loss import evaluation_plan
from worldmtp.objective.plan import Progress, StepPlan, window_depths
from worldmtp.post_training.compat import check_seams, check_trainer, trainer_seams
from worldmtp.post_training.config import MTPConfigMixin
from worldmtp.post_training.cosine import gradient_cosine, last_layer_weights
from worldmtp.post_training.forward import HeadLoss, HeadTask, MTPForward, add_mtp_forward
from worldmtp.post_training.guards import (
    check_columns,
    check_config,
    check_finite,
    check_finite_weights,
    check_model,
    check_not_empty,
    check_vocabulary,
    named_sets,
    warn_of_half_precision,
)
from worldmtp.post_training.metrics import StepNumbers
from worldmtp.post_training.token_sets import TokenChoice, num_targets
from worldmtp.tracking.late_numbers import zero_unless_finite

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

EMA_FILE = "ema_trunk.pt"


class EMACallback(TrainerCallback):
    """Move the average of the trunk after each optimiser step."""

    def __init__(self, ema: EMATrunk, backbone: nn.Module) -> None:
        self._ema = ema
        self._backbone = backbone

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move it: the weights have just been updated, and no checkpoint has been written since."""
        self._ema.update(self._backbone)


class MTPTrainerMixin(_Trainer):
    """The heads of a TRL trainer's model; it stands before the trainer's class.

    A trainer calls ``check_arguments`` before TRL's ``__init__`` and ``add_heads`` after it. What differs from trainer
    to trainer are five small methods: ``_texts`` and ``_token_choice`` say what a batch holds and which of it is learnt
    from, ``_count_window`` and ``_normalised`` how a sum becomes a mean, ``_no_targets_hint`` why there may be nothing.
    """

    trl_name: ClassVar[str]
    """Of TRL's class, whose seams are checked."""
    config_class: ClassVar[type]
    required_columns: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """A dataset needs all columns of one of these."""

    args: Any
    _metrics: Any
    mtp_forward: MTPForward
    mtp_ema: EMATrunk | None = None
    mtp_numbers: StepNumbers
    _planned: tuple[int, StepPlan] | None = None
    _eval_prefix = "eval"
    _window_targets: Tensor | None = None

    # -----------------------------------------------------------------------------------------------------------------
    # Construction
    # -----------------------------------------------------------------------------------------------------------------

    @classmethod
    def check_arguments(
        cls, model: Any, args: Any, processing_class: Any, train_dataset: Any, eval_dataset: Any = None
    ) -> None:
        """Refuse what TRL would fail at later and elsewhere; call it first in a trainer's ``__init__``.

        Raises:
            IncompatibleTRLError: the installed TRL is not one this was built for.
            TypeError: the model is not an MTPModel, or the configuration another trainer's.
            ValueError: an empty dataset or one without the columns, or a tokenizer larger than the vocabulary.
        """
        check_seams(trainer_seams(cls.trl_name))
        check_model(model)
        check_config(args, cls.config_class)
        check_vocabulary(model, processing_class)
        check_not_empty("train_dataset", train_dataset, "give it at least one example")
        check_columns("train_dataset", train_dataset, cls.required_columns)
        for name, dataset in named_sets("eval_dataset", eval_dataset):
            check_not_empty(name, dataset, "give it at least one example, or leave it out")
            check_columns(name, dataset, cls.required_columns)

    def add_heads(self, args: MTPConfigMixin) -> None:
        """Put the heads' loss into the forward that TRL has patched; call it last in a trainer's ``__init__``.

        Raises:
            IncompatibleTRLError: the trainer lacks an attribute, or its model TRL's forward.
            ValueError: the objective reaches beyond the model's depths, sharded training cannot follow it, or weights
                are to be sharded over CPUs.
        """
        check_trainer(self, self.trl_name)
        model, objective = self.model, args.build_objective()
        assert isinstance(model, MTPModel)  # check_model saw to it
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.args.fsdp and self.accelerator.distributed_type == DistributedType.MULTI_CPU:
            raise ValueError(
                f"fsdp={self.args.fsdp!r} and accelerate shards nothing on CPUs: it would keep all weights in each "
                "process, without a word. Leave fsdp out there."
            )
        if self.is_fsdp_enabled:
            # By this name accelerate looks for the final norm, whose forward gathers the LM head beside it: in the
            # fused forward nothing else would, as the head's weight is read and its forward not called.
            vars(model)["base_model_prefix"] = "base_model"
        if not is_sharded:  # these keep copies in float32
            warn_of_half_precision(model)
        window_depths(objective.window, model.config.depth)  # refuses here, not at the first step
        if objective.needs_ema:
            if is_sharded:
                raise ValueError(
                    "latent_target='ema' averages whole parameters, which sharded training has on no process; use "
                    "latent_target='trunk'."
                )
            self.mtp_ema = EMATrunk(model.base_model, objective.ema_decay)
            self.add_callback(EMACallback(self.mtp_ema, model.base_model))
        self.mtp_numbers = StepNumbers(
            model.config.depth, lambda terms, step: check_finite(terms, step, str(self.args.output_dir))
        )
        self.mtp_forward = add_mtp_forward(model, objective)
        self.mtp_forward.task = None  # heads run in compute_loss alone

    # -----------------------------------------------------------------------------------------------------------------
    # The loss
    # -----------------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return TRL's loss and, in training, the multi-token one added.

        In evaluation the loss is TRL's alone, so that ``eval_loss`` compares with a run without heads; the depths are
        logged beside it.

        Raises:
            FloatingPointError: a term is NaN or infinite, of this micro-batch or, on an accelerator, of one before.
        """
        trains = self.mtp_forward.model.training
        task = self._task(inputs, self._plan() if trains else None)
        with self.mtp_forward.during(task):
            result: Any = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
            later = self.mtp_forward.take()
        loss = result[0] if return_outputs else result
        self.mtp_numbers.add_terms(loss, later, self.state.global_step)
        self._add_depths(later)
        if trains and task.trains and later.depths:
            added = task.plan.coef * self._normalised(later.total, later.num_targets, num_items_in_batch)
            if self._measures_cosine():
                cosine = gradient_cosine(loss, added, last_layer_weights(self.mtp_forward.model))
                self.mtp_numbers.cosines.add(self.accelerator.gather(cosine.detach()[None]))
            loss = loss + added
        if trains and torch.is_grad_enabled() and not loss.requires_grad:
            # A frozen trunk in a step whose plan trains no depth: there is nothing to learn, and nothing to stop at.
            loss = loss.detach().requires_grad_()
        return (loss, result[1]) if return_outputs else loss

    def _measures_cosine(self) -> bool:
        """Return whether the heads' loss may reach the trunk, and this is a step to look where it pulls it."""
        args, steps = self.args, self.args.mtp_cosine_steps
        reentrant = (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")  # which allows one backward alone
        is_joint = not (args.mtp_detach or self.mtp_forward.model.config.detach_trunk)
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return bool(steps and is_joint and not reentrant and not sharded and self.state.global_step % steps == 0)

    def release_model(self) -> MTPModel:
        """End the training and return the model with its class's forward, without anything of TRL or this trainer."""
        self.mtp_forward.remove()
        vars(self.mtp_forward.model).pop("base_model_prefix", None)
        return self.mtp_forward.model

    def _task(self, inputs: dict[str, Any], plan: StepPlan | None) -> HeadTask:
        """Return what the heads do in a loss: the plan's depths, or all of them where they are only measured."""
        adds_loss = plan is not None and plan.coef > 0
        measured = evaluation_plan(self.mtp_forward.model.config.depth)
        return HeadTask(
            plan=plan if plan is not None and adds_loss else measured,
            tokens=self._token_choice(inputs),
            trains=adds_loss,
            detach=self.args.mtp_detach,
            without_gradients=plan is None,
            with_acceptance=plan is None,
            teacher=self.mtp_ema if adds_loss else None,  # what is only measured is compared with the trunk itself
        )

    def _plan(self) -> StepPlan:
        """Return the step's plan, one for all its micro-batches, though they move the token count."""
        step = self.state.global_step
        if self._planned is None or self._planned[0] != step:
            progress = Progress(
                step=step, max_steps=self.state.max_steps or None, tokens=self.state.num_input_tokens_seen
            )
            model = self.mtp_forward.model
            self._planned = step, self.mtp_forward.objective.plan(model.config.depth, progress, self.args.seed)
        return self._planned[1]

    # -----------------------------------------------------------------------------------------------------------------
    # What differs from trainer to trainer
    # -----------------------------------------------------------------------------------------------------------------

    def _texts(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return ids, labels, mask and positions as TRL is going to pass them for a batch."""
        names = ("input_ids", "labels", "attention_mask", "position_ids")
        return {name: batch.get(name) for name in names}

    def _token_choice(self, batch: dict[str, Any]) -> TokenChoice:
        """Return which tokens of a batch the heads learn."""
        return TokenChoice(self.args.mtp_tokens)

    def _count_window(self, batches: list[Any]) -> Tensor | None:
        """Return this process's number of targets in the micro-batches of one optimiser step."""
        counts = [num_targets(self._token_choice(batch).labels(**self._texts(batch))) for batch in batches]
        return torch.stack(counts).sum() if counts else None

    def _normalised(self, total: Tensor, num_targets: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """Return a micro-batch's share of the mean over tokens, of which ``total`` is the sum.

        It is divided by the targets of the whole optimiser step on all processes, which average their gradients, and
        multiplied by the accumulation steps where Trainer divides by those.
        """
        if self._window_targets is None:
            return total / num_targets.clamp(min=1)
        mean = total / self._window_targets.to(total.device).clamp(min=1) * self.accelerator.num_processes
        return mean if self.loss_is_scaled_for_ga else mean * self.current_gradient_accumulation_steps

    def _no_targets_hint(self) -> str | None:
        """Return why no token may have had a label; None where that is nothing to warn of."""
        return f"of the prompt or cut off by max_length={getattr(self.args, 'max_length', None)}"

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Return the micro-batches of a step; none where all steps are made.

        Trainer looks whether it has come to the end after a step alone: resumed there, it would make one more.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        samples: tuple[list[Any], Any] = super().get_batch_samples(epoch_iterator, num_batches, device)
        return samples

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Count the heads' targets of the step beside TRL's own."""
        local = self._count_window(batch_samples)
        self._window_targets = None if local is None else self.accelerator.gather(local.to(device)[None]).sum()
        return super()._get_num_items_in_batch(batch_samples, device)

    # -----------------------------------------------------------------------------------------------------------------
    # Evaluation, logs, clipping, checkpoints
    # -----------------------------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate as the base class, each set of a dict by itself, its name in the prefix."""
        if isinstance(eval_dataset, dict):
            metrics: dict[str, float] = {}
            for name, dataset in eval_dataset.items():
                metrics |= self.evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        self._eval_prefix = metric_key_prefix
        return super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the depths' means per target since the last record to TRL's, under the name of the evaluated set.

        Warns where none of the texts since then had a target: nothing was learnt or measured.
        """
        mode, prefix = ("train", "") if self.mtp_forward.model.training else ("eval", f"{self._eval_prefix}_")
        num_batches, hint = self.mtp_numbers.means[mode].num_batches, self._no_targets_hint()
        by_tag, num_targets = self.mtp_numbers.take(
            mode, prefix, lambda sums: self.accelerator.gather(sums[None]).sum(dim=0)
        )
        if num_batches and not num_targets and hint is not None:
            warnings.warn(
                f"no token had a label in {num_batches} micro-batch(es) of {prefix or 'train_'}dataset up to "
                f"step {self.state.global_step}: every label is {IGNORE_INDEX}, {hint}.",
                stacklevel=2,
            )
        logs.update(by_tag)
        if cosines := self.mtp_numbers.cosines.take():
            self._metrics["train"]["mtp/gradient_cosine"] += cosines
        super().log(logs, start_time)

    def _add_depths(self, later: HeadLoss) -> None:
        """Count one micro-batch of this process."""
        trains = self.mtp_forward.model.training
        if trains:
            self._metrics["train"]["mtp/coef"].append(self._plan().coef)
        accepts = not trains or self.mtp_forward.objective.terms.on_teacher_logits
        self.mtp_numbers.add_depths("train" if trains else "eval", later, accepts)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the trunk, as it would be clipped without heads, and the heads; return the trunk's norm.

        A loss that is not finite may be known too late, on an accelerator: its gradients become zeros. Sharded
        training clips all weights together: its norms are its engine's business.
        """
        self.mtp_numbers.late.poll()  # before a step is made of them
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            return super()._clip_grad_norm(model)
        heads = list(self.mtp_forward.model.heads.parameters())
        in_heads = {id(parameter) for parameter in heads}
        trunk = [parameter for parameter in model.parameters() if id(parameter) not in in_heads]
        norm = self.accelerator.clip_grad_norm_(trunk, self.args.max_grad_norm)  # unscales all gradients in fp16
        norms = [(trunk, norm)]
        if heads:
            limit = self.args.mtp_max_grad_norm or self.args.max_grad_norm
            norms.append((heads, torch.nn.utils.clip_grad_norm_(heads, limit)))
        if self.mtp_numbers.late.is_coming:
            for weights, length in norms:
                zero_unless_finite(weights, length)
        return norm

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.mtp_numbers.late.take()
        weights = self.mtp_forward.model.named_parameters()
        check_finite_weights(weights, self.state.global_step, str(self.args.output_dir))
        if self.mtp_ema is not None and self.args.should_save:
            # First: the trainer's own state file, written last, tells that a checkpoint is whole.
            checkpoint = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            checkpoint.mkdir(parents=True, exist_ok=True)
            torch.save(self.mtp_ema.state_dict(), checkpoint / EMA_FILE)
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model; one with adapters as those and the heads, in the files of a whole model."""
        if not has_lora(self.mtp_forward.model):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            directory = Path(output_dir or str(self.args.output_dir))
            save_lora(self.mtp_forward.model, directory, state_dict)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(directory)
            torch.save(self.args, directory / TRAINING_ARGS_NAME)

    def _load_best_model(self) -> None:
        if has_lora(self.mtp_forward.model):
            load_lora_weights(self.mtp_forward.model, str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if has_lora(self.mtp_forward.model):
            load_lora_weights(self.mtp_forward.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.mtp_ema is not None:
            file = Path(resume_from_checkpoint) / EMA_FILE
            if not file.is_file():
                raise FileNotFoundError(
                    f"{file} is missing: the checkpoint's run kept no average of its trunk; resume it with the "
                    "objective it had, or start a new run from its weights."
                )
            self.mtp_ema.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def _send_telemetry(self) -> None:
        """Do nothing: TRL would report every trainer's construction to a server, and training here needs no network."""
