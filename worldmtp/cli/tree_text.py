"""A search tree on a terminal or as plain text: a token a line, and where a world replies a line for each reply."""

from collections.abc import Sequence

from rich.text import Text

from worldmtp.cli.writing import Writing
from worldmtp.search.explain import DrawnReply, Planned, Spoken, TreeNode

_MOST_LINES = 24
"""Of a tree."""
_WIDTH = 60
"""Characters of the text before it."""


def tree_lines(number: int, planned: Planned, writing: Writing) -> list[Text]:
    """Return a tree as lines of text: visits, prior, Q, and the text that was imagined, by who wrote it."""
    rows = _rows(planned.tree)
    most = sorted((node.visits for _, node, _ in rows), reverse=True)[:_MOST_LINES]
    shown = [row for row in rows if row[1].visits >= most[-1]][: 2 * _MOST_LINES]
    before = writing.spoken(planned.before, _WIDTH)
    lines = [
        Text.assemble((f"plan {number}", "bold"), " after ", before, f", worth {planned.value:.3f}"),
        Text("    visits  prior       Q  imagined", "bright_black"),
    ]
    for depth, node, path in shown:
        mark, indent = writing.marks.own if node.is_chosen else " ", "  " * depth
        numbers = f"{'drawn':>6} {'':7}" if isinstance(node, DrawnReply) else f"{node.prior:6.1%} {node.q:7.3f}"
        line = f"  {mark} {node.visits:6d} {numbers}  {indent}{writing.path(path)}"
        lines.append(Text(line + (" end" if node.is_end else ""), "bold cyan" if node.is_chosen else ""))
    if len(shown) < len(rows):
        lines.append(Text(f"    and {len(rows) - len(shown)} nodes of fewer visits", "bright_black"))
    return lines


def _rows(tree: Sequence[TreeNode]) -> list[tuple[int, TreeNode | DrawnReply, Spoken]]:
    """Return what has a line of its own, with how far in it stands and the text that was imagined up to it."""
    rows: list[tuple[int, TreeNode | DrawnReply, Spoken]] = []

    def walk(nodes: Sequence[TreeNode], depth: int, before: Spoken) -> None:
        for node in nodes:
            path = before.then((node.token,), is_heard=False)
            rows.append((depth, node, path))
            walk(node.children, depth + 1, path)
            for reply in node.replies:
                heard = path.then(reply.tokens, is_heard=True)
                rows.append((depth + 1, reply, heard))
                walk(reply.children, depth + 2, heard)

    walk(tree, 0, Spoken((), ()))
    return rows
