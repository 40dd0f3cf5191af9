"""What the heads of a run lose and why, on its held-out answers: a bracketed ``worldmtp.analysis.loss_split``.

The law is the policy as it acts; what it would say after other tokens in between is read from the trunk. A head that is
told the tokens in between, an action-conditional one read with the real text, may lose less than any that averages: its
error is then below zero, by the structural gap at most.

Left out: environments that end an answer by anything but the end token, of which no drawn future knows, and masks.
"""

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int

from worldmtp.analysis import EvalArtefact
from worldmtp.analysis.loss_split import LossSplit, bracketed_split
from worldmtp.analysis.metrics import RootedPredictions, rooted_predictions
from worldmtp.analysis.open_loop import OpenLoopLosses, drawn_path_loss, open_loop_split
from worldmtp.dynamics import OracleWorldModel, WorldModel, acting_policy
from worldmtp.dynamics.futures import Futures, draw_futures
from worldmtp.model import MTPModel
from worldmtp.tracking import MetricWriter

_MAX_NUMBERS = 20_000_000
"""Probabilities held at once: roots x depths x futures x vocabulary."""


def write_head_split(
    model: MTPModel,
    world_model: WorldModel[Any] | None,
    artefact: EvalArtefact,
    temperature: float,
    eos_id: int,
    seed: int,
    writer: MetricWriter,
    step: int,
) -> None:
    """Log the split of each head's loss, and what the world model loses as it is rolled along."""
    split = measured_split(model, artefact, temperature, eos_id, seed)
    losses = measured_open_loop(world_model, artefact, temperature, eos_id, model.device, seed)
    writer.scalars(split_scalars(split, seed) | open_loop_scalars(losses, seed), step)


def measured_split(
    model: MTPModel,
    artefact: EvalArtefact,
    temperature: float,
    eos_id: int,
    seed: int,
    num_roots: int = 128,
    num_futures: int = 16,
) -> LossSplit | None:
    """Return the split at one random root of each of the first sequences; None where no token is the policy's.

    What is drawn comes from a generator of its own.
    """
    rooted, depth = rooted_predictions(artefact), artefact.num_depths
    rows, at = _chosen_roots(rooted, num_roots, seed)
    if not len(rows):
        return None
    there = rooted.valid[rows, at]
    loss, chain = (
        np.where(there, values[rows, at], np.nan) for values in (rooted.cross_entropy, rooted.chain_cross_entropy)
    )
    generator = torch.Generator(device=model.device).manual_seed(seed)
    world_model, policy = OracleWorldModel(model), acting_policy(temperature)
    chunk = max(1, _MAX_NUMBERS // (depth * num_futures * len(artefact.tokens_text)))
    found = []
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        texts, mask, places = (
            torch.from_numpy(values).to(model.device)
            for values in (artefact.input_ids[rows[part]], artefact.attention_mask[rows[part]], at[part])
        )
        with torch.no_grad():
            state = world_model.encode(texts, mask, torch.arange(len(texts), device=texts.device), places)
        futures = draw_futures(world_model, state, depth, num_futures, policy, generator)
        found.append(
            bracketed_split(
                loss[part, None],
                chain[part, None],
                futures.conditionals.double().cpu().numpy()[:, None],
                _alive(futures, eos_id)[:, None],
            )
        )
    return LossSplit(*(np.concatenate([getattr(each, name.name) for each in found]) for name in fields(LossSplit)))


def _chosen_roots(
    rooted: RootedPredictions, num_roots: int, seed: int
) -> tuple[Int[np.ndarray, " root"], Int[np.ndarray, " root"]]:
    """Return sequences that have a root, at most so many, and a random root of each."""
    rows = np.flatnonzero(rooted.valid[:, :, 0].any(axis=1))[:num_roots]
    choose = np.random.default_rng(seed)
    at = np.array([choose.choice(np.flatnonzero(rooted.valid[row, :, 0])) for row in rows], dtype=np.int64)
    return rows, at


def _alive(futures: Futures, eos_id: int) -> Bool[np.ndarray, "root depth future"]:
    """Return which futures had not ended before each depth."""
    ended = (futures.tokens == eos_id).cumsum(dim=2).transpose(1, 2).cpu().numpy() > 0  # (root, between, future)
    first = np.ones((ended.shape[0], 1, futures.tokens.shape[1]), dtype=bool)
    return np.concatenate([first, ~ended], axis=1)


@torch.no_grad()
def measured_open_loop(
    world_model: WorldModel[Any] | None,
    artefact: EvalArtefact,
    temperature: float,
    eos_id: int,
    device: torch.device,
    seed: int,
    num_roots: int = 128,
    num_paths: int = 16,
) -> OpenLoopLosses | None:
    """Return what the world model loses at the roots of ``measured_split`` as it is rolled along.

    Along the real tokens, along its own, and beside the trunk that reads all anew. A world model that is blind to
    tokens says the same along any. None without a world model, or where no token is the policy's.
    """
    if world_model is None:
        return None
    rooted = rooted_predictions(artefact)
    depth = (
        artefact.num_depths
        if world_model.max_horizon is None
        else min(artefact.num_depths, world_model.max_horizon + 1)
    )
    rows, at = _chosen_roots(rooted, num_roots, seed)
    if not len(rows):
        return None
    there, full = rooted.valid[rows, at, :depth], rooted.chain_cross_entropy[rows, at, :depth]
    places = np.minimum(at[:, None] + np.arange(1, depth + 1), artefact.input_ids.shape[1] - 1)
    ahead = np.take_along_axis(artefact.input_ids[rows], places, axis=1).astype(np.int64)
    generator, policy = torch.Generator(device=device).manual_seed(seed), acting_policy(temperature)
    chunk = max(1, _MAX_NUMBERS // (depth * num_paths * len(artefact.tokens_text)))
    rolling, own = [], []
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        texts, mask, roots, real = (
            torch.from_numpy(values).to(device)
            for values in (artefact.input_ids[rows[part]], artefact.attention_mask[rows[part]], at[part], ahead[part])
        )
        start_state = state = world_model.encode(texts, mask, torch.arange(len(texts), device=device), roots)
        said = []
        for step in range(depth):
            logits = world_model.predict(state).logits
            assert logits is not None  # a world model of tokens
            said.append(policy(logits).gather(1, real[:, step, None])[:, 0])
            if step + 1 < depth:
                state = world_model.step(state, real[:, step])
        rolling.append(-torch.stack(said, dim=1).double().cpu().numpy())
        if world_model.action_conditional:
            paths = draw_futures(world_model, start_state, depth, num_paths, policy, generator)
            laws = paths.conditionals.double().cpu().numpy()[:, None]
            own.append(drawn_path_loss(laws, ahead[part, None], _alive(paths, eos_id)[:, None])[:, 0])
        else:
            own.append(rolling[-1])
    losses = (full, np.concatenate(rolling), np.concatenate(own))
    return OpenLoopLosses(*(np.where(there, values, np.nan)[:, None].astype(np.float64) for values in losses))


def open_loop_scalars(losses: OpenLoopLosses | None, seed: int) -> dict[str, float]:
    """Return exposure, context and their product of depths 2 .. K by tag, where they are known."""
    scalars: dict[str, float] = {}
    for depth in range(2, 1 + (losses.full.shape[2] if losses is not None else 0)):
        split = None if losses is None else open_loop_split(losses, depth, generator=seed)
        if split is None:
            continue
        for name, ratio in (("exposure", split.exposure), ("context", split.context), ("open_loop", split.product)):
            tag = f"world_model/depth_{depth}/{name}"
            scalars |= {tag: ratio.estimate, f"{tag}_lo90": ratio.low, f"{tag}_hi90": ratio.high}
    return scalars


def split_scalars(split: LossSplit | None, seed: int) -> dict[str, float]:
    """Return structural gap and error of depths 2 .. K by the tags they are logged under, where they are known."""
    scalars: dict[str, float] = {}
    for depth in range(2, 1 + (split.loss.shape[2] if split is not None else 0)):
        if split is None or split.num_sequences(depth) < 2:
            continue
        for part in ("structural", "error"):
            interval = split.interval(part, depth, generator=seed)
            tag = f"world_model/depth_{depth}/{part}"
            scalars |= {tag: interval.estimate, f"{tag}_lo90": interval.low, f"{tag}_hi90": interval.high}
    return scalars
