"""What the trainers that sample have in common: drafted generation, a reference of their own, tokens of the policy.

Heads are detached by default, as everywhere in the field: a joint loss would teach the policy to repeat what it
happened to sample. A sampled batch serves several micro-batches, so the mean over tokens is counted over TRL's buffer.
"""

import functools
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, no_type_check

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from worldmtp.choices import check_choice
from worldmtp.decoding import DecodingOutput
from worldmtp.model import IGNORE_INDEX, MTPModel
from worldmtp.post_training.compat import IncompatibleTRLError
from worldmtp.post_training.config import MTPConfigMixin
from worldmtp.post_training.generation import DRAFTS, DraftedGeneration
from worldmtp.post_training.metrics import DraftMeans
from worldmtp.post_training.mixin import MTPTrainerMixin
from worldmtp.post_training.reference import frozen_reference
from worldmtp.post_training.sampled_batch import load_sampled_batch, save_sampled_batch
from worldmtp.post_training.token_sets import TokenChoice, num_targets


@no_type_check
@dataclass
class OnPolicyConfigMixin(MTPConfigMixin):
    """``MTPConfigMixin`` and how tokens are sampled.

    Args:
        mtp_draft: "mtp" drafts with the heads and "none" decodes a token a forward, both by ``worldmtp.decoding``; with
            "trl" Hugging Face's code samples. The policy's law is the same.
        mtp_num_draft: tokens of a draft. None is all depths; "auto" finds the fastest length by the clock, which may be
            none, and says so once: equal seeds then do not give equal samples.
    """

    _refused: ClassVar[dict[str, str]] = {
        "sync_ref_model": "TRL would mix the heads' weights into the reference's; leave it out",
        "use_vllm": "vLLM would be sent weights of heads that it does not know; leave it out",
        "use_transformers_continuous_batching": "it does not go through model.generate; leave it out",
    }

    mtp_draft: str = field(default="mtp", metadata={"help": "What drafts while sampling: mtp, none or trl."})
    mtp_num_draft: int | str | None = field(
        default=None, metadata={"help": "Tokens of a draft; None: all depths; auto: the fastest."}
    )

    def _check(self) -> None:
        super()._check()
        check_choice("mtp_draft", self.mtp_draft, DRAFTS)
        is_count = isinstance(self.mtp_num_draft, int) and self.mtp_num_draft > 0
        if not (is_count or self.mtp_num_draft in (None, "auto")):
            raise ValueError(
                f"mtp_num_draft={self.mtp_num_draft!r} must be a positive number of tokens, 'auto' or None."
            )


@contextmanager
def without_reference(args: Any) -> Iterator[None]:
    """Keep TRL's ``__init__`` from loading a reference from the model's path; see ``add_reference``."""
    beta, args.beta = args.beta, 0.0
    try:
        yield
    finally:
        args.beta = beta


class OnPolicyMixin(MTPTrainerMixin):
    """``MTPTrainerMixin`` for TRL's trainers that sample their batches."""

    required_columns: ClassVar[tuple[tuple[str, ...], ...]] = (("prompt",),)
    passed_through: ClassVar[tuple[str, ...]] = ()
    """Arguments of TRL's trainer alone. Not ``peft_config``: it would wrap the model with its heads."""

    ref_model: Any
    temperature: float
    reward_funcs: list[Any]
    reward_func_names: list[str]
    mtp_generation: DraftedGeneration
    mtp_drafts: dict[str, DraftMeans]
    _counted: tuple[Any, Tensor] | None = None

    def __init__(
        self,
        model: MTPModel,
        reward_funcs: Any,
        args: Any,
        *,
        train_dataset: Dataset | IterableDataset | None,
        processing_class: PreTrainedTokenizerBase,
        eval_dataset: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        **sampling: Any,
    ) -> None:
        unknown = [name for name in sampling if name not in self.passed_through]
        if unknown:
            raise TypeError(
                f"{type(self).__name__} takes no argument {unknown[0]!r}; leave it out. Adapters go into the model "
                "before (worldmtp.model.lora.add_lora)."
            )
        self.check_arguments(model, args, processing_class, train_dataset, eval_dataset)
        passed: dict[str, Any] = {"model": model, "reward_funcs": reward_funcs, "args": args, "optimizers": optimizers}
        passed |= {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "processing_class": processing_class}
        passed |= {"reward_processing_classes": reward_processing_classes}
        passed |= {"callbacks": None if callbacks is None else list(callbacks)} | sampling
        with without_reference(args):
            super().__init__(**passed)
        self.add_reference()
        self.add_heads(args)

    @classmethod
    def check_arguments(
        cls, model: Any, args: Any, processing_class: Any, train_dataset: Any, eval_dataset: Any = None
    ) -> None:
        """Refuse what every trainer refuses, and prompts that fill no sampled batch.

        Raises:
            ValueError: there are fewer prompts than a sampled batch has: TRL leaves out batches that are not full, all
                of them, and ends without a step.
        """
        super().check_arguments(model, args, processing_class, train_dataset, eval_dataset)
        if isinstance(train_dataset, Dataset):
            check_fills_a_batch(len(train_dataset), args)

    def add_reference(self) -> None:
        """Make the reference that ``without_reference`` has left out: the trunk as it is, where KL is asked for."""
        self.beta = self.args.beta
        if self.beta == 0:
            return
        assert isinstance(self.model, MTPModel)
        reference: Any = frozen_reference(self.model)
        if self.args.disable_dropout:
            disable_dropout_in_model(reference)
        add_fused_lm_head(reference, temperature=self.temperature)
        if self.is_deepspeed_enabled:
            self.ref_model = prepare_deepspeed(reference, self.accelerator)
        elif self.is_fsdp_enabled:
            self.ref_model = prepare_fsdp(reference, self.accelerator)
        else:
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)

    def add_heads(self, args: Any) -> None:
        """Put the heads into the forward and, as drafts, into ``generate``."""
        super().add_heads(args)
        draft = args.mtp_draft
        if (self.is_fsdp_enabled or self.is_deepspeed_enabled) and draft != "trl":
            warnings.warn(
                f"mtp_draft={draft!r} needs whole weights and they are sharded over devices: Hugging Face's code "
                "samples. Set mtp_draft='trl' to say so.",
                stacklevel=3,
            )
            draft = "trl"
        check_names(self.reward_func_names)
        self.mtp_drafts = {"train": DraftMeans(), "eval": DraftMeans()}
        self.mtp_generation = DraftedGeneration(self.mtp_forward.model, draft, args.mtp_num_draft, self._add_drafts)
        self.mtp_generation.install()
        self.reward_funcs = [
            checked_reward(function, name)
            for function, name in zip(self.reward_funcs, self.reward_func_names, strict=True)
        ]

    def release_model(self) -> MTPModel:
        """End the training and return the model with the forward and the ``generate`` of its class."""
        self.mtp_generation.remove()
        return super().release_model()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return TRL's loss and, in training, the multi-token one added.

        Raises:
            IncompatibleTRLError: TRL sampled in another way than by ``model.generate``, or trains on another batch than
                it sampled.
        """
        if not self.mtp_generation.num_calls and getattr(self, "rollout_func", None) is None:
            raise IncompatibleTRLError(
                f"{type(self).__name__} has sampled without model.generate: another policy may have acted than is "
                "learnt. Report this version of TRL."
            )
        if self.mtp_forward.model.training:
            self._window_targets = self._count_generation(inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # First: the trainer's own state file, written last, tells that a checkpoint is whole.
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        save_sampled_batch(self, Path(self._get_output_dir(trial)) / name)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load what goes on from a checkpoint: the optimiser, the schedule and the sampled batch."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and load_sampled_batch(self, checkpoint, self.state.global_step):
            self.mtp_generation.num_calls += 1  # in the run that was stopped

    def _texts(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return prompts and completions as TRL is going to join them; completions are labelled."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        labels = ids.masked_fill(mask == 0, IGNORE_INDEX)
        labels[:, : batch["prompt_ids"].shape[1]] = IGNORE_INDEX
        return {"input_ids": ids, "labels": labels, "attention_mask": mask, "position_ids": None}

    def _token_choice(self, batch: dict[str, Any]) -> TokenChoice:
        """Return the sampled tokens as the policy's; what a tool or a world replied is an observation.

        Raises:
            ValueError: observations are asked for and none is marked.
        """
        kind, written, policy = self.args.mtp_tokens, batch["completion_mask"], batch.get("tool_mask")
        if kind == "observation" and policy is None:
            raise ValueError(
                "mtp_tokens='observation' and nothing in the batch was replied by a tool or a world: pass rollout_func "
                "with an env_mask, tools or an environment_factory, or choose other tokens."
            )
        policy_mask = written.bool() if policy is None else written.bool() & policy.bool()
        prompt = torch.zeros_like(batch["prompt_mask"], dtype=torch.bool)
        return TokenChoice(kind, torch.cat([prompt, policy_mask], dim=1))

    def _count_window(self, batches: list[Any]) -> Tensor | None:
        """Return None: what Trainer has at the beginning of a step are prompts."""
        return None

    def _count_generation(self, inputs: dict[str, Any]) -> Tensor:
        """Return the targets of one optimiser step on all processes: its share of those of the sampled batch."""
        buffered = getattr(self, "_buffered_inputs", None)
        if buffered is None or not any(batch is inputs for batch in buffered):
            raise IncompatibleTRLError(
                f"{type(self).__name__} trains on a batch that is none of those sampled together "
                "(_buffered_inputs), so of how many tokens the heads' loss is to be the mean is not known. Report "
                "this version of TRL, or leave out what replaces its batches."
            )
        if self._counted is None or self._counted[0] is not buffered:
            local = torch.stack([num_targets(self._token_choice(b).labels(**self._texts(b))) for b in buffered]).sum()
            self._counted = buffered, self.accelerator.gather(local[None]).sum()
        return self._counted[1] * self.current_gradient_accumulation_steps / self.args.steps_per_generation

    def _no_targets_hint(self) -> str:
        return "or of completions that were cut off (mask_truncated_completions)"

    def _add_drafts(self, output: DecodingOutput) -> None:
        """Count one call's drafts of all processes, and its tokens by rounds; the prompts' forward gave one each."""
        sums = [float((output.lengths - 1).sum()), float(output.num_rounds.sum())]
        rows = torch.tensor([*sums, *output.drafted_per_depth, *output.accepted_per_depth], dtype=torch.float64)
        device = self.accelerator.device
        rows = rows if device.type == "mps" else rows.to(device)
        mode = "train" if self.mtp_forward.model.training else "eval"
        self.mtp_drafts[mode].add(self.accelerator.gather(rows[None]).sum(dim=0).tolist())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what drafts brought while sampling to the heads' means and TRL's."""
        mode, prefix = ("train", "") if self.mtp_forward.model.training else ("eval", f"{self._eval_prefix}_")
        logs.update(self.mtp_drafts[mode].take(prefix))
        super().log(logs, start_time)


def check_fills_a_batch(num_prompts: int, args: Any) -> None:
    """Raise if there are fewer prompts than a sampled batch has.

    Raises:
        ValueError: there are.
    """
    number = args.generation_batch_size // args.num_generations
    if num_prompts < number:
        raise ValueError(
            f"train_dataset has {num_prompts} prompts and a sampled batch {number}, so no step would be made; give it "
            "more, or lower per_device_train_batch_size or steps_per_generation."
        )


def check_names(names: Sequence[str]) -> None:
    """Raise if two rewards have one name.

    Raises:
        ValueError: they do, so that TRL would log both under it.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"several reward functions are called {twice}: TRL would mix their metrics. Give each a name of its own: "
            "name= of TextGenReward and env_factory, or __name__ of a function."
        )


def checked_reward(function: Any, name: str) -> Any:
    """Return a reward function whose results are looked at before TRL makes a tensor of them.

    None and NaN for a single completion mean that it cannot be scored: TRL leaves it out of its group's mean and gives
    it the advantage zero. Reward models and coroutines are returned as they are.
    """
    call = getattr(function, "__call__", None)  # noqa: B004 # an object's own, which may be a coroutine
    if isinstance(function, nn.Module) or inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):
        return function

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> list[float | None]:
        rewards = function(*args, **kwargs)
        if rewards is None or isinstance(rewards, (str, int, float, Mapping)):
            raise TypeError(
                f"the reward function {name!r} returned {rewards!r}, expected one number (or None) for each completion."
            )
        values = [None if reward is None else float(reward) for reward in rewards]
        infinite = [index for index, value in enumerate(values) if value is not None and math.isinf(value)]
        if infinite:
            raise ValueError(
                f"the reward function {name!r} returned {values[infinite[0]]} for completion {infinite[0]}; rewards "
                "must be finite, and None where a completion cannot be scored."
            )
        return values

    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    if hasattr(inner, "token_field"):
        vars(checked)["token_field"] = inner.token_field
    return checked
