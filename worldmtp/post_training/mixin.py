"""What MTP adds to a TRL trainer: the auxiliary loss, its metrics, and a stop at what is not finite.

    loss = TRL's loss + mtp_coef * 1/(K-1) * sum_{k=2..K} (sum of depth k's cross-entropies) / N

N is TRL's own denominator, the depth 1 targets of the whole accumulated batch on all processes: a token weighs the
same at every depth and in every micro-batch, and depth k, which has up to k - 1 targets fewer per document, is not
blown up for it (DeepSeek-V3 2024, eq. 24-25, divides by the length of the sequence too).

As little of TRL as possible is overridden; ``compat`` lists what is.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from worldmtp.model import IGNORE_INDEX, MTPModel
from worldmtp.post_training.depth_sums import DepthSums
from worldmtp.post_training.finite import check_finite, check_finite_weights
from worldmtp.post_training.forward import MTPForward

if TYPE_CHECKING:
    from trl import SFTTrainer as _Trainer
else:
    _Trainer = object


class MTPTrainerMixin(_Trainer):
    """To be put before a TRL trainer whose model has been given ``add_mtp_forward``."""

    mtp_forward: MTPForward
    mtp_coef: float

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """TRL's loss and, in training, the auxiliary one.

        In evaluation the loss is TRL's alone, so that ``eval_loss`` compares with a run without heads; the depths are
        logged beside it.

        Raises:
            FloatingPointError: a term is NaN or infinite.
        """
        num_targets = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()
        result = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        loss = result[0] if return_outputs else result
        sums = self.mtp_forward.take()
        terms = {"loss": loss, **{f"mtp/loss_depth_{k}": sums.losses[k - 2] for k in self._later_depths(sums)}}
        check_finite(terms, self.state.global_step, str(self.args.output_dir))
        self._log_depths(sums)
        if self.mtp_forward.model.training and self.mtp_coef > 0 and len(sums.losses) > 0:
            loss = loss + self.mtp_coef * self._normalised(sums.losses.mean(), num_targets, num_items_in_batch)
        return (loss, result[1]) if return_outputs else loss

    def release_model(self) -> MTPModel:
        """The model with its class's forward: nothing of TRL or of this trainer is left in it. Ends the training."""
        self.mtp_forward.remove()
        return self.mtp_forward.model

    def _normalised(self, total: Tensor, num_targets: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """As TRL's SFT does with its own sum: its denominator, and its undoing of the mean over processes."""
        if num_items_in_batch is None:
            return total / num_targets.clamp(min=1)
        mean = total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
        if self.args.average_tokens_across_devices:
            mean = mean * (self.accelerator.num_processes // self.get_tp_size())
        return mean

    def _log_depths(self, sums: DepthSums) -> None:
        """Mean cross-entropy and top-1 accuracy per target of this micro-batch, over all processes."""
        local = torch.stack([sums.losses.detach().double(), sums.top1_hits.double(), sums.counts.double()])
        losses, hits, counts = self.accelerator.gather(local[None]).sum(dim=0).tolist()
        metrics = self._metrics["train" if self.mtp_forward.model.training else "eval"]
        for k in self._later_depths(sums):
            if counts[k - 2] > 0:
                metrics[f"mtp/loss_depth_{k}"].append(losses[k - 2] / counts[k - 2])
                metrics[f"mtp/top1_depth_{k}"].append(hits[k - 2] / counts[k - 2])

    @staticmethod
    def _later_depths(sums: DepthSums) -> range:
        return range(2, 2 + len(sums.losses))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        weights = self.mtp_forward.model.named_parameters()
        check_finite_weights(weights, self.state.global_step, str(self.args.output_dir))
        super()._save_checkpoint(model, trial)

    def _send_telemetry(self) -> None:
        """Nothing: TRL reports every trainer's construction to a server, and training here needs no network."""
