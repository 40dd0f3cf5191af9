"""What the heads of a run lose and why, on its held-out answers: a bracketed ``worldmtp.analysis.loss_split``.

The law is the policy as it acts; what it would say after other tokens in between is read from the trunk. A head that is
told the tokens in between, an action-conditional one read with the real text, may lose less than any that averages: its
error is then below zero, by the structural gap at most.

Left out: environments that end an answer by anything but the end token, of which no drawn future knows, and masks.
"""

from dataclasses import fields

import numpy as np
import torch

from worldmtp.analysis import EvalArtefact
from worldmtp.analysis.loss_split import LossSplit, bracketed_split
from worldmtp.analysis.metrics import rooted_predictions
from worldmtp.dynamics import OracleWorldModel, acting_policy
from worldmtp.dynamics.futures import draw_futures
from worldmtp.model import MTPModel

_MAX_NUMBERS = 20_000_000
"""Probabilities held at once: roots x depths x futures x vocabulary."""


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
    rows = np.flatnonzero(rooted.valid[:, :, 0].any(axis=1))[:num_roots]
    if not len(rows):
        return None
    choose = np.random.default_rng(seed)
    at = np.array([choose.choice(np.flatnonzero(rooted.valid[row, :, 0])) for row in rows])
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
        ended = (futures.tokens == eos_id).cumsum(dim=2).transpose(1, 2).cpu().numpy() > 0  # (root, between, future)
        alive = np.concatenate([np.ones_like(ended[:, :1]), ~ended], axis=1) if depth > 1 else None
        found.append(
            bracketed_split(
                loss[part, None],
                chain[part, None],
                futures.conditionals.double().cpu().numpy()[:, None],
                None if alive is None else alive[:, None],
            )
        )
    return LossSplit(*(np.concatenate([getattr(each, name.name) for each in found]) for name in fields(LossSplit)))


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
