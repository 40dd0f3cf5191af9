"""PPO on TRL beside the PPOTrainer that TRL had until 1.12: one update's numbers, and seconds an update.

    pip install --no-deps --target DIR trl==1.12.0
    python benchmarks/ppo_parity.py DIR
    python benchmarks/ppo_parity.py DIR --curves 5 --figure FILE.png

The old trainer runs in a process of its own, on DIR's trl, with spies on its functions; from what it sampled, the
project's pure functions compute KL, advantages, returns and losses. Its definitions differ, so they are called with
arguments in which they agree:

    KL           in the reward there (kl_estimator="k3"), in the loss here: the same per-token estimate
    end          a score stands one place after EOS there, a step whose value is bootstrapped: here, one step more
    targets      of the value: GAE + value there, lambda = 1 here: the same sum, compared as such
    whitening    there centred and divided by the deviation; here divided by the root mean square: compared before it,
                 and the losses with the old trainer's whitened advantages
    value loss   max of two squares there; here ``value_moves`` says where it has a gradient

Seconds are of sampling, scoring and all epochs; the old trainer has networks of its own for reward and value in them.

With ``--curves`` both then learn one task from the same initial policy, with the same learning rate, clipping, GAE, KL
coefficient, batch and epochs: a completion is paid the share of "=" in it. What stays different is the trainers' own:
ours reads values from a head on the policy's trunk and has the KL in its loss; the old one has a value network, and
the KL in its reward. Seconds are then the processor's, of one thread: other work on the machine does not lengthen them.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

from worldmtp.analysis.panels import ARM_COLOURS, add_legend, make_panels, name_axes
from worldmtp.statistics import bootstrap_interval, paired_difference

ROWS, TOKENS, EPOCHS, UPDATES = 16, 16, 2, 8
CURVE_UPDATES, CURVE_TOKENS, WINDOW = 24, 8, 8
FIRST_SEED = 101
KL, VF, CLIP, GAMMA, LAM = 0.05, 0.1, 0.2, 0.99, 0.95
RATE = 3e-3
VOCABULARY = ["<pad>", "<eos>", *"0123456789+="]
PAID = VOCABULARY.index("=")


def shape() -> Qwen3Config:
    """Return the models'."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32}
    ids = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return Qwen3Config(num_attention_heads=2, num_key_value_heads=2, num_labels=1, **ids, **sizes)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return one of single characters."""
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(VOCABULARY)}, merges=[], unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def prompts(num_updates: int = UPDATES) -> list[str]:
    """Return sums, for all updates."""
    return [f"{i % 10}+{i // 10 % 10}=" for i in range(ROWS * num_updates)]


class ShareOfPaid(torch.nn.Module):
    """A reward "model" for the old trainer: the share of the paid token up to each place, but for the prompt's one."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Counts()

    def score(self, counted: torch.Tensor) -> torch.Tensor:
        """Return the reward at each place."""
        return (counted - 1) / CURVE_TOKENS


class Counts(torch.nn.Module):
    """The paid tokens up to each place, as the last hidden state."""

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Return it."""
        return SimpleNamespace(hidden_states=[(input_ids == PAID).cumsum(dim=1)[..., None].float()])


def old_curve(directory: str, seed: int) -> None:
    """Learn the task with the old trainer; print the mean score of each update, and the seconds of one."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.manual_seed(seed)
    policy = Qwen3ForCausalLM(shape())
    reference, value = copy.deepcopy(policy), Qwen3ForSequenceClassification(shape())
    args = PPOConfig(
        directory, per_device_train_batch_size=ROWS, gradient_accumulation_steps=1, num_mini_batches=1,
        num_ppo_epochs=EPOCHS, total_episodes=ROWS * CURVE_UPDATES, response_length=CURVE_TOKENS, stop_token="eos",
        kl_coef=KL, kl_estimator="k3", vf_coef=VF, cliprange=CLIP, gamma=GAMMA, lam=LAM, temperature=1.0,
        learning_rate=RATE, num_sample_generations=0, bf16=False, use_cpu=True, gradient_checkpointing=False,
        report_to="none", save_strategy="no", logging_steps=1, seed=seed, max_grad_norm=1.0,
    )  # fmt: skip
    rows = Dataset.from_dict({"input_ids": tokenizer()(prompts(CURVE_UPDATES))["input_ids"]})
    scorer: Any = ShareOfPaid()
    trainer = PPOTrainer(args, tokenizer(), policy, reference, scorer, rows, value_model=value, eval_dataset=rows)
    times, scores = [], []
    trainer.log = lambda logs, *_: (times.append(time.process_time()), scores.append(logs["objective/scores"]))
    trainer.train()
    print(f"CURVE {json.dumps(scores)}")
    print(f"SECONDS {(times[-1] - times[0]) / (len(times) - 1)}")


def new_curve(directory: str, seed: int) -> None:
    """Learn the task with ours; print the mean reward of each update, and the seconds of one."""
    from worldmtp import MTPConfig, MTPModel
    from worldmtp.post_training import MTPPPOConfig, MTPPPOTrainer

    torch.manual_seed(seed)
    model = MTPModel.from_trunk(Qwen3ForCausalLM(shape()), MTPConfig(depth=2), torch.Generator().manual_seed(seed))
    times, scores = [], []

    def share(completion_ids: list[list[int]], **_: Any) -> list[float]:
        found = [ids.count(PAID) / CURVE_TOKENS for ids in completion_ids]
        times.append(time.process_time())
        scores.append(sum(found) / len(found))
        return found

    args = MTPPPOConfig(
        directory, per_device_train_batch_size=ROWS, gradient_accumulation_steps=1, num_iterations=EPOCHS, beta=KL,
        max_steps=EPOCHS * CURVE_UPDATES, max_completion_length=CURVE_TOKENS, vf_coef=VF, epsilon=CLIP, gamma=GAMMA,
        gae_lambda=LAM, learning_rate=RATE, mtp_objective={"coef": {"start": 0.0}}, mtp_draft="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True, seed=seed, max_grad_norm=1.0, report_to="none",
    )  # fmt: skip
    rows = Dataset.from_dict({"prompt": prompts(CURVE_UPDATES)})
    MTPPPOTrainer(model, share, args, train_dataset=rows, processing_class=tokenizer()).train()
    print(f"CURVE {json.dumps(scores)}")
    print(f"SECONDS {(times[-1] - times[0]) / (len(times) - 1)}")


def run_old(directory: str) -> None:
    """Train with the old trainer; print how far its first update is from ours, and the seconds of an update."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    torch.manual_seed(0)
    policy, reference = Qwen3ForCausalLM(shape()), Qwen3ForCausalLM(shape())
    reward, value = Qwen3ForSequenceClassification(shape()), Qwen3ForSequenceClassification(shape())
    args = PPOConfig(
        directory, per_device_train_batch_size=ROWS, gradient_accumulation_steps=1, num_mini_batches=1,
        num_ppo_epochs=EPOCHS, total_episodes=ROWS * UPDATES, response_length=TOKENS, stop_token="eos", kl_coef=KL,
        kl_estimator="k3", vf_coef=VF, cliprange=CLIP, cliprange_value=0.02, gamma=GAMMA, lam=LAM, temperature=1.0,
        learning_rate=3e-3, num_sample_generations=0, bf16=False, use_cpu=True, gradient_checkpointing=False,
        report_to="none", save_strategy="no", logging_steps=1,
    )  # fmt: skip
    rows = Dataset.from_dict({"input_ids": tokenizer()(prompts())["input_ids"]})
    trainer = PPOTrainer(args, tokenizer(), policy, reference, reward, rows, value_model=value, eval_dataset=rows)
    seen = Spies(ppo_trainer)
    times, logged = [], []
    trainer.log = lambda logs, *_: (times.append(time.perf_counter()), logged.append(logs))
    trainer.train()
    for name, (ours, theirs) in seen.pairs(logged[0]).items():
        distance, size = float((ours - theirs).detach().abs().max()), float(theirs.detach().abs().max())
        print(f"{name:<34} at most {size:8.4f}, apart by {distance:.0e}")
        assert distance < 1e-4 < size or "epoch 1" in name, (
            name
        )  # whitened, and of ratio one, advantages add up to zero
    print(f"SECONDS {(times[-1] - times[0]) / (len(times) - 1)}")


class Spies:
    """What the old trainer's functions were given in its first update."""

    def __init__(self, module: object) -> None:
        self.calls: dict[str, list[Any]] = {"get_reward": [], "selective_log_softmax": [], "masked_whiten": []}
        self.means: list[Any] = []
        self.forwards: list[Any] = []
        for name, calls in self.calls.items():
            setattr(module, name, self.spied(getattr(module, name), calls))
        setattr(module, "masked_mean", self.spied(module.masked_mean, self.means))  # noqa: B010
        setattr(module, "forward", self.spied(module.forward, self.forwards))  # noqa: B010

    @staticmethod
    def spied(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
        """Return the function, whose first calls and results are kept."""

        def spy(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if len(calls) < 16:  # the first update's, and then some
                calls.append((args, result))
            return result

        return spy

    def pairs(self, logs: dict[str, float]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return ours and theirs of each quantity."""
        from worldmtp.objective.policy_losses import (
            kl_penalty_per_token,
            masked_mean,
            policy_loss_per_token,
            value_moves,
        )
        from worldmtp.post_training.decisions import Decisions, token_plan

        (_, texts, _), _ = self.forwards[0]
        (_, tokens), logprobs = self.calls["selective_log_softmax"][0]
        _, reference = self.calls["selective_log_softmax"][1]
        (value_args, (all_values, *_)), (_, (_, scores, _)) = self.calls["get_reward"][:2]
        start = value_args[3]
        (advantages, mask), whitened = self.calls["masked_whiten"][0]
        num_rows, num_tokens = tokens.shape
        length = mask.sum(dim=1)
        places = torch.arange(num_tokens).expand(num_rows, -1)
        steps = places <= length[:, None]  # with the place after EOS, where there is one
        values = torch.where(steps, all_values[:, start - 1 : -1].squeeze(-1), 0.0)
        kl = torch.where(mask, kl_penalty_per_token(logprobs, reference), 0.0)
        rewards = -KL * kl
        rewards[torch.arange(num_rows), steps.sum(dim=1) - 1] += scores
        padded = torch.cat([values, torch.zeros(num_rows, 1)], dim=1)
        whole = torch.zeros(num_rows, dtype=torch.bool)
        plan = token_plan(Decisions(steps, steps.sum(dim=1)), rewards, padded, whole, GAMMA, LAM, False)
        # Behind a text's end the old sums go on with rewards and values of zero, which its masks leave out.
        returns = advantages + values
        found = {
            "advantages, before whitening": (plan.advantages[mask], advantages[mask]),
            "KL of a completion, mean": (kl.sum(dim=1).mean(), torch.tensor(logs["objective/kl"])),
            "returns (GAE + value)": ((plan.advantages + values)[steps], returns[steps]),
        }
        lengths = [i for i, ((one, *_), _) in enumerate(self.means) if one.requires_grad]
        for epoch in range(EPOCHS):
            _, new = self.calls["selective_log_softmax"][2 + epoch]
            (_, shuffled, _), (_, value_now) = self.forwards[1 + epoch]
            rows = [int((texts == row).all(dim=1).nonzero()[0]) for row in shuffled]
            _, value_loss = self.means[lengths[2 * epoch]]
            _, policy_loss = self.means[lengths[2 * epoch + 1]]
            m, s = mask[rows], steps[rows]
            now = torch.where(m, new, 0.0)
            ours = masked_mean(
                policy_loss_per_token(
                    now, torch.where(m, logprobs[rows], 0.0), torch.where(m, whitened[rows], 0.0), CLIP
                ),
                m,
            )
            v = value_now[:, start - 1 : -1].squeeze(-1)
            moves = value_moves(v, values[rows], returns[rows], 0.02)
            clipped = values[rows] + (v - values[rows]).clamp(-0.02, 0.02)
            squares = torch.where(moves, (v - returns[rows]) ** 2, ((clipped - returns[rows]) ** 2).detach())
            value_ours = 0.5 * masked_mean(squares, s)
            found[f"policy loss, epoch {epoch + 1}"] = (ours, policy_loss)
            found[f"value loss, epoch {epoch + 1}"] = (value_ours, 0.5 * value_loss)
        return found


def run_new(directory: str) -> None:
    """Train with ours; print the seconds of an update."""
    from transformers import TrainerCallback

    from worldmtp import MTPConfig, MTPModel
    from worldmtp.post_training import MTPPPOConfig, MTPPPOTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % EPOCHS == 0:
                self.times.append(time.perf_counter())

    torch.manual_seed(0)
    model = MTPModel.from_trunk(Qwen3ForCausalLM(shape()), MTPConfig(depth=2), torch.Generator().manual_seed(0))
    args = MTPPPOConfig(
        directory, per_device_train_batch_size=ROWS, gradient_accumulation_steps=1, num_iterations=EPOCHS, beta=KL,
        max_steps=EPOCHS * UPDATES, max_completion_length=TOKENS, vf_coef=VF, epsilon=CLIP, gamma=GAMMA, gae_lambda=LAM,
        learning_rate=3e-3, mtp_objective={"coef": {"start": 0.0}}, mtp_draft="none", use_cpu=True, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    clock = Clock()
    MTPPPOTrainer(
        model, lambda completion_ids, **_: [ids.count(3) / len(ids) for ids in completion_ids], args,
        train_dataset=Dataset.from_dict({"prompt": prompts()}), processing_class=tokenizer(), callbacks=[clock],
    ).train()  # fmt: skip
    print(f"SECONDS {(clock.times[-1] - clock.times[0]) / (len(clock.times) - 1)}")


def in_process(old: str, which: str, *arguments: str) -> list[str]:
    """Return what a trainer of its own process has printed; the old one finds its trl in ``old``."""
    path = [str(Path(__file__).parents[1]), *([old] if which == "old" else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(reversed(path)), "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [sys.executable, __file__, old, "--only", which, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [line for line in done.stdout.splitlines() if line and not line.startswith(("{", "="))]


def print_curves(old: str, num_seeds: int, figure: Path | None) -> None:
    """Print the mean score in windows of updates, ours less the old one's by seed, and the ratio of seconds."""
    curves: dict[str, list[list[float]]] = {"old": [], "new": []}
    seconds: dict[str, list[float]] = {"old": [], "new": []}
    seeds = [str(FIRST_SEED + place) for place in range(num_seeds)]
    for which in ("old", "new"):
        for line in in_process(old, which, "--seeds", *seeds):
            kind, _, value = line.partition(" ")
            if kind == "CURVE":
                curves[which].append(json.loads(value)[:CURVE_UPDATES])
            elif kind == "SECONDS":
                seconds[which].append(float(value))
        print(f"# {which}: {', '.join(f'{curve[-1]:.3f}' for curve in curves[which])} at last", flush=True)
    scores = {which: np.array(rows) for which, rows in curves.items()}
    print("| updates | TRL 1.12 | ours | ours less TRL's |\n|---|---|---|---|")
    for start in range(0, CURVE_UPDATES, WINDOW):
        means = {which: rows[:, start : start + WINDOW].mean(axis=1) for which, rows in scores.items()}
        cells = [str(bootstrap_interval(means[which], generator=0, unit="seed")) for which in ("old", "new")]
        difference = paired_difference(means["new"], means["old"], generator=0, unit="seed")
        print(f"| {start + 1} to {start + WINDOW} | {' | '.join(cells)} | {difference} |")
    ratios = np.array(seconds["old"]) / np.array(seconds["new"])
    print(f"seconds an update: old {np.median(seconds['old']):.3f}, new {np.median(seconds['new']):.3f}")
    print(f"ratio by seed {bootstrap_interval(ratios, generator=0, unit='seed')}")
    if figure is not None:
        draw(scores, figure)


def draw(scores: dict[str, np.ndarray], path: Path) -> None:
    """Draw both curves with the 90 % interval of the mean over seeds, Student's t."""
    picture, (ax,) = make_panels(1, height=3.2, width=6.4)
    names = ("TRL 1.12's PPOTrainer", "MTPPPOTrainer")
    for rows, name, colour in zip(scores.values(), names, ARM_COLOURS, strict=False):
        ends = [bootstrap_interval(column, generator=0, unit="seed") for column in rows.T]
        updates = np.arange(1, rows.shape[1] + 1)
        ax.plot(updates, rows.mean(axis=0), color=colour, linewidth=1.8, label=name)
        ax.fill_between(
            updates, [end.low for end in ends], [end.high for end in ends], color=colour, alpha=0.2, linewidth=0
        )
    name_axes(ax, "", "updates of 16 completions, 2 epochs", "share of the paid token")
    ax.set_ylim(0, 1.02)
    add_legend(ax)
    picture.savefig(path, dpi=150, facecolor="white")


def main() -> None:
    """Run both, twice each, and print the numbers and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", help="a directory with trl 1.12.0")
    parser.add_argument("--curves", type=int, default=0, help="seeds of which learning curves are made")
    parser.add_argument("--figure", type=Path, help="where their picture goes")
    parser.add_argument("--only", choices=("old", "new"), help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only:
        with tempfile.TemporaryDirectory() as directory:
            for seed in options.seeds or ():
                (old_curve if options.only == "old" else new_curve)(directory, seed)
            if not options.seeds:
                (run_old if options.only == "old" else run_new)(directory)
        return
    if options.curves:
        print_curves(options.old, options.curves, options.figure)
        return
    seconds: dict[str, list[float]] = {}
    for which in ("old", "new", "new", "old"):
        told = in_process(options.old, which)
        if which == "old" and which not in seconds:
            print("\n".join(line for line in told if not line.startswith("SECONDS")))
        seconds.setdefault(which, []).append(float(told[-1].split()[1]))
    old, new = (min(seconds[which]) for which in ("old", "new"))
    print(
        f"seconds an update of {ROWS} completions, {EPOCHS} epochs: old {old:.3f}, new {new:.3f}, ratio {old / new:.2f}"
    )


if __name__ == "__main__":
    main()
