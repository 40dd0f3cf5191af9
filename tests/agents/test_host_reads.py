"""No minibatch of the agent makes the host wait for the device: its numbers are read at the end of an update."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
import transformers.masking_utils

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.gradient_steps import check_finite, clipped_step
from worldmtp.agents.ppo import AdvantagePlan, PolicyStats
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.envs import TextGenVectorEnv
from worldmtp.model import MTPModel
from worldmtp.tracking.late_numbers import HostCopy, LateNumbers

MakeEnv = Callable[[int], TextGenVectorEnv]
MakeModel = Callable[..., MTPModel]
HostReads = Callable[..., AbstractContextManager[list[str]]]
Fresh = tuple[ImaginationTrainer, Rollout, PolicyStats, AdvantagePlan]

# The losses of all depths are computed where there are targets, and how many that are is read once for all of them, and
# the few labels that may be a first guess (not on CUDA). Sampled from the replay is on the host.
BY_DESIGN = {
    "worldmtp.objective.fused._valid_rows: tolist",
    "worldmtp.objective.token_losses.top1_hits: nonzero",
    "worldmtp.agents.world_learning.sample: index",
}


def fresh(use: str, text_env: MakeEnv, tiny_model: MakeModel, device: str = "cpu") -> Fresh:
    """A trainer, and a rollout that it has read and not learnt from."""
    model = tiny_model()
    torch.nn.Module.to(model, device)
    trainer = ImaginationTrainer(
        model,
        text_env(16),
        RolloutConfig(num_iterations=4, num_prompts=4, group_size=4),
        PPOConfig(micro_batch_size=2, num_epochs=2, num_minibatches=2, kl_coef=0.01, ent_coef=0.01),
        WorldModelConfig(num_updates=2, batch_size_episodes=8),
        ImaginationConfig(use=use, horizon=2, num_rollouts=2, min_batches=1, max_live=3, tail=use != "off"),
        seed=0,
    )
    trainer.step()
    rollout, _ = trainer._collect()
    return trainer, rollout, *trainer._read(rollout)[:2]


@pytest.mark.parametrize("use", ["off", "counterfactual"])
def test_no_minibatch_reads_what_is_on_the_device(
    use: str, text_env: MakeEnv, tiny_model: MakeModel, host_reads: HostReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, rollout, stats, plan = fresh(use, text_env, tiny_model)
    take = LateNumbers.take
    with host_reads() as found:

        def noted(late: LateNumbers) -> list[dict[str, float]]:
            found.append("taken")
            return take(late)

        monkeypatch.setattr(LateNumbers, "take", noted)
        metrics = trainer.agent.update(rollout, stats, plan, torch.Generator().manual_seed(0))
        learnt = trainer._learner.learn(rollout, torch.Generator().manual_seed(0))
    of_update, of_both = found.index("taken"), [i for i, read in enumerate(found) if read == "taken"]
    start = next(i for i, read in enumerate(found) if i > of_update and read in BY_DESIGN)
    once_an_update = {"worldmtp.agents.tail.ends_with_tail: __bool__"}
    once_an_update |= {"worldmtp.agents.tail.ends_with_tail: _local_scalar_dense"}
    assert set(found[:of_update]) <= once_an_update
    assert len(found[:of_update]) <= 2
    assert len(of_both) == 2  # one read for all minibatches of each
    assert set(found[start : of_both[1]]) <= BY_DESIGN
    assert metrics["losses/grad_norm"] > 0
    assert learnt["world_model/grad_norm"] > 0


def test_numbers_are_those_of_a_host_that_waits(
    text_env: MakeEnv, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for arrives in (True, False):
        trainer, rollout, stats, plan = fresh("off", text_env, tiny_model)
        with monkeypatch.context() as patch:
            patch.setattr(HostCopy, "has_arrived", arrives)
            metrics = trainer.agent.update(rollout, stats, plan, torch.Generator().manual_seed(0))
        weights = torch.cat([weight.flatten() for weight in trainer.model.parameters()])
        found.append((metrics, weights.tolist()))
    assert found[0] == found[1]


def test_a_gradient_that_is_known_too_late_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of Adam moves each weight by the rate; the second, of zeros, by what its momentum says."""
    monkeypatch.setattr(HostCopy, "has_arrived", False)
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer, late = torch.optim.Adam([weight], lr=0.1, betas=(0.5, 0.5), eps=0.0), LateNumbers(check_finite)
    weight.grad = torch.full_like(weight, 2.0)
    clipped_step(optimizer, 1e9, "norm", late)
    assert weight.tolist() == pytest.approx([0.9] * 3)
    weight.grad = torch.tensor([1.0, float("nan"), 1.0], dtype=torch.float64)
    clipped_step(optimizer, 1e9, "norm", late)
    # Moments of the gradients 2 and 0 with their bias undone: (1/4 * 2) / (3/4) and (1/4 * 4) / (3/4).
    assert weight.tolist() == pytest.approx([0.9 - 0.1 * (2 / 3) / (4 / 3) ** 0.5] * 3)
    with pytest.raises(FloatingPointError, match="norm is nan; the update was not applied"):
        late.take()


@pytest.mark.gpu
def test_the_device_says_so_too(text_env: MakeEnv, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, rollout, stats, plan = fresh("off", text_env, tiny_model, "cuda")
    # transformers looks whether a batch is without padding, to leave its mask out, in each forward.
    monkeypatch.setattr(transformers.masking_utils, "_ignore_causal_mask_sdpa", lambda *_, **__: False)
    late, rows = LateNumbers(check_finite), torch.arange(len(rollout), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            trainer.agent._accumulate(rollout.select(rows), stats.ref_logprobs[rows], plan.select(rows), False, late)
            clipped_step(trainer.agent.optimizer, 1.0, "losses/grad_norm", late)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(late.take()) == 2 * (len(rollout) // 2 + 1)
