"""Which directory a model is read from: one that was named, or that of the newest finished run."""

from pathlib import Path

from worldmtp.training.run_dir import CONFIG_FILE, DONE_FILE, MODEL_FOLDER, is_done

_HUGGING_FACE_CONFIG = "config.json"
_META_CONFIG = "params.json"


def newest_model(runs: Path) -> Path:
    """The model of the run below ``runs`` that was finished last; studies leave none and are passed over.

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


def model_directory(path: Path, option: str) -> Path:
    """Where the model is that ``path`` names: there, or in the ``model/`` of a run.

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
    if (path / MODEL_FOLDER / _HUGGING_FACE_CONFIG).is_file():
        return path / MODEL_FOLDER
    if (path / CONFIG_FILE).is_file() and not is_done(path):
        raise ValueError(
            f"{option} {path} is a run that has not come to its end, where it leaves {MODEL_FOLDER}/; go on with "
            f"worldmtp train resume={path}, or give {path / 'sft' / MODEL_FOLDER} once that is there."
        )
    raise ValueError(
        f"{option} {path} has neither {_HUGGING_FACE_CONFIG} nor {MODEL_FOLDER}/{_HUGGING_FACE_CONFIG}; give a run "
        "directory, a saved MTPModel, or a checkpoint of a Hugging Face causal LM."
    )
