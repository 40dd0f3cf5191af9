"""``worldmtp generate --search``: plans, trees as text and as a page, and what is refused."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from omegaconf import OmegaConf

import worldmtp.cli.searched
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig


@pytest.fixture
def knowing(model_of):
    """A model whose world heads say something."""
    model, generator = model_of(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.world_heads.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@pytest.fixture
def searched(knowing, save, command_line):
    """The command over that model, which no run has left."""
    path = save(knowing)
    return lambda *words: command_line("--model", path, *words)


@pytest.fixture
def of_a_run(knowing, save, command_line, compose_tiny):
    """The command over that model as a run with ``agent.ppo.gamma`` has left it."""

    def called(gamma, *words):
        run = save(knowing, "run/model").parent
        OmegaConf.save(compose_tiny(f"agent.ppo.gamma={gamma}"), run / "config.yaml")
        (run / "DONE").touch()
        return command_line("--model", run, *words)

    return called


class Page(HTMLParser):
    """Tags that must be closed, and whatever a page would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.rows = [], [], 0

    def handle_starttag(self, tag, attributes):
        self.rows += dict(attributes).get("class") == "row"
        self.fetched += [value for name, value in attributes if name in ("src", "href")]
        if tag in ("details", "summary", "div", "span"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("details", "summary", "div", "span"):
            assert self.open.pop() == tag


@pytest.mark.parametrize("dynamics", ["mtp", "oracle"])
def test_every_plan_is_shown_and_its_token_written(searched, dynamics, tmp_path):
    words = ("ab=", "--search", "puct", "--simulations", "12", "--max-new-tokens", "3", "--dynamics", dynamics)
    code, plain, _ = searched(*words)
    assert code == 0
    code, out, err = searched(*words, "--explain", "--tree-html", tmp_path / "tree.html")
    assert code == 0, err
    assert out.endswith(plain)
    assert plain.startswith("ab=")
    plans = out.split("plan ")[1:]
    assert 1 <= len(plans) <= 3
    for plan in plans:
        roots = re.findall(r"^  [→ ] +(\d+) +[\d.]+% +-?[\d.]+  \S", plan, re.MULTILINE)
        assert sum(map(int, roots)) == 12  # those of the first level are indented by two spaces and no more
        assert len(re.findall(r"^  → +\d+ +[\d.]+% +-?[\d.]+  \S", plan, re.MULTILINE)) == 1
    assert f"by {len(plans)} plans of 12 simulations" in err
    page, text = Page(), (tmp_path / "tree.html").read_text()
    page.feed(text)
    assert page.open == []
    assert page.fetched == []
    assert "http" not in text
    assert page.rows >= len(plans)
    assert text.count("<h2>Plan ") == len(plans)


def test_plans_of_several_tokens_are_fewer(searched):
    words = ("ab=", "cd=", "--search", "gumbel", "--simulations", "8", "--max-new-tokens", "4", "--json")
    code, one, _ = searched(*words)
    assert code == 0
    code, two, _ = searched(*words, "--commit", "2")
    assert code == 0
    for line, committed in zip(one.splitlines(), two.splitlines(), strict=True):
        first, second = json.loads(line), json.loads(committed)
        assert first["rounds"] == len(first["tokens"])
        assert second["rounds"] < len(second["tokens"]) or len(second["tokens"]) == 1


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_values_are_measured_by_returns_unless_by_the_node(searched, rule):
    words = ("ab=", "--search", rule, "--simulations", "16", "--max-new-tokens", "3", "--explain")
    plain, returns, node = (searched(*words, *scale)[1] for scale in ((), ("--scale", "returns"), ("--scale", "node")))
    assert plain == returns
    assert plain != node


def test_a_search_discounts_as_the_run_did_unless_it_is_told(searched, of_a_run):
    words = ("ab=", "--search", "puct", "--simulations", "16", "--max-new-tokens", "2", "--explain")
    _, by_half, err = searched(*words, "--gamma", "0.5")
    assert "searches discount by 0.5, as --gamma says, and measure values by returns" in err
    _, _, err = searched(*words, "--scale", "node")
    assert "searches discount by 1, as no run says, and measure values by node" in err
    by_one = searched(*words)[1]
    assert by_half != by_one
    code, out, err = of_a_run(0.5, *words)
    assert code == 0, err
    assert out == by_half
    assert "searches discount by 0.5, as the run's agent.ppo.gamma, and measure values by returns" in err
    assert of_a_run(0.5, *words, "--gamma", "1")[1] == by_one


def test_values_of_a_run_without_a_future_are_not_searched_unless_it_is_told(of_a_run):
    words = ("ab=", "--search", "puct", "--simulations", "4", "--max-new-tokens", "1")
    code, out, err = of_a_run(0.0, *words)
    assert (code != 0, out) == (True, "")
    assert "trained with agent.ppo.gamma=0.0, so that its values say nothing" in err
    code, _, err = of_a_run(0.0, *words, "--gamma", "0.5")
    assert code == 0, err
    code, _, err = of_a_run(0.0, "ab=", "--max-new-tokens", "1")
    assert code == 0, err  # nothing is searched
    assert "discount" not in err


def test_a_plan_looks_as_far_and_knows_as_many_tokens_as_was_asked_for(searched):
    words = (
        "ab=",
        "--search",
        "puct",
        "--simulations",
        "20",
        "--max-new-tokens",
        "2",
        "--explain",
        "--dynamics",
        "oracle",
    )
    for depth, width in ((1, 3), (2, 2)):
        code, out, err = searched(*words, "--depth", str(depth), "--width", str(width))
        assert code == 0, err
        for plan in out.split("plan ")[1:]:
            # Two more spaces a level; of the first line's tokens no more than the width have been looked at.
            levels = [
                len(found) // 2 for found in re.findall(r"^  [→ ] +\d+ +[\d.]+% +-?[\d.]+  ( *)", plan, re.MULTILINE)
            ]
            assert max(levels) < depth
            assert 1 <= levels.count(0) <= width
    assert width == levels.count(0)


def test_prompts_are_planned_as_if_alone(searched):
    words = ("--search", "gumbel", "--simulations", "6", "--max-new-tokens", "3", "--dynamics", "mtp")
    _, both, _ = searched("ab=", "abcd=", *words)
    alone = [searched(prompt, *words)[1] for prompt in ("ab=", "abcd=")]
    assert both == "".join(alone)


def test_so_many_prompts_are_searched_at_a_time_as_was_asked_for(searched, monkeypatch):
    sizes = []
    real = worldmtp.cli.searched.search_texts
    monkeypatch.setattr(
        worldmtp.cli.searched,
        "search_texts",
        lambda model, texts, *rest: sizes.append(len(texts)) or real(model, texts, *rest),
    )
    words = ("--search", "gumbel", "--simulations", "4", "--max-new-tokens", "3")
    _, together, _ = searched("ab=", "cd=", "ab=", *words)
    code, parted, err = searched("ab=", "cd=", "ab=", *words, "--batch-size", "2")
    assert code == 0
    assert parted == together
    assert sizes == [3, 2, 1]
    assert "batch size 2" in err
    # Draws go on from batch to batch: the same prompt is not answered by the same ones again.
    drawn = searched(*["ab="] * 6, *words, "--temperature", "3", "--batch-size", "1")[1].splitlines()
    assert len(set(drawn)) > 1


def test_draws_are_those_of_the_seed(searched):
    words = ("ab=", "--search", "gumbel", "--simulations", "4", "--max-new-tokens", "3", "--temperature", "3")
    texts = [searched(*words, "--seed", seed)[1] for seed in (0, 0, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--simulations", "4"], "--simulations 4 belongs to a search; add --search gumbel or --search puct"),
        (["--search", "gumble"], "--search='gumble' is unknown; did you mean 'gumbel'"),
        (["--depth", "2"], "--depth 2 belongs to a search"),
        (["--width", "2"], "--width 2 belongs to a search"),
        (["--scale", "node"], "--scale node belongs to a search"),
        (["--gamma", "0.5"], "--gamma 0.5 belongs to a search"),
        (["--search", "puct", "--gamma", "0"], r"gamma=0.0 must be in \(0, 1\]"),
        (["--search", "puct", "--gamma", "1.5"], r"gamma=1.5 must be in \(0, 1\]"),
        (["--search", "puct", "--scale", "nodes"], "--scale='nodes' is unknown; did you mean 'node'"),
        (["--search", "puct", "--depth", "0"], "--depth 0 must be at least 1"),
        (["--search", "puct", "--depth", "99"], "max_depth=99 is beyond the world model"),
        (["--search", "puct", "--simulations", "0"], "--simulations 0 must be at least 1"),
        (["--search", "puct", "--dynamics", "orakel"], "--dynamics='orakel' is unknown; did you mean 'oracle'"),
        (["--search", "puct", "--beam", "2", "--stop", "a"], "--search plans .* no use for --beam, --stop; leave them"),
    ],
)
def test_refused(searched, words, message):
    code, out, err = searched("ab=", *words)
    assert code != 0
    assert out == ""
    assert re.search(message, err)


def test_parallel_heads_and_heads_that_know_nothing_are_refused(tiny_trunk, model_of, save, command_line):
    code, _, err = command_line("--model", save(model_of()), "ab=", "--search", "puct")
    assert code != 0
    assert "say the same of every text" in err
    trunk = tiny_trunk("llama", vocab_size=7, dtype=torch.float64)
    blind = MTPModel.from_trunk(trunk, MTPConfig(head="medusa", depth=3), torch.Generator().manual_seed(0))
    with torch.no_grad():
        blind.world_heads.value[-1].weight.add_(1.0)
    code, _, err = command_line("--model", save(blind, "blind"), "ab=", "--search", "puct")
    assert code != 0
    assert "use action-conditional heads, such as head='sequential'" in err
