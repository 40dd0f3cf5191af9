"""What MTP adds to a TRL trainer: the multi-token loss, its metrics, and a stop at what is not finite.

    loss = TRL's loss + lambda * (sum over depths and valid positions, by the objective's plan of the step) / N

N is TRL's own denominator, the depth 1 targets of the whole accumulated batch on all processes: a token weighs the
same at every depth and in every micro-batch, and depth k, which has up to k - 1 targets fewer per document, is not
blown up for it (DeepSeek-V3 2024, eq. 24-25, divides by the length of the sequence too).

Gradients are clipped in two groups, the trunk's and the heads'. In one, a large gradient of fresh heads would shrink
the trunk's steps even where the heads are detached from it.

As little of TRL as possible is overridden; ``compat`` lists what is.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from worldmtp.model import IGNORE_INDEX, MTPModel
from worldmtp.model.ema import EMATrunk
from worldmtp.model.lora import has_lora, load_lora_weights, save_lora
from worldmtp.objective import MTPObjective
from worldmtp.objective.loss import MultiTokenLoss, evaluation_plan
from worldmtp.objective.plan import Progress, StepPlan, window_depths
from worldmtp.post_training.forward import MTPForward, add_mtp_forward
from worldmtp.post_training.guards import check_finite, check_finite_weights
from worldmtp.post_training.metrics import DepthMeans

if TYPE_CHECKING:
    from trl import SFTTrainer as _Trainer
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
    """The heads of a TRL trainer's model; put it before the trainer's class and call ``add_heads`` after its init."""

    mtp_forward: MTPForward
    mtp_ema: EMATrunk | None = None
    mtp_means: dict[str, DepthMeans]
    _planned: tuple[int, StepPlan] | None = None
    _eval_prefix = "eval"

    def add_heads(self, objective: MTPObjective) -> None:
        """Put the heads' loss into the forward that TRL has patched; call it last in a trainer's ``__init__``.

        Raises:
            ValueError: the objective reaches beyond the model's depths, or sharded training cannot follow it.
        """
        model = self.model
        assert isinstance(model, MTPModel)  # check_model saw to it
        window_depths(objective.window, model.config.depth)  # refuses here, not at the first step
        if objective.needs_ema:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError(
                    "latent_target='ema' averages whole parameters, which sharded training has on no process; use "
                    "latent_target='trunk'."
                )
            self.mtp_ema = EMATrunk(model.base_model, objective.ema_decay)
            self.add_callback(EMACallback(self.mtp_ema, model.base_model))
        self.mtp_means = {"train": DepthMeans(), "eval": DepthMeans()}
        self.mtp_forward = add_mtp_forward(model, objective)

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
            FloatingPointError: a term is NaN or infinite.
        """
        num_targets = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()
        trains = self.mtp_forward.model.training
        plan = self._plan() if trains else None
        adds_loss = plan is not None and plan.coef > 0
        if plan is None or not adds_loss:
            plan = evaluation_plan(self.mtp_forward.model.config.depth)
        # What is only measured is compared with the trunk itself.
        teacher_hidden = self._ema_hidden(inputs) if adds_loss and plan.is_active else None
        self.mtp_forward.prepare(plan, not trains, teacher_hidden, trains=adds_loss)
        result = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        loss = result[0] if return_outputs else result
        later = self.mtp_forward.take()
        terms = {"loss": loss, "mtp/loss": later.total}
        terms |= {f"mtp/loss_depth_{k}": ce for k, ce in zip(later.depths, later.sums.ce, strict=True)}
        check_finite(terms, self.state.global_step, str(self.args.output_dir))
        self._add_depths(later, num_targets)
        if adds_loss and later.depths:
            loss = loss + plan.coef * self._normalised(later.total, num_targets, num_items_in_batch)
        if trains and torch.is_grad_enabled() and not loss.requires_grad:
            # A frozen trunk in a step whose plan trains no depth: there is nothing to learn, and nothing to stop at.
            loss = loss.detach().requires_grad_()
        return (loss, result[1]) if return_outputs else loss

    def release_model(self) -> MTPModel:
        """End the training and return the model with its class's forward, without anything of TRL or this trainer."""
        self.mtp_forward.remove()
        return self.mtp_forward.model

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

    def _ema_hidden(self, inputs: dict[str, Any]) -> Tensor | None:
        if self.mtp_ema is None:
            return None
        texts = (inputs["input_ids"], inputs.get("attention_mask"), inputs.get("position_ids"))
        return self.mtp_ema.hidden(**self.mtp_forward.model.trunk_inputs(*texts))

    def _normalised(self, total: Tensor, num_targets: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """Divide a sum as TRL's SFT divides its own: by its denominator, undoing the mean over processes."""
        if num_items_in_batch is None:
            return total / num_targets.clamp(min=1)
        mean = total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
        if self.args.average_tokens_across_devices:
            mean = mean * (self.accelerator.num_processes // self.get_tp_size())
        return mean

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate as the base class, which calls this again for each set of a dict, its name in the prefix."""
        self._eval_prefix = metric_key_prefix
        return super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the depths' means per target since the last record to TRL's, under the name of the evaluated set.

        Warns where none of the texts since then had a target: nothing was learnt or measured.
        """
        mode, prefix = ("train", "") if self.mtp_forward.model.training else ("eval", f"{self._eval_prefix}_")
        means = self.mtp_means[mode]
        if means.num_batches and not means.num_targets:
            warnings.warn(
                f"no token had a label in {means.num_batches} micro-batch(es) of {prefix or 'train_'}dataset up to "
                f"step {self.state.global_step}: every label is {IGNORE_INDEX}, of the prompt or cut off by "
                f"max_length={getattr(self.args, 'max_length', None)}.",
                stacklevel=2,
            )
        logs.update(means.take(prefix))
        super().log(logs, start_time)

    def _add_depths(self, later: MultiTokenLoss, num_targets: Tensor) -> None:
        """Count one micro-batch of all processes."""
        sums, num_depths = later.sums, len(later.depths)
        rows = (sums.ce, sums.top1_hits, sums.accepted, sums.counts, num_targets[None])
        local = torch.cat([row.double() for row in rows])
        *flat, all_targets = self.accelerator.gather(local[None]).sum(dim=0).tolist()
        trains = self.mtp_forward.model.training
        if trains:
            self._metrics["train"]["mtp/coef"].append(self._plan().coef)
        self.mtp_means["train" if trains else "eval"].add(
            later.depths,
            [flat[i * num_depths : (i + 1) * num_depths] for i in range(4)],
            num_targets=int(all_targets),
            accepts=not trains or self.mtp_forward.objective.terms.on_teacher_logits,
        )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the trunk, as it would be clipped without heads, and the heads; return the trunk's norm.

        Sharded training clips all weights together: its norms are its engine's business.
        """
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            return super()._clip_grad_norm(model)
        heads = list(self.mtp_forward.model.heads.parameters())
        in_heads = {id(parameter) for parameter in heads}
        trunk = [parameter for parameter in model.parameters() if id(parameter) not in in_heads]
        norm = self.accelerator.clip_grad_norm_(trunk, self.args.max_grad_norm)  # unscales all gradients in fp16
        if heads:
            torch.nn.utils.clip_grad_norm_(heads, self.args.max_grad_norm)
        return norm

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
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
