"""The model of replies: what a world writes after a turn, what it pays, and whether it ends, learnt from conversations.

An ensemble whose members are cross-fitted: member e trains on no episode whose number is e modulo their number. So for
every episode there is a member that has not seen it, and the error that is reported is held out though no data is.

* **Draws.** Each reply is drawn from one member, chosen at random: the mixture is better calibrated than its members.
* **Disagreement** of a reply is the members' mean total variation from their mixture, at the place of the reply, its
  reward or its end, where it is largest: what the ensemble does not know, and not what is left to chance.
* **Support.** Tokens at places, rewards and ends that no real conversation has had are impossible: a win cannot be
  imagined before one was seen.

Sampling draws from the generator it is given on its own device.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.dynamics.reply_network import ReplyNetwork, ReplySizes, reply_classes
from worldmtp.dynamics.turns import NOTHING, ImaginedReplies, Turns
from worldmtp.model.categorical import draw
from worldmtp.model.world_heads import binned_mean, two_hot

_UNSEEN = -1e4  # a logit: impossible, and finite, so that a member's entropy and gradient are


@dataclass(frozen=True)
class ForetoldTurns:
    """What every member foretells of the turns there are, conversation after conversation, as log-probabilities.

    Place f of a reply is foretold from the end of the turn and the reply's earlier tokens, reward and end from the
    whole reply. ``classes`` is what came: a token, the class of the end behind the last one, then ``NOTHING``.
    """

    classes: Int[Tensor, "turn place"]
    log_tokens: Float[Tensor, "member turn place vocab_and_end"]
    log_rewards: Float[Tensor, "member turn bins"]
    log_ends: Float[Tensor, "member turn 2"]


class ReplyModel(nn.Module):
    """An ensemble of one context, with what has been seen of the world; ``ReplyLearner`` trains it.

    Weights have the dtype of ``reward_bins``.
    """

    reward_bins: Tensor
    seen_tokens: Tensor
    seen_rewards: Tensor
    seen_ends: Tensor

    def __init__(
        self,
        sizes: ReplySizes,
        config: ReplyModelConfig,
        history: bool,
        reward_bins: Float[Tensor, " bins"],
        generator: torch.Generator,
        blind: bool = False,
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.network = ReplyNetwork(sizes, config, history, generator, blind)
        self.register_buffer("reward_bins", reward_bins)
        self.register_buffer("seen_tokens", torch.zeros(sizes.reply, sizes.vocab_size + 1, dtype=torch.bool))
        self.register_buffer("seen_rewards", torch.zeros(len(reward_bins), dtype=torch.bool))
        self.register_buffer("seen_ends", torch.zeros(2, dtype=torch.bool))
        self._heard: set[tuple[int, ...]] = set()
        self.to(reward_bins.dtype)

    @property
    def num_members(self) -> int:
        """Return the size of the ensemble."""
        return self.network.reward.weight.shape[0]

    @property
    def max_reply(self) -> int:
        """Return the tokens of the longest reply that there is room for."""
        return self.sizes.reply

    @property
    def num_places(self) -> int:
        """Return how many places of a reply have been seen to say something; the others need no computing."""
        return max(1, int(self.seen_tokens.any(dim=1).sum()))

    def observe(self, turns: Turns) -> None:
        """Note what the world has said, paid and ended.

        Raises:
            ValueError: a reply is longer than there is room for, or a turn was paid what no bin holds.
        """
        check_room(turns, self.sizes)
        check_rewards(turns, self.reward_bins)
        real = turns.mask
        classes = reply_classes(_widened(turns.replies[real], self.sizes.reply), self.sizes.end)
        for place in range(self.sizes.reply):
            told = classes[:, place]
            self.seen_tokens[place, told[told != NOTHING]] = True
        self.seen_rewards |= (two_hot(turns.rewards[real], self.reward_bins) > 0).any(dim=0)
        self.seen_ends[turns.ended[real].long()] = True
        self._heard.update(map(tuple, classes.tolist()))

    def nats(self, turns: Turns) -> Float[Tensor, "member turn"]:
        """Return minus the log-likelihood of what followed each turn, for each member, over the turns there are.

        The conversations have been observed. Of reply, reward and end together; that of the reward is its divergence
        from the two-hot of the real one, so that it is zero at best.
        """
        real, said = turns.mask, self.foretold(turns)
        chosen = said.classes.clamp_min(0).expand(self.num_members, -1, -1)[..., None]
        told = -said.log_tokens.gather(3, chosen)[..., 0]
        nats = torch.where(said.classes == NOTHING, 0.0, told).sum(dim=2)
        target = two_hot(turns.rewards[real], self.reward_bins).to(said.log_rewards.dtype)
        nats = nats + (torch.special.xlogy(target, target) - target * said.log_rewards).sum(dim=2)
        ended = turns.ended[real].long().expand(self.num_members, -1)[..., None]
        return nats - said.log_ends.gather(2, ended)[..., 0]

    def foretold(self, turns: Turns) -> ForetoldTurns:
        """Return what each member foretells of what followed each turn; the conversations have been observed."""
        real = turns.mask
        vectors = self.network.turns(turns)[:, real]
        replies = turns.replies[real]
        inside = _widened(replies, self.num_places)
        number = torch.arange(real.shape[1], device=real.device).expand(real.shape)[real]
        log_rewards, log_ends = self._log_outcomes(vectors, replies, number)
        return ForetoldTurns(
            reply_classes(inside, self.sizes.end), self._log_tokens(vectors, inside), log_rewards, log_ends
        )

    @torch.no_grad()
    def imagine(self, turns: Turns, turn: Int[Tensor, " row"], generator: torch.Generator) -> ImaginedReplies:
        """Return what follows turn ``turn`` of each conversation, of which that turn is the last that was said.

        Later turns of a row, and the reply to this one, are not read.
        """
        vectors = self.network.turn_vectors(turns, turn)
        member = torch.randint(self.num_members, (len(turns),), generator=generator, device=generator.device)
        return self.drawn(vectors, turn, member.to(turn.device), generator)

    @torch.no_grad()
    def drawn(
        self,
        vectors: Float[Tensor, "member row width"],
        turn: Int[Tensor, " row"],
        member: Int[Tensor, " row"],
        generator: torch.Generator,
    ) -> ImaginedReplies:
        """Return what a member of each row's own says to its turn ``turn``, whose vectors are the network's."""
        rows = torch.arange(len(turn), device=turn.device)
        replies = torch.full((len(rows), self.sizes.reply), NOTHING, device=turn.device)
        disagreement = torch.zeros(len(rows), device=turn.device, dtype=vectors.dtype)
        open_rows = torch.ones(len(rows), dtype=torch.bool, device=turn.device)

        def choose(log_probs: Float[Tensor, "member row option"]) -> Int[Tensor, " row"]:
            return draw(log_probs[member, rows], generator)

        parallel = self.network.parallel_logits(vectors, self.num_places)
        mixed = self.network.mix(vectors) if self.network.autoregressive else None
        for place in range(self.num_places):
            logits = parallel[:, :, place]
            if mixed is not None:
                logits = logits + self.network.correction(mixed, replies[:, :place])
            log_tokens = _supported(logits, self.seen_tokens[place])
            disagreement = disagreement.maximum(torch.where(open_rows, variation(log_tokens), 0.0))
            chosen = choose(log_tokens)
            open_rows &= chosen != self.sizes.end
            replies[:, place] = torch.where(open_rows, chosen, NOTHING)
            if not bool(open_rows.any()):
                break
        log_rewards, log_ends = self._log_outcomes(vectors, replies, turn)
        rewards = binned_mean(log_rewards[member, rows], self.reward_bins)
        told = reply_classes(replies, self.sizes.end).tolist()
        unheard = torch.tensor([tuple(reply) not in self._heard for reply in told], device=turn.device)
        doubt = disagreement.maximum(variation(log_ends)).maximum(variation(log_rewards))
        return ImaginedReplies(replies, rewards, choose(log_ends) == 1, doubt, unheard)

    @torch.no_grad()
    def answer_logprobs(
        self,
        vectors: Float[Tensor, "member row width"],
        turn: Int[Tensor, " row"],
        replies: Int[Tensor, "row reply"],
        ended: Bool[Tensor, " row"],
    ) -> tuple[Float[Tensor, "member row"], Float[Tensor, "member row"]]:
        """Return what each member gives to a reply, its end included, and to the conversation ending with it or not.

        ``vectors`` are the network's of turn ``turn``. Any reply may be asked about; one for which there is no room is
        as good as impossible.
        """
        fits = (replies[:, self.sizes.reply :] == NOTHING).all(dim=1)
        inside = _widened(replies, self.sizes.reply)
        heard = _widened(replies, self.num_places)
        # What goes on where every reply that was heard had come to its end was never heard itself.
        fits &= (inside[:, self.num_places :] == NOTHING).all(dim=1)
        classes = reply_classes(heard, self.sizes.end)
        chosen = classes.clamp_min(0).expand(self.num_members, -1, -1)[..., None]
        log_tokens = self._log_tokens(vectors, heard).gather(3, chosen)[..., 0].double()
        log_reply = torch.where(classes == NOTHING, 0.0, log_tokens).sum(dim=2)
        _, log_ends = self._log_outcomes(vectors, inside, turn)
        log_end = log_ends.gather(2, ended.long().expand(self.num_members, -1)[..., None])[..., 0].double()
        return torch.where(fits, log_reply, _UNSEEN), log_end

    def get_extra_state(self) -> list[list[int]]:
        """Return the replies that have been heard, for a checkpoint."""
        return [list(reply) for reply in sorted(self._heard)]

    def set_extra_state(self, state: list[list[int]]) -> None:
        """Restore what ``get_extra_state`` returned."""
        self._heard = {tuple(reply) for reply in state}

    def _log_tokens(
        self, vectors: Float[Tensor, "member row width"], replies: Int[Tensor, "row reply"]
    ) -> Float[Tensor, "member row reply vocab_and_end"]:
        return _supported(self.network.reply_logits(vectors, replies), self.seen_tokens[: replies.shape[1]])

    def _log_outcomes(
        self, vectors: Float[Tensor, "member row width"], replies: Int[Tensor, "row reply"], turn: Int[Tensor, " row"]
    ) -> tuple[Float[Tensor, "member row bins"], Float[Tensor, "member row 2"]]:
        rewards, ends = self.network.outcome_logits(vectors, replies, turn)
        return _supported(rewards, self.seen_rewards), _supported(ends, self.seen_ends)


def _supported(logits: Tensor, seen: Bool[Tensor, "..."]) -> Tensor:
    """Return log-probabilities in which what was never seen is impossible; where nothing was, all is as likely."""
    return logits.masked_fill(~seen, _UNSEEN).log_softmax(dim=-1)


def variation(log_probs: Float[Tensor, "member row option"]) -> Float[Tensor, " row"]:
    """Return the members' mean total variation from their mixture, in [0, 1)."""
    probs = log_probs.exp()
    return (probs - probs.mean(dim=0)).abs().sum(dim=2).mean(dim=0) / 2


def check_room(turns: Turns, sizes: ReplySizes) -> None:
    """Raise if a text is longer than a model has room for.

    Raises:
        ValueError: an opening, a turn or a reply is.
    """
    for name, width in (("opening", sizes.opening), ("said", sizes.said), ("replies", sizes.reply)):
        text = getattr(turns, name)
        longest = int((text != NOTHING).sum(dim=-1).max()) if text.numel() else 0
        if longest > width:
            remedy = "raise world_model.replies.max_reply" if name == "replies" else "make the model with more room"
            raise ValueError(f"{name} of {longest} tokens where the model of replies has room for {width}; {remedy}.")


def check_rewards(turns: Turns, bins: Float[Tensor, " bins"]) -> None:
    """Raise if a turn was paid what lies outside the bins by more than rounding: it would be taken for their end.

    Raises:
        ValueError: one was.
    """
    paid, (low, high) = turns.rewards[turns.mask], (float(bins[0]), float(bins[-1]))
    tolerance = 1e-5 * max(abs(low), abs(high))
    if len(paid) and (float(paid.min()) < low - tolerance or float(paid.max()) > high + tolerance):
        raise ValueError(
            f"a turn was paid {float(paid.min())} .. {float(paid.max())}, and the bins of rewards go from {low} to "
            f"{high}: imagined turns would be paid another sum. Widen model.reward_range, or scale the rewards."
        )


def _widened(text: Int[Tensor, "row place"], places: int) -> Int[Tensor, "row places"]:
    missing = places - text.shape[1]
    if missing <= 0:
        return text[:, :places]
    return nn.functional.pad(text, (0, missing), value=NOTHING)


def trained_on(episodes: Int[Tensor, " episode"], num_members: int) -> Bool[Tensor, "member episode"]:
    """Return which members train on which episodes, by their numbers: each leaves out one in ``num_members``."""
    members = torch.arange(num_members, device=episodes.device)[:, None]
    return episodes % num_members != members


def held_out(nats: Float[Tensor, "member turn"], episodes: Int[Tensor, " turn"]) -> Float[Tensor, " turn"]:
    """Return for each turn the number of the one member that has not seen its episode."""
    return nats.gather(0, (episodes % len(nats))[None])[0]
