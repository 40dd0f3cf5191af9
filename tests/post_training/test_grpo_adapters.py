"""TRL's own GRPOTrainer on trunks with adapters, played by ``TextGenRollout``: PEFT's wrapper, and checkpoints."""

import peft
import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from worldmtp import MTPConfig, MTPModel
from worldmtp.decoding import generate
from worldmtp.envs import CharTokenizer, TextGenVectorEnv
from worldmtp.model.lora import add_lora, has_lora
from worldmtp.post_training import TextGenRollout, env_reward

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func', which is an experimental feature"),
    pytest.mark.filterwarnings("ignore:this trainer .* trains the trunk alone"),
]

TOKENIZER = CharTokenizer("abcdefghij=")
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": "gaussian"}


@pytest.fixture
def make_model(tiny_trunk):
    """The same weights at each call: ``make_model()`` a plain trunk, ``make_model(3)`` one with heads to depth 3."""

    def make(depth=None):
        trunk = tiny_trunk("llama", vocab_size=TOKENIZER.vocab_size)
        if depth is None:
            return trunk
        return MTPModel.from_trunk(trunk, MTPConfig(head="latent", depth=depth), torch.Generator().manual_seed(0))

    return make


@pytest.fixture
def make_trainer(tmp_path):
    def make(model, name="run", **options):
        env = TextGenVectorEnv(
            8, task="Copy", tokenizer=TOKENIZER, max_prompt=9, max_new=9, pool_size=8, autoreset_mode="disabled"
        )
        rollout = TextGenRollout(env, seed=0)
        peft_config = options.pop("peft_config", None)
        args = {
            "max_completion_length": rollout.max_new,
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "bf16": False,
            "activation_checkpointing": False,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
        }
        return GRPOTrainer(
            model,
            reward_funcs=env_reward,
            args=GRPOConfig(str(tmp_path / name), **(args | options)),
            train_dataset=Dataset.from_list(rollout.rows("train", 8, seed=0)),
            rollout_func=rollout,
            processing_class=TOKENIZER.to_transformers(),
            peft_config=peft_config,
        )

    return make


def assert_same_weights(ours, theirs):
    expected = dict(theirs.named_parameters())
    assert [name for name, weight in ours.named_parameters() if not torch.equal(weight, expected[name])] == []
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("depth", [None, 2], ids=["causal LM", "MTPModel"])
def test_a_wrapped_model_is_played_with_its_adapters(make_model, make_trainer, depth):
    config = peft.LoraConfig(**LORA, task_type="CAUSAL_LM" if depth is None else None)
    trainer = make_trainer(make_model(depth), peft_config=config, save_strategy="steps", save_steps=1)
    adapters = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if "lora_B" in name}
    trainer.train()
    assert adapters
    moved = dict(trainer.model.named_parameters())
    in_trunk = [name for name in adapters if ".heads." not in name]
    assert all(not torch.equal(adapters[name], moved[name]) for name in in_trunk)
    assert (trainer.state.global_step, trainer.rollout_func._calls) == (2, {(1, True): 1})


def test_checkpoints_of_a_model_with_adapters_load_and_are_gone_on_with(make_model, make_trainer, tmp_path):
    def adapted(seed):
        return add_lora(make_model(3), peft.LoraConfig(**LORA), torch.Generator().manual_seed(seed))

    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = adapted(0)
    start = {name: weight.detach().clone() for name, weight in whole.named_parameters()}
    make_trainer(whole, **saving).train()
    moved = {name for name, weight in whole.named_parameters() if not torch.equal(weight, start[name])}
    assert moved == {name for name in start if "lora_" in name}  # TRL's GRPO trains the trunk alone

    loaded = MTPModel.from_pretrained(tmp_path / "run" / "checkpoint-2")
    assert has_lora(loaded)
    assert_same_weights(loaded, whole)
    trained = {name for name, weight in whole.named_parameters() if weight.requires_grad}
    assert {name for name, weight in loaded.named_parameters() if weight.requires_grad} == trained

    resumed = adapted(1)  # other adapters, which the checkpoint's replace
    checkpoint = str(tmp_path / "run" / "checkpoint-1")
    make_trainer(resumed, "resumed", **saving).train(resume_from_checkpoint=checkpoint)
    assert_same_weights(resumed, whole)

    ids = torch.tensor([[2, 3, 12]])
    texts = [generate(model, ids, max_new_tokens=5).sequences.tolist() for model in (whole, loaded, resumed)]
    assert texts[0] == texts[1] == texts[2]
