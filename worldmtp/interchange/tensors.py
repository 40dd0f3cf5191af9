"""Weights and configs as they lie on disk: safetensors, one file or many with an index, and Llama's ``.pth``.

``.pth`` files are read with ``weights_only=True``: nothing in them can run code. Safetensors are mapped into memory,
so a weight costs memory when it is used.

Weights may be stored in eight bits with a scale for each block, as DeepSeek-V3's (arXiv 2412.19437, section 3.3):

    w[i, j] = q[i, j] * s[i // b, j // b]          b = 128, the last blocks of a row or column may be ragged

The scale is called ``<weight>_scale_inv``, although it multiplies: it is the inverse of the one that quantised.

Left out: ``pytorch_model.bin``, Llama checkpoints cut into parts for model parallelism, and quantising: heads are
trained and written in the precision of their trunk.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from worldmtp.interchange.problems import LayoutError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PTH = "consolidated.pth"
PARAMS = "params.json"
CONFIG = "config.json"

SCALE_SUFFIX = "_scale_inv"
DEFAULT_BLOCK = (128, 128)
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)


def read_config(directory: Path) -> dict[str, Any]:
    """Return ``config.json``, or ``params.json`` where there is no other.

    Raises:
        FileNotFoundError: neither is there.
        LayoutError: it is damaged.
    """
    for name in (CONFIG, PARAMS):
        if (directory / name).is_file():
            return _read_json(directory / name)
    raise FileNotFoundError(f"{directory} has neither {CONFIG} nor {PARAMS}; pass the folder of a checkpoint.")


def read_tensors(directory: Path) -> dict[str, Shaped[Tensor, "..."]]:
    """Return all weights of a checkpoint by their names in the file.

    Raises:
        FileNotFoundError: no file of a known form, or one that the index names is not there.
        LayoutError: a file is damaged, the index and its files disagree, or a ``.pth`` holds something else than
            tensors.
    """
    if (directory / INDEX).is_file():
        return _read_shards(directory)
    if (directory / SINGLE).is_file():
        return _read_safetensors(directory / SINGLE)
    parts = sorted(directory.glob("consolidated*.pth"))
    if len(parts) == 1:
        return _read_pth(parts[0])
    if parts:
        raise LayoutError(
            f"{directory} is cut into {len(parts)} parts {[part.name for part in parts]}, for model parallelism; join "
            f"them into one {PTH} first."
        )
    raise FileNotFoundError(f"{directory} has none of {INDEX}, {SINGLE}, {PTH}; pass the folder of a checkpoint.")


def weight_names(directory: Path) -> list[str]:
    """Return names of the weights in safetensors files; none where there are no such files.

    Raises:
        LayoutError: a file is damaged.
    """
    if (directory / INDEX).is_file():
        return list(_weight_map(directory))
    if not (directory / SINGLE).is_file():
        return []
    with _opened(directory / SINGLE) as file:
        return list(file.keys())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # JSON that is cut off, or bytes that are no text
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise LayoutError(f"{path} holds a {type(content).__name__}, expected an object; copy it again.")
    return content


def _unreadable(path: Path, error: Exception) -> LayoutError:
    return LayoutError(f"{path} cannot be read ({error}); it may be damaged or cut off, so copy it again.")


def _weight_map(directory: Path) -> dict[str, str]:
    weight_map = _read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise LayoutError(f"{directory / INDEX} has no 'weight_map' of names and files; copy it again.")
    return weight_map


def _read_shards(directory: Path) -> dict[str, Tensor]:
    weight_map = _weight_map(directory)
    files = sorted(set(weight_map.values()))
    absent = [name for name in files if not (directory / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{directory} lacks {absent}, which its index names; copy the whole checkpoint.")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _read_safetensors(directory / file)
    if set(tensors) != set(weight_map):
        raise LayoutError(
            f"{directory / INDEX} and its files disagree: only in the index {sorted(set(weight_map) - set(tensors))}, "
            f"only in the files {sorted(set(tensors) - set(weight_map))}."
        )
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise _unreadable(path, error) from error


def _read_pth(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError) as error:  # torch's words for an archive that is cut off
        raise _unreadable(path, error) from error
    odd = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise LayoutError(f"{path} holds entries that are no tensors: {odd}.")
    return dict(state)


def append_shard(directory: Path, tensors: Mapping[str, Shaped[Tensor, "..."]]) -> None:
    """Add a file of weights to a checkpoint of one or more safetensors files.

    The files are renamed into one numbered series, and the index names every weight.
    """
    index_path = directory / INDEX
    if index_path.is_file():
        index: dict[str, Any] = json.loads(index_path.read_text())
    else:
        names = _read_safetensors(directory / SINGLE)
        size = sum(tensor.nbytes for tensor in names.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(names, SINGLE)}
    old = sorted(set(index["weight_map"].values()))
    total = len(old) + 1
    renamed = {file: f"model-{number:05d}-of-{total:05d}.safetensors" for number, file in enumerate(old, start=1)}
    added = f"model-{total:05d}-of-{total:05d}.safetensors"
    for file, name in renamed.items():
        (directory / file).rename(directory / name)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / added, {"format": "pt"})
    index["weight_map"] = {name: renamed[file] for name, file in index["weight_map"].items()}
    index["weight_map"] |= dict.fromkeys(tensors, added)
    index["metadata"]["total_size"] += sum(tensor.nbytes for tensor in tensors.values())
    index_path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def dequantize(
    weight: Shaped[Tensor, "rows columns"],
    scale: Float[Tensor, "row_blocks column_blocks"],
    block: Sequence[int] = DEFAULT_BLOCK,
) -> Float[Tensor, "rows columns"]:
    """Return the weight in float32.

    Raises:
        ValueError: not one scale for each block.
    """
    rows, columns = weight.shape
    wanted = (-(-rows // block[0]), -(-columns // block[1]))
    if tuple(scale.shape) != wanted:
        raise ValueError(
            f"scale is {tuple(scale.shape)}, expected {wanted} for a weight {tuple(weight.shape)} in blocks of "
            f"{tuple(block)}"
        )
    spread = scale.float().repeat_interleave(block[0], dim=0).repeat_interleave(block[1], dim=1)
    return weight.float() * spread[:rows, :columns]


def dequantize_all(
    tensors: dict[str, Shaped[Tensor, "..."]], dtype: torch.dtype, block: Sequence[int] = DEFAULT_BLOCK
) -> tuple[dict[str, Shaped[Tensor, "..."]], list[str]]:
    """Return the tensors without eight-bit ones and their scales, and what was wrong with those."""
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE_SUFFIX)}
    problems = []
    for name in tensors.keys() - plain.keys():
        weight = tensors.get(name.removesuffix(SCALE_SUFFIX))
        if weight is None or weight.dtype not in _EIGHT_BITS:
            problems.append(f"unexpected: {name}, which scales no eight-bit weight")
    for name, weight in plain.items():
        if weight.dtype not in _EIGHT_BITS:
            continue
        scale = tensors.get(name + SCALE_SUFFIX)
        if scale is None:
            problems.append(f"missing: {name}{SCALE_SUFFIX}, the scale of an eight-bit weight")
            plain[name] = weight.to(dtype)
            continue
        try:
            plain[name] = dequantize(weight, scale, block).to(dtype)
        except ValueError as error:
            problems.append(f"shape: {name}{SCALE_SUFFIX}: {error}")
            plain[name] = weight.to(dtype)
    return plain, problems
