"""Shaped returns by hand, exact in float64. Ids: pad 0, EOS 1, a 2, b 3, = 4."""

import json
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from worldmtp.envs import Example, VectorPotentialShaping, check_vector_env
from worldmtp.envs.wrappers.potential_shaping import prefix_match


def remaining(example, text):
    """A potential that is not 0 before the first token: 1 and a quarter of each letter; powers of two are exact."""
    return 1.0 + 0.25 * len(text)


def discounted(rewards, gamma):
    return sum(gamma**t * reward for t, reward in enumerate(rewards))


def shaping(potential, gamma, **more):
    """Arguments of a single env."""
    return {"text_wrappers": [{"name": "potential_shaping", "potential": potential, "gamma": gamma, **more}]}


def play(env, example, actions):
    """Rewards, terms and last info of an episode of a single env."""
    env.reset(options={"prompts": [example]})
    steps = [env.step(action) for action in actions]
    assert steps[-1][2] or steps[-1][3]
    return [step[1] for step in steps], [step[4]["shaping"] for step in steps], steps[-1][4]


def test_prefix_match_by_hand():
    example = Example("ab=", "abba")
    shares = [prefix_match(example, text) for text in ("", "a", "ab", "aa", "abba", "abbab", "b")]
    assert shares == [0.0, 0.25, 0.5, 0.25, 1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="needs an answer to 'x='"):
        prefix_match(Example("x="), "a")


def test_terms_by_hand(make_single):
    """Gamma 1/2, "ab" is right: Phi is 0, 1/2, 1 and, when EOS ends the text, 0."""
    env = make_single(**shaping("prefix_match", 0.5))
    rewards, terms, info = play(env, Example("ab=", "ab"), [2, 3, 1])
    assert terms == [0.5 * 0.5 - 0.0, 0.5 * 1.0 - 0.5, 0.0 - 1.0]
    assert rewards == [0.25, 0.0, 1.0 - 1.0]
    assert info["score"] == 1.0  # the task's, not the shaped


@pytest.mark.parametrize("gamma", [1.0, 0.5])
@pytest.mark.parametrize("actions", [[2, 3, 1], [1], [3, 3, 3, 3], [2, 2, 2, 1]])
def test_the_return_differs_by_minus_the_first_potential(make_single, actions, gamma):
    """Phi(s_0) is 1, whatever was written, and whether EOS or the budget ended it."""
    plain = make_single()
    plain.reset(options={"prompts": [Example("ab=", "ab")]})
    unshaped = [plain.step(action)[1] for action in actions]
    rewards, _, _ = play(make_single(**shaping(remaining, gamma)), Example("ab=", "ab"), actions)
    assert discounted(rewards, gamma) == discounted(unshaped, gamma) - 1.0


def test_truncated_text_keeps_its_potential_for_an_agent_that_bootstraps(make_single):
    """Gamma 1/2, "bbbb" and no EOS: Phi goes 1, 1.25, 1.5, 1.75 and 2; the sum is gamma^4 * 2 - 1."""
    env = make_single(**shaping(remaining, 0.5, bootstrap_truncated=True))
    rewards, terms, info = play(env, Example("aaa=", "aaa"), [3, 3, 3, 3])
    assert terms == [-0.375, -0.5, -0.625, -0.75]
    assert discounted(rewards, 0.5) == 2.0 / 16 - 1.0
    assert info["reason"] == "no_eos"
    # one that terminates is worth nothing more
    _, terms, _ = play(env, Example("aaa=", "aaa"), [3, 1])
    assert terms == [-0.375, -1.25]


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_vector_rows_by_hand(make_vector, mode, bootstrap):
    """Row 0 ends with EOS in its second step, row 1 is truncated in its fourth; gamma 1."""
    envs = make_vector(
        2, mode, lambda rows: VectorPotentialShaping(rows, remaining, gamma=1.0, bootstrap_truncated=bootstrap)
    )
    given = [Example("ab=", "ab"), Example("bb=", "bb")]
    envs.reset(seed=0, options={"prompts": given})
    steps = [envs.step(np.array(column)) for column in ([2, 2], [1, 2], [2, 2], [2, 2])]
    terms = np.array([step[4]["shaping"] for step in steps])
    last = 0.25 if bootstrap else -1.75
    assert terms[:, 1].tolist() == [0.25, 0.25, 0.25, last]
    assert terms[:2, 0].tolist() == [0.25, -1.25]
    ran = [step[4]["_shaping"].tolist() for step in steps]
    if mode == "same_step":  # the new text in row 0 has a potential of its own
        assert terms[2:, 0].tolist() == [0.25, 0.25]
        assert ran == [[True, True]] * 4
    else:
        waits = mode == "disabled"
        assert terms[2:, 0].tolist() == [0.0, 0.0 if waits else 0.25]
        assert ran == [[True, True], [True, True], [False, True], [not waits, True]]
    assert steps[1][1].tolist() == [0.5 * 0 + steps[1][4]["final_info"]["score"][0] - 1.25, 0.25]


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_rows_are_shaped_as_single_envs_are(make_vector, make_single, rng, mode):
    envs = make_vector(4, mode, lambda rows: VectorPotentialShaping(rows, "prefix_match", gamma=0.75))
    single = make_single(**shaping("prefix_match", 0.75))
    by_prompt = {example.prompt: example for example in envs.dataset.pool("train").examples}
    obs, _ = envs.reset(seed=0)
    prompts = [envs.tokenizer.decode(row) for row in obs["tokens"]]
    actions = [[] for _ in range(4)]
    paid = [[] for _ in range(4)]
    compared = 0
    for _ in range(60):
        chosen = rng.choice([1, 2, 3], size=4)
        obs, rewards, terminated, truncated, infos = envs.step(chosen)
        for row in np.flatnonzero(infos["_shaping"]):
            actions[row].append(chosen[row])
            paid[row].append(rewards[row])
            if terminated[row] or truncated[row]:
                assert play(single, by_prompt[prompts[row]], actions[row])[0] == paid[row]
                actions[row], paid[row] = [], []
                compared += 1
        if mode == "disabled" and not infos["_shaping"].any():
            obs, infos = envs.reset()
        for row in np.flatnonzero(infos.get("_prompt_text", np.zeros(4, dtype=bool))):
            prompts[row] = infos["prompt_text"][row]
    assert compared > 20


def test_composes_with_gymnasiums_statistics(make_vector, words):
    """Over the shaping they count shaped rewards, under it those of the task."""

    def wrap(rows):
        return VectorPotentialShaping(rows, remaining, gamma=1.0)

    over = RecordEpisodeStatistics(make_vector(1, wrap=wrap))
    under = make_vector(1, wrap=lambda rows: wrap(RecordEpisodeStatistics(rows)))
    for envs, expected in ((over, 1.0 - 1.0), (under, 1.0)):
        envs.reset(options={"prompts": words("a")})
        envs.step(np.array([2]))
        *_, infos = envs.step(np.array([1]))
        assert infos["episode"]["r"].tolist() == [expected]
        assert infos["final_info"]["score"].tolist() == [1.0]


def test_environments_stay_what_they_are(make_vector, make_single):
    """A potential of 0 everywhere pays nothing, so that the checker may compare scores."""
    check_vector_env(
        lambda num, mode: make_vector(
            num, mode, lambda rows: VectorPotentialShaping(rows, lambda example, text: 0.0, gamma=1.0)
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make_single(**shaping("prefix_match", 0.5)), skip_render_check=True)


def test_made_again_from_its_spec():
    env = gymnasium.make("worldmtp/Copy-v0", pool_size=8, **shaping("prefix_match", 0.5))
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    again.reset(seed=0)
    assert "shaping" in again.step(2)[4]


def test_snapshot_goes_through(make_vector):
    envs = VectorPotentialShaping(make_vector(2, "disabled"), remaining, gamma=1.0)
    envs.reset(options={"prompts": [Example("ab=", "ab"), Example("b=", "b")]})
    envs.step(np.array([1, 2]))
    state = json.loads(json.dumps(envs.state()))
    first = envs.step(np.array([2, 3]))
    envs.reset(seed=3)
    envs.load_state(state)
    again = envs.step(np.array([2, 3]))
    assert first[1].tolist() == again[1].tolist() == [0.0, 0.25]


@pytest.mark.parametrize(
    ("potential", "gamma", "message"),
    [
        ("prefix_mach", 1.0, "potential='prefix_mach' is unknown.*did you mean 'prefix_match'"),
        ("prefix_match", 0.0, r"gamma=0.0 must be in \(0, 1\]"),
        ("prefix_match", 1.5, r"gamma=1.5 must be in \(0, 1\]"),
    ],
)
def test_impossible_arguments_are_refused(make_vector, potential, gamma, message):
    with pytest.raises(ValueError, match=message):
        VectorPotentialShaping(make_vector(1, "disabled"), potential, gamma=gamma)


def test_each_row_is_shaped_by_its_own_answer(make_vector):
    """The same prompt with two answers, and a given example once the pool's own is asked for again."""
    shaped = VectorPotentialShaping(make_vector(2, "disabled"), "prefix_match", gamma=1.0)
    shaped.reset(seed=0, options={"prompts": [Example("ab=", "a"), Example("ab=", "b")]})
    _, _, _, _, infos = shaped.step(np.array([2, 2]))  # "a" in both rows
    assert infos["shaping"].tolist() == [1.0, 0.0]
    own = shaped.dataset.pool("train").examples[0]
    first, other = shaped.tokenizer.encode(own.answer)[0], "b" if own.answer[0] == "a" else "a"
    shaped.reset(options={"prompts": [Example(own.prompt, other)] * 2})
    shaped.reset(options={"indices": [0, 0]})
    _, _, _, _, infos = shaped.step(np.array([first, first]))
    assert infos["shaping"].tolist() == [1 / len(own.answer)] * 2
