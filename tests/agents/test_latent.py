"""``imagination=latent`` in the trainer: when it trains and on what, what it leaves alone, and how it is resumed."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, LatentConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.imagination import latent as latent_module
from worldmtp.agents.rollout import Rollout, action_mask
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.dynamics import ImaginedRollout
from worldmtp.envs import CharTokenizer, TextGenVectorEnv
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.model import MTPModel

MakeModel = Callable[..., MTPModel]
MakeEnv = Callable[[int], TextGenVectorEnv]
PPO = PPOConfig(learning_rate=1e-2, kl_coef=0.0)


def make_trainer(
    model: MTPModel,
    env: TextGenVectorEnv,
    backend: str = "mtp",
    use: str = "latent",
    horizon: int = 2,
    num_updates: int = 1,
    **fields: Any,
) -> ImaginationTrainer:
    """It imagines from the third iteration on: two batches have been measured then."""
    latent = replace(LatentConfig(num_starts=12, gate_batches=2, gated=False), **fields)
    imagination = ImaginationConfig(use=use, horizon=horizon, latent=latent)
    world_model = WorldModelConfig(backend=backend, num_updates=num_updates, batch_size_episodes=8)
    return ImaginationTrainer(model, env, RolloutConfig(8, 4, 4), PPO, world_model, imagination, 0)


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


@pytest.mark.parametrize("backend", ["mtp", "oracle", "shuffled", "identity"])
@pytest.mark.parametrize("mixed", [False, True])
def test_it_trains_on_imagined_rows_once_skill_was_measured(
    backend: str, mixed: bool, tiny_model: MakeModel, text_env: MakeEnv
) -> None:
    trainer = make_trainer(tiny_model(), text_env(16), backend, mixed=mixed)
    gates, losses = [], []
    for _ in range(3):
        metrics, rollout = trainer.step()
        gates.append(metrics["imagination/gate_open"])
        losses.append("imagination/losses/policy" in metrics)
        assert len(rollout) == 16, "imagined rows are not real episodes"
    assert gates == [0.0, 0.0, 1.0]
    assert losses == [False, False, not mixed], "mixed rows have no update of their own"
    assert 0 < metrics["imagination/path_weight"] <= 1


@pytest.mark.parametrize("mixed", [False, True])
def test_behind_a_shut_gate_it_is_plain_ppo_to_the_bit(mixed: bool, tiny_model: MakeModel, text_env: MakeEnv) -> None:
    """``identity`` has exactly no skill. The critic would learn beside the heads, so that these do not learn here."""
    found = []
    for use in ("off", "latent"):
        model = tiny_model()
        trainer = make_trainer(model, text_env(16), "identity", use, num_updates=0, gated=True, mixed=mixed)
        metrics = [trainer.step()[0] for _ in range(4)]
        found.append(weights(model.trunk))
    assert [step["imagination/action_skill"] for step in metrics] == [0.0] * 4
    assert [step["imagination/gate_open"] for step in metrics] == [0.0] * 4
    assert torch.equal(*found)


@pytest.mark.parametrize("mixed", [False, True])
def test_imagined_rows_change_the_policy(mixed: bool, tiny_model: MakeModel, text_env: MakeEnv) -> None:
    found = []
    for use in ("off", "latent"):
        model = tiny_model()
        trainer = make_trainer(model, text_env(16), "mtp", use, mixed=mixed)
        for _ in range(3):
            trainer.step()
        found.append(weights(model.trunk))
    assert not torch.equal(*found)


def imagined_of(trainer: ImaginationTrainer) -> list[Any]:
    """Whatever the trainer imagines from now on."""
    kept: list[Any] = []
    latent = trainer._latent
    assert latent is not None
    imagine = latent._imagine

    def keep() -> Any:
        imagined, metrics = imagine()
        kept.append(imagined)
        return imagined, metrics

    latent._imagine = keep  # type: ignore[method-assign]
    return kept


def prefixes(rollout: Rollout) -> set[tuple[int, ...]]:
    """The texts that a rollout's states are."""
    return {
        tuple(ids[:place].tolist())
        for ids, places, there in zip(rollout.input_ids, rollout.action_index, rollout.step_mask, strict=True)
        for place in places[there]
    }


def starts_of(rollout: Rollout) -> set[tuple[int, ...]]:
    """The texts that are gone on from."""
    first = rollout.action_index[:, 0].tolist()
    return {tuple(ids[:place].tolist()) for ids, place in zip(rollout.input_ids, first, strict=True)}


@pytest.mark.parametrize("horizon", [1, 2])
def test_imagined_rows_begin_in_real_states_and_are_read_as_the_policy_acts(
    horizon: int, tiny_model: MakeModel, text_env: MakeEnv
) -> None:
    """A row is a real prefix and up to ``horizon`` tokens, none after EOS or beyond the budget of three."""
    model = tiny_model()
    trainer = make_trainer(model, text_env(16), horizon=horizon)
    kept = imagined_of(trainer)
    for _ in range(2):
        trainer.step()
    acted_with = weights(model.trunk)
    _, real = trainer.step()
    imagined = kept[0].rollout
    assert len(imagined) == 12
    assert not torch.equal(weights(model.trunk), acted_with)
    taken = imagined.step_mask.sum(dim=1)
    assert taken.min() >= 1
    assert taken.max() <= horizon
    assert starts_of(imagined) <= prefixes(real)
    for row in range(12):
        text = imagined.input_ids[row][imagined.attention_mask[row]].tolist()
        actions = imagined.actions[row][imagined.step_mask[row]].tolist()
        first = int(imagined.action_index[row, 0])
        assert text[first:] == actions
        assert 1 not in actions[:-1], "nothing is written after EOS"
        assert len(text) <= 6
        ends = (bool(imagined.terminated[row].any()), bool(imagined.truncated[row].any()))
        assert ends == (actions[-1] == 1, actions[-1] != 1)
        if len(actions) < horizon:
            assert actions[-1] == 1 or len(text) == 6, "it stops short only where the answer is over"
    assert torch.equal(action_mask(imagined).sum(dim=1), taken)
    assert not (imagined.terminated & imagined.truncated).any()


def test_log_probabilities_are_those_of_the_policy_that_acted(tiny_model: MakeModel, text_env: MakeEnv) -> None:
    """The trunk's, of the weights before the real update, and not those of the heads that sampled."""
    model = tiny_model().double()
    trainer = make_trainer(model, text_env(16))
    kept = imagined_of(trainer)
    for _ in range(2):
        trainer.step()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.step()
    imagined, stats = kept[0].rollout, kept[0].stats
    model.load_state_dict(before)
    logits = (
        model.trunk(imagined.input_ids, attention_mask=imagined.attention_mask.long()).logits.log_softmax(-1).detach()
    )
    for row, step in imagined.step_mask.nonzero().tolist():
        place = int(imagined.action_index[row, step])
        expected = float(logits[row, place - 1, int(imagined.actions[row, step])])
        assert float(imagined.logprobs[row, step]) == pytest.approx(expected, abs=1e-6)
    assert torch.equal(stats.ref_logprobs, imagined.logprobs), "the leash is to the policy that acted"


def test_the_first_token_is_the_policys_own_and_later_ones_are_weighed_against_it(
    tiny_model: MakeModel, text_env: MakeEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the trunk's probability over the heads' where the token was sampled."""
    seen: list[tuple[ImaginedRollout, torch.Tensor]] = []
    targets_of = latent_module.actor_targets

    def look(imagined: ImaginedRollout, logprobs: torch.Tensor, *args: Any) -> Any:
        seen.append((imagined, logprobs))
        return targets_of(imagined, logprobs, *args)

    monkeypatch.setattr(latent_module, "actor_targets", look)
    trainer = make_trainer(tiny_model(), text_env(16))
    kept = imagined_of(trainer)
    for _ in range(3):
        trainer.step()
    ((imagined, logprobs),) = seen
    rollout = kept[0].rollout
    torch.testing.assert_close(imagined.logprobs[:, 0], logprobs[:, 0], atol=1e-5, rtol=0)
    later = imagined.in_turn[:, 1]
    assert float((imagined.logprobs[:, 1] - logprobs[:, 1])[later].abs().min()) > 1e-3
    there = rollout.step_mask[:, :2]
    torch.testing.assert_close(logprobs[there], rollout.logprobs[:, :2][there], atol=1e-6, rtol=0)


def test_skill_is_of_the_real_tokens_and_what_they_brought(
    tiny_model: MakeModel, text_env: MakeEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is a run of real actions of one answer, inside while it lasts, and their return: the reward at its end."""
    seen: list[tuple[torch.Tensor, ...]] = []

    def look(world_model: Any, state: Any, actions: Any, inside: Any, returns: Any, *args: Any) -> float:
        seen.append((actions, inside, returns))
        return 0.0

    monkeypatch.setattr(latent_module, "action_skill", look)
    trainer = make_trainer(tiny_model(), text_env(16), num_starts=1000)
    real = trainer.step()[1]
    ((actions, inside, returns),) = seen
    assert len(actions) == real.num_tokens, "every state of a batch that has no more"
    found = sorted(
        (*row[there].tolist(), *map(float, paid[there]))
        for row, there, paid in zip(actions, inside, returns, strict=True)
    )
    expected = []
    for answer, there, paid in zip(real.actions, real.step_mask, real.rewards, strict=True):
        tokens, total = answer[there].tolist(), float(paid[there].sum())
        for start in range(len(tokens)):
            ahead = tokens[start : start + 2]
            expected.append((*ahead, *[total] * len(ahead)))
    assert found == sorted(expected)


def test_states_of_earlier_batches_are_branched_from_and_none_older(tiny_model: MakeModel, text_env: MakeEnv) -> None:
    trainer = make_trainer(tiny_model(), text_env(16), replay_iterations=2, num_starts=200)
    kept = imagined_of(trainer)
    seen = [prefixes(trainer.step()[1]) for _ in range(4)]
    starts = starts_of(kept[-1].rollout)
    assert starts <= seen[2] | seen[3]
    assert starts & (seen[2] - seen[3])
    assert starts & (seen[3] - seen[2])


@pytest.mark.parametrize(("kl_coef", "most"), [(0.0, None), (100.0, 0.02)])
def test_the_leash_holds(kl_coef: float, most: float | None, tiny_model: MakeModel, text_env: MakeEnv) -> None:
    """With a strong one the policy stays where it acted, through twenty epochs; without one it does not."""
    trainer = make_trainer(tiny_model(), text_env(16), kl_coef=kl_coef, num_epochs=20)
    for _ in range(2):
        trainer.step()
    drift = trainer.step()[0]["imagination/losses/approx_kl"]
    assert drift < most if most is not None else drift > 0.02


def test_at_the_acting_policy_the_leash_pulls_nowhere(tiny_model: MakeModel, text_env: MakeEnv) -> None:
    """No advantage and no real update before it: the gradient of the policy is zero to rounding."""
    model = tiny_model().double()
    trainer = make_trainer(model, text_env(16), kl_coef=1e3)
    kept = imagined_of(trainer)
    for _ in range(3):
        trainer.step()
    agent = trainer._latent._agent  # type: ignore[union-attr]
    (imagined,) = kept
    rollout = imagined.rollout
    logits = model.trunk(rollout.input_ids, attention_mask=rollout.attention_mask.long()).logits.log_softmax(-1)
    before = torch.where(rollout.step_mask, rollout.action_index - 1, 0)
    now = logits.gather(1, before[..., None].expand(-1, -1, logits.shape[-1])).gather(2, rollout.actions[..., None])
    acted = replace(rollout, logprobs=now[..., 0].detach())
    plan = replace(imagined.plan, advantages=torch.zeros_like(imagined.plan.advantages))
    agent.optimizer.zero_grad()
    loss, terms = agent._loss(acted, acted.logprobs, plan, acted, has_tail=False)
    loss.backward()
    assert float(terms["losses/kl_reference"].detach()) == pytest.approx(0, abs=1e-12)
    assert max(float(weight.grad.abs().max()) for weight in model.trunk.parameters() if weight.grad is not None) < 1e-10


@pytest.mark.parametrize(("mixed", "replay_iterations"), [(False, 1), (True, 1), (False, 3)])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(
    mixed: bool, replay_iterations: int, tiny_model: MakeModel, text_env: MakeEnv
) -> None:
    fields = {"mixed": mixed, "replay_iterations": replay_iterations}
    model = tiny_model()
    trainer = make_trainer(model, text_env(16), **fields)
    for _ in range(3):
        trainer.step()
    file = io.BytesIO()
    torch.save(trainer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    expected = [trainer.step()[0] for _ in range(2)]
    other_model = tiny_model(seed=5)
    other = make_trainer(other_model, text_env(16), **fields)
    other.load_state_dict(saved)
    found = [other.step()[0] for _ in range(2)]
    for one, two in zip(found, expected, strict=True):
        assert one.keys() == two.keys()
        assert {name for name in one if not name.startswith("time/") and one[name] != two[name]} == set()
    assert torch.equal(weights(other_model), weights(model))


def test_the_warm_up_of_imagined_updates_is_resumed(tiny_model: MakeModel, text_env: MakeEnv) -> None:
    trainer = make_trainer(tiny_model(), text_env(16))
    for _ in range(4):
        trainer.step()
    other = make_trainer(tiny_model(), text_env(16))
    other.load_state_dict(trainer.state_dict())
    assert other._latent._agent.num_updates == 4  # type: ignore[union-attr]  # two minibatches in each of two iterations
    assert other.agent.num_updates == trainer.agent.num_updates == 16


def test_where_a_world_replies_it_is_refused(tiny_model: MakeModel) -> None:
    class Echo:
        def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
            return "ab=", {}

        def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            return "=", 0.0, False, True, {}

    env = TextGenVectorEnv(
        16,
        task=WorldTask(Echo, {}, num_seeds=40),
        tokenizer=CharTokenizer("abcd="),
        max_prompt=3,
        max_new=6,
        max_turn=1,
        pool_size=8,
    )
    with pytest.raises(ValueError, match=r"imagination=latent is for answers without replies.*imagination=episodes"):
        make_trainer(tiny_model(), env)


def test_a_world_model_that_is_blind_to_actions_is_refused(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    model = MTPModel.from_trunk(
        tiny_model().trunk, replace(tiny_model().config, head="medusa"), torch.Generator().manual_seed(0)
    ).eval()
    with pytest.raises(TypeError, match="predicts the policy's average future"):
        make_trainer(model, text_env(16), "mtp_parallel")


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_starts", 0), ("lambda_", 1.5), ("kl_coef", -1.0), ("min_return_range", 0.0), ("gate_batches", 1)],
)
def test_settings_that_make_no_sense_are_told(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field}={value}"):
        LatentConfig(**{field: value})
