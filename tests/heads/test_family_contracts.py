"""What every family of heads must keep, whatever it computes: who sees what, and who learns from what."""

import functools

import pytest
import torch

from worldmtp.heads.base import ActionConditionalHead, ParallelHead
from worldmtp.heads.registry import available_heads, head_class
from worldmtp.objective import MTPObjective
from worldmtp.objective.loss import multi_token_loss
from worldmtp.objective.plan import StepPlan

TRUNKS = ("llama", "qwen3", "gpt2")
EXACT = {"rtol": 0.0, "atol": 1e-10}
NUM_DEPTHS = 4
SWITCHES = ("detach_trunk", "detach_embedding", "detach_lm_head")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every family, on every trunk where a test asks for ``kind``; GPT-NeoX is read by one family alone."""
    asked = {"head", "kind"} & set(metafunc.fixturenames)
    if asked == {"head", "kind"} and not any(
        "kind" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")
    ):
        pairs = [(head, kind) for head in available_heads() for kind in TRUNKS]
        metafunc.parametrize(("head", "kind"), [*pairs, ("sequential", "gpt_neox")])
    elif "head" in asked:
        metafunc.parametrize("head", available_heads())


def shifted(tokens):
    """Other tokens everywhere; none is padding."""
    return (tokens - 2 + 7) % 17 + 2


def num_complete(model, length, depth):
    """How many positions of a text have every token that a depth reads inside it."""
    return length if model.heads.kind == "parallel" else max(0, length - depth + 1)


# ---------------------------------------------------------------------------------------------------------------------
# Who sees what
# ---------------------------------------------------------------------------------------------------------------------


def check_causal(model, tokens):
    """Depth k at i sees token j exactly if j <= i, or j <= i + k - 1 where tokens are conditioned on."""
    length = tokens.shape[1]
    # Row 0 as it is, row j + 1 with another token at j; rows of one batch may differ in the last bit.
    rows = tokens[:1].repeat(length + 1, 1)
    rows[range(1, length + 1), range(length)] = shifted(tokens[0])
    too_early, unseen = [], []
    output = model(rows)
    for depth in range(1, NUM_DEPTHS + 1):
        latents, logits = output.hidden_states[depth - 1], output.depth_logits[depth - 1]
        for j in range(length):
            latent_change = (latents[j + 1] - latents[0]).abs().amax(dim=1)
            logit_change = (logits[j + 1] - logits[0]).abs().amax(dim=1)
            num_blind = j if depth == 1 or model.heads.kind == "parallel" else max(0, j - depth + 1)
            if num_blind and max(latent_change[:num_blind].max(), logit_change[:num_blind].max()) > 1e-12:
                too_early.append((depth, j))
            if not torch.all(latent_change[num_blind : num_complete(model, length, depth)] > 1e-9):
                unseen.append((depth, j))
    assert too_early == [], "seen too early"
    assert unseen == [], "never seen"


def test_every_depth_sees_what_it_may_and_no_more(head, kind, shaken_model, tokens):
    check_causal(shaken_model(kind, head), tokens)


def test_a_head_that_peeks_one_token_ahead_is_caught(head, shaken_model, tokens, monkeypatch):
    model = shaken_model("llama", head)
    if model.heads.kind == "parallel":
        begin = model.heads.begin
        monkeypatch.setattr(model.heads, "begin", lambda features: begin(features).roll(-1, dims=1))
    else:
        forward_depth = model.heads.forward_depth

        def peeking(depth, carry, token_embeds, *args, **kwargs):
            return forward_depth(depth, carry, token_embeds.roll(-1, dims=1), *args, **kwargs)

        monkeypatch.setattr(model.heads, "forward_depth", peeking)
    with pytest.raises(AssertionError, match="seen too early"):
        check_causal(model, tokens)


def test_a_head_that_ignores_the_tokens_is_caught(head, shaken_model, tokens, monkeypatch):
    model = shaken_model("llama", head)
    if model.heads.kind == "parallel":
        begin = model.heads.begin
        monkeypatch.setattr(model.heads, "begin", lambda features: torch.zeros_like(begin(features)))
    else:
        forward_depth = model.heads.forward_depth

        def ignoring(depth, carry, token_embeds, *args, **kwargs):
            return forward_depth(depth, carry, torch.zeros_like(token_embeds), *args, **kwargs)

        monkeypatch.setattr(model.heads, "forward_depth", ignoring)
    with pytest.raises(AssertionError, match="never seen"):
        check_causal(model, tokens)


@pytest.mark.parametrize("attending", ["eagle", "parallel", "sequential"])
def test_a_head_that_attends_to_later_positions_is_caught(attending, shaken_model, tokens, monkeypatch):
    monkeypatch.setattr(
        "worldmtp.model.model.causal_mask", lambda real, document_ids: torch.ones(len(real), 1, 7, 7).bool()
    )
    with pytest.raises(AssertionError, match="seen too early"):
        check_causal(shaken_model("llama", attending), tokens)


def texts():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, 19, (1, length), generator=generator) for length in (1, 8, 6)]


@pytest.fixture(scope="module")
def alone(shaken_model):
    """Latents of each text by itself."""
    return functools.cache(lambda kind, head: [shaken_model(kind, head).latents(row) for row in texts()])


def padded(rows, left):
    input_ids = torch.zeros((len(rows), 8), dtype=torch.long)
    for target, row in zip(input_ids, rows, strict=True):
        length = row.shape[1]
        target[slice(8 - length, 8) if left else slice(0, length)] = row[0]
    return input_ids, (input_ids != 0).long()


def assert_latents_equal(model, latents, row, start, expected, length):
    for depth, (ours, theirs) in enumerate(zip(latents, expected, strict=True), start=1):
        count = num_complete(model, length, depth)
        torch.testing.assert_close(ours[row, start : start + count], theirs[0, :count], **EXACT)


@pytest.mark.parametrize("left", [True, False])
def test_padding_makes_no_difference(head, kind, left, shaken_model, alone):
    model = shaken_model(kind, head)
    rows = texts()
    latents = model.latents(*padded(rows, left))
    for index, (row, expected) in enumerate(zip(rows, alone(kind, head), strict=True)):
        length = row.shape[1]
        assert_latents_equal(model, latents, index, 8 - length if left else 0, expected, length)


@pytest.mark.parametrize("with_mask", [False, True])
def test_packing_makes_no_difference(head, kind, with_mask, shaken_model, alone):
    model = shaken_model(kind, head)
    rows = texts()
    input_ids = torch.cat(rows, dim=1)
    position_ids = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    attention_mask = None
    if with_mask:
        # Two paddings at the end, whose positions go on from the last text's.
        input_ids = torch.nn.functional.pad(input_ids, (0, 2))
        position_ids = torch.cat([position_ids, torch.tensor([[6, 7]])], dim=1)
        attention_mask = (input_ids != 0).long()
    latents = model.latents(input_ids, attention_mask, position_ids)
    start = 0
    for row, expected in zip(rows, alone(kind, head), strict=True):
        assert_latents_equal(model, latents, 0, start, expected, row.shape[1])
        start += row.shape[1]


@pytest.mark.parametrize("changed", [0, 1])
def test_packed_documents_never_see_each_other(head, kind, changed, shaken_model):
    model = shaken_model(kind, head)
    _, first, second = texts()
    spans = (slice(0, 8), slice(8, 14))
    position_ids = torch.cat([torch.arange(8), torch.arange(6)])[None]
    input_ids = torch.cat([first, second], dim=1)
    other_ids = input_ids.clone()
    other_ids[:, spans[changed]] = shifted(input_ids)[:, spans[changed]]
    kept = spans[1 - changed]
    outputs = []
    for ids in (input_ids, other_ids):
        labels = ids.clone()
        labels[:, spans[changed]] = -100
        outputs.append(model(ids, position_ids=position_ids, labels=labels))
    before, after = outputs
    for depth, (ours, theirs) in enumerate(zip(before.hidden_states, after.hidden_states, strict=True), start=1):
        inside = slice(kept.start, kept.start + num_complete(model, kept.stop - kept.start, depth))
        assert torch.equal(ours[:, inside], theirs[:, inside])
        assert not torch.equal(ours[:, spans[changed]], theirs[:, spans[changed]])
    assert torch.equal(before.depth_losses, after.depth_losses)
    assert torch.all(before.depth_losses > 0)


# ---------------------------------------------------------------------------------------------------------------------
# Who learns from what
# ---------------------------------------------------------------------------------------------------------------------


ALL_DEPTHS = StepPlan(
    coef=1.0, weights=(1.0, 1.0, 1.0), depths=(2, 3, 4), position_fraction=1.0, position_stride=1, position_seed=0
)


def deep_gradients(model, tokens, chunked):
    """What the losses of depths 2 .. K alone move, by parameter; through their logits, or without ever having them."""
    if chunked:
        loss = multi_token_loss(model, model.trunk_features(tokens), tokens, tokens, MTPObjective(), ALL_DEPTHS).total
    else:
        loss = torch.zeros((), dtype=torch.float64)
        logits = model(tokens).depth_logits
        for offset, of_depth in zip(model.config.offsets[1:], logits[1:], strict=True):
            predicted = of_depth[:, :-offset].flatten(0, 1)
            loss = loss + torch.nn.functional.cross_entropy(predicted, tokens[:, offset:].flatten())
    loss.backward()
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }


def trunk_names(model):
    """Names of the trunk's embedding, its LM head, and what else of it the heads' inputs pass through."""
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    embedding = by_id[id(model.get_input_embeddings().weight)]
    lm_head = by_id[id(model.get_output_embeddings().weight)]
    body = {name for name in by_id.values() if name.startswith("trunk.")} - {embedding, lm_head}
    return embedding, lm_head, body


def in_trunk(names):
    return {name for name in names if name.startswith("trunk.")}


def uses_lm_head(model):
    return any(model.output_layer(depth) is model.get_output_embeddings() for depth in model.heads.depths)


@pytest.mark.parametrize("output_norm", ["shared", "own"])
@pytest.mark.parametrize(("tied", "chunked"), [(False, True), (True, False)])
def test_all_switches_on_leave_the_trunk_exactly_alone(head, tied, chunked, output_norm, make_model, tokens):
    switches = dict.fromkeys(SWITCHES, True)
    model = make_model("llama", tied=tied, head=head, shaken=True, output_norm=output_norm, **switches)
    moved = deep_gradients(model, tokens, chunked)
    assert in_trunk(moved) == set()
    assert moved == {f"heads.{name}" for name, _ in model.heads.named_parameters()}


@pytest.mark.parametrize(("kind", "unembedding"), [("qwen3", "own"), ("gpt2", "shared")])
def test_all_switches_on_leave_other_trunks_alone(head, kind, unembedding, make_model, tokens):
    if head == "linear":
        unembedding = "own"  # it has no other
    switches = dict.fromkeys(SWITCHES, True)
    model = make_model(kind, tied=True, head=head, shaken=True, unembedding=unembedding, **switches)
    moved = deep_gradients(model, tokens, chunked=True)
    assert in_trunk(moved) == set()
    assert moved == {f"heads.{name}" for name, _ in model.heads.named_parameters()}


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("qwen3", True), ("gpt2", False)])
def test_all_switches_off_reach_the_trunk(head, kind, tied, make_model, tokens):
    model = make_model(kind, tied=tied, head=head, shaken=True)
    moved = deep_gradients(model, tokens, chunked=True)
    embedding, lm_head, body = trunk_names(model)
    assert embedding in moved
    assert tied or (lm_head in moved) == uses_lm_head(model)
    # A family that branches off below the top leaves what is above its branch to depth 1.
    read = max(model.heads.feature_layers, default=1)
    above = {name for name in body if f".{read + 1}." in name}
    assert {name for name in body - above if name not in moved and "norm" not in name and "ln_f" not in name} == set()


@pytest.mark.parametrize("tied", [False, True])
def test_each_switch_cuts_its_own_path(head, tied, make_model, tokens):
    def moved_in_trunk(*switches):
        model = make_model("llama", tied=tied, head=head, shaken=True, **dict.fromkeys(switches, True))
        return model, in_trunk(deep_gradients(model, tokens, chunked=True))

    model, moved = moved_in_trunk("detach_lm_head")
    embedding, lm_head, body = trunk_names(model)
    assert embedding in moved  # through the trunk
    assert tied or lm_head not in moved
    assert moved & body

    model, moved = moved_in_trunk("detach_embedding")
    assert embedding in moved  # through the trunk
    assert tied or (lm_head in moved) == uses_lm_head(model)
    assert moved & body

    # What is left without the trunk: the LM head, and the embedding of the tokens that a chain is conditioned on.
    _, moved = moved_in_trunk("detach_trunk", "detach_embedding")
    assert moved == ({lm_head} if uses_lm_head(model) else set())
    _, moved = moved_in_trunk("detach_trunk", "detach_lm_head")
    assert moved == ({embedding} if model.heads.kind == "action_conditional" else set())


@pytest.mark.parametrize(("kind", "chunked"), [("llama", True), ("gpt2", False)])
def test_without_a_valid_target_the_loss_is_zero_and_no_gradient_is_nan(head, kind, chunked, make_model, tokens):
    model = make_model(kind, head=head)
    output = model(tokens, labels=torch.full_like(tokens, -100), compute_depth_logits=not chunked)
    assert output.loss == 0.0
    assert torch.equal(output.depth_losses, torch.zeros(NUM_DEPTHS, dtype=torch.float64))
    output.loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()] == []


def test_a_row_shorter_than_the_depths_trains_those_it_can(head, make_model, tokens):
    model = make_model("llama", head=head)
    short = tokens[:, :2]
    output = model(short, labels=short)
    assert output.depth_losses[0] > 0
    assert torch.equal(output.depth_losses[1:], torch.zeros(NUM_DEPTHS - 1, dtype=torch.float64))
    output.loss.backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# What it reduces to
# ---------------------------------------------------------------------------------------------------------------------


def next_token_loss(trunk, tokens):
    """Hugging Face's loss, which it computes in single precision, and the same in double from its logits."""
    output = trunk(tokens, labels=tokens)
    logprobs = output.logits.log_softmax(dim=-1)
    taken = torch.stack([logprobs[row, t, tokens[row, t + 1]] for row in range(2) for t in range(6)])
    torch.testing.assert_close(output.loss.double(), -taken.mean(), rtol=0.0, atol=1e-6)
    return -taken.mean()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_one_depth_is_plain_next_token_training(head, kind, make_model, make_trunk, tokens):
    model, trunk = make_model(kind, head=head, depth=1), make_trunk(kind)
    assert list(model.heads.parameters()) == []
    assert len(model.heads.depths) == 0
    expected, output = next_token_loss(trunk, tokens), model(tokens, labels=tokens)
    torch.testing.assert_close(output.loss, expected, **EXACT)
    assert torch.equal(output.logits, trunk(tokens).logits)
    expected.backward()
    output.loss.backward()
    for ours, theirs in zip(model.trunk.parameters(), trunk.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **EXACT)


def test_the_first_depth_is_the_trunks_own_loss(head, kind, shaken_model, make_trunk, tokens):
    expected = next_token_loss(make_trunk(kind), tokens)
    torch.testing.assert_close(shaken_model(kind, head)(tokens, labels=tokens).depth_losses[0], expected, **EXACT)


@pytest.mark.parametrize("compute_depth_logits", [False, True])
def test_the_trunk_runs_once(head, make_model, tokens, compute_depth_logits):
    model = make_model("llama", head=head)
    calls = []
    for module in (model.base_model, *model.base_model.layers):
        module.register_forward_hook(lambda module, args, output: calls.append(id(module)))
    model(tokens, labels=tokens, compute_depth_logits=compute_depth_logits).loss.backward()
    assert len(calls) == len(set(calls)) == 3


def test_the_kind_is_that_of_the_class(head, shaken_model):
    heads = shaken_model("llama", head).heads
    assert type(heads) is head_class(head)
    assert isinstance(heads, ActionConditionalHead) == (heads.kind == "action_conditional")
    assert isinstance(heads, ParallelHead) == (heads.kind == "parallel")
    assert list(heads.depths) == [2, 3, 4]


@pytest.mark.parametrize("depth", [1, 5])
def test_depths_without_a_head_are_refused(head, depth, shaken_model, tokens):
    model = shaken_model("llama", head)
    with pytest.raises(ValueError, match=rf"depth={depth} is not one of these heads' depths 2 \.\. 4; depth 1 is"):
        model.heads.unembedding(depth)
    features = model.trunk_features(tokens)
    carry, mask = model.heads.begin(features), torch.ones(2, 1, 7, 7).tril().bool()
    positions = torch.arange(7).expand(2, 7)
    embeds = (model.embed(tokens),) if model.heads.kind == "action_conditional" else ()
    with pytest.raises(ValueError, match=rf"depth={depth} is not one of these heads' depths 2 \.\. 4; depth 1 is"):
        model.heads.forward_depth(depth, carry, *embeds, mask, positions)
