"""``worldmtp envs list``: the catalogue as a table or as JSON."""

import fnmatch
import json
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from worldmtp.envs.make import Description, Lengths, describe, text_env_ids

_PIPED_WIDTH = 200
_SMALL_POOL = 64
_HEADERS = ("id", "kind", "prompt", "answer", "max_prompt", "max_new", "vocabulary", "universe", "what")


def list_envs(pattern: str, imported: Sequence[str], *, as_json: bool) -> None:
    """Print the ids that match, those of user modules among them; one that needs kwargs says which.

    Raises:
        ValueError: no id matches.
    """
    ids = sorted({*text_env_ids(), *imported})
    chosen = [env_id for env_id in ids if _matches(env_id, pattern)]
    if not chosen:
        raise ValueError(f"no id matches {pattern!r}; worldmtp envs list shows all {len(ids)}.")
    described = {env_id: _described(env_id) for env_id in chosen}
    if as_json:
        print(
            json.dumps(
                {env_id: {"error": it} if isinstance(it, str) else it.as_dict() for env_id, it in described.items()}
            )
        )
        return
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header in _HEADERS:
        table.add_column(header, no_wrap=header == "id", overflow="fold")
    for env_id, it in described.items():
        table.add_row(env_id, *(_cells(it) if isinstance(it, Description) else [""] * 7 + [it]))
    console.print(table)
    console.print(
        "Lengths are tokens, median/most of a small draw, EOS not counted. worldmtp envs check <id> says more."
    )


def _matches(env_id: str, pattern: str) -> bool:
    name, wanted = env_id.lower(), pattern.lower()
    return fnmatch.fnmatchcase(name, wanted) if "*" in wanted or "?" in wanted else wanted in name


def _described(env_id: str) -> Description | str:
    """The description; or why there is none, of an environment that cannot be made without kwargs."""
    try:
        return describe(env_id, pool_size=_SMALL_POOL)
    except (ValueError, TypeError, OSError) as error:
        return f"needs --kwargs: {error}"


def _cells(it: Description) -> list[str]:
    answer = "none" if it.answer is None else _short(it.answer)
    universe = "" if it.universe_size is None else str(it.universe_size)
    sizes = [str(size) for size in (it.max_prompt, it.max_new, it.vocab_size)]
    return [it.kind, _short(it.prompt), answer, *sizes, universe, it.what]


def _short(lengths: Lengths) -> str:
    return f"{lengths.median:g}/{lengths.max}"
