"""Parallel decoding with a beam against a search written down here, over full forwards of the trunk, in float64.

The reference shares nothing with the code under test: it lists the candidates of a text by the model's teacher-forced
heads, one path after another, and scores texts by the trunk's plain forward.
"""

from itertools import pairwise

import pytest
import torch

from worldmtp.decoding import generate, parallel_beam
from worldmtp.decoding.beam import BeamSession
from worldmtp.decoding.lean import make_runner

PAD, EOS, VOCAB = 0, 1, 7
FAMILIES = ["latent", "hydra", "medusa", "blockwise", "modulated", "linear"]
KINDS = ["llama", "qwen3", "gpt2", "gpt_neox"]
Text = tuple[int, ...]


@pytest.fixture
def sharp_model(model_of):
    """Random trunks are nearly uniform, and a search over them nearly a tie."""

    def make(kind: str = "llama", head: str = "latent", depth: int = 4, vocab_size: int = VOCAB, seed: int = 0, **spec):
        model = model_of(kind, head, depth, vocab_size=vocab_size, seed=seed, **spec)
        model.trunk.get_output_embeddings().weight.data *= 12
        return model

    return make


@torch.no_grad()
def log_probs_of(trunk, prompt: Text, paths: list[Text]) -> list[float]:
    """Total log-probability of paths of one length after a prompt."""
    ids = torch.tensor([prompt + path for path in paths])
    log_p = trunk(ids).logits.log_softmax(dim=-1)[:, len(prompt) - 1 : -1]
    return log_p.gather(2, ids[:, len(prompt) :, None])[..., 0].sum(dim=1).tolist()


@torch.no_grad()
def levels_of(model, text: Text, widths: tuple[int, ...]) -> list[list[Text]]:
    """Paths of each length, children beside one another, the most likely of them first."""
    levels: list[list[Text]] = [[()]]
    for depth, width in enumerate(widths, start=1):
        ids = torch.tensor([text + path for path in levels[-1]])
        logits = model(ids).depth_logits[depth - 1][:, len(text) - 1]
        best = logits.argsort(dim=-1, descending=True)[:, :width].tolist()
        levels.append([(*path, token) for path, tokens in zip(levels[-1], best, strict=True) for token in tokens])
    return levels[1:]


def search(model, prompt: Text, widths, num_beams: int, max_new: int, eos: int | None = EOS) -> tuple[Text, float]:
    """The best of what is alive or ended, round after round, until all of it has ended."""
    beams: list[tuple[float, Text, bool]] = [(0.0, (), False)]
    while not all(ended for _, _, ended in beams):
        pool: list[tuple[float, Text, bool]] = []
        for score, text, ended in beams:
            if ended:
                pool.append((score, text, True))
                continue
            levels = levels_of(model, prompt + text, widths[: max_new - len(text)])
            for depth, paths in enumerate(levels, start=1):
                is_deepest = depth == len(levels)
                kept = [p for p in paths if eos not in p[:-1] and (p[-1] == eos or is_deepest)]
                for path, gain in zip(
                    kept, log_probs_of(model.trunk, prompt + text, kept) if kept else (), strict=True
                ):
                    whole = text + path
                    pool.append((score + gain, whole, path[-1] == eos or len(whole) == max_new))
        beams = sorted(pool, key=lambda beam: -beam[0])[:num_beams]
    return beams[0][1], beams[0][0]


def prompts_of(ids, mask) -> list[Text]:
    return [tuple(row[keep.bool()].tolist()) for row, keep in zip(ids, mask, strict=True)]


def assert_found(output, width: int, expected: list[tuple[Text, float]]) -> None:
    for row, (text, score) in enumerate(expected):
        new = output.sequences[row, width:].tolist()
        assert tuple(new[: len(text)]) == text
        assert set(new[len(text) :]) <= {PAD}
        assert int(output.lengths[row]) == len(text)
        assert float(output.scores[row]) == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "head"),
    [*((kind, "hydra") for kind in KINDS), *(("gpt_neox", head) for head in FAMILIES if head != "hydra")],
)
def test_every_node_of_two_rounds_is_scored_as_by_full_forwards(sharp_model, ragged, kind, head):
    """In the second, rows are re-ordered, repeated and left out, and follow paths of several branches."""
    model, widths = sharp_model(kind, head), (3, 2, 2)
    ids, mask = ragged(3, 6, seed=1, right=True)
    session = BeamSession(model, make_runner(model), widths, capacity=40)
    session.prefill(ids, mask.bool())
    texts = prompts_of(ids, mask)
    for follow in ([2, 0, 0, 2], [1, 0, 3], None):
        found = session.score(3)
        assert found.log_probs.shape == (len(texts), 3 + 6 + 12)
        every = []
        for row, text in enumerate(texts):
            levels = levels_of(model, text, widths)
            every.append([path for level in levels for path in level])
            assert found.tokens[row].tolist() == [path[-1] for path in every[-1]]
            scores = [score for level in levels for score in log_probs_of(model.trunk, text, level)]
            torch.testing.assert_close(
                found.log_probs[row], torch.tensor(scores, dtype=torch.float64), atol=1e-10, rtol=0
            )
        if follow is None:
            break
        nodes = [9 + (5 * place + 3) % 12 for place in range(len(follow))]  # 9 .. 20 are the deepest
        session.follow(torch.tensor(follow).numpy(), torch.tensor(nodes))
        texts = [texts[row] + every[row][node] for row, node in zip(follow, nodes, strict=True)]
    assert session.texts.num_forwards == 1 + 3


@pytest.mark.parametrize("right", [False, True], ids=["left", "right"])
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_search_is_the_one_written_down(sharp_model, ragged, kind, num_beams, right):
    """11 tokens in blocks of three: the last is cut to two by the length."""
    model, widths = sharp_model(kind, "latent", seed=3), (3, 2, 2)
    ids, mask = ragged(4, 7, seed=2, right=right)
    output = parallel_beam(
        model, ids, mask, widths=widths, num_beams=num_beams, max_new_tokens=11, eos_token_id=EOS, pad_token_id=PAD
    )
    expected = [search(model, prompt, widths, num_beams, 11) for prompt in prompts_of(ids, mask)]
    assert_found(output, 7, expected)


@pytest.mark.parametrize("head", FAMILIES)
def test_every_family_with_ends_inside_blocks(sharp_model, ragged, head):
    model, widths = sharp_model("llama", head, seed=1), (4, 3, 2)
    ids, mask = ragged(6, 5, seed=4)
    output = parallel_beam(
        model, ids, mask, widths=widths, num_beams=2, max_new_tokens=9, eos_token_id=EOS, pad_token_id=PAD
    )
    expected = [search(model, prompt, widths, 2, 9) for prompt in prompts_of(ids, mask)]
    assert_found(output, 5, expected)
    ends = [len(text) for text, _ in expected if text[-1] == EOS]
    assert any(length % 3 for length in ends)


def test_several_ends_of_text(sharp_model, ragged):
    model, (ids, mask) = sharp_model(seed=1), ragged(3, 5, seed=5)
    output = parallel_beam(
        model, ids, mask, widths=(3, 3), num_beams=3, max_new_tokens=8, eos_token_id=[EOS, 4], pad_token_id=PAD
    )
    for row in range(3):
        new = output.sequences[row, 5 : 5 + int(output.lengths[row])].tolist()
        assert not {EOS, 4} & set(new[:-1])
        assert new[-1] in (EOS, 4) or len(new) == 8
        score = log_probs_of(model.trunk, prompts_of(ids, mask)[row], [tuple(new)])[0]
        assert float(output.scores[row]) == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize("head", ["latent", "medusa"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_all_widths_the_vocabulary_is_the_best_of_all_texts(sharp_model, kind, head):
    vocab, length = 5, 3
    model = sharp_model(kind, head, vocab_size=vocab, seed=4)
    prompts = torch.tensor([[3, 2, 4], [2, 2, 3]])
    output = parallel_beam(model, prompts, widths=(vocab,) * length, max_new_tokens=length)
    texts = torch.cartesian_prod(*[torch.arange(vocab)] * length).tolist()
    for row, prompt in enumerate(prompts.tolist()):
        scores = log_probs_of(model.trunk, tuple(prompt), [tuple(text) for text in texts])
        best = max(range(len(texts)), key=scores.__getitem__)
        assert output.sequences[row, 3:].tolist() == texts[best]
        assert float(output.scores[row]) == pytest.approx(scores[best], abs=1e-9)
    assert (output.num_trunk_forwards, output.num_rounds) == (2, 1)


def beam_search(trunk, prompt: Text, num_beams: int, max_new: int) -> tuple[Text, float]:
    """A token a round, no ends."""
    beams: list[tuple[Text, float]] = [((), 0.0)]
    for _ in range(max_new):
        with torch.no_grad():
            logits = trunk(torch.tensor([prompt + text for text, _ in beams])).logits[:, -1]
        grown = [
            ((*text, token), score + gain)
            for (text, score), gains in zip(beams, logits.log_softmax(dim=-1).tolist(), strict=True)
            for token, gain in enumerate(gains)
        ]
        beams = sorted(grown, key=lambda beam: -beam[1])[:num_beams]
    return beams[0]


@pytest.mark.parametrize("width", ["vocabulary", "num_beams"])
@pytest.mark.parametrize("num_beams", [2, 4])
@pytest.mark.parametrize("head", ["latent", "sequential"])
def test_a_single_width_is_beam_search(sharp_model, ragged, head, num_beams, width):
    """And transformers' too. A beam can have no more survivors than there are beams, so as many candidates suffice."""
    model, (ids, mask) = sharp_model("qwen3", head, seed=5), ragged(3, 6, seed=6)
    widths = (VOCAB if width == "vocabulary" else num_beams,)
    output = parallel_beam(model, ids, mask, widths=widths, num_beams=num_beams, max_new_tokens=8, pad_token_id=PAD)
    assert_found(output, 6, [beam_search(model.trunk, prompt, num_beams, 8) for prompt in prompts_of(ids, mask)])
    theirs = model.trunk.generate(
        ids,
        attention_mask=mask,
        num_beams=num_beams,
        max_new_tokens=8,
        length_penalty=0.0,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert torch.equal(output.sequences, theirs.sequences)
    torch.testing.assert_close(output.scores, theirs.sequences_scores.double(), atol=1e-5, rtol=0)


def test_one_candidate_of_one_depth_is_greedy_decoding(sharp_model, ragged):
    model, (ids, mask) = sharp_model("gpt2", seed=6), ragged(4, 6, seed=7)
    options = {"max_new_tokens": 9, "eos_token_id": EOS, "pad_token_id": PAD}
    for trunk in (model, model.trunk):
        output = parallel_beam(trunk, ids, mask, widths=(1,), **options)
        greedy = generate(model, ids, mask, **options)
        assert torch.equal(output.sequences, greedy.sequences)
        torch.testing.assert_close(output.scores, greedy.logprobs.sum(dim=1), atol=1e-9, rtol=0)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("head", ["hydra", "linear"])
def test_one_candidate_a_depth_is_what_the_heads_say(sharp_model, ragged, head, num_beams):
    """There is one text, however many places: the trunk's token, then the heads' for three, round after round."""
    model, (ids, mask) = sharp_model("llama", head), ragged(3, 6, seed=8)
    output = parallel_beam(
        model, ids, mask, widths=(1, 1, 1, 1), num_beams=num_beams, max_new_tokens=10, pad_token_id=PAD
    )
    for row, prompt in enumerate(prompts_of(ids, mask)):
        text: Text = ()
        while len(text) < 10:
            text += levels_of(model, prompt + text, (1, 1, 1, 1))[-1][0]
        assert output.sequences[row, 6:].tolist() == list(text[:10])


@pytest.mark.parametrize(
    ("widths", "max_new", "forwards", "rounds"),
    [
        ((2,), 8, 8, 8),  # the prompt's forward says what the first token is worth, the last token is not read
        ((2,), 1, 1, 1),
        ((2, 2), 8, 5, 4),  # four blocks of two, each read
        ((2, 2), 9, 5, 5),  # and a ninth token, which is not
        ((2, 2), 2, 2, 1),
        ((2, 2, 2), 8, 4, 3),  # 3 + 3 + 2
        ((2, 2, 2), 7, 3, 3),  # 3 + 3 + 1
        ((2, 2, 2), 1, 1, 1),  # cut to a single depth
    ],
    ids=["1x8", "1x1", "2x8", "2x9", "2x2", "3x8", "3x7", "3x1"],
)
def test_forwards_are_as_many_as_there_are_blocks(sharp_model, ragged, widths, max_new, forwards, rounds):
    output = parallel_beam(
        sharp_model(), *ragged(3, 5, seed=9), widths=widths, num_beams=2, max_new_tokens=max_new, pad_token_id=PAD
    )
    assert (output.num_trunk_forwards, output.num_rounds) == (forwards, rounds)


def test_wider_searches_find_no_worse_first_blocks(sharp_model, ragged):
    """Within one block a tree with more candidates contains the other."""
    model, (ids, mask) = sharp_model(seed=7), ragged(8, 6, seed=10)
    scores = [
        parallel_beam(model, ids, mask, widths=widths, max_new_tokens=3, pad_token_id=PAD).scores
        for widths in ((1, 1, 1), (3, 1, 1), (3, 3, 1), (7, 7, 7))
    ]
    for narrow, wide in pairwise(scores):
        assert bool((wide >= narrow - 1e-12).all())
    assert bool((scores[-1] > scores[0] + 1e-3).any())


def test_at_the_end_of_the_context_nodes_have_slots_beyond_it(sharp_model, ragged):
    """GPT-2 knows 128 positions: 124 of the prompt, 4 new tokens, and 12 nodes in slots up to 136."""
    model = sharp_model("gpt2", "hydra")
    ids, mask = ragged(2, 124, seed=11)
    output = parallel_beam(model, ids, mask, widths=(3, 3), num_beams=2, max_new_tokens=4, pad_token_id=PAD)
    expected = [search(model, prompt, (3, 3), 2, 4, eos=None) for prompt in prompts_of(ids, mask)]
    assert_found(output, 124, expected)


def test_recursive_heads_go_beyond_their_depth(sharp_model, ragged):
    model, (ids, mask) = sharp_model(depth=2), ragged(2, 5, seed=12)
    output = parallel_beam(model, ids, mask, widths=(2, 2, 2, 2), num_beams=2, max_new_tokens=8, pad_token_id=PAD)
    assert output.num_trunk_forwards == 3
    for row, prompt in enumerate(prompts_of(ids, mask)):
        text = tuple(output.sequences[row, 5:].tolist())
        assert float(output.scores[row]) == pytest.approx(log_probs_of(model.trunk, prompt, [text])[0], abs=1e-9)


def test_the_mode_and_global_generators_are_left_alone(sharp_model, ragged, global_rng_untouched):
    model = sharp_model().train()
    with global_rng_untouched():
        parallel_beam(model, *ragged(2, 4, seed=0), widths=(2, 2), max_new_tokens=3, pad_token_id=PAD)
    assert model.training
    model.eval()


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ({}, {"widths": (2, 0)}, r"widths=\(2, 0\) must be counts of at least 1"),
        ({}, {"widths": (7, 7, 7, 7, 7)}, r"7 \+ 49 \+ 343 \+ 2401 \+ 16807 = 19607 nodes for each beam"),
        ({}, {"widths": (8,)}, r"widths=\(8,\) ask for 8 tokens of a vocabulary of 7; lower them"),
        (
            {"head": "hydra", "depth": 2},
            {"widths": (2, 2, 2)},
            r"are of 3 depths and the model has depth=2; leave some",
        ),
        ({"head": "linear", "stride": 2}, {}, "stride=2: these heads leap over tokens; a beam of them needs stride=1"),
        ({}, {"num_beams": 0}, "num_beams=0 must be at least 1"),
        ({}, {"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({}, {"max_new_tokens": 126}, "a prompt of 3 tokens and max_new_tokens=126 exceed the trunk's context of 128"),
    ],
    ids=["width_0", "nodes", "vocabulary", "depth", "stride", "beams", "no_tokens", "context"],
)
def test_refused(sharp_model, model, settings, message):
    ids = torch.tensor([[2, 3, 4], [5, 6, 2]])
    with pytest.raises(ValueError, match=message):
        parallel_beam(sharp_model(**model), ids, **({"widths": (2, 2), "max_new_tokens": 4} | settings))


@pytest.mark.parametrize("head", ["sequential", "eagle", "parallel"])
def test_heads_with_attention_are_refused_and_told_which_are_not(sharp_model, head):
    ids = torch.tensor([[2, 3, 4]])
    families = r"\['blockwise', 'hydra', 'latent', 'linear', 'medusa', 'modulated'\]"
    with pytest.raises(
        TypeError, match=rf"attends to earlier positions, .* takes the families {families}, or a single"
    ):
        parallel_beam(sharp_model(head=head), ids, widths=(2, 2), max_new_tokens=4)
    assert parallel_beam(sharp_model(head=head), ids, widths=(2,), max_new_tokens=4).sequences.shape == (1, 7)


def test_a_cache_that_does_not_fit_is_a_sum(sharp_model):
    # 2 prompts x 3 beams; 3 + 4 tokens and 2 + 4 nodes; Llama of the tests: 2 layers, 2 key-value heads of 8, float64.
    options = {"widths": (2, 2), "num_beams": 3, "max_new_tokens": 4}
    ids = torch.tensor([[2, 3, 4], [5, 6, 2]])
    size = 2 * 6 * 13 * 2 * 2 * 8 * 8
    with pytest.raises(MemoryError, match=r"the cache takes 2 x 6 rows x 13 slots x 2 layers x 2 key-value heads"):
        parallel_beam(sharp_model(), ids, max_cache_bytes=size - 1, **options)
    parallel_beam(sharp_model(), ids, max_cache_bytes=size, **options)
