"""The reasons that ``explain`` gives are those of the decoding: held to plain forwards of trunk and heads."""

from dataclasses import dataclass

import pytest
import torch

from worldmtp.decoding import SamplingConfig, generate
from worldmtp.decoding.acceptance import Draft, Tree
from worldmtp.decoding.drafts import NoDraft
from worldmtp.decoding.explain import Fate, explain

PROMPT = torch.tensor([2, 5, 3])
SETTINGS = {
    "mtp": {"draft": "mtp"},
    "two": {"draft": "mtp", "num_draft": 2},
    "tree": {"draft": "mtp", "tree": (3, 2, 1)},
    "lookup": {"draft": "lookup"},
    "none": {"draft": "none"},
}


@dataclass
class Scripted(NoDraft):
    """Drafts the same tokens each time: a chain, or a tree."""

    tokens: tuple[int, ...]
    tree: Tree | None = None

    def __post_init__(self):
        self.max_drafts = len(self.tokens)

    def propose(self, texts, policy, num_drafts):
        num_ahead = len(self.tokens) if self.tree is None else int(self.tree.depths.max())
        return Draft(torch.tensor([self.tokens]), torch.tensor([num_ahead]), tree=self.tree)


@torch.no_grad()
def trunk_says(model, tokens):
    """The trunk's probabilities of what follows tokens, from a plain forward of Hugging Face's model."""
    return model.trunk(torch.tensor([tokens])).logits[0, -1].softmax(dim=-1)


def greedy_text(model, num_tokens, prompt=PROMPT):
    tokens = prompt.tolist()
    for _ in range(num_tokens):
        tokens.append(int(trunk_says(model, tokens).argmax()))
    return tokens[len(prompt) :]


def top(probabilities, number=5):
    return sorted(enumerate(probabilities.tolist()), key=lambda pair: -pair[1])[:number]


def pairs(view):
    return [(guess.token, guess.probability) for guess in view]


def assert_same_view(view, probabilities):
    expected = top(probabilities)
    assert [token for token, _ in pairs(view)] == [token for token, _ in expected]
    assert [p for _, p in pairs(view)] == pytest.approx([p for _, p in expected], abs=1e-9)  # float64 throughout


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", SETTINGS)
def test_text_and_forwards_are_those_of_generate(model_of, name, kind):
    model = model_of(kind, depth=4)
    explanation = explain(model, PROMPT, max_new_tokens=20, **SETTINGS[name])
    output = generate(model, PROMPT[None], max_new_tokens=20, **SETTINGS[name])
    assert list(explanation.new_tokens) == output.sequences[0, 3:].tolist() == greedy_text(model, 20)
    assert len(explanation.rounds) == output.num_trunk_forwards
    text = PROMPT.tolist()
    for one in explanation.rounds:
        assert list(one.text) == text
        text += one.new_tokens


@pytest.mark.parametrize("name", ["mtp", "lookup", "tree"])
def test_drawn_text_is_that_of_generate(model_of, name):
    model, law = model_of(depth=4), {"do_sample": True, "temperature": 1.3, "top_p": 0.9}
    explanation = explain(
        model,
        PROMPT,
        max_new_tokens=20,
        sampling=SamplingConfig(**law),
        generator=torch.Generator().manual_seed(3),
        **SETTINGS[name],
    )
    output = generate(
        model, PROMPT[None], max_new_tokens=20, generator=torch.Generator().manual_seed(3), **law, **SETTINGS[name]
    )
    assert list(explanation.new_tokens) == output.sequences[0, 3:].tolist()


@pytest.mark.parametrize("name", ["mtp", "lookup"])
def test_fates_of_a_chain_follow_the_trunk(model_of, name):
    model = model_of(depth=4)
    explanation = explain(model, PROMPT, max_new_tokens=30, **SETTINGS[name])
    fates = set()
    for one in explanation.rounds[:-1]:
        tokens, follows = list(one.text), True
        for place in one.places:
            (drafted,) = place.tokens
            probabilities = trunk_says(model, tokens)
            is_choice = drafted.token == int(probabilities.argmax())
            expected = (Fate.ACCEPTED if is_choice else Fate.REFUSED) if follows else Fate.UNREACHED
            assert drafted.fate is expected
            if follows:
                assert drafted.trunk_probability == pytest.approx(float(probabilities[drafted.token]), abs=1e-9)
                assert_same_view(place.trunk_view, probabilities)
            else:
                assert drafted.trunk_probability is None
                assert place.trunk_view == ()
            follows = follows and is_choice
            tokens.append(drafted.token)
            fates.add(expected)
        assert one.own.token == int(trunk_says(model, [*one.text, *one.accepted]).argmax())
        assert_same_view(one.own_view, trunk_says(model, [*one.text, *one.accepted]))
    assert fates == {Fate.ACCEPTED, Fate.REFUSED, Fate.UNREACHED}


@pytest.mark.parametrize("head", ["sequential", "latent", "eagle", "medusa"])
def test_what_the_heads_hold_likely_is_what_a_teacher_forced_forward_says(model_of, head):
    model = model_of(head=head, depth=4)
    explanation = explain(model, PROMPT, max_new_tokens=12, draft="mtp")
    num_places = 0
    for one in explanation.rounds[1:]:
        root = len(one.text) - 2  # depth k stands at the last token before the newest and foresees k tokens ahead
        drafted = [place.tokens[0].token for place in one.places]
        # One token more, for what depth 4 reads last.
        with torch.no_grad():
            output = model(torch.tensor([[*one.text, *drafted]]))
        for depth, place in enumerate(one.places, start=2):
            assert_same_view(place.drafter_view, output.depth_logits[depth - 1][0, root].softmax(dim=-1))
            assert place.tokens[0].token == place.drafter_view[0].token  # greedy drafts are the likeliest
            num_places += 1
    assert num_places == 3 * (len(explanation.rounds) - 1) > 0


def test_what_a_drafting_model_holds_likely(model_of):
    model, drafting = model_of(seed=0), model_of(seed=1).trunk
    explanation = explain(model, PROMPT, max_new_tokens=8, draft=drafting, num_draft=2)
    for one in explanation.rounds[1:]:
        tokens = list(one.text)
        for place in one.places:
            with torch.no_grad():
                assert_same_view(place.drafter_view, drafting(torch.tensor([tokens])).logits[0, -1].softmax(dim=-1))
            tokens.append(place.tokens[0].token)


def test_lookups_and_forwards_without_drafts_hold_nothing_likely(model_of):
    explanation = explain(model_of(), PROMPT, max_new_tokens=12, draft="lookup")
    assert any(one.places for one in explanation.rounds)
    assert all(place.drafter_view == () for one in explanation.rounds for place in one.places)
    assert explanation.rounds[0].places == ()


def fates_of(one):
    return [[draft.fate for draft in place.tokens] for place in one.places]


def wrong(token):
    return 2 if token != 2 else 3


def test_a_chain_that_goes_wrong(model_of):
    model = model_of()
    # The prompt's forward writes the first; the second is drafted right, the third wrong, the fourth right again.
    text = greedy_text(model, 4)
    explanation = explain(model, PROMPT, max_new_tokens=3, draft=Scripted((text[1], wrong(text[2]), text[3])))
    assert fates_of(explanation.rounds[1]) == [[Fate.ACCEPTED], [Fate.REFUSED], [Fate.UNREACHED]]
    assert explanation.rounds[1].accepted == (text[1],)
    assert explanation.rounds[1].own.token == text[2]
    assert len(explanation.rounds) == 2


def test_drafts_behind_the_end(model_of):
    model = model_of()
    text = greedy_text(model, 4)
    ends = text[2]
    assert ends not in text[:2]
    explanation = explain(model, PROMPT, max_new_tokens=9, eos_token_id=(ends,), draft=Scripted(tuple(text[1:4])))
    assert fates_of(explanation.rounds[1]) == [[Fate.ACCEPTED], [Fate.ACCEPTED], [Fate.PAST_THE_END]]
    assert explanation.new_tokens == tuple(text[:3])
    assert explanation.rounds[1].own is None


def test_the_budget_ends_a_text_inside_its_drafts(model_of):
    model = model_of()
    text = greedy_text(model, 4)
    explanation = explain(model, PROMPT, max_new_tokens=2, draft=Scripted(tuple(text[1:4])))
    assert fates_of(explanation.rounds[1]) == [[Fate.ACCEPTED], [Fate.PAST_THE_END], [Fate.PAST_THE_END]]
    assert explanation.new_tokens == tuple(text[:2])


def test_a_tree_whose_second_candidate_is_right(model_of):
    model = model_of()
    text = greedy_text(model, 3)
    # Two candidates, the second right; what follows the first is right as well, and on no path that is text.
    draft = Scripted((wrong(text[1]), text[1], text[2]), Tree((-1, 0, 0, 1)))
    explanation = explain(model, PROMPT, max_new_tokens=3, draft=draft)
    one = explanation.rounds[1]
    assert fates_of(one) == [[Fate.REFUSED, Fate.ACCEPTED], [Fate.UNREACHED]]
    assert one.new_tokens == (text[1], text[2])
    assert one.places[1].trunk_view == ()
    assert_same_view(one.own_view, trunk_says(model, [*PROMPT.tolist(), *text[:2]]))


def test_cut_tokens_are_held_by_nobody(model_of):
    explanation = explain(
        model_of(),
        PROMPT,
        max_new_tokens=8,
        sampling=SamplingConfig(do_sample=True, top_k=2),
        generator=torch.Generator().manual_seed(0),
    )
    views = [one.own_view for one in explanation.rounds if one.own_view]
    views += [place.drafter_view for one in explanation.rounds for place in one.places]
    assert {len(view) for view in views} == {2}
    assert [sum(p for _, p in pairs(view)) for view in views] == pytest.approx([1.0] * len(views))


def test_a_trunk_without_heads(tiny_trunk):
    trunk = tiny_trunk("llama", vocab_size=7)
    explanation = explain(trunk, PROMPT, max_new_tokens=5, draft="lookup")
    assert (
        list(explanation.new_tokens)
        == trunk.generate(PROMPT[None], max_new_tokens=5, eos_token_id=None)[0, 3:].tolist()
    )


def test_sampling_needs_a_generator(model_of):
    with pytest.raises(ValueError, match="do_sample=True draws; pass generator="):
        explain(model_of(), PROMPT, max_new_tokens=3, sampling=SamplingConfig(do_sample=True))


def test_training_mode_is_given_back(model_of):
    model = model_of(seed=5).train()
    explain(model, PROMPT, max_new_tokens=3)
    assert model.training
    model.eval()
