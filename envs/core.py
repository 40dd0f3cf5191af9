"""The text environment as pure functions of batches of rows, which the vector and the single env wrap.

A row is one text: prompt, then response, then padding. Nothing here draws, scores or resets.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64


@dataclass(frozen=True)
class TextState:
    """Texts under way. ``done`` rows have ended and take no more tokens."""

    tokens: Int64[np.ndarray, "row length"]
    length: Int64[np.ndarray, " row"]
    prompt_length: Int64[np.ndarray, " row"]
    done: Bool[np.ndarray, " row"]


def initial(
    prompts: Int64[np.ndarray, "row max_prompt"], prompt_length: Int64[np.ndarray, " row"], max_new: int, pad_id: int
) -> TextState:
    """Rows that hold their prompts and room for ``max_new`` tokens."""
    room = np.full((len(prompts), max_new), pad_id, dtype=np.int64)
    return TextState(
        tokens=np.concatenate([prompts, room], axis=1),
        length=prompt_length.copy(),
        prompt_length=prompt_length.copy(),
        done=np.zeros(len(prompts), dtype=bool),
    )


def replace_rows(state: TextState, rows: Int64[np.ndarray, " replaced"], fresh: TextState) -> TextState:
    """The state with some rows exchanged for those of ``fresh``, in order."""
    if len(rows) == len(state.done):
        return fresh
    tokens, length = state.tokens.copy(), state.length.copy()
    prompt_length, done = state.prompt_length.copy(), state.done.copy()
    tokens[rows], length[rows] = fresh.tokens, fresh.length
    prompt_length[rows], done[rows] = fresh.prompt_length, fresh.done
    return TextState(tokens, length, prompt_length, done)


def transition(state: TextState, actions: Int64[np.ndarray, " row"]) -> TextState:
    """Append a token to every row that is not done."""
    tokens, length = state.tokens.copy(), state.length.copy()
    rows = np.flatnonzero(~state.done)
    tokens[rows, length[rows]] = actions[rows]
    length[rows] += 1
    return TextState(tokens, length, state.prompt_length, state.done)


def ended(state: TextState, rows: Int64[np.ndarray, " ended"]) -> TextState:
    """The state with these rows done."""
    done = state.done.copy()
    done[rows] = True
    return TextState(state.tokens, state.length, state.prompt_length, done)


def terminal(
    before: TextState, after: TextState, actions: Int64[np.ndarray, " row"], eos_id: int, max_new: int
) -> tuple[Bool[np.ndarray, " row"], Bool[np.ndarray, " row"]]:
    """Terminated: the token was EOS. Truncated: it was another, and the last of the budget. Never both."""
    active = ~before.done
    terminated = active & (actions == eos_id)
    truncated = active & ~terminated & (after.length - after.prompt_length >= max_new)
    return terminated, truncated


def observation(state: TextState) -> dict[str, np.ndarray]:
    """What agents see of the state, copied: what they do with it cannot reach the state."""
    return {
        "tokens": state.tokens.copy(),
        "length": state.length[:, None].copy(),
        "prompt_length": state.prompt_length[:, None].copy(),
    }
