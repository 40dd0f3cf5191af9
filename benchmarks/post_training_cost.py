"""What heads cost a step of TRL's trainers, and what they learn for it, by how often they are trained: side by side.

    python benchmarks/post_training_cost.py
    python benchmarks/post_training_cost.py --trainers sft --layers 24 --learn-steps 0

One model (Qwen3, depths 2 to 4 by sequential heads) and one batch size for all arms. The arms of a trainer are run in
turn within each repeat, and the figure is the median over repeats of the ratio to the arm without heads beside it, in
processor seconds of one thread. A step is all of it: sampling with drafts, scoring, loss and optimiser. Arms:

    none            the heads' loss never, but in the first step, which is not timed
    all             all depths at all positions
    quarter         all depths at a quarter of the positions
    depth           one depth drawn a step (Stern et al. 2018)
    depth, quarter  both
    every 2, 4, 8   all depths at all positions, in every second, fourth or eighth step

With ``--learn-steps`` each arm then trains heads on windows of the standard library's sources, and what it has after as
many steps is measured on other windows: acceptance by depth, the heads' loss and the trunk's. Heads are fresh beside a
frozen trunk that has learnt these texts; with ``--joint`` they train a fresh trunk with them, as SFT does by default.
Of several seeds (initial weights and order of texts) the difference to ``all`` is paired, Student's t.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from worldmtp import MTPConfig, MTPModel
from worldmtp.post_training import (
    MTPGRPOConfig,
    MTPGRPOTrainer,
    MTPPPOConfig,
    MTPPPOTrainer,
    MTPSFTConfig,
    MTPSFTTrainer,
)
from worldmtp.statistics import paired_difference
from worldmtp.stdlib_sources import stdlib_files, stdlib_root

FREQUENCIES: dict[str, dict[str, Any]] = {
    "none": {"every_steps": 10**9},
    "all": {},
    "quarter": {"position_fraction": 0.25},
    "depth": {"one_random_depth": True},
    "depth, quarter": {"one_random_depth": True, "position_fraction": 0.25},
    "every 2": {"every_steps": 2},
    "every 4": {"every_steps": 4},
    "every 8": {"every_steps": 8},
}
DEPTH = 4
LEARNING = {"learning_rate": 1e-3, "mtp_tokens": "all", "per_device_eval_batch_size": 16, "logging_steps": 10**6}


class Texts:
    """A tokenizer trained on the standard library's sources, and their windows."""

    def __init__(self, vocab_size: int, length: int, num_files: int = 60) -> None:
        files = [(stdlib_root() / path).read_text(encoding="utf-8") for path in stdlib_files()[:num_files]]
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        special = ["<pad>", "<eos>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(files, trainer)
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
        )
        ids = self.tokenizer("\n".join(files), verbose=False)["input_ids"]
        windows = [ids[i : i + length] for i in range(0, len(ids) - length, length)]
        # Every tenth is held out.
        self.held_out = [{"input_ids": window} for window in windows[::10]]
        self.train = [{"input_ids": window} for i, window in enumerate(windows) if i % 10]

    def prompts(self, length: int = 16) -> list[dict[str, Any]]:
        """Return beginnings of windows, as text."""
        return [{"prompt": self.tokenizer.decode(row["input_ids"][:length])} for row in self.train]


class StepTimes(TrainerCallback):
    """Notes when each optimiser step ended, in processor seconds."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note it."""
        self.ends.append(time.process_time())


def make_model(args: argparse.Namespace, texts: Texts, seed: int = 0) -> MTPModel:
    """A fresh trunk with heads."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(texts.tokenizer),
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 64,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=2 * args.length,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    options = MTPConfig(head=args.head, depth=DEPTH)
    return MTPModel.from_trunk(Qwen3ForCausalLM(config), options, torch.Generator().manual_seed(seed))


def long_answers(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward that costs no time: the share of distinct tokens."""
    return [len(set(ids)) / max(len(ids), 1) for ids in completion_ids]


def make_trainer(*args: Any, **options: Any) -> Any:
    """A trainer that prints nothing; see ``_trainer``."""
    trainer = _trainer(*args, **options)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _trainer(name: str, model: MTPModel, texts: Texts, args: argparse.Namespace, frequency: str, **more: Any) -> Any:
    """A trainer of that name; its heads' frequency is an arm's."""
    options = {
        "mtp_objective": {"frequency": FREQUENCIES[frequency]},
        "mtp_detach": True,
        "per_device_train_batch_size": args.batch,
        "max_steps": args.steps,
        "learning_rate": 1e-4,
        "logging_steps": 10,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        **more,
    }
    directory = tempfile.mkdtemp()
    if name == "sft":
        config = MTPSFTConfig(directory, dataset_kwargs={"skip_prepare_dataset": True}, **options)
        rows = {"train_dataset": Dataset.from_list(texts.train), "eval_dataset": Dataset.from_list(texts.held_out[:64])}
        return MTPSFTTrainer(model, config, processing_class=texts.tokenizer, **rows)
    prompts = {"train_dataset": Dataset.from_list(texts.prompts()), "processing_class": texts.tokenizer}
    options |= {"max_completion_length": args.length // 2, "temperature": 1.0, "beta": 0.0}
    if name == "grpo":
        return MTPGRPOTrainer(model, long_answers, MTPGRPOConfig(directory, num_generations=4, **options), **prompts)
    return MTPPPOTrainer(model, long_answers, MTPPPOConfig(directory, **options), **prompts)


def step_seconds(name: str, texts: Texts, args: argparse.Namespace, frequency: str) -> float:
    """Mean seconds of a step after the first two."""
    times = StepTimes()
    trainer = make_trainer(name, make_model(args, texts), texts, args, frequency)
    trainer.add_callback(times)
    trainer.train()
    return (times.ends[-1] - times.ends[1]) / (len(times.ends) - 2)


def print_costs(texts: Texts, args: argparse.Namespace) -> None:
    """Print the ratio of each arm to the one without heads, a row a trainer."""
    arms = [arm for arm in args.arms if arm != "none"]
    print(f"\n| trainer | s a step without | {' | '.join(arms)} |\n|" + "---|" * (len(arms) + 2))
    for name in args.trainers:
        seconds: dict[str, list[float]] = {arm: [] for arm in ("none", *arms)}
        for _ in range(args.repeats):
            for arm, values in seconds.items():
                values.append(step_seconds(name, texts, args, arm))
        base = seconds.pop("none")
        ratios = [[one / without for one, without in zip(values, base, strict=True)] for values in seconds.values()]
        cells = [f"{statistics.median(r):.2f} [{min(r):.2f}, {max(r):.2f}]" for r in ratios]
        print(f"| {name} | {statistics.median(base):.2f} | {' | '.join(cells)} |", flush=True)


def learnt(texts: Texts, args: argparse.Namespace, arm: str, seed: int, state: Any) -> list[float]:
    """What heads of an arm have learnt: acceptance of each depth, their loss, the trunk's; ``state`` is a trunk's."""
    model = make_model(args, texts, seed)
    if state is not None:
        model.base_model.load_state_dict(state)
        model.base_model.requires_grad_(False)
    options = LEARNING | {"max_steps": args.learn_steps, "mtp_detach": state is not None, "seed": seed}
    trainer = make_trainer("sft", model, texts, args, arm, **options)
    trainer.train()
    metrics = trainer.evaluate()
    depths = range(2, DEPTH + 1)
    losses = [metrics[f"eval_mtp/loss_depth_{k}"] for k in depths]
    kept = [metrics[f"eval_mtp/acceptance_depth_{k}"] for k in depths]
    return [*kept, statistics.mean(losses), metrics["eval_loss"]]


def trained_trunk(texts: Texts, args: argparse.Namespace, seed: int) -> Any:
    """The weights of a trunk that has learnt the texts alone."""
    options = LEARNING | {"max_steps": args.trunk_steps, "seed": seed}
    trunk = make_trainer("sft", make_model(args, texts, seed), texts, args, "none", **options)
    trunk.train()
    return {name: value.clone() for name, value in trunk.release_model().base_model.state_dict().items()}


def print_learning(texts: Texts, args: argparse.Namespace) -> None:
    """Print what heads of each arm know after as many steps, and what the others lack of ``all``, over seeds."""
    arms = [arm for arm in args.arms if arm != "none"]
    found: dict[str, list[list[float]]] = {arm: [] for arm in arms}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        state = None if args.joint else trained_trunk(texts, args, seed)
        for arm, rows in found.items():
            rows.append(learnt(texts, args, arm, seed, state))
            print(f"# seed {seed}, {arm}: {' '.join(f'{value:.3f}' for value in rows[-1])}", flush=True)
    header = [*(f"acceptance, depth {k}" for k in range(2, DEPTH + 1)), "heads' loss", "trunk's loss"]
    print(f"\n| after {args.learn_steps} steps | {' | '.join(header)} |\n|" + "---|" * (len(header) + 1))
    for arm, rows in found.items():
        columns = list(zip(*rows, strict=True))
        if arm == "all" or args.seeds == 1:
            cells = [f"{statistics.mean(column):.3f}" for column in columns]
        else:
            base = list(zip(*found["all"], strict=True))
            cells = [
                str(paired_difference(np.array(a), np.array(b), generator=0))
                for a, b in zip(columns, base, strict=True)
            ]
        print(f"| {arm}{'' if arm == 'all' or args.seeds == 1 else ', less all'} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print one table of costs and one of what is learnt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 12, "hidden": 256, "vocab": 4096, "length": 64, "batch": 16, "steps": 8, "repeats": 3}
    for name, value in (
        sizes | {"learn-steps": 200, "trunk-steps": 300, "threads": 1, "seeds": 1, "first-seed": 0}
    ).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--trainers", nargs="*", default=["sft", "grpo", "ppo"], choices=["sft", "grpo", "ppo"])
    parser.add_argument("--head", default="sequential")
    parser.add_argument("--arms", nargs="*", default=list(FREQUENCIES)[1:], choices=list(FREQUENCIES))
    parser.add_argument("--joint", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    texts = Texts(args.vocab, args.length)
    shape = f"{args.layers} layers x {args.hidden}, vocabulary {len(texts.tokenizer)}"
    print(f"{shape}, {args.batch} x {args.length} tokens")
    if args.trainers:
        print_costs(texts, args)
    if args.learn_steps:
        print_learning(texts, args)


if __name__ == "__main__":
    main()
