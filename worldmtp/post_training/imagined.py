"""``imagined_advantages=`` of ``MTPPPOTrainer``: the agent's estimators of ``imagination`` on the batches TRL samples.

The arithmetic is that of ``worldmtp.agents.BatchImagination``. Here TRL's batches become texts, and the state of what
imagines becomes a file in the trainer's checkpoints.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.agents.batch_imagination import BatchImagination, SampledTexts, check_batch_use
from worldmtp.agents.config import ImaginationConfig, PPOConfig, WorldModelConfig
from worldmtp.agents.imagination.imagined_returns import Turns
from worldmtp.model import MTPModel
from worldmtp.model.precision import computing_in
from worldmtp.post_training.guards import WHOLE_POLICY
from worldmtp.post_training.ppo_config import MTPPPOConfig

IMAGINATION_FILE = "imagination.pt"


class PPOImagination:
    """Advantages of ``imagination=counterfactual`` or ``baseline`` for ``MTPPPOTrainer``, one object a trainer.

    ::

        imagined = PPOImagination(model, args, ImaginationConfig(use="counterfactual"))
        trainer = MTPPPOTrainer(model, reward, args, ..., imagined_advantages=imagined)

    Measured and logged by the agent's tags, ``imagination/...`` and ``world_model/...``; shut gates leave the group's
    baseline (``counterfactual``) or the critic's (``baseline``), lambda 1. The heads of rewards and ends, and the MTP
    heads beside the trainer's own loss, learn on replayed completions before each sampling. In evaluation advantages
    are GAE.

    Args:
        model: the trainer's.
        args: the trainer's.
        imagination: what is imagined, and for what.
        world_model: how the heads learn. The MTP heads learn by the trainer's ``mtp_objective`` too; leave that to one
            of the two with a ``coef`` of 0 there, or ``ce_coef`` and ``kl_coef`` of 0 here.
        seed: of what is imagined; None is that of ``args``.
        turns: the rules that end the policy's turn, where a world or a tool replies.

    Raises:
        TypeError: the model has no heads, or some that are blind to actions.
        ValueError: as of ``BatchImagination``, or sampling leaves tokens out.
    """

    def __init__(
        self,
        model: MTPModel,
        args: MTPPPOConfig,
        imagination: ImaginationConfig,
        world_model: WorldModelConfig | None = None,
        seed: int | None = None,
        turns: Turns | None = None,
    ) -> None:
        check_imagination_fits(imagination, args)
        assert args.max_completion_length is not None  # check_imagination_fits saw to it
        self.batch_imagination = BatchImagination(
            model,
            imagination,
            _returns_of(args),
            WorldModelConfig() if world_model is None else world_model,
            args.temperature,
            args.max_completion_length,
            args.seed if seed is None else seed,
            turns,
            args.per_device_train_batch_size,
        )
        self._model = model
        self._compute_dtype = "bfloat16" if args.bf16 else "float32"
        self._metrics: dict[str, float] = {}

    def check_trainer(self, trainer: Any) -> None:
        """Raise unless this object is for the trainer, in one process and with whole weights.

        Raises:
            ValueError: it is not.
        """
        if trainer.accelerator.num_processes > 1 or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError(
                f"imagination on {trainer.accelerator.num_processes} processes, or with sharded weights: each would "
                "train heads of its own; use one process, or leave imagined_advantages out."
            )
        if trainer.model is not self._model:
            raise ValueError("PPOImagination was made for another model than the trainer's; give both the same.")

    @property
    def scale(self) -> float | None:
        """Return what the advantages last returned are to be divided by; None where they are GAE."""
        return self.batch_imagination.scale if self._model.training else None

    def __call__(self, batch: Mapping[str, Any]) -> Float[Tensor, "batch time"]:
        """Return the advantages of a sampled batch, with ``rewards``, ``truncated`` and ``group`` in it.

        Raises:
            ValueError: a world or a tool replied, and ``turns`` were not given.
        """
        if not self._model.training:
            gae: Tensor = batch["advantages"]
            return gae
        prompts = batch["prompt_mask"].bool()
        nothing = torch.zeros_like(prompts, dtype=batch["rewards"].dtype)
        decided = batch["decision_mask"]
        texts = SampledTexts(
            input_ids=torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            attention_mask=torch.cat([prompts, batch["completion_mask"].bool()], dim=1),
            decision_mask=torch.cat([torch.zeros_like(prompts), decided], dim=1),
            logprobs=torch.cat([nothing, torch.where(decided, batch["old_per_token_logps"], 0.0).to(nothing)], dim=1),
            rewards=torch.cat([nothing, batch["rewards"]], dim=1),
            truncated=batch["truncated"],
            group=batch["group"],
        )
        with self._computing():
            advantages, metrics = self.batch_imagination.imagined_advantages(texts)
        self._metrics |= metrics
        return advantages[:, prompts.shape[1] :]

    def learn(self) -> None:
        """Train heads and critics on the last batch; call it when PPO has, before another is sampled."""
        with self._computing():
            self._metrics |= self.batch_imagination.learn()

    def take_metrics(self) -> dict[str, float]:
        """Return what was measured since the last call."""
        taken, self._metrics = self._metrics, {}
        return taken

    def save(self, directory: Path) -> None:
        """Write the state of what imagines beside a checkpoint."""
        directory.mkdir(parents=True, exist_ok=True)
        torch.save(self.batch_imagination.state_dict(), directory / IMAGINATION_FILE)

    def load(self, directory: Path) -> None:
        """Restore what ``save`` wrote.

        Raises:
            FileNotFoundError: the checkpoint's run did not imagine.
        """
        file = directory / IMAGINATION_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: the checkpoint's run imagined nothing; resume it without imagined_advantages, or "
                "start a new run from its weights."
            )
        self.batch_imagination.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def _computing(self) -> torch.autocast:
        return computing_in(self._compute_dtype, self._model.device)


def check_imagination_fits(imagination: ImaginationConfig, args: MTPPPOConfig) -> None:
    """Raise unless imagination can be had of the batches that these arguments have sampled.

    Raises:
        ValueError: it cannot; the message says what to set.
    """
    check_batch_use(imagination)
    if imagination.use == "counterfactual":
        _returns_of(args).check_whole_episodes("imagination=counterfactual", prefix="")
    if args.max_completion_length is None:
        raise ValueError(
            f"max_completion_length=None with imagination={imagination.use}: tokens are placed in an answer as shares "
            "of its longest; set max_completion_length."
        )
    for name, plain in WHOLE_POLICY.items():
        if getattr(args, name) not in plain:
            raise ValueError(
                f"{name}={getattr(args, name)} with imagination={imagination.use}: tokens are imagined as the whole "
                f"policy would choose them, and sampling leaves some out; leave {name} out."
            )


def _returns_of(args: MTPPPOConfig) -> PPOConfig:
    """Return what of the arguments says how rewards become advantages."""
    return PPOConfig(
        gamma=float(args.gamma),
        gae_lambda=float(args.gae_lambda),
        bootstrap_truncated=args.bootstrap_truncated,
        scale_advantages=args.scale_advantages,
        min_advantage_scale=float(args.min_advantage_scale),
    )
