"""The frozen config of ``imagination=episodes``; like ``config.py`` it needs no torch."""

from dataclasses import dataclass

MIN_GAP_BATCHES = 4
"""Batches from one change of the number of imagined ones to the next: fewer have no error worth its name."""


@dataclass(frozen=True)
class EpisodesConfig:
    """``imagination=episodes``: PPO on whole imagined episodes, after PPO on the real ones of an iteration.

    Biased by whatever the model of replies gets wrong, so that gates decide whether, and how much, it is trusted.
    """

    num_batches: int = 8
    """Imagined batches after each real one, at most; each is acted by the policy of the moment and trained on."""
    batch_size: int = 128
    """Episodes of an imagined batch. With 32 a policy in a world of chance stood still at three quarters of the
    optimum: most of each step was noise, and it became sure of what it did."""
    exploring_batch_size: int = 32
    """The same while imagination explores, where a way to what is new needs no precision."""
    num_epochs: int = 8
    """Passes over each imagined batch, at most: ``agent.ppo.target_kl`` ends them. With 4 of one minibatch each most of
    that was left over (.001 to .01 of .05 in key-door), and the policy hardly moved from one real batch to the next."""
    waits_for_reward: bool = True
    """The policy is not trained before two real returns have differed: nothing can be learnt from equal ones."""
    max_disagreement: float = 0.2
    """Mean total variation of the ensemble over an imagined batch above which the batch is not trained on."""
    min_action_ratio: float = 1.1
    """Held-out error with the words of other turns over the real one, below which the model counts as blind."""
    gap_batches: int = 8
    """Real batches that the optimism gap is averaged over: above two standard errors the number of batches halves."""
    least_gap: float = 0.02
    """A difference of returns too small to matter, as a share of their range (``model.value_range``): such optimism
    shuts nothing however sure it is, and an imagined batch whose returns differ by no more is not trained on."""
    explores_again_after: int = 1
    """Real batches in a row, all of whose returns are the lowest there has been, after which the policy is looked at in
    imagination: if it earns nothing more there, imagination explores again. 0: never."""
    novelty_threshold: float = 0.3
    """Before the first reward: replies never heard, or to words never said there that the ensemble disagrees on more,
    are paid the bonus."""
    novelty_bonus: float = 0.5
    """Of a novel reply, in reward; 0 explores nothing."""
    novelty_ent_coef: float = 0.1
    """Of the entropy while imagination explores, where above ``agent.ppo.ent_coef``: who is sure finds nothing new."""
    exploring_prompts: int = 4
    """Prompts of a real batch, at most, while imagination explores: there is next to nothing in it for PPO, and the
    sooner the model hears of it, the sooner the policy looks elsewhere. Else ``agent.rollout.num_prompts``."""
    unlearns_lost_ways: bool = True
    """An imagined batch all of whose episodes end as badly as the worst real one, though better ones are known, is
    trained on by the entropy alone, at ``novelty_ent_coef``; else it is left out, and the way stays lost."""
    known_after_tries: int = 3
    """Once two returns have differed: how often words have to have been said there before a reply to them is believed
    on which the ensemble disagrees by more than ``novelty_threshold``. Until then such a turn ends an imagined episode
    and is paid by ``optimism``, so that the policy does not stay on the first way that it found. 0: all is believed. In
    a world that has always replied the same to the same, once is enough."""
    optimism: float = 0.75
    """What such a turn is paid: this share of the way from the lowest real return to the highest."""
    gated: bool = True
    """Off for placebos, whose gates would be shut."""

    def __post_init__(self) -> None:
        least = {
            "num_epochs": 1,
            "batch_size": 2,
            "exploring_batch_size": 2,
            "exploring_prompts": 1,
            "gap_batches": MIN_GAP_BATCHES,
        }
        least |= dict.fromkeys(("num_batches", "max_disagreement", "min_action_ratio", "least_gap"), 0)
        least |= dict.fromkeys(("explores_again_after", "novelty_bonus", "novelty_ent_coef", "known_after_tries"), 0)
        for name, number in least.items():
            if not getattr(self, name) >= number:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {number}.")
        if not 0 <= self.novelty_threshold < 1:
            raise ValueError(f"novelty_threshold={self.novelty_threshold} must be in [0, 1).")
        if not 0 <= self.optimism <= 1:
            raise ValueError(f"optimism={self.optimism} must be in [0, 1]: it is a share of the range of returns.")
