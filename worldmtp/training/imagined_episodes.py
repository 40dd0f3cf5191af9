"""What a run shows of its imagined episodes: replies foretold beside real ones, whole episodes side by side.

Replies are those of the newest real conversations, each foretold by the member of the ensemble that has not trained on
it. Whole episodes begin where the held-out ones of an evaluation began, with the same policy: no member has seen these.
Nothing here consumes a stream of the training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from worldmtp.agents.imagination.episodes import EpisodeImagination
from worldmtp.agents.rollout import Rollout, episode_returns
from worldmtp.analysis.conversations import Episode, pairs_markdown
from worldmtp.analysis.replies import EpisodePair, ReplyArtefact, reply_strip, save_replies
from worldmtp.analysis.reply_consistency import consistency_scalars
from worldmtp.analysis.reply_faults import fault_scalars
from worldmtp.analysis.reply_metrics import reply_scalars
from worldmtp.analysis.reply_turns import AnsweredTurns, ReplyProbes, ReplyTurns, save_turns
from worldmtp.dynamics.replies import ReplyModel
from worldmtp.dynamics.reply_answers import (
    answer_entropies,
    answer_logprobs,
    open_loop_logprobs,
    other_replies,
    times_asked,
)
from worldmtp.dynamics.reply_network import reply_classes
from worldmtp.dynamics.reply_predictions import ReplyPredictions
from worldmtp.dynamics.turns import NOTHING, Turns
from worldmtp.tracking import MetricWriter, render_strip
from worldmtp.training.evaluation import episodes_of

_CONVERSATIONS = 128
"""Newest real conversations whose replies are looked at."""


@dataclass(frozen=True)
class ImaginedEpisodes:
    """Replies token by token with whole episodes beside each other, and answers turn by turn."""

    replies: ReplyArtefact
    turns: ReplyTurns


def imagined_episodes(
    episodes: EpisodeImagination, held_out: Rollout, tokens_text: Sequence[str], seed: int
) -> ImaginedEpisodes | None:
    """Return what is known of imagined episodes beside real ones; None where no reply has been learnt from.

    ``held_out`` are real episodes of the present policy, of an evaluation.
    """
    found = episodes.foretold(_CONVERSATIONS)
    if found is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    imagined = episodes.imagine_beside(held_out, generator)
    real_scores, imagined_scores = (_scores(episodes, rollout) for rollout in (held_out, imagined))
    ranks = _ranks(real_scores, imagined_scores)
    rows = torch.tensor(list(ranks))
    real, other = (
        episodes_of(rollout.select(rows.to(rollout.actions.device)), tokens_text) for rollout in (held_out, imagined)
    )
    shown = zip(ranks.values(), real, map(_rounded, other), strict=True)
    pairs: list[EpisodePair] = []
    for pair in shown:
        if pair[1:] not in [(other.real, other.imagined) for other in pairs]:
            pairs.append(EpisodePair(*pair))
    replies = make_reply_artefact(*found, real_scores, imagined_scores, pairs, tokens_text)
    returns = real_scores[:, 0], imagined_scores[:, 0]
    return ImaginedEpisodes(replies, answered_turns(episodes, held_out, *returns, generator))


def answered_turns(
    episodes: EpisodeImagination,
    held_out: Rollout,
    real_returns: Float[np.ndarray, " pair"],
    imagined_returns: Float[np.ndarray, " pair"],
    generator: torch.Generator,
) -> ReplyTurns:
    """Return what the model of replies, which has learnt, gives to the answers of real conversations.

    Of the newest by the member that has not trained on each, among whose conversations alone it is counted how often
    the world was asked the same; of held-out ones by the mixture, from which imagined replies are drawn.
    """
    found = episodes.newest(_CONVERSATIONS)
    if found is None:
        raise ValueError("no reply has been learnt from, so that nothing is foretold of any; train before.")
    model, turns, numbers = found
    member = numbers % model.num_members
    heldout, imaginable = episodes.imaginable(held_out)
    given = answer_logprobs(model, heldout)
    mixture = (given.reply + given.end).logsumexp(dim=0) - math.log(model.num_members)
    in_reply = reply_classes(turns.replies.flatten(0, 1), end=0).unflatten(0, turns.mask.shape) != NOTHING
    of_newest = answer_logprobs(model, turns)
    return ReplyTurns(
        newest=_answered(numbers, of_newest.of_members(member), turns, member),
        probes=_probes(model, turns, of_newest.reply, member, generator),
        entropy=answer_entropies(model, turns, member, generator).numpy(),
        num_tokens=torch.where(turns.mask, in_reply.sum(dim=2), 0).numpy(),
        heldout=_answered(torch.arange(len(heldout)), mixture, heldout, torch.zeros(len(heldout), dtype=torch.int64)),
        members=(given.reply + given.end).permute(1, 2, 0).numpy(),
        imaginable=imaginable.numpy(),
        real_returns=real_returns,
        imagined_returns=imagined_returns,
    )


def _probes(
    model: ReplyModel, turns: Turns, reply: torch.Tensor, member: torch.Tensor, generator: torch.Generator
) -> ReplyProbes:
    rows = torch.arange(len(turns))

    def given_to(replies: torch.Tensor, there: torch.Tensor) -> np.ndarray:
        found = answer_logprobs(model, turns, replies).reply[member, rows]
        return torch.where(there, found, torch.nan).numpy()

    def neighbour(step: int) -> np.ndarray:
        replies, there = turns.replies.roll(step, dims=1), turns.mask.roll(step, dims=1) & turns.mask
        there[:, 0 if step > 0 else -1] = False
        return given_to(replies, there & (replies != turns.replies).any(dim=2))

    return ReplyProbes(
        own=reply[member, rows].numpy(),
        before=neighbour(1),
        after=neighbour(-1),
        other=given_to(*other_replies(turns, generator)),
        open_loop=open_loop_logprobs(model, turns, member, generator).numpy(),
    )


def _answered(numbers: torch.Tensor, logprob: torch.Tensor, turns: Turns, among: torch.Tensor) -> AnsweredTurns:
    asked, alike = times_asked(turns, among)
    return AnsweredTurns(numbers.numpy(), logprob.numpy(), asked.numpy(), alike.numpy())


def make_reply_artefact(
    turns: Turns,
    predictions: ReplyPredictions,
    real_scores: Float[np.ndarray, "pair 3"],
    imagined_scores: Float[np.ndarray, "pair 3"],
    pairs: Sequence[EpisodePair],
    tokens_text: Sequence[str],
) -> ReplyArtefact:
    """Return conversations laid out as texts, with what was foretold at its place."""
    rows = [_laid_out(turns, predictions, row) for row in range(len(turns))]
    length = max(len(row[0]) for row in rows)
    fills = (-1, 0, False, np.nan, 0, np.nan)
    columns = []
    for column, fill in enumerate(fills):
        parts = [np.asarray(row[column]) for row in rows]
        columns.append(np.stack([np.pad(part, (0, length - len(part)), constant_values=fill) for part in parts]))
    tokens, depth, is_policy, logprob, top1, top1_prob = columns

    def by_turn(values: torch.Tensor) -> np.ndarray:
        placed = torch.zeros(turns.mask.shape, dtype=values.dtype)
        placed[turns.mask] = values
        return placed.numpy()

    return ReplyArtefact(
        tokens=tokens,
        depth=depth,
        is_policy=is_policy,
        logprob=logprob,
        top1=top1,
        top1_prob=top1_prob,
        turn_mask=turns.mask.numpy(),
        rewards=by_turn(predictions.rewards),
        foretold_rewards=by_turn(predictions.foretold_rewards),
        ended=by_turn(predictions.ended),
        end_prob=by_turn(predictions.end_prob),
        real_scores=real_scores,
        imagined_scores=imagined_scores,
        tokens_text=tuple(tokens_text),
        pairs=tuple(pairs),
    )


def log_imagined_episodes(found: ImaginedEpisodes, writer: MetricWriter, step: int) -> None:
    """Write the numbers and the episodes that are shown to the log."""
    writer.scalars(reply_scalars(found.replies) | consistency_scalars(found.turns) | fault_scalars(found.turns), step)
    pairs = [(pair.rank, pair.real, pair.imagined) for pair in found.replies.pairs]
    writer.text("samples/imagined", pairs_markdown(pairs), step)


def write_imagined_episodes(
    found: ImaginedEpisodes, run_dir: Path, writer: MetricWriter, step: int, num_strips: int
) -> None:
    """Write them to disk for the report, and to the log with pictures of the first conversations."""
    save_replies(found.replies, run_dir)
    save_turns(found.turns, run_dir)
    log_imagined_episodes(found, writer, step)
    for row in range(min(num_strips, len(found.replies.tokens))):
        writer.image(f"imagination/replies_{row}", render_strip(reply_strip(found.replies, row)), step)


def _laid_out(
    turns: Turns, predictions: ReplyPredictions, row: int
) -> tuple[list[int], list[int], list[bool], list[float], list[int], list[float]]:
    """Return the columns of one conversation: token, depth, is_policy, logprob, top1, top1_prob."""
    cells: list[tuple[int, int, bool, float, int, float]] = []

    def told(text: torch.Tensor, is_policy: bool) -> None:
        cells.extend((token, 0, is_policy, np.nan, 0, np.nan) for token in text[text != NOTHING].tolist())

    told(turns.opening[row], False)
    for number, turn in enumerate(torch.nonzero(predictions.conversation == row)[:, 0].tolist()):
        told(turns.said[row, number], True)
        tokens = predictions.tokens[turn]
        for place in range(int((tokens != NOTHING).sum())):
            said = (predictions.logprob, predictions.top1, predictions.top1_prob)
            logprob, top1, prob = (column[turn, place].item() for column in said)
            cells.append((int(tokens[place]), place + 1, False, float(logprob), int(top1), float(prob)))
    columns = zip(*cells, strict=True)
    return tuple(list(column) for column in columns)  # type: ignore[return-value]  # six columns, as a cell has


def _scores(episodes: EpisodeImagination, rollout: Rollout) -> Float[np.ndarray, "pair 3"]:
    """Return the return, the number of whole turns, and whether the world ended it, of each episode."""
    columns = (episode_returns(rollout), episodes.num_turns(rollout), rollout.terminated.any(dim=1))
    return torch.stack([column.double().cpu() for column in columns], dim=1).numpy()


def _rounded(episode: Episode) -> Episode:
    """Return an imagined episode with rewards to three decimals: each is a mean over bins, and never quite nothing."""
    said = tuple(one if one.reward is None else replace(one, reward=round(one.reward, 3)) for one in episode.utterances)
    return replace(episode, utterances=said, total=round(episode.total, 3))


def _ranks(real: Float[np.ndarray, "pair 3"], imagined: Float[np.ndarray, "pair 3"]) -> dict[int, str]:
    """Return the rows of lowest, middle and highest real return, and these words; fewer where there are fewer.

    Equal returns are in the order of how much the numbers of turns differ, and called so where all are equal.
    """
    returns, apart = real[:, 0], np.abs(imagined - real)[:, 1]
    ordered = np.lexsort((apart, returns))
    last = len(ordered) - 1
    places = {0: "lowest", last: "highest", len(ordered) // 2: "middle"}
    if returns.min() < returns.max():
        return {int(ordered[place]): f"{places[place]} real return" for place in sorted(places)}
    alike = {0: "most alike in turns", last: "least alike in turns", len(ordered) // 2: "in the middle"}
    return {int(ordered[place]): f"{alike[place]}, of equal real returns" for place in sorted(alike)}
