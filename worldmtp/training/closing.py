"""What the end of a run says beside its table: answers that could not be scored, and how to talk to the model."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldmtp.decoding.head_drafts import can_draft
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.task import TurnTask
from worldmtp.model import MTPModel
from worldmtp.training.saved_model import transformers_tokenizer


def talk_command(model: MTPModel, env: TextVectorEnv, env_id: str, run_dir: Path, prompt: str) -> list[str]:
    """Return the line that tells how to talk to the model: none where no tokenizer could be saved beside it."""
    if isinstance(env.task, TurnTask):  # a text alone would hear no replies
        return ["play:        " + shlex.join(["worldmtp", "envs", "play", env_id, "--model", str(run_dir)])]
    if transformers_tokenizer(env.tokenizer) is None:
        return []
    words = ["worldmtp", "generate", *(["--explain"] if can_draft(model) else []), "--model", str(run_dir)]
    return ["generate:    " + shlex.join([*words, "--", prompt])]


def scoring_notes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a note where answers could not be scored, which are paid 0 as wrong ones are."""
    counts = {"raised": "env/scorer_errors", "were cut off": "env/scorer_timeouts"}
    failed = {how: int(max((record.get(tag) or 0.0 for record in records), default=0.0)) for how, tag in counts.items()}
    told = [f"{count} {how}" for how, count in failed.items() if count]
    if not told:
        return []
    return [f"of the scorer's calls {' and '.join(told)}: these answers were paid 0, and the first was warned of"]
