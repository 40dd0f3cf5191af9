"""Run by test_two_processes.py under torchrun or alone: train, and save what rank 0 logged and the weights.

Usage: two_process_training.py output_dir rows_per_process kind[,kind ...] max_grad_norm [whole | sharded | refused]
"""

import random
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import worldmtp.post_training as library
from worldmtp import MTPConfig, MTPModel

CHARACTERS = ["<pad>", "<eos>", *"0123456789+="]
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64}
ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
SAMPLED = {"max_completion_length": 6, "gradient_accumulation_steps": 1, "beta": 0.1}
FSDP = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "Qwen3DecoderLayer",
        "state_dict_type": "FULL_STATE_DICT",
    },
}


def answers(input_ids, attention_mask, **options):
    """Instead of a sample: tokens drawn by the prompt and the place in its group of two, whatever process has them."""
    drawn = []
    for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
        source = random.Random(f"{ids[mask.bool()].tolist()} {row % 2}")
        answer = [source.randrange(2, len(CHARACTERS)) for _ in range(source.randrange(1, 6))]
        drawn.append(answer + [1] + [0] * (5 - len(answer)))
    return torch.cat([input_ids, torch.tensor(drawn)], dim=1)


def share_of_ones(completion_ids, **columns):
    return [ids.count(3) / len(ids) for ids in completion_ids]


def make_model() -> MTPModel:
    torch.manual_seed(0)
    ids = {"vocab_size": len(CHARACTERS), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    trunk = Qwen3ForCausalLM(Qwen3Config(**ids, **SHAPE, **ATTENTION))
    return MTPModel.from_trunk(trunk, MTPConfig(depth=3), torch.Generator().manual_seed(0)).double()


def rows_of(kind: str) -> list[dict[str, str]]:
    """Sums of unequal lengths: two processes have unequal numbers of targets."""
    source, rows = random.Random(0), []
    for _ in range(40):
        left, right = source.randrange(100), source.randrange(1000)
        row = {"prompt": f"{left}+{right}="}
        if kind == "SFT":
            row |= {"completion": str(left + right)}
        elif kind in ("DPO", "KTO"):
            row |= {"chosen": str(left + right), "rejected": str(source.randrange(100))}
        rows.append(row)
    return rows


def options_of(kind: str) -> dict[str, object]:
    if kind == "KTO":
        return {"loss_type": "apo_zero_unpaired"}  # its other loss compares neighbours in a batch
    if kind in ("GRPO", "RLOO"):
        return {**SAMPLED, "num_generations": 2}
    return SAMPLED if kind == "PPO" else {}


def train(kind: str, output_dir: str, batch_size: int, max_grad_norm: float, mode: str) -> None:
    sharded = mode != "whole"
    vocab = {character: token_id for token_id, character in enumerate(CHARACTERS)}
    backend = Tokenizer(models.BPE(vocab, merges=[], unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    config = getattr(library, f"MTP{kind}Config")(
        output_dir,
        per_device_train_batch_size=batch_size,
        max_steps=5,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=max_grad_norm,
        mtp_objective={"coef": {"start": 1.0}},
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        **options_of(kind),
        **(FSDP if sharded else {}),
    )
    if mode == "sharded":
        shard_on_cpus()
    extra = {"reward_funcs": share_of_ones} if kind in ("GRPO", "RLOO", "PPO") else {}
    trainer = getattr(library, f"MTP{kind}Trainer")(
        make_model(),
        args=config,
        train_dataset=Dataset.from_list(rows_of(kind)),
        processing_class=tokenizer,
        **extra,
    )
    if extra:
        vars(trainer.model)["generate"] = answers
        trainer.mtp_generation.num_calls = 1  # a trainer stops where nothing was sampled by it
    trainer.train()
    if sharded and not all(isinstance(weight, DTensor) for weight in trainer.model_wrapped.parameters()):
        raise AssertionError("the weights are whole")
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        name = "sharded" if sharded else trainer.accelerator.num_processes
        result = {"weights": weights, "log": trainer.state.log_history}
        torch.save(result, Path(output_dir) / f"{kind}_{name}.pt")


def shard_on_cpus() -> None:
    """Let accelerate shard here: it does so with accelerators alone, and ignores its FSDP plugin on CPUs."""
    PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU


def main(output_dir: str, batch_size: str, kinds: str, max_grad_norm: str, mode: str = "whole") -> None:
    torch.set_num_threads(1)
    for kind in kinds.split(","):
        train(kind, output_dir, int(batch_size), float(max_grad_norm), mode)


if __name__ == "__main__":
    main(*sys.argv[1:])
