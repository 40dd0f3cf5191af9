"""Checkpoints that survive a kill at any moment, and say so when they did not.

A checkpoint is one file, ``checkpoint-<step>.pt``: a header line of fixed length with the SHA-256 of the rest, then a
``torch.save`` archive that is read back with ``weights_only=True`` (nothing in it can run code). It is written beside
its final place, flushed to disk and renamed, so a name that exists is a whole file; the checksum catches what a disk
or a copy does to it later. ``capture_rng`` and ``restore_rng`` turn generators into payload and back.

Left out: sharded checkpoints, and asynchronous writing.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from worldmtp.atomic_files import remove_partial, replacing

_MAGIC = b"worldmtp-checkpoint-1 "
_HEADER_BYTES = len(_MAGIC) + 64 + 1
_NAME = re.compile(r"checkpoint-(\d{12})\.pt")
_TAG = "__worldmtp__"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names the file and the way out."""


def save_checkpoint(directory: Path, step: int, payload: Mapping[str, Any], keep_last: int = 2) -> Path:
    """Write ``payload`` atomically and return the checkpoint's path.

    The payload nests mappings, lists and tuples of tensors, numpy arrays, bytes, str, int, float, bool and None.
    Tensors are stored as they are; ``load_checkpoint`` brings them back on the device it is told. The one
    written stays, and of the others in the directory the ``keep_last - 1`` with the highest steps.

    Raises:
        CheckpointError: the directory cannot be written or the disk is full; older checkpoints are untouched.
        TypeError: the payload holds something else; the message gives its place.
        ValueError: a negative step, or ``keep_last`` below one.
    """
    if step < 0 or keep_last < 1:
        raise ValueError(f"step={step}, keep_last={keep_last}; need step >= 0 and keep_last >= 1.")
    encoded = _encode(payload, "payload")
    target = directory / f"checkpoint-{step:012d}.pt"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        remove_partial(directory, "checkpoint-*")
        _write(target, encoded)
    except OSError as error:
        survivor = _newest_intact(directory, excluding=None)
        raise CheckpointError(
            f"Could not write the checkpoint of step {step} to {directory}: {error}. "
            f"{_survivor_sentence(survivor)} Free space or choose another directory, then resume."
        ) from error
    others = [path for path in _checkpoints(directory) if path != target]
    for outdated in others[: max(0, len(others) - keep_last + 1)]:
        outdated.unlink()
    return target


def latest_checkpoint(directory: Path) -> Path | None:
    """Return the checkpoint with the highest step, or None; files still being written do not count."""
    found = _checkpoints(directory)
    return found[-1] if found else None


def checkpoint_step(path: Path) -> int:
    """Return the step a checkpoint's name carries.

    Raises:
        ValueError: the name is not that of a checkpoint.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name!r} is not a checkpoint's name; expected checkpoint-<12 digits>.pt.")
    return int(match.group(1))


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the payload of a checkpoint, after its checksum has been verified.

    Raises:
        CheckpointError: missing, truncated or corrupt; the message names the newest intact checkpoint beside it.
    """
    if not path.is_file():
        survivor = _newest_intact(path.parent, excluding=path)
        raise CheckpointError(f"No checkpoint at {path}. {_survivor_sentence(survivor)}")
    flaw = _flaw(path)
    if flaw is not None:
        survivor = _newest_intact(path.parent, excluding=path)
        raise CheckpointError(f"The checkpoint {path} is corrupt: {flaw}. {_survivor_sentence(survivor)}")
    with path.open("rb") as file:
        file.seek(_HEADER_BYTES)
        decoded: dict[str, Any] = _decode(torch.load(file, map_location=device, weights_only=True))
    return decoded


def capture_rng(generators: Mapping[str, torch.Generator | np.random.Generator]) -> dict[str, Any]:
    """Return the states of named generators, as payload for ``save_checkpoint``."""
    return {
        name: generator.get_state() if isinstance(generator, torch.Generator) else generator.bit_generator.state
        for name, generator in generators.items()
    }


def restore_rng(generators: Mapping[str, torch.Generator | np.random.Generator], states: Mapping[str, Any]) -> None:
    """Put named generators, in place, into the states that ``capture_rng`` took.

    Raises:
        ValueError: the names differ, or a state belongs to another kind of generator.
    """
    if set(generators) != set(states):
        missing, unknown = sorted(set(generators) - set(states)), sorted(set(states) - set(generators))
        raise ValueError(
            f"The saved random states do not fit: missing {missing}, unknown {unknown}. "
            "Resume with the same generators as the run that saved them."
        )
    for name, generator in generators.items():
        state = states[name]
        if isinstance(generator, torch.Generator) != isinstance(state, Tensor):
            raise ValueError(
                f"The saved state of generator {name!r} is a {type(state).__name__}, which does not belong to a "
                f"{type(generator).__module__}.{type(generator).__name__}; resume with the kind that was saved."
            )
        if isinstance(generator, torch.Generator):
            # A generator's state lives on the host, whatever device the checkpoint was loaded to.
            generator.set_state(state.cpu())
        else:
            generator.bit_generator.state = state


class _HashingSink:
    """What ``torch.save`` writes to: hashes and passes on.

    A write error is kept and raised later by the caller: thrown into the archive writer, which is C++, it would end
    the process in the writer's destructor.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None
        self._file = file

    def write(self, data: bytes | memoryview) -> int:
        self.sha256.update(data)
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Do nothing: the file is flushed once, when it is whole."""


def _write(target: Path, encoded: Any) -> None:
    with replacing(target) as partial, partial.open("wb") as file:
        file.write(b"\0" * _HEADER_BYTES)
        sink = _HashingSink(file)
        torch.save(encoded, cast(IO[bytes], sink))
        if sink.error is not None:
            raise sink.error
        file.seek(0)
        file.write(_MAGIC + sink.sha256.hexdigest().encode() + b"\n")


def _flaw(path: Path) -> str | None:
    """Return what is wrong with a checkpoint file, or None."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
            return f"its {len(header)} first bytes are not the header of a checkpoint"
        for block in iter(lambda: file.read(1 << 20), b""):
            sha256.update(block)
    if sha256.hexdigest().encode() != header[len(_MAGIC) : -1]:
        return f"its content ({path.stat().st_size} bytes) does not match its checksum"
    return None


def _checkpoints(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def _newest_intact(directory: Path, excluding: Path | None) -> Path | None:
    for candidate in reversed(_checkpoints(directory)):
        if candidate != excluding and _flaw(candidate) is None:
            return candidate
    return None


def _survivor_sentence(survivor: Path | None) -> str:
    if survivor is None:
        return "There is no intact checkpoint in that directory."
    return f"The newest intact checkpoint is {survivor} (step {checkpoint_step(survivor)})."


def _encode(value: Any, place: str) -> Any:
    """Return the payload in the types that ``weights_only`` reading admits; arrays and bytes become tagged tensors."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError(f"{place} is a numpy array of objects; save numbers, or a list of strings.")
        return {
            _TAG: "ndarray",
            "dtype": value.dtype.str,
            "shape": list(value.shape),
            "data": _byte_tensor(value.tobytes()),
        }
    if isinstance(value, bytes):
        return {_TAG: "bytes", "data": _byte_tensor(value)}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list | tuple):
        encoded = [_encode(item, f"{place}[{index}]") for index, item in enumerate(value)]
        return encoded if isinstance(value, list) else tuple(encoded)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int) or key == _TAG:
                raise TypeError(f"{place} has the key {key!r}; keys are str or int, and {_TAG!r} is reserved.")
        return {key: _encode(item, f"{place}[{key!r}]") for key, item in value.items()}
    raise TypeError(
        f"{place} is a {type(value).__module__}.{type(value).__name__}; a checkpoint holds tensors, numpy arrays, "
        "bytes, str, int, float, bool, None, and lists, tuples and mappings of these. Save its state instead."
    )


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = value.get(_TAG)
    if kind is None:
        return {key: _decode(item) for key, item in value.items()}
    data = value["data"].cpu().numpy().tobytes()
    if kind == "bytes":
        return data
    return np.frombuffer(data, dtype=np.dtype(value["dtype"])).reshape(value["shape"]).copy()


def _byte_tensor(data: bytes) -> Tensor:
    # A bytearray, because torch warns of buffers that cannot be written.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
