"""What an evaluation leaves behind, and all that the analysis reads: arrays in an npz, the rest in a JSON beside it.

Two axes: ``length`` runs over tokens of the text (prompt first, right-padded) and ``depth`` over k = 1 .. K, index 0
being depth 1, the trunk's own head. Everything said *of* a token stands at that token's place i, whoever said it from
where: ``chain_logprob[b, i]`` is log p of token i by the trunk at i - 1, ``head_logprob[b, i, k-1]`` is log q_k of the
same token by depth k at i - k. A return stands at its root: entry i belongs to the prefix that ends with token i. So
does what was imagined: ``imagined_tokens[b, i, h]`` is step h of the most likely continuation imagined from there.
A reward stands at the token of the policy that earned it, and is 0 elsewhere. NaN means "not there": before the first
token, or not computed.

``token_strip`` and ``imagined_strip`` lay a text of an artefact beside what was predicted or imagined of it.

No pickle. The JSON carries the checksum of the npz and is written last, so a pair that loads is a whole one.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from worldmtp.atomic_files import write_bytes, write_text
from worldmtp.tracking.strips import StripRow, TokenStrip

FORMAT_VERSION = 2
_MAX_DEPTH_1_MISMATCH_NATS = 0.05


class ArtefactError(RuntimeError):
    """An artefact is missing, damaged or of another format; the message names the file and the field."""


@dataclass(frozen=True)
class EvalArtefact:
    """One evaluation: texts, outcomes, and what trunk, heads and world model said of them.

    ``action_mask`` is True where the policy chose the token, ``tokens_text[id]`` the text of a token id. ``entropy``
    fields are of the distribution over token i; ``head_top1`` is that distribution's most probable id.
    """

    input_ids: Int[np.ndarray, "batch length"]
    attention_mask: Bool[np.ndarray, "batch length"]
    action_mask: Bool[np.ndarray, "batch length"]
    prompt_length: Int[np.ndarray, " batch"]
    returns: Float[np.ndarray, " batch"]
    rewards: Float[np.ndarray, "batch length"]
    exact: Bool[np.ndarray, " batch"]
    chain_logprob: Float[np.ndarray, "batch length"]
    chain_entropy: Float[np.ndarray, "batch length"]
    head_logprob: Float[np.ndarray, "batch length depth"]
    head_entropy: Float[np.ndarray, "batch length depth"]
    head_top1: Int[np.ndarray, "batch length depth"]
    head_top1_prob: Float[np.ndarray, "batch length depth"]
    imagined_return: Float[np.ndarray, "batch length"]
    realized_return: Float[np.ndarray, "batch length"]
    imagined_tokens: Int[np.ndarray, "batch length horizon"]
    imagined_token_prob: Float[np.ndarray, "batch length horizon"]
    imagined_horizon: int
    tokens_text: tuple[str, ...]

    def __post_init__(self) -> None:
        check_shapes({name: getattr(self, name) for name in _ARRAYS})
        self._check_values()

    def __len__(self) -> int:
        return len(self.input_ids)

    def select(self, rows: Int[np.ndarray, " row"]) -> "EvalArtefact":
        """Return some of the rows."""
        arrays = {name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **arrays)

    @property
    def num_depths(self) -> int:
        """Return K, the number of depths."""
        return int(self.head_logprob.shape[2])

    @property
    def reply_mask(self) -> Bool[np.ndarray, "batch length"]:
        """Return which tokens a world wrote in reply: behind the prompt, and not the policy's."""
        behind_prompt = np.arange(self.input_ids.shape[1]) >= self.prompt_length[:, None]
        replies: Bool[np.ndarray, "batch length"] = self.attention_mask & behind_prompt & ~self.action_mask
        return replies

    def _check_values(self) -> None:
        length = self.input_ids.shape[1]
        used_ids = self.input_ids[self.attention_mask]
        if used_ids.size and not (used_ids.min() >= 0 and used_ids.max() < len(self.tokens_text)):
            raise ValueError(
                f"input_ids runs from {used_ids.min()} to {used_ids.max()} but tokens_text has {len(self.tokens_text)} "
                "entries; pass the text of every id of the vocabulary."
            )
        if np.any(self.action_mask & ~self.attention_mask):
            raise ValueError("action_mask marks tokens outside attention_mask; a policy token is a real token.")
        if np.any((self.prompt_length < 0) | (self.prompt_length > length)):
            raise ValueError(f"prompt_length leaves 0..{length}, the length of the texts.")
        if np.any(self.rewards[~self.action_mask] != 0):
            raise ValueError("rewards are not 0 at tokens that the policy did not choose; an action is paid, no reply.")
        if not np.allclose(self.rewards.sum(axis=1), self.returns, rtol=0, atol=1e-4):
            raise ValueError("rewards do not add up to returns; both are undiscounted, of one episode a row.")
        for name in ("chain_logprob", "head_logprob"):
            values = getattr(self, name)
            if np.any(np.isinf(values)) or np.any(values > 1e-3):
                raise ValueError(
                    f"{name} has infinite or positive entries; it holds log-probabilities of realized tokens, NaN "
                    "where there is none."
                )
        for name in ("chain_logprob", "chain_entropy"):
            if np.any(np.isnan(getattr(self, name)[self.action_mask])):
                raise ValueError(f"{name} is NaN at policy tokens; the trunk speaks of each of them.")
        for name in ("head_entropy", "head_top1_prob"):
            if np.any(np.isnan(getattr(self, name)[np.isfinite(self.head_logprob)])):
                raise ValueError(f"{name} is NaN where head_logprob is not; a head that spoke of a token has both.")
        if np.any((self.head_top1 < 0) | (self.head_top1 >= len(self.tokens_text))):
            raise ValueError(f"head_top1 leaves 0..{len(self.tokens_text) - 1}, the ids of tokens_text.")
        both = self.action_mask & np.isfinite(self.head_logprob[:, :, 0])
        if np.any(both):
            mismatch = float(np.mean(np.abs(self.head_logprob[:, :, 0] - self.chain_logprob)[both]))
            if mismatch > _MAX_DEPTH_1_MISMATCH_NATS:
                raise ValueError(
                    f"head_logprob of depth 1 differs from chain_logprob by {mismatch:.3f} nats on average; depth 1 is "
                    "the trunk, so one of the two is shifted. Entry i speaks of token i."
                )


_ARRAYS = tuple(field.name for field in fields(EvalArtefact) if field.name not in ("imagined_horizon", "tokens_text"))


def check_shapes(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise if the arrays of an artefact do not fit each other.

    Raises:
        ValueError: a shape differs from what ``input_ids`` and ``head_logprob`` ask for.
    """
    tokens, predictions = arrays["input_ids"].shape, arrays["head_logprob"].shape
    if len(tokens) != 2 or len(predictions) != 3:
        raise ValueError(
            f"input_ids has shape {tokens} and head_logprob {predictions}; expected (batch, length) and "
            "(batch, length, depth)."
        )
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(_ARRAYS, tokens)
    expected |= dict.fromkeys(("prompt_length", "returns", "exact"), tokens[:1])
    expected |= dict.fromkeys(
        ("head_logprob", "head_entropy", "head_top1", "head_top1_prob"), (*tokens, predictions[2])
    )
    imagined = (*tokens, arrays["imagined_tokens"].shape[-1])
    expected |= dict.fromkeys(("imagined_tokens", "imagined_token_prob"), imagined)
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}; input_ids and head_logprob ask for {shape}.")


def save_artefact(artefact: EvalArtefact, directory: Path, name: str) -> Path:
    """Write ``<name>.npz`` and ``<name>.json``, each atomically; return the path of the JSON."""
    arrays = {field: getattr(artefact, field) for field in _ARRAYS}
    header = {"imagined_horizon": artefact.imagined_horizon, "tokens_text": list(artefact.tokens_text)}
    return save_pair(directory, name, FORMAT_VERSION, arrays, header)


def load_artefact(directory: Path, name: str) -> EvalArtefact:
    """Return the artefact ``name`` of a directory.

    Raises:
        ArtefactError: a file or a field is missing, damaged, or of another version.
    """
    arrays, header = load_pair(directory, name, FORMAT_VERSION, _ARRAYS, ("imagined_horizon", "tokens_text"))
    try:
        check_shapes(arrays)
        return EvalArtefact(
            **arrays, imagined_horizon=header["imagined_horizon"], tokens_text=tuple(header["tokens_text"])
        )
    except ValueError as error:
        raise ArtefactError(f"{directory / name}.npz does not hold a valid artefact: {error}") from error


def save_pair(
    directory: Path, name: str, version: int, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]
) -> Path:
    """Write arrays and, last, a JSON of ``header`` with their checksum; return the path of the JSON."""
    digest = write_arrays(directory / f"{name}.npz", arrays)
    json_path = directory / f"{name}.json"
    write_text(json_path, json.dumps({"format_version": version, "sha256": digest, **header}, ensure_ascii=True))
    return json_path


def load_pair(
    directory: Path, name: str, version: int, arrays: Sequence[str], header: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the named arrays and the header that ``save_pair`` wrote.

    Raises:
        ArtefactError: a file or a field is missing, damaged, or of another version.
    """
    json_path, npz_path = directory / f"{name}.json", directory / f"{name}.npz"
    for path in (json_path, npz_path):
        if not path.is_file():
            raise ArtefactError(f"No {path}; an artefact is {name}.json and {name}.npz. Run the evaluation again.")
    told = _read_header(json_path, version, header)
    content = npz_path.read_bytes()
    if hashlib.sha256(content).hexdigest() != told["sha256"]:
        raise ArtefactError(
            f"{npz_path} ({len(content)} bytes) does not match the checksum in {json_path}; it is truncated, damaged "
            "or of another evaluation. Run the evaluation again."
        )
    with opened_arrays(npz_path, content) as archive:
        missing = [field for field in arrays if field not in archive]
        if missing:
            raise ArtefactError(f"{npz_path} lacks the field {missing[0]!r}; it was written by another version.")
        return {field: archive[field] for field in arrays}, told


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> str:
    """Write an npz, whole or not at all, in a directory that is made where it is missing; return its SHA-256."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


@contextmanager
def opened_arrays(path: Path, content: bytes | None = None) -> Iterator[Mapping[str, np.ndarray]]:
    """Give the arrays of an npz; what goes wrong with them inside the block is an error of the file.

    ``content`` is what was read of it before; it is not read again, since it may have been written anew.

    Raises:
        ArtefactError: the file is damaged, lacks an array or holds one that does not fit.
    """
    try:
        content = path.read_bytes() if content is None else content
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            yield archive
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise ArtefactError(f"{path} cannot be read ({error}); run the evaluation again.") from error


def artefact_names(directory: Path) -> list[str]:
    """Return the sorted names of a directory's artefacts; half of a pair counts, so loading says what is missing."""
    if not directory.is_dir():
        return []
    return sorted({path.stem for path in directory.iterdir() if path.suffix in (".npz", ".json")})


def _read_header(path: Path, version: int, fields: Sequence[str]) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path} is not JSON ({error}); it is truncated or damaged.") from error
    if isinstance(header, dict) and header.get("format_version", version) != version:  # it may have other fields
        raise ArtefactError(
            f"{path} has the format_version {header['format_version']}; this version of worldmtp reads "
            f"{version}. Run the evaluation again."
        )
    for field in ("format_version", "sha256", *fields):
        if not isinstance(header, dict) or field not in header:
            raise ArtefactError(f"{path} lacks the field {field!r}; it is damaged or not an artefact.")
    return dict(header)


def token_strip(artefact: EvalArtefact, row: int, caption: str = "") -> TokenStrip:
    """Return sequence ``row`` with what each depth held most probable of each of its policy tokens."""
    length = int(artefact.attention_mask[row].sum())
    texts = artefact.tokens_text
    rows = []
    for k in range(1, artefact.num_depths + 1):
        probability = artefact.head_top1_prob[row, :length, k - 1]
        # What was said from inside the prompt of a token more than one ahead of its end is not shown: the root must
        # have seen the whole prompt. Nor is what was said over the end of a turn: the reply in between is no action.
        spoken = [
            place - k >= artefact.prompt_length[row] - 1
            and bool(artefact.action_mask[row, place - k + 1 : place + 1].all())
            and value == value
            for place, value in enumerate(probability)
        ]
        if k > 1 and not any(spoken):
            continue  # no token of this text was foretold from so far: turns are shorter
        rows.append(
            StripRow(
                label=f"depth {k}",
                tokens=tuple(
                    texts[artefact.head_top1[row, place, k - 1]] if said else None for place, said in enumerate(spoken)
                ),
                probabilities=tuple(
                    float(value) if said else 0.0 for value, said in zip(probability, spoken, strict=True)
                ),
            )
        )
    return TokenStrip(
        tokens=tuple(texts[token] for token in artefact.input_ids[row, :length]),
        prompt_length=int(artefact.prompt_length[row]),
        rows=tuple(rows),
        caption=caption,
        replies=_replies(artefact, row),
    )


def imagined_strip(artefact: EvalArtefact, row: int, caption: str = "") -> TokenStrip:
    """Return sequence ``row`` with what was imagined from each of its prefixes: likeliest tokens, a row a prefix.

    Unlike a row of ``token_strip``, which reads the realized tokens in between, a row here goes on from its own.
    """
    length, start = int(artefact.attention_mask[row].sum()), int(artefact.prompt_length[row])
    texts = artefact.tokens_text
    rows = []
    for root in range(length - 1):
        probabilities = artefact.imagined_token_prob[row, root]
        steps = [h for h, p in enumerate(probabilities) if p == p and root + 1 + h < length]
        if not steps:
            continue
        tokens: list[str | None] = [None] * length
        shades = [0.0] * length
        for h in steps:
            tokens[root + 1 + h] = texts[artefact.imagined_tokens[row, root, h]]
            shades[root + 1 + h] = float(probabilities[h])
        rows.append(StripRow(f"after {root + 1 - start}", tuple(tokens), tuple(shades)))
    realized = tuple(texts[token] for token in artefact.input_ids[row, :length])
    return TokenStrip(realized, start, tuple(rows), caption, _replies(artefact, row))


def _replies(artefact: EvalArtefact, row: int) -> frozenset[int]:
    return frozenset(np.flatnonzero(artefact.reply_mask[row]).tolist())
