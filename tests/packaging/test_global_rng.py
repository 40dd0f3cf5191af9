"""No global random generator is seeded, drawn from or restored by the product: generators and seeds come in.

Found in the syntax tree: calls of python's and numpy's module-level functions, of torch's seeding functions, and of
torch's sampling functions without ``generator=``. A call inside ``with torch.random.fork_rng(...)`` is allowed: some
third-party initialisers know only the global generator, and the fork hands it back as it was.
"""

import ast

import pytest

PRODUCT = ("worldmtp/", "envs/", "agents/", "configs/")

BORROWED = "code of others that knows no other (reasoning-gym, GEM, TextArena): lent for one call, then put back"
ALLOWED = {
    f"envs/global_rng.py: {name}": BORROWED
    for name in (
        "numpy.random.get_state",
        "numpy.random.seed",
        "numpy.random.set_state",
        "random.getstate",
        "random.seed",
        "random.setstate",
    )
}
ALLOWED["worldmtp/post_training/generation.py: torch.randint"] = (
    "TRL's trainers sample by the global generator, which transformers seeds from args.seed and saves in checkpoints"
)
"""``path: call`` that must use a global generator, and why it must."""

SEEDING = {
    "torch.manual_seed",
    "torch.seed",
    "torch.set_rng_state",
    "torch.random.manual_seed",
    "torch.random.set_rng_state",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.cuda.set_rng_state",
    "torch.cuda.set_rng_state_all",
    "transformers.set_seed",
    "transformers.trainer_utils.set_seed",
    "accelerate.utils.set_seed",
}
SAMPLING = {f"torch.{name}" for name in ("bernoulli", "multinomial", "normal", "rand", "randint", "randn", "randperm")}


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Local name to the full dotted name it was imported as."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names |= {alias.asname: alias.name} if alias.asname else {top: top}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    """The full name of what an expression such as ``np.random.rand`` refers to; None if it is not an import's."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        parent = dotted(node.value, names)
        return f"{parent}.{node.attr}" if parent else None
    return None


def uses_global_generator(call: ast.Call, name: str) -> bool:
    module, _, function = name.rpartition(".")
    if module in ("random", "numpy.random"):
        return function[0].islower() and function != "default_rng"  # Random, Generator and the like are classes
    if name in SAMPLING:
        return all(keyword.arg not in ("generator", None) for keyword in call.keywords)
    return name in SEEDING


def global_rng_calls(source: str) -> list[tuple[int, str]]:
    """Line and full name of every offending call."""
    tree = ast.parse(source)
    names = imported_names(tree)
    found: list[tuple[int, str]] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.With) and any(
            isinstance(item.context_expr, ast.Call) and dotted(item.context_expr.func, names) == "torch.random.fork_rng"
            for item in node.items
        ):
            return
        if isinstance(node, ast.Call):
            name = dotted(node.func, names)
            if name and uses_global_generator(node, name):
                found.append((node.lineno, name))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def test_product_uses_no_global_generator(project_sources: dict[str, str]) -> None:
    product = {path: text for path, text in project_sources.items() if path.startswith(PRODUCT)}
    assert len(product) > 10
    found = [(path, line, name) for path, text in product.items() for line, name in global_rng_calls(text)]
    offences = [f"{path}:{line}: {name}" for path, line, name in found if f"{path}: {name}" not in ALLOWED]
    assert offences == [], "pass a torch.Generator, a numpy Generator or a seed in"
    assert sorted(set(ALLOWED) - {f"{path}: {name}" for path, _, name in found}) == [], "no longer needed in ALLOWED"


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("import torch\ntorch.manual_seed(0)", (2, "torch.manual_seed")),
        ("import torch as t\nt.cuda.manual_seed_all(0)", (2, "torch.cuda.manual_seed_all")),
        ("import torch\ntorch.randn(3, device='cpu')", (2, "torch.randn")),
        ("from torch import multinomial as draw\ndraw(p, 1)", (2, "torch.multinomial")),
        ("import numpy as np\nnp.random.seed(0)", (2, "numpy.random.seed")),
        ("from numpy import random\nrandom.shuffle(x)", (2, "numpy.random.shuffle")),
        ("import random\ndef f():\n    return random.choice([1])", (3, "random.choice")),
        ("from transformers import set_seed\nset_seed(1)", (2, "transformers.set_seed")),
    ],
)
def test_a_planted_call_is_found(source: str, call: str) -> None:
    assert global_rng_calls(source) == [call]


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.randn(3, generator=generator)",
        "import torch\ntorch.Generator().manual_seed(0)",
        "import torch\nwith torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)",
        "import torch\ntorch.random.fork_rng()",
        "import numpy as np\nnp.random.default_rng(3).random()",
        "import random\nrandom.Random(3).choice([1])",
        "def f(random):\n    return random.choice([1])",
    ],
)
def test_a_passed_generator_is_let_through(source: str) -> None:
    assert global_rng_calls(source) == []
