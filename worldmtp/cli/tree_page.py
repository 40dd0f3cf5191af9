"""Search trees as one page without scripts or anything from elsewhere: it opens offline, and folds by itself."""

from collections.abc import Iterator, Sequence
from html import escape

from transformers import PreTrainedTokenizerBase

from worldmtp.cli.writing import Marks, Writing
from worldmtp.search.explain import DrawnReply, Planned, Spoken, TreeNode

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1b1f24;
  background: #fff; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 1.6rem 0 .3rem; } p.note { color: #57606a; }
code { font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; }
details, .leaf { margin-left: 1.1rem; border-left: 1px solid #d0d7de; padding-left: .4rem; }
summary { cursor: pointer; } .leaf { padding-left: 1.3rem; }
.row { display: inline-grid; grid-template-columns: 7rem 4rem 5rem 5rem auto; gap: .6rem; align-items: center;
  font-variant-numeric: tabular-nums; }
.bar { background: #eaeef2; height: .6rem; } .bar i { display: block; height: 100%; background: #8c959f; }
.chosen > summary code, .leaf.chosen code { font-weight: 700; color: #0550ae; }
.chosen > summary .bar i, .leaf.chosen .bar i { background: #0969da; }
.reply > summary code, .leaf.reply code { font-style: italic; }
.head { margin-left: 2.8rem; color: #57606a; font-size: 12px; }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117; } .bar { background: #30363d; }
  details, .leaf { border-color: #30363d; } .chosen > summary code, .leaf.chosen code { color: #79c0ff; } }
"""

_OF_REPLIES = (
    f"What the world wrote stands in {' '.join(Marks().heard)}. Under a token that ends a turn are the replies that "
    "were drawn, each with how often; its worth is the mean over them, and the line goes on behind the most drawn one. "
)


def tree_page(
    prompts: Sequence[str],
    written: Sequence[Spoken],
    plans: Sequence[Sequence[Planned]],
    tokenizer: PreTrainedTokenizerBase,
    conditions: str,
) -> str:
    """Return the page of every plan of every prompt; of each, the line that was taken is open.

    ``written`` is what each prompt was gone on with, replies of a world included.
    """
    writing = Writing(tokenizer, Marks())
    replies = any(node.replies for one in plans for planned in one for node in _all_nodes(planned.tree))
    parts = [
        "<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Search trees</title><style>{_STYLE}</style>",
        "<h1>Search trees</h1><p class=note>Each row is a token that the search came to: the share of its tree's "
        "simulations that went through it, how many, the policy's own probability, what it is worth, and the text that "
        "was imagined up to it. Blue is what was written, and the line that was thought of behind it. "
        f"{_OF_REPLIES if replies else ''}{escape(conditions)}</p>",
    ]
    for prompt, new, one in zip(prompts, written, plans, strict=True):
        text = escape(writing.spoken(new).plain)
        parts.append(f"<h2>Prompt <code>{escape(prompt)}</code>, written <code>{text}</code></h2>")
        for number, planned in enumerate(one, start=1):
            text = escape(writing.spoken(planned.before).plain)
            parts.append(
                f"<h2>Plan {number}, worth {planned.value:.3f}, after <code>{text}</code></h2>"
                "<div class='row head'><span>visits</span><span></span><span>prior</span><span>Q</span>"
                "<span>imagined</span></div>"
            )
            total = sum(node.visits for node in planned.tree)
            parts += [_node(node, Spoken((), ()), total, writing) for node in planned.tree]
    return "\n".join(parts) + "</html>\n"


def _node(node: TreeNode | DrawnReply, before: Spoken, total: int, writing: Writing) -> str:
    below: Sequence[TreeNode | DrawnReply]
    if isinstance(node, DrawnReply):
        path, kind, below = before.then(node.tokens, is_heard=True), "reply", node.children
        numbers = "<span>drawn</span><span></span>"
    else:
        path, kind, below = before.then((node.token,), is_heard=False), "token", node.replies or node.children
        numbers = f"<span>{node.prior:.1%}</span><span>{node.q:.3f}</span>"
    text = escape(writing.path(path)) + (" (end)" if node.is_end else "")
    row = (
        f"<span class=row><span class=bar><i style='width:{node.visits / total:.1%}'></i></span>"
        f"<span>{node.visits}</span>{numbers}<code>{text}</code></span>"
    )
    chosen = f"{kind} chosen" if node.is_chosen else kind
    if not below:
        return f"<div class='leaf {chosen}'>{row}</div>"
    inside = "\n".join(_node(child, path, total, writing) for child in below)
    return f"<details class='{chosen}'{' open' if node.is_chosen else ''}><summary>{row}</summary>{inside}</details>"


def _all_nodes(nodes: Sequence[TreeNode]) -> Iterator[TreeNode]:
    for node in nodes:
        yield node
        for children in (node.children, *(reply.children for reply in node.replies)):
            yield from _all_nodes(children)
