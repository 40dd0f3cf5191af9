"""``env_factory``: any id as tools of TRL's environments, played by hand and by the installed TRL."""

import json
import random
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import get_json_schema

from worldmtp import MTPConfig, MTPModel
from worldmtp.envs.make import MakingError
from worldmtp.post_training import MTPGRPOConfig, MTPGRPOTrainer, env_factory

GUESS, SUM = "worldmtp/GuessNumber-v0", "worldmtp/ChainSum-v0"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]


def hidden_number(tools, row):
    """What the world hides, found by asking its instance's own example: the seed decides it, and a reset shows it."""
    world = tools._env.dataset.task.make_world()
    opening, info = world.reset(tools._examples[row["example_key"]].meta["seed"])
    low, high = map(int, opening.rstrip(":").split("-"))
    for number in range(low, high + 1):
        world.reset(tools._examples[row["example_key"]].meta["seed"])
        _, reward, terminated, *_ = world.step(str(number))
        if terminated and reward > 0:
            return opening, number
    raise AssertionError((opening, info))


def test_a_conversation_is_said_turn_by_turn():
    tools_class = env_factory(GUESS)
    assert tools_class.__name__ == "GuessNumber"
    rows = tools_class.rows("train", 8, seed=0)
    tools = tools_class()
    opening, number = hidden_number(tools, rows[0])
    wrong = int(opening.split("-")[0])
    wrong = wrong if wrong != number else wrong + 1
    assert tools.reset(**rows[0]) == opening
    assert tools.say(str(wrong)) != ""
    assert tools.get_reward() == 0
    tools.say(str(number))
    assert tools.get_reward() > 0
    with pytest.raises(ValueError, match="the episode is over"):
        tools.say("1")
    assert tools.reset(**rows[0]) == opening
    assert tools.get_reward() == 0


def test_a_question_is_answered_once():
    tools_class = env_factory(SUM)
    rows = tools_class.rows("train", 4, seed=0)
    tools = tools_class()
    left, right = tools.reset(**rows[0]).rstrip("=").split("+")
    tools.answer(str(int(left) + int(right)))
    assert tools.get_reward() == 1
    with pytest.raises(ValueError, match="the episode is over"):
        tools.answer("0")
    tools.reset(**rows[1])
    tools.answer("+")
    assert tools.get_reward() == 0


def test_what_cannot_be_written_costs_no_turn():
    tools_class = env_factory(SUM)
    tools = tools_class()
    tools.reset(**tools_class.rows("train", 1, seed=0)[0])
    with pytest.raises(ValueError, match=r"of the tokenizer lacks 'x', as in 'x'\.$"):
        tools.answer("x")
    tools.answer("1")


def test_rows_of_another_class_are_refused():
    ours, others = env_factory(GUESS), env_factory(GUESS, name="Other")
    (row,) = others.rows("train", 1, seed=0)
    with pytest.raises(ValueError, match=r"is none of the 0 that GuessNumber\.rows\(\) gave"):
        ours().reset(**row)
    with pytest.raises(ValueError, match="example_key=None is none of"):
        others().reset()
    with pytest.raises(MakingError, match="cannot be made"):
        env_factory("worldmtp/Gues-v0")


@pytest.mark.parametrize(("env_id", "tool"), [(GUESS, "say"), (SUM, "answer")])
def test_only_the_tool_is_public_and_it_has_a_schema(env_id, tool):
    tools_class = env_factory(env_id)
    public = {name for name in dir(tools_class) if not name.startswith("_") and callable(getattr(tools_class, name))}
    assert public == {tool, "reset", "get_reward", "rows"}
    schema = get_json_schema(getattr(tools_class(), tool))["function"]
    assert schema["name"] == tool
    assert schema["parameters"]["properties"].keys() == {"text"}


# ---------------------------------------------------------------------------------------------------------------------
# In TRL
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def chat_tokenizer():
    """Bytes, and Qwen3's marks and template, which TRL knows how to call tools with."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    backend.add_tokens([AddedToken(word, special=False) for word in WORDS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=SPECIAL[0], eos_token=SPECIAL[2])
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    return tokenizer


@pytest.fixture
def chat_model(chat_tokenizer):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 2048}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
    ids = {"pad_token_id": chat_tokenizer.pad_token_id, "eos_token_id": chat_tokenizer.eos_token_id}
    config = Qwen3Config(vocab_size=len(chat_tokenizer), bos_token_id=None, **ids, **shape, **heads)
    return MTPModel.from_trunk(Qwen3ForCausalLM(config), MTPConfig(depth=2), torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore:You are using 'environment_factory', which is an experimental feature")
def test_trl_plays_it_and_the_heads_learn_what_it_replied(chat_model, chat_tokenizer, tmp_path):
    """Each rollout guesses a number, and says that it is done; there is no other policy that calls a tool by itself."""
    tools_class = env_factory(GUESS)
    rows, source = tools_class.rows("train", 4, seed=0), random.Random(0)
    config = MTPGRPOConfig(
        str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        num_generations=2,
        max_completion_length=256,
        max_steps=1,
        use_cpu=True,
        mtp_tokens="observation",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = MTPGRPOTrainer(
        chat_model,
        [],
        config,
        train_dataset=Dataset.from_list(rows),
        processing_class=chat_tokenizer,
        environment_factory=tools_class,
    )
    seen = []

    def written(input_ids, attention_mask, **options):
        texts = []
        for ids in input_ids:
            prompt = chat_tokenizer.decode(ids)
            seen.append(prompt)
            call = {"name": "say", "arguments": {"text": str(source.randrange(10, 99))}}
            texts.append(
                f"<tool_call>\n{json.dumps(call)}\n</tool_call>" if "<tool_response>" not in prompt else "Done"
            )
        rows = [chat_tokenizer.encode(f"{text}<|im_end|>") for text in texts]
        longest = max(map(len, rows))
        answers = [row + [chat_tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
        return torch.cat([input_ids, torch.tensor(answers)], dim=1)

    trainer.mtp_generation._drafted = written
    trainer.train()
    assert len(seen) == 8  # two messages for each of four rollouts
    openings = [tools_class._examples[row["example_key"]].prompt for row in rows]
    assert all(any(opening in prompt for opening in openings) for prompt in seen)
    (record,) = [record for record in trainer.state.log_history if "loss" in record]
    assert record["tools/call_frequency"] == 1
    assert record["tools/failure_frequency"] == 0
    assert "rewards/GuessNumber/mean" in record
    assert record["mtp/loss_depth_2"] > 0
