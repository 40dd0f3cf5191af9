"""Environments under TRL's own GRPOTrainer: logged rewards by hand on the ids, which text could not give back.

The tokenizer has a token for "ab" and writes "ab" with it, so that the sampled ids [a, b] do not survive decoding and
encoding. The tasks pay by ids. Ids: pad 0, EOS 1, a 2, b 3, = 4, ab 5.
"""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from worldmtp import MTPConfig, MTPModel
from worldmtp.envs import Example, Score, TextGenEnv, TextGenVectorEnv
from worldmtp.envs.tokenizer import TransformersTokenizer
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.post_training import TextGenReward, TextGenRollout, env_reward

A, B, AB = 2, 3, 5


def quarters_of_a(ids):
    """A quarter for each token a, which is exact in TRL's float32."""
    return [int(token) for token in ids].count(A) / 4


class CountA:
    """Prompts of a and b; a quarter for each token a, of which "ab" has none."""

    def __init__(self):
        self.seen = []

    def sample(self, rng, split):
        return Example("".join("ab"[index] for index in rng.integers(2, size=4)) + "=")

    def score(self, example, text, ids):
        self.seen.append((example.prompt, text, ids.tolist()))
        return Score(quarters_of_a(ids))


class Echo:
    """Opens with "="; repeats each of two turns between two "=", and pays 1/2 for a turn that begins with "a"."""

    def reset(self, seed):
        self._turns = 0
        return "=", {}

    def step(self, text):
        self._turns += 1
        return f"={text}=", 0.5 * text.startswith("a"), self._turns == 2, False, {}


@pytest.fixture
def lossy(tmp_path):
    """Its folder, and the tokenizer."""
    vocab = {"<pad>": 0, "<eos>": 1, "a": A, "b": B, "=": 4, "ab": AB}
    backend = Tokenizer(models.BPE(vocab, merges=[("a", "b")]))
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    fast.save_pretrained(tmp_path / "tokenizer")
    made = TransformersTokenizer(str(tmp_path / "tokenizer"))
    assert made.encode(made.decode([A, B])) == [AB]
    return made


@pytest.fixture
def trunk():
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=6,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=32,
                pad_token_id=0,
                eos_token_id=1,
                bos_token_id=None,
            )
        )


@pytest.fixture
def make_args(tmp_path):
    def make(config_class, max_completion_length, **options):
        return config_class(
            str(tmp_path / "run"),
            max_completion_length=max_completion_length,
            num_generations=4,
            per_device_train_batch_size=16,
            max_steps=2,
            learning_rate=1e-2,
            logging_steps=1,
            bf16=False,
            activation_checkpointing=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **options,
        )

    return make


class Recorder:
    """A reward function that pays nothing and keeps what the trainer hands to reward functions."""

    __name__ = "recorder"

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, completion_ids, **columns):
        self.calls.append((list(prompts), [list(ids) for ids in completion_ids], columns))
        return [0.0] * len(prompts)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_rewards_of_trls_own_generations(lossy, trunk, make_args, trainer_class, config_class):
    task, recorder = CountA(), Recorder()
    reward = TextGenReward(
        TextGenEnv(task=task, tokenizer=lossy, max_prompt=5, max_new=8, heldout_fraction=0.0, pool_size=4)
    )
    dataset = Dataset.from_list(reward.rows("train", 8, seed=0))
    reward.check_tokenizer(lossy.backend)
    trainer = trainer_class(
        trunk,
        reward_funcs=[reward, recorder],
        args=make_args(config_class, reward.max_new, beta=0.0),
        train_dataset=dataset,
        processing_class=lossy.backend,
    )
    trainer.train()
    assert len(recorder.calls) == 2
    handed = [(prompt, ids) for prompts, batch, _ in recorder.calls for prompt, ids in zip(prompts, batch, strict=True)]
    assert [(prompt, ids) for prompt, _, ids in task.seen] == handed
    assert all(text == lossy.decode([*ids, 1]) for _, text, ids in task.seen)  # padding at the end was written, too
    assert any(lossy.encode(text) != [token for token in ids if token > 1] for _, text, ids in task.seen)
    by_hand = [torch.tensor([quarters_of_a(ids) for ids in batch]) for _, batch, _ in recorder.calls]
    assert logged(trainer, "rewards/CountA/mean") == [float(rewards.mean()) for rewards in by_hand]
    assert sum(float(rewards.sum()) for rewards in by_hand) > 0
    assert logged(trainer, "CountA/exact") == [0.0, 0.0]


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func', which is an experimental feature")
@pytest.mark.parametrize("kind", ["answers", "conversations"])
def test_rewards_of_the_environments_rollouts(lossy, trunk, make_args, kind):
    task, recorder = CountA(), Recorder()
    kwargs = {"tokenizer": lossy, "max_prompt": 5, "heldout_fraction": 0.0, "pool_size": 4}
    world = {"task": WorldTask(Echo), "max_new": 28, "max_turn": 6}
    kwargs |= {"task": task, "max_new": 8} if kind == "answers" else world
    rollout = TextGenRollout(TextGenVectorEnv(8, autoreset_mode="disabled", **kwargs), seed=0)
    trainer = GRPOTrainer(
        trunk,
        reward_funcs=[env_reward, recorder],
        args=make_args(GRPOConfig, rollout.max_new),
        train_dataset=Dataset.from_list(rollout.rows("train", 4, seed=0)),
        rollout_func=rollout,
        processing_class=lossy.backend,
    )
    handed = []
    trainer.rollout_func = lambda prompts, trainer: handed.append(rollout(prompts, trainer)) or dict(handed[-1])
    weights = trunk.lm_head.weight.detach().clone()
    trainer.train()
    assert not torch.equal(trunk.lm_head.weight, weights)
    by_hand = []
    for played, (_, batch, _) in zip(handed, recorder.calls, strict=True):
        assert played["completion_ids"] == batch
        if kind == "answers":
            by_hand.append([quarters_of_a(ids) for ids in batch])
        else:
            by_hand.append([echoed(lossy, *pair) for pair in zip(batch, played["env_mask"], strict=True)])
    assert logged(trainer, "rewards/env_reward/mean") == [float(torch.tensor(rewards).mean()) for rewards in by_hand]
    assert sum(map(sum, by_hand)) > 0
    sampled = [ids for played in handed for ids in played["completion_ids"]]
    assert any(lossy.encode(lossy.decode(ids)) != [token for token in ids if token > 1] for ids in sampled)
    # What TRL counts as written by its model is what the mask says.
    lengths = [torch.tensor([float(sum(mask)) for mask in played["env_mask"]]) for played in handed]
    assert logged(trainer, "completions/mean_length") == [float(each.mean()) for each in lengths]


def echoed(tokenizer, ids, mask):
    """What Echo pays for the turns that the mask tells, checked against the replies it must have written."""
    total, at = 0.0, 0
    for _ in range(2):
        start = at
        while at < len(ids) and mask[at] and (at == start or ids[at - 1] != 1):
            at += 1
        text = tokenizer.decode(ids[start:at]).strip()
        reply = tokenizer.encode(f"={text}=")
        assert ids[at : at + len(reply)] == reply
        assert mask[at : at + len(reply)] == [0] * len(reply)
        at += len(reply)
        total += 0.5 * text.startswith("a")
    assert at == len(ids)
    return total


@pytest.mark.parametrize("depth", [1, 3])
def test_a_trainer_that_leaves_the_heads_alone_says_so(lossy, trunk, make_args, depth):
    reward = TextGenReward(
        TextGenEnv(task=CountA(), tokenizer=lossy, max_prompt=5, max_new=8, heldout_fraction=0.0, pool_size=4)
    )
    generator = torch.Generator().manual_seed(0)
    model = MTPModel.from_trunk(trunk, MTPConfig(head="latent", depth=depth), generator)
    heads = [parameter.detach().clone() for parameter in model.heads.parameters()]

    def train():
        GRPOTrainer(
            model,
            reward_funcs=reward,
            args=make_args(GRPOConfig, reward.max_new, beta=0.0),
            train_dataset=Dataset.from_list(reward.rows("train", 8, seed=0)),
            processing_class=lossy.backend,
        ).train()

    if depth == 1:
        train()  # no heads, no word: warnings are errors
    else:
        with pytest.warns(UserWarning, match=r"this trainer \(trl, grpo\) trains the trunk alone: .* depths 2 to 3"):
            train()
    assert all(map(torch.equal, heads, model.heads.parameters()))
