"""Episodes of conversations, read turn by turn: what a model of replies learns from, and where a search begins."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from worldmtp.agents.rollout import Rollout
from worldmtp.dynamics.turns import NOTHING, Turns


def turns_of(rollout: Rollout, eos_id: int, max_turn: int | None, max_new: int) -> Turns:
    """Return the conversations of a rollout by the environment's rule: EOS ends a turn, or its ``max_turn``-th token.

    A turn that is not over, because the text was full, is left out, and so is the last one where the text is full and
    its reply may have been cut. A text is full with ``max_new`` tokens behind its prompt, replies included, however
    short the prompt was. What a turn was paid is the sum over its tokens. A conversation without a whole turn
    has none.

    Shapes: see ``Turns``; everything is on the host.
    """
    host = rollout.to("cpu")
    episodes = [_episode(host, row, eos_id, max_turn, max_new) for row in range(len(host))]
    num_turns = max(1, *(len(turns) for _, turns, _ in episodes))
    widths = {
        name: max([1, *(len(turn[name]) for _, turns, _ in episodes for turn in turns)]) for name in ("said", "reply")
    }
    shape = (len(episodes), num_turns)
    said, replies = (torch.full((*shape, widths[name]), NOTHING) for name in ("said", "reply"))
    rewards, ended = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    mask = torch.zeros(shape, dtype=torch.bool)
    opening = torch.full((len(episodes), max(len(prompt) for prompt, _, _ in episodes)), NOTHING)
    for row, (prompt, turns, _) in enumerate(episodes):
        opening[row, : len(prompt)] = prompt
        for number, turn in enumerate(turns):
            said[row, number, : len(turn["said"])] = turn["said"]
            replies[row, number, : len(turn["reply"])] = turn["reply"]
            rewards[row, number], ended[row, number], mask[row, number] = turn["reward"], turn["ended"], True
    return Turns(opening, said, replies, rewards, ended, mask)


def turns_before(
    rollout: Rollout,
    rows: Int[Tensor, " state"],
    steps: Int[Tensor, " state"],
    eos_id: int,
    max_turn: int | None,
    max_new: int,
    longest: int,
) -> tuple[Turns, Int[Tensor, "state said"]]:
    """Return the turns that were over in the states (row, step), and what the one that was not had said by then.

    Both are on the host; rewards and ends are as in ``conversations``, not known.
    """
    host = rollout.to("cpu")
    episodes = {row: _episode(host, row, eos_id, max_turn, max_new) for row in sorted(set(rows.tolist()))}
    openings, over, still = [], [], []
    for row, step in zip(rows.tolist(), steps.tolist(), strict=True):
        opening, turns, _ = episodes[row]
        before, start = [], 0
        for turn in turns:
            if start + len(turn["said"]) > step:
                break
            start += len(turn["said"])
            before.append((turn["said"].tolist(), turn["reply"].tolist()))
        openings.append(opening.tolist())
        over.append(before)
        still.append(host.actions[row, start:step].tolist())
    return conversations(openings, over, still, longest)


def conversations(
    openings: Sequence[Sequence[int]],
    over: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]],
    still: Sequence[Sequence[int]],
    longest: int,
) -> tuple[Turns, Int[Tensor, "state said"]]:
    """Return conversations by their openings, what was said and replied, and what was said of turns not over yet.

    A turn has room for ``longest`` tokens. Rewards and ends are not known here, and zero.
    """
    number = torch.tensor([len(one) for one in over])
    most = max(1, int(number.max()))
    heard = max([1, *(len(reply) for one in over for _, reply in one)])
    said, replies = (torch.full((len(over), most, width), NOTHING) for width in (longest, heard))
    begun = torch.full((len(over), longest), NOTHING)
    opening = torch.full((len(over), max(len(one) for one in openings)), NOTHING)
    for place, (first, turns, last) in enumerate(zip(openings, over, still, strict=True)):
        opening[place, : len(first)] = torch.tensor(first, dtype=torch.long)
        begun[place, : len(last)] = torch.tensor(last, dtype=torch.long)
        for turn, (own, reply) in enumerate(turns):
            said[place, turn, : len(own)] = torch.tensor(own, dtype=torch.long)
            replies[place, turn, : len(reply)] = torch.tensor(reply, dtype=torch.long)
    mask = torch.arange(most) < number[:, None]
    return Turns(opening, said, replies, torch.zeros(mask.shape), torch.zeros_like(mask), mask), begun


def cut_replies(rollout: Rollout, eos_id: int, max_turn: int | None, max_new: int) -> Bool[Tensor, " batch"]:
    """Return which episodes end in a turn that ``turns_of`` leaves out because its reply may have been cut."""
    host = rollout.to("cpu")
    return torch.tensor([_episode(host, row, eos_id, max_turn, max_new)[2] for row in range(len(host))])


def _episode(
    rollout: Rollout, row: int, eos_id: int, max_turn: int | None, max_new: int
) -> tuple[Tensor, list[dict[str, Tensor]], bool]:
    """Return the opening, of each whole turn what was said, replied, paid, and whether the world ended it.

    And whether the last turn was left out for its reply.
    """
    text = rollout.input_ids[row, : int(rollout.attention_mask[row].sum())]
    number = int(rollout.step_mask[row].sum())
    places, actions = rollout.action_index[row, :number], rollout.actions[row, :number]
    is_full = len(text) - int(rollout.prompt_length[row]) >= max_new
    is_cut = is_full and bool(rollout.truncated[row].any())
    turns, start, is_left_out = [], 0, False
    for step in range(number):
        if actions[step] != eos_id and (max_turn is None or step + 1 - start < max_turn):
            continue
        is_last = step + 1 == number
        stop = len(text) if is_last else int(places[step + 1])
        if is_last and is_cut:
            is_left_out = True
        else:
            turns.append(
                {
                    "said": actions[start : step + 1],
                    "reply": text[int(places[step]) + 1 : stop],
                    "reward": rollout.rewards[row, start : step + 1].sum(),
                    "ended": rollout.terminated[row, step],
                }
            )
        start = step + 1
    return text[: int(rollout.prompt_length[row])], turns, is_left_out
