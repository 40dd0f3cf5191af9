"""Models whose vocabulary is not the tokenizer's: padded embeddings change nothing, smaller ones are refused."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.evaluation import Evaluator
from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.rollout import collect_rollout
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.dynamics import acting_policy, imagine, make_world_model
from worldmtp.envs import TextGenVectorEnv
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

MakeEnv = Callable[[int], TextGenVectorEnv]
NUM_IDS = 7
"""Of the tests' environment: pad, EOS, a b c d and =."""


def padded_model(num_rows: int) -> MTPModel:
    """Weights that agree on the first NUM_IDS ids, whatever the rows; later ids are the likeliest by far."""
    config = LlamaConfig(
        vocab_size=NUM_IDS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        trunk = LlamaForCausalLM(config)
        if num_rows != NUM_IDS:
            known = {name: weight.clone() for name, weight in trunk.state_dict().items()}
            config.vocab_size = num_rows
            trunk = LlamaForCausalLM(config)
            with torch.no_grad():
                for name, weight in trunk.named_parameters():
                    weight[: len(known[name])] = known[name][: len(weight)]
                # A copy a hundred times as long: where any known logit is positive, an unknown one is far above it.
                for place in range(NUM_IDS, num_rows):
                    trunk.lm_head.weight[place] = 100 * known["lm_head.weight"][place % NUM_IDS]
    heads = MTPConfig(depth=3, num_value_bins=11)
    return MTPModel.from_trunk(trunk, heads, torch.Generator().manual_seed(0)).eval()


def trainer_of(model: nn.Module, env: TextGenVectorEnv, use: str, draft: str = "none") -> ImaginationTrainer:
    return ImaginationTrainer(
        model,
        env,
        RolloutConfig(num_iterations=2, num_prompts=4, group_size=2, draft=draft),
        PPOConfig(learning_rate=1e-3, ent_coef=0.01),
        WorldModelConfig(num_updates=2, batch_size_episodes=8),
        ImaginationConfig(use=use, horizon=2, min_batches=1),
        seed=3,
    )


@pytest.mark.filterwarnings("ignore:a trunk forward yields:UserWarning")  # drafts of nobody's training are poor
@pytest.mark.parametrize(
    ("use", "draft"), [("off", "lookup"), ("off", "mtp"), ("baseline", "none"), ("counterfactual", "mtp")]
)
def test_padded_embeddings_train_as_the_model_without(text_env: MakeEnv, use: str, draft: str) -> None:
    """The 14 ids past the tokenizer's 7 have probability zero in acting, PPO, the heads' losses and imagination."""
    plain = trainer_of(padded_model(NUM_IDS), text_env(8), use, draft)
    padded = trainer_of(padded_model(3 * NUM_IDS), text_env(8), use, draft)
    for _ in range(2):
        expected, episodes = plain.step()
        found, padded_episodes = padded.step()
        assert torch.equal(padded_episodes.input_ids, episodes.input_ids)
        torch.testing.assert_close(padded_episodes.logprobs, episodes.logprobs)
        timeless = [name for name in expected if not name.startswith("time/")]
        assert list(found) == list(expected)
        assert [found[name] for name in timeless] == pytest.approx(
            [expected[name] for name in timeless], rel=1e-4, abs=1e-5
        )


def test_without_a_limit_the_unknown_ids_are_taken(text_env: MakeEnv) -> None:
    """What the tests above rest on: the padded rows are likely."""
    with pytest.raises(ValueError, match=r"outside the vocabulary 0\.\.6"):
        collect_rollout(text_env(8), TrunkPolicy(padded_model(3 * NUM_IDS), 1.0), None, {})


@pytest.mark.parametrize("backend", ["mtp", "oracle", "shuffled", "identity"])
def test_imagined_tokens_are_the_tokenizers(backend: str) -> None:
    model = padded_model(3 * NUM_IDS)
    model.limit_tokens(NUM_IDS)
    generator = torch.Generator().manual_seed(0)
    world_model = make_world_model(backend, model, generator)
    ids, mask = torch.full((64, 3), 2), torch.ones((64, 3), dtype=torch.bool)
    rows = torch.arange(64)
    state = world_model.encode(ids, mask, rows, torch.full_like(rows, 2))
    with torch.no_grad():
        imagined = imagine(world_model, state, 2, acting_policy(1.0), generator)
    assert int(imagined.actions.max()) < NUM_IDS


def test_evaluation_takes_the_tokenizers_ids(text_env: MakeEnv) -> None:
    env = text_env(4)
    evaluator = Evaluator(env, env.examples("heldout", 4, 0), temperature=1.0, seed=0)
    found, expected = evaluator.run(padded_model(3 * NUM_IDS)), evaluator.run(padded_model(NUM_IDS))
    assert torch.equal(found.greedy.input_ids, expected.greedy.input_ids)
    assert torch.equal(found.sampled.input_ids, expected.sampled.input_ids)


def test_a_smaller_vocabulary_is_refused_before_anything_runs(text_env: MakeEnv) -> None:
    message = r"tokenizer has 7 ids and the model a vocabulary of 6; .*resize_token_embeddings\(7\)"
    with pytest.raises(ValueError, match=message):
        trainer_of(padded_model(NUM_IDS - 1), text_env(8), "off")
    env = text_env(4)
    with pytest.raises(ValueError, match=message):
        Evaluator(env, env.examples("heldout", 4, 0), temperature=1.0, seed=0).run(padded_model(NUM_IDS - 1))


def test_a_model_without_heads_is_refused_by_name(text_env: MakeEnv) -> None:
    with pytest.raises(TypeError, match=r"model is a LlamaForCausalLM, expected an MTPModel; .*from_trunk"):
        trainer_of(padded_model(NUM_IDS).trunk, text_env(8), "off")
