"""Imagined answers by hand, against decoding token by token, and against each alone."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.agents.imagination.completions import (
    COMPLETIONS_RUNG,
    NUM_COLUMNS,
    Continuations,
    ScoredCompletions,
    completion_columns,
    completions_of,
    continue_answers,
)
from worldmtp.agents.imagination.counterfactual import CounterfactualAdvantages
from worldmtp.agents.imagination.critic import LiveTokens, live_tokens
from worldmtp.agents.imagination.imagined_returns import Acting, acted_states
from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.ppo import PolicyStats, likely_tokens
from worldmtp.agents.rollout import Rollout, collect_rollout
from worldmtp.agents.tail import TAIL
from worldmtp.decoding import generate
from worldmtp.dynamics import MTPWorldModel, OracleWorldModel, acting_policy
from worldmtp.envs import TextGenVectorEnv
from worldmtp.model import MTPModel

MakeRollout = Callable[..., Rollout]
MakeEnv = Callable[[int], TextGenVectorEnv]
MakeModel = Callable[..., MTPModel]
EOS, POLICY = 1, acting_policy(1.0)


def config_of(**changes: Any) -> ImaginationConfig:
    settings: dict[str, Any] = {"completions": "trunk", "max_rung": 0, "completion_samples": 0}
    return ImaginationConfig(**settings | changes)


def two_answers(make: MakeRollout) -> Rollout:
    """One group, two answers of up to 3 tokens to the prompt 2 3."""
    rows = [
        {"prompt": [2, 3], "actions": [4, 5, 1], "rewards": [0, 0, 1.0], "end": "terminated", "group": 0},
        {"prompt": [2, 3], "actions": [4, 4, 4], "rewards": [0, 0, 0.0], "end": "truncated", "group": 0},
    ]
    return make(rows, steps=3, length=6)


def live_of(rollout: Rollout, *ids: int, tail: bool = False) -> LiveTokens:
    """These tokens in every state, equally likely."""
    shape = (*rollout.actions.shape, len(ids))
    live = torch.tensor(ids).expand(shape)
    mask = rollout.step_mask[..., None].expand(shape)
    return LiveTokens(live, torch.full(shape, -math.log(len(ids))), mask, has_tail=tail)


class Asked:
    """A scorer that keeps what it was asked, and pays a hundredth of the tokens' sum."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, tuple[int, ...]]] = []

    def __call__(self, rows: np.ndarray, answers: Any) -> np.ndarray:
        self.answers += [(int(row), tuple(answer.tolist())) for row, answer in zip(rows, answers, strict=True)]
        return np.array([answer.sum() / 100 for answer in answers])


def scored(
    world: Any, worth: Any, max_new: int = 3, return_range: Any = (0.0, 1.0), **changes: Any
) -> ScoredCompletions:
    acting = Acting(POLICY, return_range)
    return ScoredCompletions(world, worth, acting, EOS, max_new, config_of(**changes), torch.Generator().manual_seed(0))


# Columns


def test_columns_by_hand() -> None:
    """Two equal draws, of probability .25, beside the greedy answer, of .5, which is worth 1: the sum of q is .75."""
    tokens = torch.tensor([[[4, 1], [5, 1], [5, 1]]])
    lengths = torch.tensor([[2, 2, 2]])
    logprobs = torch.tensor([[0.5, 0.25, 0.25]]).log().double()
    continued = Continuations(tokens, lengths, logprobs)
    assert continued.is_first.tolist() == [[True, True, False]]
    columns = completion_columns(torch.tensor([[1.0, 0.2, 0.2]]).double(), continued)
    expected = [1.0, 1.0, math.log(0.5), 0.2, 0.75, 0.5 * 1.0 + 0.25 * 0.2]
    torch.testing.assert_close(columns, torch.tensor([expected]).double())


def test_without_draws_the_mean_is_the_greedy_score_and_surprise_has_a_floor() -> None:
    continued = Continuations(torch.tensor([[[4]]]), torch.tensor([[1]]), torch.tensor([[-50.0]]))
    (columns,) = completion_columns(torch.tensor([[0.5]]), continued).tolist()
    assert columns[:4] == [1.0, 0.5, -20.0, 0.5]
    assert columns[4] == pytest.approx(math.exp(-50))


def test_texts_are_told_apart_by_their_length_too() -> None:
    """Token 0 pads: a text of one token 0 is another one than the empty one."""
    continued = Continuations(torch.zeros((1, 2, 1), dtype=torch.long), torch.tensor([[0, 1]]), torch.zeros(1, 2))
    assert continued.is_first.tolist() == [[True, True]]


# Chains


def test_chains_by_hand(hand_rollout: MakeRollout, total_world: Any) -> None:
    """The world's next token is (total mod 7). After 2 3 and 4 that is 2 (9), then 4 (11); after 2 3 and 3: 1, EOS."""
    rollout, worth = two_answers(hand_rollout), Asked()
    live = live_of(rollout, 4, 3)
    states = acted_states(total_world, rollout)
    columns, metrics = scored(total_world, worth).features(rollout, states, live)
    first = [(0, (3, 1)), (0, (4, 2, 4))]
    second = [(0, (4, 3, 5)), (0, (4, 4, 6))]  # 2 3 4 3 is 12, 5; 2 3 4 4 is 13, 6
    third = [(0, (4, 5, 3)), (0, (4, 5, 4)), (1, (4, 4, 3)), (1, (4, 4, 4))]
    assert sorted(worth.answers) == sorted([*first, *second, *third])
    assert metrics["imagination/completions"] == 8  # of 12 candidates, the four in equal prefixes once
    assert metrics["imagination/imagined_tokens"] == 8 + (1 + 2) + (1 + 1)
    scores = columns.view(2, 3, 2, NUM_COLUMNS)[..., 1]
    expected = [[[0.10, 0.04], [0.14, 0.12], [0.13, 0.12]], [[0.10, 0.04], [0.14, 0.12], [0.12, 0.11]]]
    torch.testing.assert_close(scores, torch.tensor(expected).double())
    likeliest = 5 - math.log(math.exp(5) + 6)
    torch.testing.assert_close(columns.view(2, 3, 2, -1)[0, 0, :, 2], torch.tensor([2.0, 1.0]).double() * likeliest)


def test_scores_are_shares_of_the_return_range(hand_rollout: MakeRollout, total_world: Any) -> None:
    rollout = two_answers(hand_rollout)
    live, states = live_of(rollout, 4, 3), acted_states(total_world, rollout)
    columns, _ = scored(
        total_world, lambda rows, answers: np.full(len(answers), 2.0), return_range=(1.0, 5.0)
    ).features(rollout, states, live)
    assert columns[:, 1].unique().tolist() == [0.25]


def test_an_answer_that_is_over_takes_no_step(total_world: Any) -> None:
    """EOS, and a token that fills the budget, have nothing behind them."""
    roots = total_world.encode(torch.tensor([[2, 3]]), None, torch.tensor([0, 0]), torch.tensor([1, 1]))
    candidates, room = torch.tensor([EOS, 4]), torch.tensor([2, 0])
    continued = continue_answers(total_world, roots, candidates, room, POLICY, EOS, torch.zeros((2, 1, 2)).double())
    assert continued.lengths.tolist() == [[0, 0], [0, 0]]
    assert continued.logprobs.tolist() == [[0, 0], [0, 0]]
    assert continued.is_first.tolist() == [[True, False], [True, False]]


def test_draws_follow_the_policy(total_world: Any) -> None:
    """By the inverse distribution: of the seven tokens, all of logit 0 but number 5's, in the order of their ids."""
    roots = total_world.encode(torch.tensor([[2]]), None, torch.tensor([0]), torch.tensor([0]))
    heavy = math.exp(5) / (math.exp(5) + 6)
    light = (1 - heavy) / 6
    uniform = torch.tensor([[[0.5 * light], [1.5 * light], [5.5 * light], [1 - 0.5 * light]]]).double()
    continued = continue_answers(total_world, roots, torch.tensor([3]), torch.tensor([1]), POLICY, EOS, uniform)
    assert continued.tokens[0, :, 0].tolist() == [5, 0, 1, 5, 6]
    q = torch.tensor([heavy, light, light, heavy, light])
    torch.testing.assert_close(continued.logprobs[0].exp().float(), q)
    assert continued.is_first[0].tolist() == [True, True, True, False, True]


def test_the_trunks_greedy_chain_is_greedy_decoding(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    """In float64, after every token of the vocabulary in every state: by whole forwards, and by ``generate``."""
    model = tiny_model().double()
    rollout = acted(model, text_env(6), seed=3)
    every = live_of(rollout, *range(7))
    asked = Asked()
    world = OracleWorldModel(model)
    scored(world, asked).features(rollout, acted_states(world, rollout), every)
    begun = [
        (row, prompt_of(rollout, row), [*rollout.actions[row, :step].tolist(), token])
        for row, step in torch.nonzero(rollout.step_mask).tolist()
        for token in range(7)
    ]
    assert len({len(answer) for _, answer in asked.answers}) == 3
    assert sorted(asked.answers) == sorted((row, tuple(greedy_end(model, *text))) for row, *text in begun)
    assert sorted(asked.answers) == sorted((row, tuple(decoded_end(model, *text))) for row, *text in begun)


def acted(model: MTPModel, env: TextGenVectorEnv, seed: int, group_size: int = 1) -> Rollout:
    env.reset(seed=seed)
    options = {"split": "train", "group_size": group_size}
    return collect_rollout(env, TrunkPolicy(model, 1.0), torch.Generator().manual_seed(seed), options)


def prompt_of(rollout: Rollout, row: int) -> list[int]:
    prompt: list[int] = rollout.input_ids[row, : rollout.prompt_length[row]].tolist()
    return prompt


def greedy_end(model: MTPModel, prompt: list[int], answer: list[int]) -> list[int]:
    """Complete an answer of up to 3 tokens, one whole forward a token."""
    while len(answer) < 3 and answer[-1] != EOS:
        text = torch.tensor([prompt + answer])
        with torch.no_grad():
            hidden = model.trunk_features(text, torch.ones_like(text, dtype=torch.bool)).post_norm[:, -1]
            answer = [*answer, int(model.logits_of(hidden).argmax())]
    return answer


def decoded_end(model: MTPModel, prompt: list[int], answer: list[int]) -> list[int]:
    if len(answer) == 3 or answer[-1] == EOS:
        return answer
    text = torch.tensor([prompt + answer])
    out = generate(model, text, max_new_tokens=3 - len(answer), eos_token_id=EOS, draft="none")
    return answer + out.sequences[0, text.shape[1] :][: int(out.lengths[0])].tolist()


@pytest.mark.parametrize("num_samples", [0, 2])
def test_chunks_change_nothing(num_samples: int, text_env: MakeEnv, tiny_model: MakeModel) -> None:
    model = tiny_model().double()
    rollout = acted(model, text_env(6), seed=1)
    every, world = live_of(rollout, *range(7)), OracleWorldModel(model)
    states = acted_states(world, rollout)
    whole, parts = (
        scored(world, Asked(), completion_samples=num_samples, chunk_states=size).features(rollout, states, every)[0]
        for size in (2048, 5)
    )
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=0)


# What is completed, and how often


def test_equal_prefixes_of_a_group_are_completed_once(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    """Told apart by their groups, all candidates are completed; in their groups fewer, to the same features."""
    model = tiny_model().double()
    rollout = acted(model, text_env(12), seed=2, group_size=4)
    every, world = live_of(rollout, *range(7)), OracleWorldModel(model)
    states = acted_states(world, rollout)
    together, costs = scored(world, Asked()).features(rollout, states, every)
    apart = replace(rollout, group=torch.arange(12))
    alone, more = scored(world, Asked()).features(apart, states, every)
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)
    assert more["imagination/completions"] == 7 * rollout.num_tokens
    prefixes = {
        (int(rollout.group[row]), *rollout.actions[row, :step].tolist())
        for row, step in torch.nonzero(rollout.step_mask).tolist()
    }
    assert costs["imagination/completions"] == 7 * len(prefixes) < 7 * rollout.num_tokens


def test_the_environments_scorer_is_asked_about_each_answer_once(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    model, env = tiny_model(), text_env(8)
    config = config_of(completion_samples=3)
    acting = Acting(POLICY, (0.0, 1.0))
    completions = completions_of(env, model, OracleWorldModel(model), acting, config, torch.Generator().manual_seed(0))
    assert completions is not None
    rollout = acted(model, env, seed=0, group_size=4)
    asked = Asked()
    states = acted_states(OracleWorldModel(model), rollout)
    scored(OracleWorldModel(model), asked, completion_samples=3).features(rollout, states, live_of(rollout, 2, 3, 1))
    columns, _ = completions.features(rollout, states, live_of(rollout, 2, 3, 1))
    assert env.scorer.counters.scored == 8  # the rollout's
    assert env.scorer.imagined.scored == len({(row // 4, answer) for row, answer in asked.answers}) < len(asked.answers)
    prompts = [env.example_of(row).answer for row in range(8)]
    right = [prompts[row] == env.tokenizer.decode([answer[0]]) for row, answer in asked.answers if answer[1:] == (EOS,)]
    assert any(right) == bool((columns[:, 1:4] > 0).any())


def test_the_tail_and_what_is_not_asked_read_zeros(hand_rollout: MakeRollout, total_world: Any) -> None:
    rollout = two_answers(hand_rollout)
    live, states = live_of(rollout, 4, 3, TAIL, tail=True), acted_states(total_world, rollout)
    columns, _ = scored(total_world, Asked()).features(rollout, states, live)
    known = columns.view(2, 3, 3, NUM_COLUMNS)[..., 0]
    assert known.tolist() == [[[1, 1, 0]] * 3] * 2
    assert not columns[columns[:, 0] == 0].any()
    columns, _ = scored(total_world, Asked(), completion_candidates=1).features(rollout, states, live)
    assert columns.view(2, 3, 3, NUM_COLUMNS)[..., 0].tolist() == [[[1, 0, 0]] * 3] * 2
    # The second state has no choice: the first two that have one are the first and the third.
    live.mask[:, 1, 1] = False
    columns, _ = scored(total_world, Asked(), completion_states=2).features(rollout, states, live)
    known = torch.zeros(live.mask.shape, dtype=torch.double).masked_scatter(live.mask, columns[:, 0])
    assert known.tolist() == [[[1, 1, 0], [0, 0, 0], [1, 1, 0]]] * 2
    columns, _ = scored(total_world, Asked(), completion_states=1).features(rollout, states, live)
    known = torch.zeros(live.mask.shape, dtype=torch.double).masked_scatter(live.mask, columns[:, 0])
    assert known.tolist() == [[[1, 1, 0], [0, 0, 0], [0, 0, 0]]] * 2


def test_nothing_to_complete_costs_nothing(hand_rollout: MakeRollout, total_world: Any) -> None:
    rollout, worth = two_answers(hand_rollout), Asked()
    live = live_of(rollout, TAIL, tail=True)
    columns, metrics = scored(total_world, worth).features(rollout, acted_states(total_world, rollout), live)
    assert (metrics["imagination/completions"], worth.answers) == (0, [])
    assert columns.shape == (6, NUM_COLUMNS)
    assert not columns.any()


@pytest.mark.parametrize("states", [None, 1, 2])
@pytest.mark.parametrize("later", [[2, 3, 5], [2, 3, 1], [2, 5, 4], [2, 1], [4, 3, 4]])
def test_no_feature_looks_at_what_the_episode_did_later(
    later: list[int], states: int | None, hand_rollout: MakeRollout, tiny_model: MakeModel
) -> None:
    """Whatever another episode does from its first other token on, or when it ends: up to there columns are equal."""
    model, ours = tiny_model().double(), [2, 3, 4]
    world = OracleWorldModel(model)
    shared = 1 + next(step for step in range(3) if ours[step] != later[step])
    found = []
    for actions in (ours, later):
        row = {"prompt": [2, 3, 6], "actions": actions, "rewards": [0.0] * len(actions), "end": "truncated"}
        rollout = hand_rollout([row], 3, 6)
        probs = torch.rand((3, 7), generator=torch.Generator().manual_seed(5)).mul(4).softmax(-1)
        live = live_tokens(likely_tokens(probs.log()[None], 4), rollout.step_mask, 0.14, True)
        of_states = acted_states(world, rollout)
        columns, _ = scored(world, Asked(), completion_states=states).features(rollout, of_states, live)
        found.append(columns[: live.mask[0, :shared].sum()])
    assert found[0][:, 0].any()
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=0)


# The rung


def probs_stats(rollout: Rollout) -> PolicyStats:
    probs = torch.zeros(7)
    probs[[4, 5, 1]] = torch.tensor([0.5, 0.3, 0.2])
    return PolicyStats(torch.zeros((2, 4)), rollout.logprobs, likely_tokens(probs.log().expand(2, 3, 7), 3))


def estimator_of(world: Any, worth: Any, **changes: Any) -> CounterfactualAdvantages:
    config = config_of(horizon=2, max_live=3, min_batches=1, tail=False, **changes)
    completions = scored(world, worth, completion_samples=config.completion_samples)
    return CounterfactualAdvantages(
        world,
        Acting(POLICY, (0.0, 1.0)),
        2,
        config,
        PPOConfig(advantage="group", scale_advantages=False),
        torch.Generator().manual_seed(0),
        completions=completions if config.completions != "none" else None,
    )


@pytest.mark.parametrize("max_rung", [0, 1, 2])
def test_the_rung_reads_surprisals_and_completions_alone(
    max_rung: int, hand_rollout: MakeRollout, total_world: Any
) -> None:
    rollout = two_answers(hand_rollout)
    estimator = estimator_of(total_world, Asked(), max_rung=max_rung)
    _, metrics = estimator.estimate(rollout, probs_stats(rollout))
    numbers = [*range(max_rung + 1), COMPLETIONS_RUNG]
    assert [f"imagination/rung_{number}/r2" in metrics for number in (0, 1, 2, 3)] == [n in numbers for n in range(4)]
    assert set(estimator.learn()) == {f"imagination/rung_{number}/loss" for number in numbers}
    saved = estimator.state_dict()["rungs"]
    ((features, _),) = saved[-1]["replay"]
    ((surprisals, _),) = saved[0]["replay"]
    assert torch.equal(features[:, :6], surprisals)
    # The greedy scores of what was taken, 4 5 EOS and 4 4 4: 4 2 4, 4 5 0, 4 5 EOS, 4 2 4, 4 4 6 and 4 4 4.
    assert features[:, 6].tolist() == [1.0] * 6
    torch.testing.assert_close(features[:, 7], torch.tensor([0.10, 0.09, 0.10, 0.10, 0.14, 0.12]))


def test_it_serves_only_where_its_past_skill_beats_the_rungs_below(hand_rollout: MakeRollout, total_world: Any) -> None:
    rollout = two_answers(hand_rollout)
    for skill, expected in ((0.4, 0.0), (0.6, 3.0)):
        estimator = estimator_of(total_world, Asked())
        below, above = estimator._rungs
        below.measure(0.5, torch.ones(2), torch.full((2,), 0.5))
        above.measure(skill, torch.ones(2), torch.full((2,), 0.5))
        _, metrics = estimator.estimate(rollout, probs_stats(rollout))
        assert metrics["imagination/rung"] == expected


def test_a_restored_rung_goes_on_and_another_ladder_is_refused(hand_rollout: MakeRollout, total_world: Any) -> None:
    rollout = two_answers(hand_rollout)
    first, second = estimator_of(total_world, Asked()), estimator_of(total_world, Asked())
    first.estimate(rollout, probs_stats(rollout))
    first.learn()
    second.load_state_dict(first.state_dict())
    plans = [estimator.estimate(rollout, probs_stats(rollout)) for estimator in (first, second)]
    assert torch.equal(plans[0][0].advantages, plans[1][0].advantages)
    with pytest.raises(ValueError, match=r"saved critics read \[6, 12\].*max_rung, tail and completions"):
        estimator_of(total_world, Asked(), completions="none").load_state_dict(first.state_dict())


# Refused


def test_what_cannot_complete_is_refused(tiny_model: MakeModel, total_world: Any) -> None:
    model = tiny_model(depth=3)
    scored(MTPWorldModel(model), Asked(), max_new=3)
    message = r"an answer may have 4 tokens, and of 3 at most these heads.*depth=4.*completions=trunk"
    with pytest.raises(ValueError, match=message):
        scored(MTPWorldModel(model), Asked(), max_new=4)
    total_world.action_conditional = False
    with pytest.raises(TypeError, match="cannot answer what follows"):
        scored(total_world, Asked())


def test_where_scores_are_paid_for_it_is_refused_before_anything_is_imagined(
    text_env: MakeEnv, tiny_model: MakeModel
) -> None:
    model, acting = tiny_model(), Acting(POLICY, (0.0, 1.0))
    world, generator = MTPWorldModel(model), torch.Generator()
    env = text_env(2)
    assert completions_of(env, model, world, acting, config_of(completions="none"), generator) is None
    env.scorer.is_paid = True
    with pytest.raises(ValueError, match="scores of FirstLetter cost money"):
        completions_of(env, model, world, acting, config_of(), generator)
