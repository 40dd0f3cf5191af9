"""Write ``metrics.md``: every tag that can be logged, read from ``worldmtp.tracking.tags``.

python docs/metrics.py > docs/metrics.md
"""

from worldmtp.tracking.tag_table import Kind, TagTable
from worldmtp.tracking.tags import TAGS

_TITLES: dict[Kind, str] = {"scalar": "Scalars", "text": "Texts", "image": "Images", "histogram": "Histograms"}

_HEAD = """# Metrics

Made by `docs/metrics.py` from `worldmtp/tracking/tags.py`; a test keeps the two equal, and a tag that is not here
cannot be logged.

The x axis of every tag is environment tokens, or in a run with `post_training.trainer` optimiser steps; that of
`sft/*`, the warm start before them, is optimiser steps, and it has a writer of its own in the folder `sft` of the run,
where with `sft.eval_steps` evaluations stand under the tags that they have in the run.
With `post_training.trainer` the numbers that the agent logs too have the agent's tags, all others stand under `trl/`.
`{k}` is a depth (head k at position t predicts token t + k;
depth 1 is the trunk's own head), behind `layer_` a layer, `{h}` a horizon in imagined steps, `{i}` a rung; any other
placeholder is a word. p is the trunk's distribution that the tokens were drawn from, q_k the head's, both read at the
realized token. A root is a position from which k action tokens follow.

`metrics.jsonl` holds one object per step: `step`, `time_seconds`, the tags, and, if a value was NaN or infinite, `null`
in its place and its tag in the list `nonfinite`.

The report leaves what has an interval in `metrics.json` and `metrics.csv`, by evaluation, quantity and depth, under the
last part of the tag: `accept`, `wci`, `h_eff`, ...; of the first evaluation and the last also the split of each head's
loss (`structural`, `error`) and that of the open loop's (`exposure`, `context`, `open_loop`), with n 0, since they are
read from the log, which does not say of how many sequences they are; `reply/*` of replies and `truth/*` where a law is
known.
"""


def page(table: TagTable = TAGS) -> str:
    """Return ``docs/metrics.md``, with one markdown table per kind and group."""
    parts = [_HEAD]
    for kind, title in _TITLES.items():
        rows = [row for row in table.rows if row.kind == kind]
        parts.append(f"## {title}\n")
        for group in dict.fromkeys(row.tag.split("/")[0] for row in rows):
            lines = [f"### {group}\n", "| tag | estimator | unit |", "|---|---|---|"]
            lines += [
                f"| `{row.tag}` | {_cell(row.estimator)} | {_cell(row.unit)} |"
                for row in rows
                if row.tag.split("/")[0] == group
            ]
            parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
