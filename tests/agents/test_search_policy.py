"""Acting by search in a text environment, and the ways to answer that it is compared with."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from worldmtp.agents.acting_search import make_search_policy
from worldmtp.agents.answers import Answering, foreseen_returns
from worldmtp.agents.policies import ActingPolicy
from worldmtp.agents.rollout import Rollout, collect_rollout
from worldmtp.agents.search_config import ActingSearch
from worldmtp.agents.search_policy import SearchPolicy, _TurnLengths
from worldmtp.dynamics import acting_policy, make_world_model
from worldmtp.envs import TextGenVectorEnv
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.search import SearchConfig, plan
from worldmtp.search.q_transforms import completed_in_range, visited_in_range
from worldmtp.search.turns import TurnState, TurnWorldModel

MakeEnv = Callable[[int], TextGenVectorEnv]
MakeModel = Callable[..., MTPModel]
HOW = ActingSearch("gumbel", "oracle", SearchConfig(num_simulations=6, width=7))


@pytest.fixture
def model(tiny_model: MakeModel) -> MTPModel:
    """World heads start at zero; here they tell latents apart."""
    model, generator = tiny_model(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def answering(env: TextGenVectorEnv, model: MTPModel, temperature: float = 1.0) -> Answering:
    return Answering(model, env, env.examples("heldout", env.num_envs, seed=0), temperature, seed=0)


def rollout_of(env: TextGenVectorEnv, policy: ActingPolicy, generator: torch.Generator | None) -> Rollout:
    options = {"split": "heldout", "prompts": env.examples("heldout", env.num_envs, seed=0)}
    return collect_rollout(env, policy, generator, options)


IN_RANGE = {"gumbel": completed_in_range, "puct": visited_in_range}


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
@pytest.mark.parametrize("scale", ["node", "returns"])
@pytest.mark.parametrize("sampled", [False, True])
def test_every_token_is_that_of_a_search_in_its_prefix(
    rule: str, scale: str, sampled: bool, text_env: MakeEnv, model: MTPModel
) -> None:
    """Returns of this model lie between 0 and 1."""
    env, world_model = text_env(4), make_world_model("oracle", model, torch.Generator())
    how = ActingSearch(rule, "oracle", HOW.tree, scale)
    measured = None if scale == "node" else partial(IN_RANGE[rule], low=0.0, high=1.0)
    generator = torch.Generator().manual_seed(3) if sampled else None
    policy = make_search_policy(how, model, env, 0.7, torch.Generator(), world_model=world_model)
    rollout = rollout_of(env, policy, generator)
    turns = TurnWorldModel(world_model, [env.tokenizer.eos_id], ends_episode=True)
    for b, t in rollout.step_mask.nonzero().tolist():
        prefix = rollout.input_ids[b : b + 1, : rollout.action_index[b, t]]
        with torch.no_grad():
            root = world_model.encode(prefix, torch.ones_like(prefix, dtype=torch.bool))
        state = TurnState(torch.tensor([3 - t]), root)
        found = plan(rule, turns, state, acting_policy(0.7), how.tree, q_transform=measured)
        action = int(rollout.actions[b, t])
        slot = found.tokens[0].tolist().index(action)
        if not sampled:
            assert action == int(found.actions[0])
        with torch.no_grad():
            prior = (model.trunk(prefix).logits[0, -1] / 0.7).softmax(dim=-1)[action]
        # All 7 tokens are kept: Gumbel's weights are whole, and of 6 visits PUCT's get one more, spread by the policy.
        acting = found.weights[0, slot] if rule == "gumbel" else (6 * found.weights[0, slot] + prior) / 7
        assert rollout.behaviour_logprobs is not None
        assert float(rollout.behaviour_logprobs[b, t]) == pytest.approx(float(acting.log()), abs=1e-4)
        assert float(rollout.logprobs[b, t]) == pytest.approx(float(prior.log()), abs=1e-4)


def test_forbidden_tokens_are_not_chosen_and_rows_that_ended_are_not_searched(
    text_env: MakeEnv, model: MTPModel
) -> None:
    env, asked = text_env(3), list[int]()
    world_model = make_world_model("oracle", model, torch.Generator())
    encode = world_model.encode
    world_model.encode = lambda ids, *rest: (asked.append(len(ids)), encode(ids, *rest))[1]  # type: ignore[method-assign]
    policy = SearchPolicy(world_model, env, 1.0, HOW)
    obs, _ = env.reset(options={"split": "heldout"})
    vocab = env.tokenizer.vocab_size
    mask = np.zeros((3, vocab), dtype=np.int8)
    mask[[0, 1, 2], [1, 4, 5]] = 1
    eos = env.tokenizer.eos_id
    mask[0] = np.arange(vocab) == eos
    step = policy.act(obs, {"action_mask": mask}, None)
    assert step.actions.tolist() == [eos, 4, 5]
    obs, *_ = env.step(step.actions.numpy())
    policy.act(obs, {}, None)
    assert asked == [3, 2]


def test_parallel_heads_are_refused(text_env: MakeEnv, tiny_trunk: Callable[..., PreTrainedModel]) -> None:
    trunk = tiny_trunk("llama", vocab_size=7)
    model = MTPModel.from_trunk(trunk, MTPConfig(head="medusa", depth=3), torch.Generator().manual_seed(0)).eval()
    with pytest.raises(TypeError, match="use action-conditional heads"):
        answering(text_env(2), model).searched(ActingSearch())


def test_the_length_of_a_turn_by_hand() -> None:
    """Row 0 writes 3, 4, and EOS (1), then is replied to by 5 6; row 1 gets a new text of the next length."""
    turns = _TurnLengths(eos_id=1)

    def text(*rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.zeros((len(rows), 8), dtype=np.int64)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = ids
        return tokens, np.array([len(ids) for ids in rows])

    def act(answers: list[int], *rows: list[int], replied: list[bool] | None = None) -> list[int]:
        now = text(*rows)
        written = turns.observe(*now, None if replied is None else np.array(replied)).tolist()
        turns.answer(*now, np.array(answers))
        return written

    assert act([3, 3], [2], [2, 2]) == [0, 0]
    assert act([4, 4], [2, 3], [2, 2, 3]) == [1, 1]
    assert act([1, 4], [2, 3, 4], [2, 5, 3, 4]) == [2, 0]
    assert act([3, 4], [2, 3, 4, 1], [2, 5, 3, 4, 4]) == [0, 1]
    assert act([3, 4], [2, 3, 4, 1, 3, 6], [2, 5, 3, 4, 4, 4]) == [0, 2]
    # Both write a 3 or 4 more; row 1's turn was over with it, and its reply is an empty text.
    assert act([3, 4], [2, 3, 4, 1, 3, 6, 3], [2, 5, 3, 4, 4, 4, 4], replied=[False, True]) == [1, 0]


class TestWaysToAnswer:
    def test_the_best_of_one_draw_is_the_draw(self, text_env: MakeEnv, model: MTPModel) -> None:
        ways = answering(text_env(4), model)
        drawn = ways.sampled()
        for best in ways.best_of(1):
            assert torch.equal(best.score, drawn.score)
            assert torch.equal(best.exact, drawn.exact)
            assert best.trunk_tokens == drawn.trunk_tokens

    def test_the_scorer_chooses_what_it_scores_highest_and_prompts_are_read_once(
        self, text_env: MakeEnv, model: MTPModel
    ) -> None:
        ways = answering(text_env(4), model, temperature=50.0)
        one, _ = ways.best_of(1)
        many, own = ways.best_of(48)
        # All but uniform draws: one of 49 is right, so that of 192 some are; and what the first draw got is not lost.
        assert (many.score >= one.score).all()
        assert many.score.sum() > one.score.sum()
        assert (own.score <= many.score).all()
        assert torch.equal(many.exact, many.score == 1)
        # Prompts of 3 tokens, answers of 1 to 3.
        assert 3 + 48 <= many.trunk_tokens <= 3 + 48 * 3

    def test_a_node_over_the_trunk_is_a_trunk_token_and_over_heads_none(
        self, text_env: MakeEnv, model: MTPModel
    ) -> None:
        ways = answering(text_env(1), model)
        over_trunk, over_heads = (
            ways.searched(ActingSearch("gumbel", dynamics, HOW.tree, "node")) for dynamics in ("oracle", "mtp")
        )
        # A text of 3 + n tokens, and 6 simulations for each of the n.
        assert over_trunk.trunk_tokens in {3 + 7 * n for n in (1, 2, 3)}
        assert over_heads.trunk_tokens in {4, 5, 6}

    def test_texts_that_have_ended_take_no_nodes(self, text_env: MakeEnv, model: MTPModel) -> None:
        env, how = text_env(6), ActingSearch("gumbel", "oracle", HOW.tree, "node")
        found = answering(env, model).searched(how)
        rollout = rollout_of(env, make_search_policy(how, model, env, 1.0, torch.Generator()), None)
        lengths = rollout.step_mask.sum(dim=1)
        assert len(lengths.unique()) > 1
        # Texts of 3 + n tokens, and 6 simulations for each of the n.
        assert found.trunk_tokens == pytest.approx(float((3 + 7 * lengths).float().mean()))

    @torch.no_grad()
    def test_foreseen_returns_add_up_what_the_reward_head_reads(
        self, model: MTPModel, hand_rollout: Callable[..., Any]
    ) -> None:
        rows = [
            {"prompt": [2, 3], "actions": [4, 5, 1], "rewards": [0.0, 0.0, 1.0], "end": "terminated"},
            {"prompt": [2], "actions": [1], "rewards": [0.0], "end": "terminated"},
        ]
        rollout, heads = hand_rollout(rows, steps=3, length=5), model.world_heads
        found = foreseen_returns(model, rollout)
        for row, ids in enumerate(([2, 3, 4, 5, 1], [2, 1])):
            hidden = model.trunk_features(torch.tensor([ids]), torch.ones(1, len(ids)).bool()).post_norm[0]
            start = len(rows[row]["prompt"])
            read = heads(hidden).reward_logits.softmax(dim=-1) @ torch.linspace(-1, 1, 21)
            assert float(found[row]) == pytest.approx(float(read[start:].sum()), abs=1e-4)

    def test_no_answer_is_not_the_best(self, text_env: MakeEnv, model: MTPModel) -> None:
        with pytest.raises(ValueError, match="best of 0"):
            answering(text_env(1), model).best_of(0)

    def test_a_beam_of_one_is_greedy_and_a_wide_one_finds_the_likeliest_answer(
        self, text_env: MakeEnv, model: MTPModel
    ) -> None:
        """Of all answers of three tokens at most, EOS (1) the last of those that are shorter, by the trunk itself."""
        env = text_env(4)
        ways, written = answering(env, model), []
        collect = ways._rollout
        object.__setattr__(
            ways, "_rollout", lambda policy, generator: (written.append(collect(policy, generator)), written[-1])[1]
        )
        greedy, beam = ways.greedy(), ways.beam(1)
        assert torch.equal(written[0].input_ids, written[1].input_ids)
        assert torch.equal(greedy.score, beam.score)
        assert beam.trunk_tokens == greedy.trunk_tokens
        wide = ways.beam(49)
        vocab = range(7)
        answers = [[1], *([a, 1] for a in vocab if a != 1)]
        answers += [[a, b, c] for a in vocab for b in vocab for c in vocab if 1 not in (a, b)]
        for row in range(4):
            prompt = written[2].input_ids[row, :3].tolist()
            scores = []
            for answer in answers:
                with torch.no_grad():
                    logits = model.trunk(torch.tensor([prompt + answer])).logits[0, 2:-1].double().log_softmax(-1)
                scores.append(float(logits.gather(1, torch.tensor(answer)[:, None]).sum()))
            best = answers[scores.index(max(scores))]
            taken = written[2].actions[row][written[2].step_mask[row]].tolist()
            assert taken == best
        assert wide.trunk_tokens == 3 + 49 * float(written[2].step_mask.sum()) / 4

    def test_a_beam_is_refused_where_an_answer_is_not_a_whole_text(self, text_env: MakeEnv, model: MTPModel) -> None:
        ways = answering(text_env(1), model)
        with pytest.raises(ValueError, match="a beam of 0 must keep at least 1 text"):
            ways.beam(0)
        object.__setattr__(ways, "env", SimpleNamespace(eos_terminates=False))
        with pytest.raises(ValueError, match="a world replies"):
            ways.check_beam(2)
