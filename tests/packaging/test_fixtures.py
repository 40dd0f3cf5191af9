"""The shared fixtures do what they promise: other rooms' tests lean on them."""

import gc
import random
import re
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float, Int, Shaped
from jaxtyping._storage import pop_shape_memo, push_shape_memo
from torch import Tensor

from worldmtp.choices import check_choice
from worldmtp.objective.policy_losses import masked_mean

TrunkFactory = Callable[..., Any]
Guard = Callable[[], AbstractContextManager[None]]

KINDS = ("llama", "qwen3", "gpt2", "gpt_neox")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_trunk_has_the_asked_size_and_tying(tiny_trunk: TrunkFactory, kind: str, tied: bool) -> None:
    trunk = tiny_trunk(kind, vocab_size=11, hidden_size=16, num_layers=1, tied=tied, dtype=torch.float64)
    assert trunk.config.model_type == kind
    assert trunk.get_input_embeddings().weight.shape == (11, 16)
    assert (trunk.get_input_embeddings().weight is trunk.get_output_embeddings().weight) == tied
    logits = trunk(input_ids=torch.tensor([[3, 4, 5]])).logits
    assert logits.shape == (1, 3, 11)
    assert logits.dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_trunk_weights_come_from_the_seed_alone(tiny_trunk: TrunkFactory, kind: str) -> None:
    first, again, other = (tiny_trunk(kind, seed=seed).get_input_embeddings().weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_trunk_has_no_dropout_in_train_mode(tiny_trunk: TrunkFactory, kind: str) -> None:
    trunk = tiny_trunk(kind).train()
    input_ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(trunk(input_ids=input_ids).logits, trunk(input_ids=input_ids).logits)


def test_making_a_trunk_draws_from_no_global_generator(tiny_trunk: TrunkFactory, global_rng_untouched: Guard) -> None:
    with global_rng_untouched():
        tiny_trunk("llama")


@pytest.mark.parametrize(
    ("name", "draw"), [("random", random.random), ("numpy.random", np.random.rand), ("torch", lambda: torch.rand(1))]
)
def test_a_draw_from_a_global_generator_is_noticed(
    name: str, draw: Callable[[], object], global_rng_untouched: Guard
) -> None:
    with pytest.raises(AssertionError, match=f"drawn from global generators: {name};"), global_rng_untouched():
        draw()


def test_connections_beyond_loopback_are_refused() -> None:
    with socket.socket() as outside, pytest.raises(RuntimeError, match="tests use no network"):
        outside.connect(("192.0.2.1", 80))  # TEST-NET-1, RFC 5737: nobody answers there


def test_loopback_is_allowed() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())


def test_one_thread_for_each_worker() -> None:
    assert torch.get_num_threads() == 1


def test_tests_of_the_sources_are_marked_and_no_others(request: pytest.FixtureRequest, project_root: Path) -> None:
    """CI runs those that are marked beside the sources, and all others against the wheel."""
    assert request.node.get_closest_marker("tree") is not None
    others = [item for item in request.session.items if "project_root" not in getattr(item, "fixturenames", ())]
    assert [item.nodeid for item in others if item.get_closest_marker("tree")] == []


def test_one_of_each_is_the_first_of_its_parameters(project_root: Path) -> None:
    options = ["--collect-only", "-q", "-p", "no:cacheprovider", "--one-of-each", "tests/test_lazy.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=project_root, capture_output=True, text=True, check=False
    )
    found = [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    assert found == [
        "test_a_name_is_what_its_module_defines",
        "test_what_leads_nowhere_is_told_with_its_reason[no_such_module:x-No module named 'no_such_module']",
    ]


def test_ci_runs_the_default_suite_once_and_the_readmes_command(project_root: Path) -> None:
    stages = [line for line in (project_root / ".ci" / "run").read_text().splitlines() if line.startswith("stage ")]
    assert [line for line in stages if "make wheel-test" in line] != []
    assert [line for line in stages if "browser_tests" in line] != []
    (tests,) = (line for line in stages if re.search(r"make test\b(?!-)", line))
    assert "ARGS='-m \"tree and not slow and not gpu and not browser\"'" in tests
    assert "\nmake test " in (project_root / "README.md").read_text(encoding="utf-8")


def test_axes_agree_within_a_call_and_are_forgotten_after_it() -> None:
    """``tests/conftest.py`` puts checks of its own on the product's functions; here they are put on two others."""

    @jaxtyping.jaxtyped(typechecker=beartype)
    def outer(left: Float[Tensor, " row"], right: Float[Tensor, " row"], repeats: int) -> Float[Tensor, " row"]:
        return repeated(left + right, repeats)

    @jaxtyping.jaxtyped(typechecker=beartype)
    def repeated(row: Float[Tensor, " row"], repeats: int = 1) -> Float[Tensor, " _"]:
        return row.repeat(repeats)

    assert outer(torch.ones(2), torch.ones(2), 1).tolist() == [2.0, 2.0]
    assert outer(torch.ones(3), torch.ones(3), 1).tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(BeartypeCallHintParamViolation, match="right") as caught:
        outer(torch.ones(3), torch.ones(2), 1)
    assert caught.value.__notes__[-1].endswith("row=3")
    with pytest.raises(BeartypeCallHintReturnViolation):
        outer(torch.ones(3), torch.ones(3), 2)
    with pytest.raises(BeartypeCallHintParamViolation, match="row"):
        repeated(torch.ones(3, dtype=torch.long))
    with pytest.raises(BeartypeCallHintParamViolation, match="repeats"):
        repeated(torch.ones(3), repeats=1.0)


def test_dataclasses_and_hints_in_quotes_are_checked() -> None:
    """Axes agree between the fields of one object; a name that is not known yet is anything, and others count."""

    @jaxtyping.jaxtyped(typechecker=beartype)
    @dataclass(frozen=True)
    class Pair:
        left: Float[Tensor, " row"]
        right: Float[Tensor, " row"]

    @jaxtyping.jaxtyped(typechecker=beartype)
    def first(pair: "NotKnownHere", repeats: "int") -> Float[Tensor, " row"]:  # noqa: F821
        return pair.left.repeat(repeats)

    assert first(Pair(torch.ones(2), torch.ones(2)), 2).tolist() == [1.0] * 4
    with pytest.raises(BeartypeCallHintParamViolation, match="right"):
        Pair(torch.ones(2), torch.ones(3))
    with pytest.raises(BeartypeCallHintParamViolation, match="left"):
        replace(Pair(torch.ones(2), torch.ones(2)), left=torch.ones(2, 1))
    with pytest.raises(BeartypeCallHintParamViolation, match="repeats"):
        first(Pair(torch.ones(2), torch.ones(2)), 2.0)


def test_a_function_within_a_function_is_checked_wherever_it_is_defined_and_keeps_nothing() -> None:
    """Its check is made once; each definition has its own values, and what it holds goes when it goes."""

    class Held:
        pass

    def define(number: int, held: Held) -> Any:
        @jaxtyping.jaxtyped(typechecker=beartype)
        def shifted(row: Float[Tensor, " row"], by: int = number, *, times: int = 1) -> Float[Tensor, " row"]:
            assert held is not None
            return row + by * times + number

        return shifted

    first, second = define(1, Held()), define(2, held := Held())
    assert (first(torch.zeros(1)).item(), second(torch.zeros(1)).item()) == (2.0, 4.0)
    assert second(torch.zeros(1), 5, times=2).item() == 12.0
    for shifted in (first, second):
        with pytest.raises(BeartypeCallHintParamViolation, match="row"):
            shifted(torch.zeros(1, 1))
        with pytest.raises(BeartypeCallHintParamViolation, match="times"):
            shifted(torch.zeros(1), times=0.5)
    gone = weakref.ref(held)
    del shifted, second, held
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("kind", [Float, Int, Shaped])
@pytest.mark.parametrize("array_type", [Tensor, np.ndarray])
def test_axes_are_those_of_jaxtyping(kind: Any, array_type: type) -> None:
    """``tests/conftest.py`` says yes to plain axes by itself: as jaxtyping does, whatever is asked in what order."""
    names = ["row column", "row row", "row 3", "_ column", "*more column", "...", "", "3", "#row column", "row row+1"]
    names += ["row *more", "*more", "row *more 3", "*_ 3", "*#more column", "... row"]
    annotations = [kind[array_type, name] for name in names]
    shapes: list[tuple[int, ...]] = [(), (3,), (2, 3), (3, 3), (1, 3), (2, 3, 4)]
    arrays = [torch.zeros(shape, dtype=dtype) for shape in shapes for dtype in (torch.float32, torch.int64)]
    asked = [*arrays, *(np.asarray(array) for array in arrays), None]
    source = random.Random(0)

    def answers(ask: Callable[[Any, Any], bool], questions: list[tuple[Any, Any]]) -> list[Any]:
        axes = push_shape_memo({})
        try:
            return [*(ask(*question) for question in questions), axes[:2]]
        finally:
            pop_shape_memo()

    num_yes = 0
    for _ in range(300):
        # A sum of names is only asked for once these are known, as jaxtyping wants it.
        questions = [
            (annotations[0], asked[4]),
            *((source.choice(annotations), source.choice(asked)) for _ in range(4)),
        ]
        expected = answers(lambda annotation, array: annotation.__instancecheck_str__(array) == "", questions)
        assert answers(lambda annotation, array: isinstance(array, annotation), questions) == expected
        num_yes += sum(expected[:-1])
    assert num_yes > 50


def test_the_products_functions_are_checked() -> None:
    with pytest.raises(BeartypeCallHintParamViolation, match="mask"):
        masked_mean(torch.ones(2, 3), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(BeartypeCallHintParamViolation, match="what"):
        check_choice(1, "a", ("a",))
