"""Values of a command line that several commands read: counts, seeds, what an environment is made with, a model."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmtp.training.config import TrainConfig
from worldmtp.training.imports import import_user_modules
from worldmtp.training.run_dir import CONFIG_FILE, DONE_FILE, MODEL_FOLDER, final_model, is_done, read_config

if TYPE_CHECKING:
    from worldmtp.model import MTPModel

_HUGGING_FACE_CONFIG = "config.json"
_META_CONFIG = "params.json"


def parse_kwargs(settings: Sequence[str]) -> dict[str, Any]:
    """Return what ``--kwargs`` gives: JSON objects, and ``key=value`` with dots for nesting, JSON or text as value.

    Raises:
        ValueError: a setting is neither.
    """
    kwargs: dict[str, Any] = {}
    for setting in settings:
        if setting.lstrip().startswith("{"):
            try:
                kwargs |= json.loads(setting)
            except json.JSONDecodeError as error:
                raise ValueError(f"--kwargs {setting!r} is no JSON object: {error}.") from error
            continue
        key, equals, value = setting.partition("=")
        *outer, last = key.split(".")
        if not equals or not last or not all(outer):
            raise ValueError(f"--kwargs {setting!r} must be key=value, as max_new=9, or a JSON object.")
        inner = kwargs
        for name in outer:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ValueError(f"--kwargs {setting!r}: {name!r} has the value {inner!r} already, and so no keys.")
        inner[last] = _value(value)
    return kwargs


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def positive(text: str) -> int:
    """Return a count of the command line."""
    return _whole(text, 1)


def whole_seed(text: str) -> int:
    """Return a seed of the command line."""
    return _whole(text, 0)


def _whole(text: str, smallest: int) -> int:
    if not text.isdecimal() or int(text) < smallest:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {smallest} on.")
    return int(text)


def newest_model(runs: Path) -> Path:
    """Return the model of the run below ``runs`` that was finished last; studies leave none and are passed over.

    Raises:
        ValueError: there is none.
    """
    ends = [mark for mark in runs.rglob(DONE_FILE) if (mark.parent / MODEL_FOLDER).is_dir()]
    if not ends:
        raise ValueError(
            f"no finished run with a model below {runs.resolve()}; make the demo's with `make run` (four to seven "
            "minutes) or `worldmtp train experiment=quickstart`, or name a run, a saved MTPModel or a Hugging Face "
            "checkpoint by --model PATH."
        )
    return max(ends, key=lambda mark: mark.stat().st_mtime).parent / MODEL_FOLDER


def run_config(path: Path) -> TrainConfig | None:
    """Return the config of the run that ``path``, or the run's model there, belongs to; None where there is none."""
    run_dir = path.parent if path.name == MODEL_FOLDER else path
    return read_config(run_dir) if (run_dir / CONFIG_FILE).is_file() else None


def import_run_modules(config: TrainConfig | None, imports: Sequence[str] = ()) -> None:
    """Import what a run imported, where its environments and heads are registered, and then ``imports``.

    Raises:
        ValueError: a module cannot be imported.
    """
    if config is not None:
        import_user_modules(config.imports, option="the run's config has imports=")
    import_user_modules(imports, option="--import ")


def add_kwargs(parser: argparse.ArgumentParser) -> None:
    """Let a command take what an environment is made with; see ``parse_kwargs``."""
    parser.add_argument(
        "--kwargs",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="what the environment is made with: key=value, dots for nesting, or a JSON object",
    )


def add_imports(parser: argparse.ArgumentParser) -> None:
    """Let a command take modules of the user's, as ``imports``."""
    parser.add_argument(
        "--import",
        nargs="+",
        action="extend",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="modules and ./files.py to import first, which register environments",
    )


def search_discount(given: float | None, trained: TrainConfig | None) -> tuple[float, str]:
    """Return what searches discount by, and who says so: ``--gamma``, else the run whose values are read, else 1.

    Raises:
        ValueError: the run let nothing count that follows a token, so that its values do not either.
    """
    if given is not None:
        return given, "as --gamma says"
    if trained is None:
        return 1.0, "as no run says"
    gamma = trained.agent.ppo.gamma
    if gamma == 0:
        raise ValueError(
            f"the run was trained with agent.ppo.gamma={gamma}, so that its values say nothing of what comes after a "
            "token, and a search has nothing to look for; train with agent.ppo.gamma in (0, 1], or give --gamma to "
            "search by the rewards that its heads foresee."
        )
    return gamma, "as the run's agent.ppo.gamma"


def tell_search(gamma: float, told: str, scale: str) -> None:
    """Say on the standard error what searches discount by, who says so, and what they measure values by."""
    print(f"searches discount by {gamma:g}, {told}, and measure values by {scale}", file=sys.stderr)


def load_model(directory: Path, device: str | None) -> "MTPModel":
    """Return the model of a directory, in evaluation mode, on a device; by default CUDA where there is one.

    Raises:
        ValueError: it cannot be read, or there is no such device.
    """
    import torch
    import transformers

    from worldmtp.decoding.trunk import as_mtp_model
    from worldmtp.training.make import checked_device
    from worldmtp.training.saved_model import load_any_model

    transformers.utils.logging.disable_progress_bar()
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    place = checked_device(name, "--device", "--device cpu")
    model = as_mtp_model(load_any_model(directory))
    torch.nn.Module.to(model, place)
    return model.eval()


def check_page(path: Path | None, option: str) -> None:
    """Raise, before anything is computed for it, if a page that is asked for cannot be written.

    Raises:
        ValueError: it is a directory, or would lie in one that is not there.
    """
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        what = "is a directory" if path.is_dir() else f"would lie in {path.parent}, which is no directory"
        raise ValueError(f"{option} {path} {what}; give a file in a directory that is there.")


def model_directory(path: Path, option: str) -> Path:
    """Return where the model is that ``path`` names: there, or in the ``model/`` of a run.

    Raises:
        ValueError: there is none; ``option`` is what the message calls the path.
    """
    if not path.is_dir():
        raise ValueError(
            f"{option} {path} is not a directory; give a run directory, a saved MTPModel, or a checkpoint of a Hugging "
            "Face causal LM on this machine."
        )
    if (path / _HUGGING_FACE_CONFIG).is_file() or (path / _META_CONFIG).is_file():
        return path
    model = final_model(path)
    if model is not None and (model / _HUGGING_FACE_CONFIG).is_file():
        return model
    if (path / CONFIG_FILE).is_file() and not is_done(path):
        raise ValueError(
            f"{option} {path} is a run that has not come to its end, where it leaves {MODEL_FOLDER}/; go on with "
            f"worldmtp train resume={path}, or give {path / 'sft' / MODEL_FOLDER} once that is there."
        )
    if (path / CONFIG_FILE).is_file() and read_config(path).study:
        raise ValueError(f"{option} {path} is a study, which leaves tables and no model; give a training run.")
    raise ValueError(
        f"{option} {path} has neither {_HUGGING_FACE_CONFIG} nor {MODEL_FOLDER}/{_HUGGING_FACE_CONFIG}; give a run "
        "directory, a saved MTPModel, or a checkpoint of a Hugging Face causal LM."
    )
