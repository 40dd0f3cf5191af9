"""What happens inside a run's model, at each evaluation: patterns of attention, the heads' weights, what heads predict.

    <run>/heads_start.safetensors           the heads' weights when the run began, from which drift is measured
    <run>/attention/, <run>/sft/attention/  patterns and maps, of evaluations of the run and of its warm start

Attention is that of the trunk, from the places where the policy chose a token of its sampled held-out answers. Nothing
here consumes a stream of the training.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldmtp.agents.rollout import Rollout, reply_mask, state_index
from worldmtp.analysis.attention_files import AttentionMaps, AttentionRecord, save_attention
from worldmtp.analysis.attention_patterns import (
    AttendedTexts,
    attention_scalars,
    join_sums,
    pattern_sums,
    uniform_scores,
)
from worldmtp.atomic_files import replacing
from worldmtp.decoding.trunk import evaluation_mode
from worldmtp.heads.weights import copied_weights, weight_scalars
from worldmtp.model import MTPModel
from worldmtp.model.attention_probe import attention_maps
from worldmtp.tracking import MetricWriter
from worldmtp.training.config import EvalConfig

START_FILE = "heads_start.safetensors"
NUM_QUERIES = 32
"""Places of a text whose attention is read, evenly spread over those where the policy acted."""
NUM_MAPS = 4
"""Texts whose whole maps are kept, if there is room for them."""
_MAX_NUMBERS = 50_000_000
"""Weights held at once: texts x layers x heads x queries x keys."""


class InsideLog:
    """Writes attention and weights of one model to the logs of its run.

    A trunk whose attention cannot be read costs the run nothing but this: ``notes`` says so, and why. ``computing``
    gives the precision to compute in.
    """

    def __init__(
        self,
        model: MTPModel,
        run_dir: Path,
        config: EvalConfig,
        tokens_text: Sequence[str],
        computing: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._model, self._run_dir = model, run_dir
        self._tokens_text, self._computing = tuple(tokens_text), computing
        with computing():
            refusal = attention_refusal(model) if config.num_attention else None
        self._num_texts = 0 if refusal is not None else config.num_attention
        self.notes = () if refusal is None else (f"attention is not read: {refusal}",)
        self._start: dict[str, Tensor] | None = None

    def remember_start(self) -> None:
        """Keep the heads' weights as they are now, unless the run has kept some before."""
        path = self._run_dir / START_FILE
        if not path.exists():
            weights = {name: weight.contiguous() for name, weight in copied_weights(self._model.heads).items()}
            with replacing(path) as partial:
                save_file(weights, partial)
        self._start = load_file(path)

    def write(self, sampled: Rollout, writer: MetricWriter, directory: Path, step: int) -> None:
        """Log patterns and weights at ``step``, and leave the maps in ``directory``."""
        assert self._start is not None, "remember_start comes first"
        scalars = weight_scalars(self._model.heads, self._start)
        record = None
        if self._num_texts:
            with self._computing():
                record = read_attention(self._model, sampled, self._num_texts, self._tokens_text, step)
        if record is not None:
            scalars |= attention_scalars(record.sums.mean(), record.floor)
            save_attention(record, directory)
        if scalars:
            writer.scalars(scalars, step)


def attention_refusal(model: MTPModel) -> str | None:
    """Return why the attention of the model's trunk cannot be read, None where it can: two tokens are tried."""
    tokens = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    try:
        with evaluation_mode(model.trunk):
            attention_maps(model.trunk, tokens, tokens)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return None


def read_attention(
    model: MTPModel, rollout: Rollout, num_texts: int, tokens_text: Sequence[str], step: int
) -> AttentionRecord | None:
    """Return the attention of the first texts in which the policy acted; None where there is none."""
    acted = torch.nonzero(rollout.step_mask.any(dim=1))[:num_texts, 0]
    if not len(acted):
        return None
    part = rollout.select(acted)
    texts = attended_texts(part)
    config = model.trunk.config.get_text_config()
    each = config.num_hidden_layers * config.num_attention_heads * texts.queries.shape[1] * texts.input_ids.shape[1]
    chunk = max(1, _MAX_NUMBERS // each)
    sums, gallery = [], None
    with evaluation_mode(model.trunk):
        for start in range(0, len(acted), chunk):
            rows = slice(start, start + chunk)
            queries = torch.from_numpy(texts.queries[rows]).to(model.device)
            found = attention_maps(model.trunk, part.input_ids[rows], queries, part.attention_mask[rows])
            attention = found.cpu().numpy()
            sums.append(pattern_sums(attention, texts.select(rows)))
            if gallery is None:
                gallery = AttentionMaps.of(attention, texts.select(rows), tokens_text, NUM_MAPS)
    assert gallery is not None
    return AttentionRecord(step, join_sums(sums), uniform_scores(texts), gallery)


def attended_texts(rollout: Rollout, num_queries: int = NUM_QUERIES) -> AttendedTexts:
    """Return the texts of a rollout, with the places where the policy acted as queries: evenly spread if many."""
    acted, places = rollout.step_mask.cpu().numpy(), state_index(rollout)[:, :-1].cpu().numpy()
    width = min(num_queries, int(acted.sum(axis=1).max(initial=1)))
    queries = np.zeros((len(acted), width), dtype=np.int64)
    known = np.zeros(queries.shape, dtype=bool)
    for row, steps in enumerate(acted):
        of_row = places[row][steps]
        chosen = of_row[np.linspace(0, len(of_row) - 1, min(width, len(of_row))).round().astype(int)]
        queries[row, : len(chosen)], known[row, : len(chosen)] = chosen, True
    return AttendedTexts(
        input_ids=rollout.input_ids.cpu().numpy(),
        attention_mask=rollout.attention_mask.cpu().numpy(),
        prompt_length=rollout.prompt_length.cpu().numpy(),
        reply_mask=reply_mask(rollout).cpu().numpy(),
        queries=queries,
        query_mask=known,
    )
