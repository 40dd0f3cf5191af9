"""The sampled batch that a checkpoint of TRL's forgets: without it a run resumed in its middle samples anew.

TRL samples once for ``steps_per_generation * num_iterations`` micro-steps and keeps the batch, and the number of
micro-steps made, in memory alone. Written beside the checkpoint, by process, they make a resumed run go on as one that
was never stopped. At the end of a sampled batch there is nothing to keep.
"""

import warnings
from pathlib import Path
from typing import Any

import torch


def batch_file(directory: str | Path, rank: int) -> Path:
    """Return where one process keeps its part."""
    return Path(directory) / f"sampled_batch_{rank}.pt"


def save_sampled_batch(trainer: Any, directory: str | Path) -> None:
    """Write the trainer's sampled batch into a checkpoint's directory, unless it has been used up."""
    if trainer._buffered_inputs is None or trainer._step % num_uses(trainer) == 0:
        return
    file = batch_file(directory, trainer.accelerator.process_index)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**_layout(trainer), "step": trainer._step, "batches": trainer._buffered_inputs}, file)


def load_sampled_batch(trainer: Any, directory: str | Path, global_step: int) -> bool:
    """Give a trainer the sampled batch of the checkpoint it goes on from; return whether there is one.

    Warns where the checkpoint stands in the middle of one and has not kept it: TRL's own trainers do not.

    Raises:
        ValueError: the batch was sampled for other steps, or other processes, than this trainer's.
    """
    file = batch_file(directory, trainer.accelerator.process_index)
    made = global_step * trainer.args.gradient_accumulation_steps
    if not file.is_file():
        if made % num_uses(trainer):
            warnings.warn(
                f"{directory} stands in the middle of a sampled batch and has no {file.name}: the run samples anew, "
                "and is another one than if it had not been stopped.",
                stacklevel=2,
            )
        return False
    kept = torch.load(file, map_location=trainer.accelerator.device, weights_only=True)
    layout = _layout(trainer)
    changed = {name: kept[name] for name, value in layout.items() if kept[name] != value}
    if changed:
        raise ValueError(
            f"{file} is of a batch sampled with {changed}, this trainer has {layout}; resume with what the run had, or "
            "delete the files sampled_batch_*.pt of the checkpoint to sample anew."
        )
    trainer._step, trainer._buffered_inputs = kept["step"], kept["batches"]
    return True


def num_uses(trainer: Any) -> int:
    """Return for how many micro-steps a batch is sampled."""
    return int(trainer.args.steps_per_generation * trainer.num_iterations)


def _layout(trainer: Any) -> dict[str, int]:
    names = (
        *("steps_per_generation", "num_iterations", "num_generations"),
        *("gradient_accumulation_steps", "per_device_train_batch_size"),
    )
    return {name: getattr(trainer.args, name) for name in names} | {"num_processes": trainer.accelerator.num_processes}
