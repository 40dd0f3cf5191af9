"""Proximal policy optimisation with MTP heads, on TRL's GRPOTrainer: TRL itself has had no PPO since 1.13.

Sampling, rewards, buffers and the reference are TRL's. The advantages are of tokens: GAE on the model's own value head,
read in the same forward, over the policy's decisions (``decisions``). The arithmetic is the project's one, which its
agent uses too: ``worldmtp.returns`` and ``worldmtp.objective.policy_losses``.

Epochs over a sampled batch are TRL's ``num_iterations``; its minibatches are ``steps_per_generation`` over
``gradient_accumulation_steps``. Left out: adaptive KL coefficients, and KL in the reward; here it is in the loss.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from worldmtp.model import MTPModel
from worldmtp.model.guards import TRAINS_HEADS
from worldmtp.model.trunk import TrunkFeatures
from worldmtp.model.world_heads import binned_mean, two_hot_cross_entropy
from worldmtp.objective.policy_losses import explained_variance, ppo_loss, ppo_terms, value_moves
from worldmtp.post_training.compat import IncompatibleTRLError
from worldmtp.post_training.decisions import Decisions, padded_token_rewards, token_plan
from worldmtp.post_training.imagined import PPOImagination
from worldmtp.post_training.metrics import TermMeans
from worldmtp.post_training.on_policy import OnPolicyMixin
from worldmtp.post_training.ppo_config import MTPPPOConfig
from worldmtp.returns import scale_of

ImaginedAdvantages = Callable[[Mapping[str, Any]], Float[Tensor, "batch time"]]
"""(sampled batch) -> advantages in the place of GAE.

The batch has ``values``, ``value_targets``, GAE as ``advantages``, and the ``rewards`` of the decisions, at their
tokens; ``truncated`` and ``group`` are of each completion.
"""


class MTPPPOTrainer(OnPolicyMixin, GRPOTrainer):
    """PPO for an ``MTPModel``, whose ``world_heads.value`` is the critic.

    Rewards are those of the reward functions, weighted and added up. One is paid at a completion's last decision; of a
    function with an attribute ``token_field``, such as ``env_reward``, where the rollout's field of that name says.

    It logs what ``MTPGRPOTrainer`` logs but the clip ratios and, of PPO, ``ppo/...``. Other arguments and errors are
    those of ``MTPGRPOTrainer``.

    Args:
        args: the configuration.
        imagined_advantages: advantages in the place of GAE, scaled as GAE would be; or a ``PPOImagination``, whose
            advantages have a scale of their own.
    """

    _tag_names = [*GRPOTrainer._tag_names, TRAINS_HEADS]  # noqa: RUF012 # as TRL declares it
    trl_name = "PPOTrainer"
    passed_through = ("rollout_func", "tools", "environment_factory")
    config_class = MTPPPOConfig
    required_columns: ClassVar[tuple[tuple[str, ...], ...]] = (("prompt",), ("environment",))

    _completion_length: int | None = None
    _read: list[Tensor]
    _terms: dict[str, TermMeans]
    _scored: list[tuple[Sequence[Mapping[str, Any]], Tensor]]
    _said_outside = False

    def __init__(
        self,
        model: MTPModel,
        reward_funcs: Any,
        args: MTPPPOConfig,
        *,
        imagined_advantages: ImaginedAdvantages | PPOImagination | None = None,
        **passed: Any,
    ) -> None:
        self.imagined_advantages = imagined_advantages
        self._read, self._scored, self._terms = [], [], {mode: TermMeans() for mode in ("train", "eval")}
        super().__init__(model, reward_funcs, args, **passed)
        self.mtp_forward.reader = self._read_values
        if isinstance(imagined_advantages, PPOImagination):
            imagined_advantages.check_trainer(self)

    # -----------------------------------------------------------------------------------------------------------------
    # The value head, inside the model's forward
    # -----------------------------------------------------------------------------------------------------------------

    def _read_values(self, features: TrunkFeatures, inputs: Mapping[str, Any]) -> Tensor | None:
        """Return the value's logits of the states before each token of the completions, and after the last one."""
        if self._completion_length is None:
            return None
        states = features.post_norm[:, -(self._completion_length + 1) :]
        logits: Tensor = self.mtp_forward.model.world_heads.value(states.detach() if self.args.detach_value else states)
        self._read.append(logits)
        return logits

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **options: Any
    ) -> Any:
        """Score as TRL; what the value head says on the way is kept for ``_take_value_logits``."""
        self._read, self._completion_length = [] if model is not self.ref_model else self._read, logits_to_keep
        try:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, **options
            )
        finally:
            self._completion_length = None

    def _take_value_logits(self, num_rows: int) -> Float[Tensor, "batch time_plus_1 bins"]:
        read, self._read = self._read, []
        if sum(map(len, read)) != num_rows:
            raise IncompatibleTRLError(
                f"the value head has read {sum(map(len, read))} completions of a batch of {num_rows}: TRL scores them "
                "in another way than by its fused forward. Report this version of TRL."
            )
        return torch.cat(read)

    def _values(self, logits: Tensor) -> Tensor:
        return binned_mean(logits, self.mtp_forward.model.world_heads.value_bins)

    # -----------------------------------------------------------------------------------------------------------------
    # A sampled batch
    # -----------------------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """Calculate them as TRL, and keep them with the rows, to which the rollout's fields have been added."""
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        first = self.accelerator.process_index * len(prompts)
        self._scored = [(inputs, rewards[first : first + len(prompts)])]
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Add to TRL's batch what PPO learns from, in the place of GRPO's advantages."""
        self._scored, self._read = [], []
        if self._imagination is not None and self.mtp_forward.model.training:
            self._imagination.learn()
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self._scored:
            raise IncompatibleTRLError("TRL sampled a batch without _calculate_rewards; report this version of TRL.")
        rows, scores = self._scored.pop()
        if "old_per_token_logps" not in batch:
            batch["old_per_token_logps"] = self._old_logprobs(batch)
        ids, written = batch["completion_ids"], batch["completion_mask"].bool()
        values = self._values(self._take_value_logits(len(ids))).detach()
        chosen = written & batch["tool_mask"].bool() if "tool_mask" in batch else written
        scored = ~scores.isnan().all(dim=1)
        decisions = Decisions(chosen & scored[:, None], written.sum(dim=1))
        rewards = self._step_rewards(rows, scores, decisions, values[:, :-1])
        args = self.args
        truncated = self._truncated(rows, ids, written)
        plan = token_plan(decisions, rewards, values, truncated, args.gamma, args.gae_lambda, args.bootstrap_truncated)
        batch |= {"decision_mask": decisions.mask, "values": values[:, :-1], "value_targets": plan.value_targets}
        batch["num_items_in_batch"] = self.accelerator.gather(decisions.mask.sum()[None]).sum()
        batch["advantages"] = plan.advantages
        scale = None
        if self.imagined_advantages is not None:
            batch["advantages"] = self._imagined(batch, decisions.to_tokens(rewards), truncated)
            scale = None if self._imagination is None else self._imagination.scale
        self._log_batch(batch)
        if args.scale_advantages:
            scale = self._scale(batch["advantages"], decisions.mask) if scale is None else scale
            batch["advantages"] = batch["advantages"] / scale
        return batch

    @torch.no_grad()
    def _old_logprobs(self, batch: dict[str, Any]) -> Tensor:
        """Return the log-probabilities under the policy that has sampled, where TRL has skipped them."""
        texts = self._texts(batch)
        mode = "train" if self.mtp_forward.model.training else "eval"
        size = getattr(self.args, f"per_device_{mode}_batch_size")
        num_tokens = batch["completion_ids"].shape[1]
        logprobs: Tensor
        logprobs, *_ = self._get_per_token_logps_and_entropies(
            self.mtp_forward.model, texts["input_ids"], texts["attention_mask"], num_tokens, batch_size=size
        )
        return logprobs

    def _step_rewards(
        self, rows: Sequence[Mapping[str, Any]], scores: Tensor, decisions: Decisions, like: Tensor
    ) -> Float[Tensor, "batch step"]:
        """Return what each decision earned: by token where a rollout says, else at the end."""
        weighted = (scores * self.reward_weights.to(scores.device)).nan_to_num()
        total = torch.zeros_like(like)
        for index, function in enumerate(self.reward_funcs):
            name = getattr(function, "token_field", None)
            if name is None or name not in rows[0]:
                total = total + decisions.last_step * weighted[:, index : index + 1]
                continue
            paid = padded_token_rewards(rows, name, decisions.length.tolist(), like)
            sums, whole = paid.sum(dim=1), scores[:, index]
            if not torch.allclose(sums, torch.where(whole.isnan(), sums, whole.to(sums.dtype)), atol=1e-4):
                raise ValueError(
                    f"{name} add up to {sums.tolist()} and {self.reward_func_names[index]} returned {whole.tolist()}: "
                    "they must be the same rewards, token by token and in one."
                )
            total = total + decisions.step_rewards(paid) * float(self.reward_weights[index])
        return total

    def _truncated(self, rows: Sequence[Mapping[str, Any]], ids: Tensor, written: Tensor) -> Tensor:
        """Return which completions were cut off: as the rollout says, else those without an end of text."""
        if "env_truncated" in rows[0]:
            return torch.tensor([bool(row["env_truncated"]) for row in rows], device=ids.device)
        # Not a padding token too, as in TRL's metrics: an untrained policy samples one, and nothing stops there.
        ends = torch.tensor(self.eos_token_ids, device=ids.device)
        last = ids.gather(1, (written.sum(dim=1, keepdim=True) - 1).clamp(min=0))[:, 0]
        return ~torch.isin(last, ends)

    @property
    def _imagination(self) -> PPOImagination | None:
        return self.imagined_advantages if isinstance(self.imagined_advantages, PPOImagination) else None

    def _imagined(self, batch: dict[str, Any], rewards: Tensor, truncated: Tensor) -> Float[Tensor, "batch time"]:
        assert self.imagined_advantages is not None
        # TRL repeats a prompt as often as it is answered, one after another, and may part its answers among processes.
        size = self.num_generations if self.mtp_forward.model.training else self.num_generations_eval
        first = self.accelerator.process_index * len(rewards)
        group = torch.arange(first, first + len(rewards), device=rewards.device) // int(size or 1)
        shown = batch | {"rewards": rewards, "truncated": truncated, "group": group}
        imagined, expected = self.imagined_advantages(shown), tuple(batch["advantages"].shape)
        if not isinstance(imagined, Tensor) or tuple(imagined.shape) != expected:
            got = tuple(imagined.shape) if isinstance(imagined, Tensor) else type(imagined).__name__
            raise ValueError(f"imagined_advantages returned {got}, expected a tensor of {expected}: (batch, time).")
        chosen = torch.where(batch["decision_mask"], imagined.detach(), 0.0)
        if not bool(chosen.isfinite().all()):
            raise ValueError("imagined_advantages returned a number that is not finite for a decision of the policy.")
        if self._imagination is not None:
            self._add_metrics(self._imagination.take_metrics())
        return chosen

    def _scale(self, advantages: Tensor, mask: Tensor) -> float:
        sums = torch.stack([torch.where(mask, advantages**2, 0.0).sum(), mask.sum().to(advantages.dtype)])
        total, count = self.accelerator.reduce(sums, reduction="sum")
        return scale_of(total / count.clamp(min=1), self.args.min_advantage_scale)

    def _log_batch(self, batch: dict[str, Any]) -> None:
        """Log what is known before anything trains on the batch, of all processes."""
        mask, bins = batch["decision_mask"], self.mtp_forward.model.world_heads.value_bins.cpu()
        numbers = [batch[name][mask] for name in ("advantages", "values", "value_targets")]
        rows = torch.stack([*numbers, torch.ones_like(numbers[0])], dim=1)
        # Processes have unequal numbers of decisions; rows of zeros, the last column's too, make them equal.
        rows = self.accelerator.gather(self.accelerator.pad_across_processes(rows)).cpu().double()
        advantages, values, targets = rows[rows[:, -1] == 1, :-1].T
        if not len(advantages):
            return
        outside = float(((targets < bins[0] - 1e-4) | (targets > bins[-1] + 1e-4)).float().mean())
        if outside and not self._said_outside:
            self._said_outside = True
            warnings.warn(
                f"returns from {float(targets.min()):.4g} to {float(targets.max()):.4g} are outside the value head's "
                f"bins, {float(bins[0]):.4g} to {float(bins[-1]):.4g}, and are clamped to them; make the model with "
                "MTPConfig(value_range=...) of the rewards, or weigh these down (reward_weights).",
                stacklevel=2,
            )
        self._add_metrics(
            {
                "ppo/advantage_mean": float(advantages.mean()),
                "ppo/advantage_std": float(advantages.std(unbiased=False)),
                "ppo/value_mean": float(values.mean()),
                "ppo/return_mean": float(targets.mean()),
                "ppo/explained_variance": explained_variance(targets - values, targets),
                "ppo/returns_outside_bins": outside,
            }
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self._imagination is not None and self.args.should_save:  # first, as in OnPolicyMixin
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self._imagination.save(Path(self._get_output_dir(trial)) / name)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._imagination is not None and checkpoint is not None:
            self._imagination.load(Path(checkpoint))

    # -----------------------------------------------------------------------------------------------------------------
    # The loss
    # -----------------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return PPO's loss of a micro-batch: its share of the means over the decisions of the optimiser step."""
        texts, mask = self._texts(inputs), inputs["decision_mask"]
        logprobs, entropies, _ = self._get_per_token_logps_and_entropies(
            model, texts["input_ids"], texts["attention_mask"], mask.shape[1], compute_entropy=True
        )
        value_logits = self._take_value_logits(len(mask))[:, :-1]
        # At padding a probability may round to 0, and the mean's mask comes too late.
        logprobs = torch.where(mask, logprobs, 0.0)
        old = torch.where(mask, inputs["old_per_token_logps"], 0.0)
        reference = torch.where(mask, inputs["ref_per_token_logps"], 0.0) if self.beta else old
        terms = ppo_terms(
            logprobs,
            old,
            reference,
            inputs["advantages"],
            entropies,
            self._value_loss(value_logits, inputs["values"], inputs["value_targets"]),
            mask,
            self._num_decisions(inputs),
            self.args.epsilon,
        )
        kept = self._terms["train" if self.mtp_forward.model.training else "eval"]
        kept.add(terms, self._num_decisions(inputs), mask.sum())
        return ppo_loss(terms, self.args.vf_coef, self.beta, self.args.entropy_coef)

    def _value_loss(self, logits: Tensor, old_values: Tensor, targets: Tensor) -> Tensor:
        bins = self.mtp_forward.model.world_heads.value_bins
        values = self._values(logits)
        if self.args.value_loss == "squared":
            loss = (values - targets) ** 2 / 2
        else:
            targets = targets.clamp(bins[0], bins[-1])
            loss = two_hot_cross_entropy(logits, targets, bins)
        if self.args.value_clip is None:
            return loss
        moves = value_moves(values.detach(), old_values, targets, self.args.value_clip)
        return torch.where(moves, loss, loss.detach())

    def _num_decisions(self, inputs: dict[str, Any]) -> Tensor:
        """Return this process's share of the decisions of an optimiser step, as TRL counts a step's tokens."""
        number = inputs["num_items_in_batch"].float() / self.accelerator.num_processes
        if not self.mtp_forward.model.training:  # an evaluated batch is a step of its own
            return number
        return number * self.current_gradient_accumulation_steps / self.args.steps_per_generation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add PPO's terms, of all processes, as means over decisions: one of each micro-batch, which TRL averages."""
        for means in self._terms["train" if self.mtp_forward.model.training else "eval"].take(self.accelerator):
            self._add_metrics(means if self.beta else {tag: mean for tag, mean in means.items() if tag != "kl"})
        super().log(logs, start_time)

    def _add_metrics(self, values: Mapping[str, float]) -> None:
        mode = "train" if self.mtp_forward.model.training else "eval"
        for name, value in values.items():
            self._metrics[mode][name].append(value)
