"""What a run says of imagined episodes, at its end and while it goes on."""

import pytest

from worldmtp.agents.config import ImaginationConfig, RolloutConfig
from worldmtp.agents.episodes_config import EpisodesConfig
from worldmtp.agents.search_config import SearchTargetConfig
from worldmtp.training.closing import arm_name, measured_note, notes_of_log, progress_note

EPISODES = ImaginationConfig(use="episodes")


def iteration(trained, flat=0.0, explores=0.0, **more):
    batches = {"trained": trained, "flat": flat, "explores": explores}
    named = {f"imagination/{'' if name == 'explores' else 'batches_'}{name}": value for name, value in batches.items()}
    return {"step": 0, "rollout/return_mean": 0.5, **named, **more}


def gap(imagined, real):
    return {"imagination/return_imagined": imagined, "imagination/return_realized": real}


def gates(ratio, disagreement):
    return {"world_model/reply_action_ratio": ratio, "imagination/disagreement": disagreement}


RECORDS = [
    {"step": 0, "eval/exact": 0.0},
    iteration(4.0, explores=1.0, **gates(1.5, 0.4)),
    iteration(0.0, **gates(1.0, 0.3)),
    iteration(3.0, 1.0, **gates(3.0, 0.1), **gap(0.5, 0.2)),
    iteration(0.0, 4.0, **gates(20.0, 0.05), **gap(1.0, 0.8)),
    {"step": 9, "imagination/heldout_return_imagined": 0.97, "imagination/heldout_return_real": 0.91},
]


def test_a_run_says_what_its_imagination_did():
    """Two of three iterations had their gates open: one trained on none, and a fourth explored. 4 + 3 batches."""
    assert notes_of_log(RECORDS, EPISODES) == [
        "imagination: explored in 1 of 4 iterations; gates open in 2 of the other 3; trained on 7 imagined batches, 5 "
        "of equal returns left out; promised 0.75 and 0.50 came, on average over 2 batches; action ratio 1.5 at first "
        "and 20 at last; disagreement 0.4 at first and 0.05 at last; of held-out openings imagined 0.97, where 0.91 "
        "came"
    ]


def test_a_run_says_how_many_real_episodes_it_explored_with():
    """Four, four, and sixteen after the reward; a run that never found one has no gate to tell of."""
    found = [
        iteration(8.0, explores=1.0) | {"env/episodes": 4.0},
        iteration(8.0, explores=1.0) | {"env/episodes": 8.0},
        iteration(8.0) | {"env/episodes": 24.0},
    ]
    told = "imagination: explored in 2 of 3 iterations, with 8 of 24 real episodes; gates open in 1 of the other 1; "
    assert notes_of_log(found, EPISODES) == [told + "trained on 24 imagined batches"]
    assert notes_of_log(found[:2], EPISODES) == [
        "imagination: explored in 2 of 2 iterations, with 8 of 8 real episodes; trained on 16 imagined batches"
    ]


def test_gates_that_are_off_are_not_called_open():
    config = ImaginationConfig(use="episodes", episodes=EpisodesConfig(gated=False))
    assert notes_of_log([iteration(1.0)], config) == ["imagination: gates off; trained on 1 imagined batches"]


def test_nothing_is_said_of_what_was_not_imagined():
    assert notes_of_log([{"step": 1, "rollout/return_mean": 0.5}], EPISODES) == [
        "imagination: no world has replied to a whole turn, so that nothing was imagined"
    ]
    assert notes_of_log([{"step": 1, "rollout/return_mean": 0.5}], ImaginationConfig(use="off")) == []


def gated(use, *opened, skills=()):
    """Iterations of a use whose gate was open in those that are 1, and its skill in each."""
    tag = {"search": "imagination/search_skill", "latent": "imagination/action_skill"}.get(use, "imagination/r2")
    measured = [{tag: skill} for skill in skills] or [{}] * len(opened)
    return [
        {"step": 0, "eval/exact": 0.0},
        *(
            {"step": 1, "rollout/return_mean": 0.5, "imagination/gate_open": gate, **skill}
            for gate, skill in zip(opened, measured, strict=True)
        ),
    ]


@pytest.mark.parametrize(
    ("use", "opens"),
    [
        ("search", "it opens where the mean skill of 8 batches (imagination.search.gate_batches) is above chance"),
        ("latent", "it opens where the mean skill of 8 batches (imagination.latent.gate_batches) is above chance"),
        ("baseline", "it opens after 3 batches (imagination.min_batches) where what is imagined explains returns"),
        (
            "counterfactual",
            "it opens after 3 batches (imagination.min_batches) where what is imagined explains returns",
        ),
    ],
)
def test_a_run_says_that_its_gate_never_opened(use, opens):
    skill = "; its skill was 0.01 at first and -0.02 at last" if use in ("search", "latent") else ""
    assert notes_of_log(gated(use, 0.0, 0.0, skills=(0.01, -0.02)), ImaginationConfig(use=use)) == [
        f"imagination: its gate never opened in 2 iterations, so that no update used what was imagined{skill}; {opens}"
    ]


def test_what_skill_lets_act_says_how_often_it_did():
    told = notes_of_log(gated("search", 0.0, 1.0, 1.0, skills=(0.0, None, 0.25)), ImaginationConfig(use="search"))
    assert told == ["imagination: its gate was open in 2 of 3 iterations; its skill was 0 at first and 0.25 at last"]
    assert notes_of_log(gated("counterfactual", 0.0, 1.0), ImaginationConfig(use="counterfactual")) == []


def test_a_search_that_had_nothing_to_search_says_why():
    iterations = [{"step": 1, "rollout/return_mean": 0.5}]
    off = ImaginationConfig(use="search", search=SearchTargetConfig(coef=0.0))
    assert notes_of_log(iterations, off) == [
        "imagination: nothing was searched, as imagination.search.coef or imagination.search.num_simulations is 0; "
        "this was plain PPO"
    ]
    through = ImaginationConfig(use="search", search=SearchTargetConfig(through_replies=True))
    assert notes_of_log(iterations, through) == [
        "imagination: no world has replied to a whole turn, so that nothing was searched"
    ]
    # Before the first iteration there is nothing to tell, and a trainer of TRL's may log no gate.
    assert notes_of_log([], through) == notes_of_log(iterations, ImaginationConfig(use="latent")) == []


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({}, "exact 0.250"),
        ({"imagination/batches_trained": 1.0}, "exact 0.250, imagined 1 batch"),
        ({"imagination/batches_trained": 8.0}, "exact 0.250, imagined 8 batches"),
        ({"imagination/batches_trained": 8.0, "imagination/explores": 0.0}, "exact 0.250, imagined 8 batches"),
        (
            {"imagination/batches_trained": 8.0, "imagination/explores": 1.0},
            "exact 0.250, explores, imagined 8 batches",
        ),
    ],
)
def test_an_iteration_says_what_it_trained_on(metrics, expected):
    assert progress_note({"rollout/exact_mean": 0.25, **metrics}) == expected


def test_an_arm_is_called_after_what_imagines():
    assert arm_name("off", "mtp") == "PPO, no imagination"
    assert arm_name("episodes", "mtp") == "PPO, episodes", "the policy's MTP heads have no part in it"
    assert arm_name("episodes", "shuffled") == "PPO, episodes, shuffled"
    assert arm_name("counterfactual", "mtp") == "PPO, counterfactual, mtp"
    assert arm_name("off", "mtp", "search") == "PPO, no imagination, acting by search"


def searched(*acts):
    return [{"rollout/return_mean": 0.5} | ({"rollout/search_kl": 0.1} if act else {}) for act in acts]


def test_a_run_says_in_how_many_iterations_a_search_acted():
    off, how = ImaginationConfig(use="off"), RolloutConfig(3, act="search", search_after=1)
    assert notes_of_log(searched(0, 1, 1), off, how) == [
        "acting by search: in 2 of 3 iterations, and in the others by the policy"
    ]
    assert notes_of_log(searched(1, 1), off, how) == ["acting by search: in 2 of 2 iterations"]
    assert notes_of_log(searched(0, 0), off, RolloutConfig(3)) == notes_of_log([], off, how) == []


def test_a_search_that_never_acted_is_told_with_what_it_waited_for():
    """Three iterations are over before a search begins after three; later, what it searches through is missing."""
    off, none = ImaginationConfig(use="off"), "acting by search: in none of 3 iterations, so that the policy has acted "
    assert notes_of_log(searched(0, 0, 0), off, RolloutConfig(3, act="search", search_after=3)) == [
        none + "alone; it begins after 3 (agent.rollout.search_after)"
    ]
    assert notes_of_log(searched(0, 0, 0), off, RolloutConfig(3, act="search", search_after=2)) == [
        none + "alone; no world has replied to a whole turn, so that there were no replies to search through"
    ]


def test_columns_of_a_world_are_of_episodes():
    assert "one answer a prompt" in measured_note(replies=False)
    assert "one episode an opening" in measured_note(replies=True)
    assert "discounted by agent.ppo.gamma" in measured_note(replies=True)
