"""A tiny Qwen3 with heads, a character tokenizer, and demonstrations; nothing is loaded."""

import copy
import random

import pytest
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig

import worldmtp.post_training
from worldmtp import MTPConfig, MTPModel
from worldmtp.post_training import MTPSFTConfig, MTPSFTTrainer, build_demonstrations

CHARACTERS = ["<pad>", "<eos>", *"0123456789+="]
DETACHED = {"detach_trunk": True, "detach_embedding": True, "detach_lm_head": True}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tokenizer():
    vocab = {character: token_id for token_id, character in enumerate(CHARACTERS)}
    word_level = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=word_level, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture
def make_trunk():
    def make(seed=0, tied=True):
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=len(CHARACTERS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            tie_word_embeddings=tied,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
            attn_implementation="sdpa",
        )
        return Qwen3ForCausalLM(config)

    return make


@pytest.fixture
def make_model(make_trunk):
    def make(depth=3, seed=0, tied=True, **options):
        generator = torch.Generator().manual_seed(seed)
        return MTPModel.from_trunk(make_trunk(seed, tied), MTPConfig(depth=depth, **options), generator)

    return make


@pytest.fixture
def demonstrations():
    """32 sums of unequal length, "12+7=19"."""
    source = random.Random(0)
    pairs = []
    for _ in range(32):
        left, right = source.randrange(100), source.randrange(1000)
        prompt, answer = f"{left}+{right}=", str(left + right)
        pairs.append(([CHARACTERS.index(c) for c in prompt], [CHARACTERS.index(c) for c in answer]))
    return build_demonstrations(pairs, eos_token_id=1, vocab_size=len(CHARACTERS))


@pytest.fixture
def make_config(tmp_path):
    def make(config_class=MTPSFTConfig, output_dir=None, **options):
        defaults = {
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }
        if not issubclass(config_class, SFTConfig):
            del defaults["dataset_kwargs"]
        return config_class(str(output_dir or tmp_path / "run"), **{**defaults, **options})

    return make


@pytest.fixture
def make_trainer(make_config, tokenizer, demonstrations):
    def make(model, config=None, *, train_dataset=None, eval_dataset=None, callbacks=None, **options):
        return MTPSFTTrainer(
            model,
            config or make_config(**options),
            train_dataset=demonstrations if train_dataset is None else train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    return make


@pytest.fixture
def char_tokenizer():
    """A tokenizer of single characters that reads and writes text: TRL's preference trainers take text alone."""
    vocab = {character: token_id for token_id, character in enumerate(CHARACTERS)}
    backend = Tokenizer(models.BPE(vocab, merges=[], unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture
def pairs():
    """16 sums with the right answer and a wrong one of another length."""
    source = random.Random(1)
    rows = []
    for _ in range(16):
        left, right = source.randrange(100), source.randrange(1000)
        rows.append({"prompt": f"{left}+{right}=", "chosen": str(left + right), "rejected": str(source.randrange(10))})
    return Dataset.from_list(rows)


@pytest.fixture
def prompts():
    """16 sums without answers."""
    source = random.Random(2)
    return Dataset.from_list([{"prompt": f"{source.randrange(100)}+{source.randrange(1000)}="} for _ in range(16)])


def share_of_ones(prompts, completions, completion_ids, **columns):
    """A reward: the share of a completion's tokens that are "1"."""
    return [ids.count(CHARACTERS.index("1")) / len(ids) for ids in completion_ids]


SAMPLED = {"max_completion_length": 8, "num_generations": 2, "gradient_accumulation_steps": 1}


@pytest.fixture
def make_any(make_config, char_tokenizer, demonstrations, pairs, prompts):
    """Make a trainer of any kind: ours on a model with heads, or, of a plain trunk, TRL's own."""
    datasets = {"SFT": demonstrations, "DPO": pairs, "KTO": pairs, "GRPO": prompts, "RLOO": prompts, "PPO": prompts}

    def make(kind, model, *, train_dataset=None, eval_dataset=None, callbacks=None, extra=None, **options):
        has_heads = isinstance(model, MTPModel)
        library, prefix = (worldmtp.post_training, "MTP") if has_heads else (trl, "")
        config_class = getattr(library, f"{prefix}{kind}Config")
        given = dict(extra or {})
        if not has_heads:
            options |= {"bf16": False, "activation_checkpointing": False}
            if kind in ("DPO", "KTO"):
                given["ref_model"] = copy.deepcopy(model)
        if kind in ("GRPO", "RLOO", "PPO"):
            options = {**SAMPLED, **options}
            given.setdefault("reward_funcs", share_of_ones)
        return getattr(library, f"{prefix}{kind}Trainer")(
            model,
            args=make_config(config_class, **options),
            train_dataset=datasets[kind] if train_dataset is None else train_dataset,
            eval_dataset=eval_dataset,
            processing_class=char_tokenizer,
            callbacks=callbacks,
            **given,
        )

    return make


@pytest.fixture
def batches_of():
    """The batches that a trainer has sampled, by spying on it."""

    def watch(trainer):
        seen, sampled = [], trainer._generate_and_score_completions

        def spied(rows):
            seen.append(sampled(rows))
            return seen[-1]

        trainer._generate_and_score_completions = spied
        return seen

    return watch
