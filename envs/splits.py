"""Which split a prompt is in: that of its hash, and of few prompts so that no split is empty."""

from collections.abc import Iterable

from worldmtp.choices import check_choice

SPLITS = ("train", "heldout")
_BUCKETS = 1000


def check_split(split: str) -> str:
    """The split itself.

    Raises:
        ValueError: if there is no such split.
    """
    check_choice("split", split, SPLITS)
    return split


def split_of(key: str, heldout_fraction: float = 0.2) -> str:
    """The split of the prompt with this key: its hash modulo 1000 is below 1000 times the fraction, or not."""
    return "heldout" if int(key, 16) % _BUCKETS < round(_BUCKETS * heldout_fraction) else "train"


def splitting_share(keys: Iterable[str], heldout_fraction: float) -> float:
    """Return the share that is held out of so few prompts: as given, or the nearest at which no split is empty.

    Zero holds none out on purpose and stays; so does any share where all prompts fall into one bucket of the hash.

    Args:
        keys: of all prompts that there are.
        heldout_fraction: as given.
    """
    buckets = sorted({int(key, 16) % _BUCKETS for key in keys})
    if heldout_fraction == 0.0 or len(buckets) < 2:
        return heldout_fraction
    limit = round(_BUCKETS * heldout_fraction)
    nearest = min(max(limit, buckets[0] + 1), buckets[-1])
    return heldout_fraction if nearest == limit else nearest / _BUCKETS
