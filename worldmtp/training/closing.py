"""What a run says at its end: the arm's name, a note for each thing that its log knows, how to talk to the model."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmtp.agents.config import ImaginationConfig, RolloutConfig
from worldmtp.agents.imagination.completion_costs import completion_costs
from worldmtp.analysis.run_files import time_breakdown
from worldmtp.analysis.summary import RunSummary, summary_table
from worldmtp.decoding.head_drafts import can_draft
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.task import TurnTask
from worldmtp.model import MTPModel
from worldmtp.tracking import tensorboard_command
from worldmtp.training.saved_model import transformers_tokenizer

Records = Sequence[Mapping[str, Any]]

_SKILLS = {"latent": "imagination/action_skill", "search": "imagination/search_skill"}
"""Of the uses that skill at choosing tokens lets act or not; the others go by what they explain of returns."""


def arm_name(use: str, backend: str, act: str = "policy") -> str:
    """Return what PPO with this use of imagination is called in the closing table; ``act`` is who acted."""
    searched = ", acting by search" if act == "search" else ""
    if use == "off":
        return f"PPO, no imagination{searched}"
    # Replies are imagined by a model of their own, whatever heads the policy has; placebos of it keep their names.
    named = f"PPO, {use}" if (use, backend) == ("episodes", "mtp") else f"PPO, {use}, {backend}"
    return named + searched


def measured_note(replies: bool) -> str:
    """Return what the columns of the closing table mean; ``replies``: a world does, so that an answer is an episode."""
    if not replies:
        return "sampled is the policy as it acts, one answer a prompt"
    return (
        "sampled is the policy as it acts, one episode an opening; exact is the share of episodes solved, realized "
        "return the mean over all their states of what was paid from there on, discounted by agent.ppo.gamma"
    )


def notes_of_log(records: Records, imagination: ImaginationConfig, rollout: RolloutConfig | None = None) -> list[str]:
    """Return what the log has to say of scoring, acting, imagination, completions and time; ``rollout``: who acted."""
    found = [completion_costs(records), time_breakdown(records)]
    costs, breakdown = ([] if one is None else [str(one)] for one in found)
    imagined = [*_episodes(records, imagination), *_gate(records, imagination)]
    return [*_scoring(records), *_acting(records, rollout), *imagined, *costs, *breakdown]


def progress_note(metrics: Mapping[str, float]) -> str:
    """Return what is told of an iteration while the run goes on."""
    batches = metrics.get("imagination/batches_trained")
    imagined = "" if batches is None else f", imagined {batches:.0f} {'batch' if batches == 1 else 'batches'}"
    explores = ", explores" if metrics.get("imagination/explores") else ""
    return f"exact {metrics['rollout/exact_mean']:.3f}{explores}{imagined}"


def talk_command(model: MTPModel, env: TextVectorEnv, env_id: str, run_dir: Path, prompt: str) -> list[str]:
    """Return the line that tells how to talk to the model: none where no tokenizer could be saved beside it."""
    if isinstance(env.task, TurnTask):  # a text alone would hear no replies
        return ["play:        " + shlex.join(["worldmtp", "envs", "play", env_id, "--model", str(run_dir)])]
    if transformers_tokenizer(env.tokenizer) is None:
        return []
    words = ["worldmtp", "generate", *(["--explain"] if can_draft(model) else []), "--model", str(run_dir)]
    return ["generate:    " + shlex.join([*words, "--", prompt])]


def closing_text(summary: RunSummary, run_dir: Path, report: Path, talk: Sequence[str]) -> str:
    """Return the table, the notes, and where everything is."""
    return "\n".join(
        [
            summary_table(summary),
            *summary.notes,
            f"{summary.wall_clock_seconds:.0f} s in {run_dir}",
            f"report:      {report}",
            f"tensorboard: {tensorboard_command(run_dir)}",
            *talk,
        ]
    )


def _scoring(records: Records) -> list[str]:
    """Return a note where answers could not be scored, which are paid 0 as wrong ones are."""
    counts = {"raised": "env/scorer_errors", "were cut off": "env/scorer_timeouts"}
    failed = {how: int(max((record.get(tag) or 0.0 for record in records), default=0.0)) for how, tag in counts.items()}
    told = [f"{count} {how}" for how, count in failed.items() if count]
    if not told:
        return []
    return [f"of the scorer's calls {' and '.join(told)}: these answers were paid 0, and the first was warned of"]


def _acting(records: Records, rollout: RolloutConfig | None) -> list[str]:
    """Return in how many iterations a search acted, where one was asked for, and what it waited for if in none."""
    iterations = [record for record in records if "rollout/return_mean" in record]
    if rollout is None or rollout.act == "policy" or not iterations:
        return []
    number = len(iterations)
    if num_searched := sum("rollout/search_kl" in record for record in iterations):
        others = ", and in the others by the policy" if num_searched < number else ""
        return [f"acting by search: in {num_searched} of {number} iterations{others}"]
    waits = f"it begins after {rollout.search_after} (agent.rollout.search_after)"
    if number > rollout.search_after:
        waits = "no world has replied to a whole turn, so that there were no replies to search through"
    return [f"acting by search: in none of {number} iterations, so that the policy has acted alone; {waits}"]


def _real_episodes(iterations: Records) -> str:
    """Return how many real episodes there were while imagination explored, and in all; nothing where none is logged.

    Real batches are small until a reward is found, so that iterations do not tell.
    """
    totals = [float(record.get("env/episodes") or 0.0) for record in iterations]
    explored = [bool(record.get("imagination/explores")) for record in iterations]
    of_each = np.diff(totals, prepend=0.0)
    return f", with {of_each[explored].sum():.0f} of {totals[-1]:.0f} real episodes" if totals[-1] else ""


def _episodes(records: Records, imagination: ImaginationConfig) -> list[str]:
    """Return what ``imagination=episodes`` did: when its gates were open, what it promised, and what came."""
    if imagination.use != "episodes":
        return []
    iterations = [record for record in records if "rollout/return_mean" in record]

    def column(name: str) -> list[float]:
        return [float(record[name]) for record in iterations if record.get(name) is not None]

    trained, flat = column("imagination/batches_trained"), column("imagination/batches_flat")
    if not trained:
        return ["imagination: no world has replied to a whole turn, so that nothing was imagined"]
    explored = column("imagination/explores")
    let_through = zip(trained, flat, explored, strict=True)
    num_open = sum(one + other > 0 and not explores for one, other, explores in let_through)
    number, others = len(iterations), f"{len(iterations)} iterations"
    parts = []
    if num_explored := round(sum(explored)):  # no gate is asked then
        parts.append(f"explored in {num_explored} of {number} iterations{_real_episodes(iterations)}")
        others = f"the other {number - num_explored}"
    if not imagination.episodes.gated:
        parts.append("gates off")
    elif num_explored < number:
        parts.append(f"gates open in {num_open} of {others}")
    left_out = f", {sum(flat):.0f} of equal returns left out" if sum(flat) else ""
    parts.append(f"trained on {sum(trained):.0f} imagined batches{left_out}")
    promised, came = column("imagination/return_imagined"), column("imagination/return_realized")
    if promised:
        parts.append(
            f"promised {np.mean(promised):.2f} and {np.mean(came):.2f} came, on average over {len(came)} batches"
        )
    gates = {"action ratio": "world_model/reply_action_ratio", "disagreement": "imagination/disagreement"}
    measured = {name: values for name, tag in gates.items() if (values := column(tag))}
    parts += [f"{name} {values[0]:.3g} at first and {values[-1]:.3g} at last" for name, values in measured.items()]
    tag = "imagination/heldout_return"
    if held_out := [record for record in records if record.get(f"{tag}_imagined") is not None]:
        last = held_out[-1]
        parts.append(
            f"of held-out openings imagined {last[f'{tag}_imagined']:.2f}, where {last[f'{tag}_real']:.2f} came"
        )
    return [f"imagination: {'; '.join(parts)}"]


def _gate(records: Records, imagination: ImaginationConfig) -> list[str]:
    """Return how often skill let a use act, and of any other use with a gate that it never acted."""
    use = imagination.use
    if use in ("off", "episodes"):
        return []
    iterations = [record for record in records if "rollout/return_mean" in record]
    is_open = [bool(record["imagination/gate_open"]) for record in iterations if "imagination/gate_open" in record]
    if not is_open:
        return [f"imagination: {_why_not_searched(imagination)}"] if use == "search" and iterations else []
    skills = [
        float(record[_SKILLS[use]]) for record in iterations if use in _SKILLS and record.get(_SKILLS[use]) is not None
    ]
    measured = f"; its skill was {skills[0]:.3g} at first and {skills[-1]:.3g} at last" if skills else ""
    if any(is_open):
        number = f"{sum(is_open)} of {len(is_open)} iterations"
        return [f"imagination: its gate was open in {number}{measured}"] if use in _SKILLS else []
    return [
        f"imagination: its gate never opened in {len(is_open)} iterations, so that no update used what was imagined"
        f"{measured}; {_opens_where(imagination)}"
    ]


def _opens_where(imagination: ImaginationConfig) -> str:
    """Return what a gate waits for."""
    waits = {"latent": imagination.latent.gate_batches, "search": imagination.search.gate_batches}
    if (use := imagination.use) in waits:
        return f"it opens where the mean skill of {waits[use]} batches (imagination.{use}.gate_batches) is above chance"
    return (
        f"it opens after {imagination.min_batches} batches (imagination.min_batches) where what is imagined explains "
        "returns"
    )


def _why_not_searched(imagination: ImaginationConfig) -> str:
    if not imagination.search.searches:
        return (
            "nothing was searched, as imagination.search.coef or imagination.search.num_simulations is 0; this was "
            "plain PPO"
        )
    return "no world has replied to a whole turn, so that nothing was searched"
