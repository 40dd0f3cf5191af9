"""Answers that reasoning-gym's scorers evaluate as Python: what may be handed to them.

Nine of its datasets call ``eval`` or sympy's ``parse_expr``, which is ``eval``, on the text of a policy (read in
0.1.25). A text could so run any code in the training process, read the oracle out of the caller's frame, or compute
``9**9**9**9`` for ever. So only literals reach the first kind, and only arithmetic of bounded size the second.
"""

import ast
import re
from collections import Counter
from typing import Any

LITERAL = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
"""Datasets whose scorers call ``eval``."""
EXPRESSION = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
"""Datasets whose scorers call ``parse_expr``."""

_LITERAL_TEXT = re.compile(r"[\w\s,.\[\]'\"-]*")
_COMPREHENSION = re.compile(r"\b(for|lambda|if|await|yield)\b")
_FUNCTIONS = frozenset(
    "sin cos tan sec csc cot asin acos atan sinh cosh tanh exp log ln sqrt Abs erf".split()  # noqa: SIM905 - a word list
)
_CONSTANTS = frozenset({"pi", "E", "C"})
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.UAdd, ast.USub)
_MAX_LENGTH, _MAX_NUMBER, _MAX_EXPONENT, _MAX_POWERS = 1000, 1e9, 32, 2


def refusal(dataset: str, text: str, entry: dict[str, Any]) -> str | None:
    """Why a text is not handed to the scorer of a dataset, in one word; None if it may be."""
    if dataset in LITERAL:
        is_literal = _LITERAL_TEXT.fullmatch(text) is not None and _COMPREHENSION.search(text) is None
        return None if is_literal else "no_literal"
    if dataset not in EXPRESSION:
        return None
    tree = _arithmetic(text)
    if tree is None:
        return "no_arithmetic"
    if dataset == "puzzle24":  # whose scorer looks at the value alone, so that 1*2*3*4 would answer every question
        used = Counter(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        if used - Counter(entry["metadata"]["numbers"]):
            return "wrong_numbers"
    return None


def _arithmetic(text: str) -> ast.expr | None:
    """The expression, if it is one of numbers, letters and elementary functions, and small."""
    if len(text) > _MAX_LENGTH or "\n" in text:
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return tree if _is_small(tree, num_powers=0) else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_small(node: ast.expr, num_powers: int) -> bool:
    if isinstance(node, ast.Constant):
        value = node.value
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER
    if isinstance(node, ast.Name):
        return node.id in _CONSTANTS or (len(node.id) == 1 and node.id.islower())
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, _OPERATORS) and _is_small(node.operand, num_powers)
    if isinstance(node, ast.Call):
        is_known = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
        return is_known and len(node.args) == 1 and _is_small(node.args[0], num_powers)
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, _OPERATORS):
        return False
    if isinstance(node.op, ast.Pow):
        num_powers += 1
        exponents = [part for part in ast.walk(node.right) if isinstance(part, ast.Constant)]
        if num_powers > _MAX_POWERS or any(abs(part.value) > _MAX_EXPONENT for part in exponents):  # type: ignore[arg-type]
            return False
        return _is_small(node.left, num_powers) and _is_small(node.right, _MAX_POWERS)
    return _is_small(node.left, num_powers) and _is_small(node.right, num_powers)
