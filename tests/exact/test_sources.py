"""Every closed form of a source against the enumeration of hidden paths, and what each source is known for."""

import itertools
import json
import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from worldmtp.dynamics.exact import TokenMDP
from worldmtp.envs.tasks.data import DataTask
from worldmtp.exact import (
    Source,
    block_hmm,
    bounded_dyck,
    entropy,
    hidden_markov,
    markov_chain,
    mess3,
    path_star,
    stationary,
    text_rows,
    token_mdp,
    two_streams,
)

LENGTH = 5
PREFIX = 2


def matrix(rows):
    return torch.tensor(rows, dtype=torch.float64)


def random_stochastic(rows, columns, seed):
    drawn = torch.rand(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.05
    return drawn / drawn.sum(dim=1, keepdim=True)


def small_mdp():
    generator = torch.Generator().manual_seed(3)
    mdp = TokenMDP(2, 3, torch.zeros(7, 2, dtype=torch.float64), eos=1)
    return token_mdp(mdp, torch.randn(7, 2, dtype=torch.float64, generator=generator))


SOURCES = {
    "markov": lambda: markov_chain(random_stochastic(3, 3, 0)),
    "hidden": lambda: hidden_markov(random_stochastic(3, 3, 1), random_stochastic(3, 2, 2)),
    "mess3": mess3,
    "block": lambda: block_hmm(2, 2, 0.2),
    "streams": lambda: two_streams(random_stochastic(2, 2, 4), random_stochastic(2, 2, 5), random_stochastic(2, 2, 6)),
    "dyck": lambda: bounded_dyck(2, 2),
    "path_star": lambda: path_star(2, 3),
    "mdp": small_mdp,
}


def law(source, length):
    """Probability of each text of that length, over every path of hidden states, with numbers of Python alone."""
    edges, start = source.transitions.tolist(), source.start.tolist()
    states = range(source.num_states)
    found = {(): {state: start[state] for state in states if start[state]}}
    for _ in range(length):
        longer = {}
        for text, weights in found.items():
            for token in range(source.num_symbols):
                reached = defaultdict(float)
                for state, weight in weights.items():
                    for following in states:
                        if edges[token][state][following]:
                            reached[following] += weight * edges[token][state][following]
                if reached:
                    longer[(*text, token)] = dict(reached)
        found = longer
    return {text: sum(weights.values()) for text, weights in found.items()}


def plain_entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities if p > 0)


@pytest.mark.parametrize("name", SOURCES)
def test_closed_forms_equal_enumeration(name):
    source = SOURCES[name]()
    texts = law(source, LENGTH)
    assert sum(texts.values()) == pytest.approx(1)
    prefixes = defaultdict(dict)
    for text, probability in texts.items():
        prefixes[text[:PREFIX]][text[PREFIX:]] = probability
    seen = torch.tensor(list(prefixes))
    beliefs = source.beliefs(seen)[:, -1]
    depth = LENGTH - PREFIX
    joints, marginals = source.joint(beliefs, depth), source.marginals(beliefs, depth)
    split = source.true_split(beliefs, depth)
    for row, futures in enumerate(prefixes.values()):
        total = sum(futures.values())
        for place, path in enumerate(itertools.product(range(source.num_symbols), repeat=depth)):
            assert float(joints[row, place]) == pytest.approx(futures.get(path, 0.0) / total, abs=1e-12)
        for k in range(1, depth + 1):
            expected = [0.0] * source.num_symbols
            between = defaultdict(lambda: [0.0] * source.num_symbols)
            for path, probability in futures.items():
                expected[path[k - 1]] += probability / total
                between[path[: k - 1]][path[k - 1]] += probability / total
            assert marginals[row, k - 1].tolist() == pytest.approx(expected, abs=1e-12)
            # H(x_k | x_<k): each history's own entropy, weighed by how probable the history is.
            noise = sum(
                sum(tokens) * plain_entropy([token / sum(tokens) for token in tokens])
                for tokens in between.values()
                if sum(tokens)
            )
            assert float(split.noise[row, k - 1]) == pytest.approx(noise, abs=1e-10)
            assert float(split.structural[row, k - 1]) == pytest.approx(plain_entropy(expected) - noise, abs=1e-10)
        path = torch.tensor([max(futures, key=futures.get)])
        logprob = source.path_logprob(beliefs[row : row + 1], path)
        assert float(logprob.sum()) == pytest.approx(math.log(max(futures.values()) / total))
    assert bool((split.structural > -1e-12).all())
    assert torch.allclose(split.structural[:, 0], torch.zeros(len(seen), dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("name", SOURCES)
def test_samples_follow_the_law(name):
    """5 deviations on up to 50 counts: a seed in 30,000 would fail; it is fixed."""
    source = SOURCES[name]()
    tokens, states = source.sample(20_000, 2, torch.Generator().manual_seed(0))
    for text, probability in law(source, 2).items():
        share = float((tokens == torch.tensor(text)).all(dim=1).double().mean())
        assert abs(share - probability) <= 5 * math.sqrt(probability * (1 - probability) / 20_000) + 1e-12
    # The state is one that the belief holds possible, and as often as it says.
    beliefs = source.beliefs(tokens)[:, -1]
    assert bool((beliefs.gather(1, states[:, 1:]) > 0).all())
    shares = torch.bincount(states[:, 1], minlength=source.num_states) / 20_000
    assert torch.allclose(shares.double(), beliefs.mean(dim=0), atol=5 * math.sqrt(0.25 / 20_000))


def test_sampling_is_reproducible_and_leaves_global_generators(global_rng_untouched):
    with global_rng_untouched():
        first = mess3().sample(3, 4, torch.Generator().manual_seed(1))[0]
    assert torch.equal(first, mess3().sample(3, 4, torch.Generator().manual_seed(1))[0])


def test_a_chain_forgets_at_the_rate_of_its_second_eigenvalue():
    # A = [[.9, .1], [.2, .8]] has eigenvalues 1 and .7: m_k(0 | 0) = 2/3 + 1/3 * .7^k.
    marginals = markov_chain(matrix([[0.9, 0.1], [0.2, 0.8]])).marginals(matrix([[1.0, 0.0]]), 6)
    assert marginals[0, :, 0].tolist() == pytest.approx([2 / 3 + 0.7**k / 3 for k in range(1, 7)])


def test_stationary_by_hand():
    assert stationary(matrix([[0.9, 0.1], [0.2, 0.8]])).tolist() == pytest.approx([2 / 3, 1 / 3])
    with pytest.raises(ValueError, match="several stationary laws"):
        stationary(torch.eye(2, dtype=torch.float64))


def test_mess3_is_that_of_the_paper():
    source = mess3()
    # T_0[0, 0] = alpha (1 - 2x), T_0[0, 1] = x (1 - alpha) / 2, T_0[1, 0] = x alpha.
    assert source.transitions[0, 0].tolist() == pytest.approx([0.85 * 0.9, 0.05 * 0.075, 0.05 * 0.075])
    assert float(source.transitions[0, 1, 0]) == pytest.approx(0.05 * 0.85)
    tokens, _ = source.sample(400, 60, torch.Generator().manual_seed(0))
    beliefs = source.beliefs(tokens)[:, 20:-1]
    # Its entropy rate; Shai et al. reach a loss of .804 nats, and 400 x 40 tokens know it to .004.
    assert float(entropy(source.next_token(beliefs)).mean()) == pytest.approx(0.804, abs=0.012)


@pytest.mark.parametrize(("source", "arms"), [(block_hmm(3, 3, 0.0), 3), (path_star(4, 4), 4)])
def test_words_hide_their_number_from_heads_that_average(source, arms):
    split = source.true_split(source.start, 3)
    assert split.noise.tolist() == pytest.approx([math.log(arms), 0, 0], abs=1e-12)
    assert split.structural.tolist() == pytest.approx([0, math.log(arms), math.log(arms)], abs=1e-12)


def test_heads_that_average_give_an_arm_by_chance():
    source = path_star(3, 5)
    marginals, joint = source.marginals(source.start, 4), source.joint(source.start, 4)
    product = marginals[0]
    for k in range(1, 4):
        product = torch.einsum("p,x->px", product, marginals[k]).flatten()
    # degree^(2 - length): of 3^3 ways to go on from a first node, one is its arm.
    assert float(product[joint > 0].sum()) == pytest.approx(3**-3)


def test_brackets_are_balanced_and_no_deeper_than_said():
    tokens, _ = bounded_dyck(2, 3).sample(200, 80, torch.Generator().manual_seed(0))
    ended = 0
    for text in tokens.tolist():
        stack = []
        for place, token in enumerate(text):
            if token == 4:
                assert not stack
                assert set(text[place:]) == {4}
                ended += 1
                break
            if token < 2:
                stack.append(token)
                assert len(stack) <= 3
            else:
                assert stack.pop() == token - 2
    assert ended > 150


def test_two_streams_take_turns_and_tell_of_one_state():
    perfect = torch.eye(2, dtype=torch.float64)
    source = two_streams(matrix([[0.7, 0.3], [0.3, 0.7]]), perfect, perfect)
    tokens, _ = source.sample(50, 8, torch.Generator().manual_seed(0))
    assert torch.equal(tokens[:, 1::2], tokens[:, 0::2] + 2)  # both see the state, so the second repeats the first
    split = source.true_split(source.start, 3)
    # a_1 is open (log 2); b_1 is settled by it, which averaging heads miss; a_2 is open as to who saw b_1: H(.3).
    bit = plain_entropy([0.3, 0.7])
    assert split.noise.tolist() == pytest.approx([math.log(2), 0, bit])
    assert split.structural.tolist() == pytest.approx([0, math.log(2), math.log(2) - bit])


def test_an_mdp_is_its_episodes():
    mdp = TokenMDP(2, 2, torch.zeros(3, 2, dtype=torch.float64))
    logits = torch.tensor([[0.3, -0.2], [1.0, 0.0], [-1.0, 2.0]], dtype=torch.float64)
    episodes = mdp.episodes()
    source = token_mdp(mdp, logits)
    ends = torch.full_like(episodes.actions[:, :1], 2)
    logprob = source.path_logprob(source.start.expand(4, -1), torch.cat([episodes.actions, ends], dim=1)).sum(dim=1)
    assert torch.allclose(logprob.exp(), episodes.probability(logits))


def test_errors_name_the_place():
    with pytest.raises(ValueError, match=r"transitions\[:, 1, :\] adds up to 0\.9"):
        Source(matrix([[[0.5, 0.5], [0.5, 0.4]]]), matrix([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"start adds up to 2"):
        Source(matrix([[[0.5, 0.5], [0.5, 0.5]]]), matrix([1.0, 1.0]))
    with pytest.raises(ValueError, match="negative entry"):
        Source(matrix([[[1.5, -0.5], [0.5, 0.5]]]), matrix([1.0, 0.0]))
    with pytest.raises(ValueError, match="a source is float64"):
        Source(torch.ones(1, 1, 1), torch.ones(1))
    with pytest.raises(ValueError, match="token 2 of row 1 has probability 0"):
        bounded_dyck().beliefs(torch.tensor([[0, 2], [2, 0]]))


def test_sequences_are_data_for_a_warm_start(tmp_path):
    rows = text_rows(torch.tensor([[0, 1, 1, 2], [2, 2, 0, 1]]), 2, "abc")
    assert rows == [{"prompt": "ab", "answer": "bc"}, {"prompt": "cc", "answer": "ab"}]
    file = tmp_path / "source.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = DataTask(path=str(file))
    found = task.sample(np.random.default_rng(0), "train")
    assert {"prompt": found.prompt, "answer": found.answer} in rows
    with pytest.raises(ValueError, match=r"prompt_length=4 must lie in 1 \.\. 3"):
        text_rows(torch.zeros(1, 4, dtype=torch.long), 4, "a")
    with pytest.raises(ValueError, match="needs one character for each token up to 2"):
        text_rows(torch.tensor([[0, 2]]), 1, "ab")
