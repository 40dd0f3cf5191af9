"""Laws of states, for every back-end in float64: rows are selected, stored and merged, and may differ in depth.

What a batch of rows says is held against each row alone: encoded by itself, and stepped by itself.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmtp.dynamics import ExactWorldModel, ShuffledWorldModel, TokenMDP, WorldModel, make_world_model
from worldmtp.dynamics.placebo import other_actions

EXACT = {"rtol": 0.0, "atol": 1e-12}
BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "chained": ("mtp", {"head": "sequential"}),
    "chained, before the norms": (
        "mtp",
        {"head": "sequential", "hidden_stage": "pre_norm", "recycle_stage": "pre_norm", "unembedding": "own"},
    ),
    "branch": ("mtp", {"head": "eagle"}),
    "branch, a layer for each depth": ("mtp", {"head": "eagle", "share_depths": False, "unembedding": "own"}),
    "recurrent": ("mtp", {"head": "latent"}),
    "recurrent, a step for each depth": ("mtp", {"head": "latent", "share_depths": False, "unembedding": "own"}),
    "recurrent, a carry that widens": ("mtp", {"head": "hydra", "unembedding": "own"}),
    "parallel": ("mtp_parallel", {"head": "medusa", "unembedding": "own"}),
    "oracle": ("oracle", {"head": "sequential"}),
    "identity": ("identity", {"head": "sequential"}),
    "exact": ("exact", {}),
}


@dataclass
class Case:
    """A world model with two texts, their roots, and the tokens that each root is stepped by."""

    world: WorldModel
    texts: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    roots: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    tokens: Tensor
    """Of all roots, the first text's before the second's."""
    known: dict[tuple[int, int], Any] = field(default_factory=dict)

    def encoded(self, which: int) -> Any:
        return self.world.encode(*self.texts[which], *self.roots[which])

    def stepped(self, state: Any, rows: Tensor, steps: range) -> Any:
        """States of some roots after tokens number ``steps`` of these."""
        for step in steps:
            state = self.world.step(state, self.tokens[rows, step])
        return state

    def alone(self, root: int, num_steps: int) -> Any:
        """One root, encoded and stepped by itself."""
        if (root, num_steps) not in self.known:
            rows = torch.tensor([root])
            self.known[root, num_steps] = (
                self.stepped(self.alone(root, num_steps - 1), rows, range(num_steps - 1, num_steps))
                if num_steps
                else self.encoded_alone(root)
            )
        return self.known[root, num_steps]

    def encoded_alone(self, root: int) -> Any:
        num_first = len(self.roots[0][0])
        which, place = (0, root) if root < num_first else (1, root - num_first)
        (input_ids, mask), (rows, positions) = self.texts[which], self.roots[which]
        row, position = int(rows[place]), positions[place : place + 1]
        return self.world.encode(input_ids[row : row + 1], mask[row : row + 1], torch.tensor([0]), position)

    def check(self, state: Any, roots: list[int], taken: list[int], further: int = 2) -> None:
        """Row n is root ``roots[n]`` after ``taken[n]`` tokens, now and ``further`` tokens later."""
        rows, counts = torch.tensor(roots), torch.tensor(taken)
        for more in range(further + 1):
            assert len(state) == len(roots)
            expected = [self.alone(root, count + more) for root, count in zip(roots, taken, strict=True)]
            read, single = self.world.predict(state), [self.world.predict(one) for one in expected]
            torch.testing.assert_close(state.latent, torch.cat([one.latent for one in expected]), **EXACT)
            for name in ("logits", "reward", "continuation", "value"):
                wanted = torch.cat([getattr(one, name) for one in single])
                torch.testing.assert_close(getattr(read, name), wanted, **EXACT)
            if more < further:
                state = self.world.step(state, self.tokens[rows, counts + more])


@pytest.fixture(params=BACKENDS)
def case(request, make_model, make_text) -> Case:
    """A text of nine tokens with padding on the right, and one of seven with padding on the left."""
    backend, heads = BACKENDS[request.param]
    generator = torch.Generator().manual_seed(4)
    input_ids, mask, _ = make_text("right")
    other_ids, other_mask, _ = make_text("left")
    texts = ((input_ids, mask), (other_ids[:2, 2:], other_mask[:2, 2:]))
    roots = (
        (torch.tensor([0, 1, 2, 0]), torch.tensor([4, 0, 3, 8])),
        (torch.tensor([1, 0, 0]), torch.tensor([6, 0, 3])),
    )
    vocab = 11
    if backend == "exact":
        vocab = 2
        rewards, logits = torch.randn((2, 2**9 - 1, 2), generator=generator, dtype=torch.float64)
        world = ExactWorldModel(TokenMDP(2, 9, rewards), logits)
        texts = tuple((ids % 2, real) for ids, real in texts)
        roots = tuple((rows, positions.clamp_max(3)) for rows, positions in roots)
    else:
        world = make_world_model(backend, make_model("llama", **heads), generator)
    return Case(world, texts, roots, torch.randint(vocab, (7, 4), generator=generator))


def mixed(case: Case) -> Any:
    """Roots 0 .. 3 as they are, then roots 4 .. 6 after two tokens, of another text."""
    far = case.stepped(case.encoded(1), torch.arange(4, 7), range(2))
    near = case.encoded(0)
    return type(near).cat([near, far])


@torch.no_grad()
def test_rows_of_one_batch_differ_in_text_and_depth(case: Case) -> None:
    order = [4, 0, 5, 1, 6, 2, 3]
    batch = mixed(case).select(torch.tensor(order))
    case.check(batch, order, [0 if root < 4 else 2 for root in order])


@torch.no_grad()
def test_what_was_merged_is_selected_back(case: Case) -> None:
    batch = mixed(case)
    case.check(batch.select(torch.arange(4)), [0, 1, 2, 3], [0] * 4, further=4)
    case.check(batch.select(torch.arange(4, 7)), [4, 5, 6], [2] * 3)


@torch.no_grad()
def test_rows_come_in_any_order_and_with_repeats(case: Case) -> None:
    """Branching in a search: some rows many times, stepped by tokens of their own."""
    order = [6, 1, 1, 4, 0, 6, 5]
    batch = mixed(case).select(torch.tensor(order))
    case.check(batch, order, [0 if root < 4 else 2 for root in order])
    # Two branches of one root, by different tokens, are two texts.
    tokens = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    branched, others = case.world.step(batch, tokens), case.world.step(batch, 1 - tokens)
    for place, root in enumerate(order):
        for states, token in ((branched, tokens[place]), (others, 1 - tokens[place])):
            alone = case.world.step(case.alone(root, 0 if root < 4 else 2), token[None])
            torch.testing.assert_close(states.latent[place], alone.latent[0], **EXACT)


@torch.no_grad()
def test_stepping_commutes_with_selecting(case: Case) -> None:
    batch, rows = mixed(case), torch.tensor([5, 0, 3, 3, 6])
    tokens = case.tokens[:, 3]
    before, after = case.world.step(batch.select(rows), tokens[rows]), case.world.step(batch, tokens).select(rows)
    torch.testing.assert_close(before.latent, after.latent, **EXACT)
    for name in ("logits", "reward", "continuation", "value"):
        one, other = (getattr(case.world.predict(state), name) for state in (before, after))
        torch.testing.assert_close(one, other, **EXACT)


@torch.no_grad()
def test_rows_are_stored_and_the_others_stay(case: Case) -> None:
    """Deeper rows into shallower ones, and back; what they were put into is left as it was."""
    batch = mixed(case)
    children = case.stepped(batch.select(torch.tensor([5])), torch.tensor([5]), range(2, 4))
    stored = batch.put(torch.tensor([1]), children)
    case.check(stored.select(torch.tensor([1])), [5], [4], further=0)
    case.check(stored.select(torch.tensor([0, 2, 3, 4, 5, 6])), [0, 2, 3, 4, 5, 6], [0, 0, 0, 2, 2, 2])
    case.check(batch, [0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 2, 2, 2], further=0)
    restored = stored.put(torch.tensor([6, 1]), batch.select(torch.tensor([0, 1])))
    case.check(restored, [0, 1, 2, 3, 4, 5, 0], [0, 0, 0, 0, 2, 2, 0])


@torch.no_grad()
def test_a_tree_is_grown_by_storing_and_selecting(case: Case) -> None:
    """As a search does: choose a node of each root, step it, store the child in the next place, or in room kept."""
    num_roots, num_nodes = 4, 5
    roomy = case.encoded(0).reserve(num_roots * num_nodes)
    tree = case.encoded(0).select(torch.arange(num_roots).repeat_interleave(num_nodes))
    parents = torch.tensor([[0, 0, 1, 3], [0, 1, 2, 3], [0, 0, 0, 0], [0, 1, 1, 2]])  # of nodes 1 .. 4 of each root
    taken = torch.zeros((num_roots, num_nodes), dtype=torch.long)
    base = torch.arange(num_roots) * num_nodes
    for node in range(1, num_nodes):
        parent = parents[:, node - 1]
        taken[:, node] = taken[torch.arange(num_roots), parent] + 1
        tokens = case.tokens[torch.arange(num_roots), taken[:, node] - 1]
        tree = tree.put(base + node, case.world.step(tree.select(base + parent), tokens))
        children = case.world.step(roomy.select(parent * num_roots + torch.arange(num_roots)), tokens)
        roomy = roomy.store(node * num_roots, children)
    roots = torch.arange(num_roots).repeat_interleave(num_nodes)
    case.check(tree, roots.tolist(), taken.flatten().tolist(), further=0)
    case.check(roomy, list(range(num_roots)) * num_nodes, taken.T.flatten().tolist(), further=0)


@torch.no_grad()
def test_a_batch_of_no_rows_is_stepped_as_any_other(case: Case) -> None:
    """As when the last branch of a search has ended: what is stored and merged afterwards is what was there before."""
    batch, none = mixed(case), torch.zeros(0, dtype=torch.long)
    empty = batch.select(none)
    for _ in range(2):
        empty = case.world.step(empty, none)
        assert len(empty) == 0
        assert case.world.predict(empty).value.shape == (0,)
    order, taken = [0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 2, 2, 2]
    case.check(batch.put(none, empty), order, taken, further=1)
    case.check(type(batch).cat([empty, batch]), order, taken, further=1)


@torch.no_grad()
def test_the_deepest_row_ends_the_batch_and_no_other(make_model, make_text) -> None:
    model = make_model("llama", depth=3)
    world = make_world_model("mtp", model, torch.Generator())
    root, token = world.encode(*make_text("right")[:2]), torch.tensor([1, 2, 3])
    leaf = world.step(world.step(root, token), token)
    batch = type(root).cat([root, leaf])
    assert batch.depths.each.tolist() == [1, 1, 1, 3, 3, 3]
    assert batch.depths.present == (1, 3)
    with pytest.raises(ValueError, match=r"step 3 exceeds the 2 steps these heads can take; train .* depth=4"):
        world.step(batch, torch.cat([token, token]))
    shallow = batch.select(torch.tensor([2, 0]))
    assert shallow.depths.present == (1,)
    torch.testing.assert_close(world.step(shallow, token[[2, 0]]).latent, world.step(root, token).latent[[2, 0]])


@torch.no_grad()
def test_the_placebo_mixes_up_rows_of_any_depth(make_model, make_text) -> None:
    """Each is stepped by a token of another row, as the dynamics inside step rows of mixed depth."""
    true = make_world_model("mtp", make_model("llama"), torch.Generator())
    placebo = ShuffledWorldModel(true, torch.Generator().manual_seed(4), vocab_size=11)
    root = true.encode(*make_text("right")[:2])
    batch = type(root).cat([root, true.step(root, torch.tensor([1, 2, 3]))])
    tokens = torch.tensor([5, 6, 7, 8, 9, 10])
    given = other_actions(tokens, 11, torch.Generator().manual_seed(4))
    assert torch.equal(placebo.step(batch, tokens).latent, true.step(batch, given).latent)


@pytest.mark.parametrize("backend", ["mtp", "mtp_parallel", "oracle", "identity", "shuffled"])
def test_no_back_end_knows_what_an_environment_replies(backend: str, make_model) -> None:
    model = make_model("llama", "medusa" if backend == "mtp_parallel" else "sequential")
    world = make_world_model(backend, model, torch.Generator())
    assert isinstance(world, WorldModel)
    assert world.models_replies is False
