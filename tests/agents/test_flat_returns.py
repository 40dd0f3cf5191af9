"""A warning that nothing can be learnt: when it comes, when it does not, and that it comes once."""

import warnings
from collections.abc import Callable, Sequence

import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.flat_returns import NUM_FLAT_ITERATIONS, FlatReturns, FlatReturnsWarning
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.envs import TextGenVectorEnv
from worldmtp.model import MTPModel


def watch(batches: Sequence[Sequence[float]], exact: bool = False, top: float = 1.0) -> FlatReturns:
    """Batches of returns, one an iteration, seen by a new watcher; a warning is an error here."""
    flat = FlatReturns(top, replies=True)
    for iteration, returns in enumerate(batches, start=1):
        flat.observe(iteration, torch.tensor(returns), torch.full((len(returns),), exact))
    return flat


def test_it_is_said_once_at_the_tenth_iteration_in_a_row() -> None:
    """The first batch varies, so the ten are 2 to 11; nothing is said again, whatever follows."""
    assert NUM_FLAT_ITERATIONS == 10
    flat = watch([[0.0, 0.5]] + [[0.0, 0.0]] * 9)
    assert flat.note is None
    message = r"all returns of iterations 2 to 11 were 0, so that nothing .* a mask of legal moves .* demonstrations"
    zeros, no = torch.zeros(2), torch.zeros(2, dtype=torch.bool)
    with pytest.warns(FlatReturnsWarning, match=message):
        flat.observe(11, zeros, no)
    assert flat.note is not None
    said = flat.note
    for iteration in range(12, 40):
        flat.observe(iteration, zeros + 0.5 * (iteration == 20), no)
    assert flat.note == said


@pytest.mark.parametrize(
    "batches",
    [
        [[0.0, 0.0]] * 5 + [[0.0, 1.0]] + [[0.0, 0.0]] * 9,  # one success between
        [[0.0, 0.0], [0.5, 0.5]] * 10,  # equal within a batch, other from batch to batch
        [[1.0, 1.0]] * 20,  # solved
        [[1.0 - 1e-7, 1.0]] * 20,  # solved but for rounding
        [[0.0, 1e-3]] * 20,  # a small difference is one
    ],
)
def test_where_there_is_something_to_learn_or_nothing_left_nothing_is_said(batches: list[list[float]]) -> None:
    assert watch(batches).note is None


def test_equal_but_for_rounding_is_equal() -> None:
    with pytest.warns(FlatReturnsWarning, match=r"iterations 1 to 10 were 0\.3,"):
        watch([[0.3, 0.3 + 3e-8]] * 10)


def test_the_top_is_the_models_and_exact_is_at_the_top_too() -> None:
    """A task whose best answer is paid .9 is solved where all are exact; a value range may end above 1."""
    assert watch([[0.9, 0.9]] * 20, exact=True).note is None
    assert watch([[5.0, 5.0]] * 20, top=5.0).note is None
    with pytest.warns(FlatReturnsWarning):
        watch([[1.0, 1.0]] * 20, top=5.0)


def test_a_run_taken_up_again_counts_on_and_says_it_once() -> None:
    first = watch([[0.0, 0.0]] * 6)
    second = FlatReturns(1.0, replies=False)
    second.load_state_dict(first.state_dict())
    zeros, no = torch.zeros(2), torch.zeros(2, dtype=torch.bool)
    for iteration in range(7, 10):
        second.observe(iteration, zeros, no)
    with pytest.warns(FlatReturnsWarning, match=r"iterations 1 to 10 were 0,.*Try easier questions"):
        second.observe(10, zeros, no)
    third = FlatReturns(1.0, replies=False)
    third.load_state_dict(second.state_dict())
    third.observe(11, zeros, no)
    assert third.note == second.note


def test_a_trainer_watches_its_batches(
    text_env: Callable[[int], TextGenVectorEnv],
    tiny_model: Callable[..., MTPModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scorer that pays nothing for anything; the count goes into the checkpoint."""
    env = text_env(4)
    monkeypatch.setattr("worldmtp.agents.trainer.episode_returns", lambda rollout: torch.zeros(len(rollout)))
    rollout = RolloutConfig(num_iterations=10, num_prompts=2, group_size=2)
    parts = rollout, PPOConfig(num_epochs=1), WorldModelConfig(), ImaginationConfig(use="off")
    trainer = ImaginationTrainer(tiny_model(), env, *parts, seed=0)
    for _ in range(9):
        trainer.step()
    again = ImaginationTrainer(tiny_model(), text_env(4), *parts, seed=0)
    again.load_state_dict(trainer.state_dict())
    with pytest.warns(FlatReturnsWarning, match="iterations 1 to 10 were 0"):
        again.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.step()
