"""Run by test_two_processes.py under torchrun or alone: train, and save the weights of rank 0."""

import sys

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from worldmtp import MTPConfig, MTPModel
from worldmtp.post_training import MTPSFTConfig, MTPSFTTrainer


def main(output_dir: str, batch_size: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    trunk = Qwen3ForCausalLM(Qwen3Config(vocab_size=8, pad_token_id=0, eos_token_id=1, **shape, **heads))
    model = MTPModel.from_trunk(trunk, MTPConfig(depth=3), torch.Generator().manual_seed(0))
    vocab = {f"<{i}>": i for i in range(8)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="<0>")), pad_token="<0>", eos_token="<1>"
    )
    # Unequal lengths: the two processes have unequal numbers of targets.
    rows = [[2 + (i * j) % 6 for j in range(4 + i % 5)] + [1] for i in range(16)]
    config = MTPSFTConfig(
        output_dir,
        per_device_train_batch_size=batch_size,
        max_steps=2,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        mtp_objective={"coef": {"start": 1.0}},
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    dataset = Dataset.from_dict({"input_ids": rows, "labels": rows})
    trainer = MTPSFTTrainer(model, config, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(model.state_dict(), f"{output_dir}/weights_of_{trainer.accelerator.num_processes}.pt")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
