"""What attention maps look at: the first token, the token before, what followed an earlier occurrence, the prompt, ...

A pattern is a set of keys for each query; its mass is the weight that a head gives to them. ``sink``: the row's first
token. ``previous``: the token before the query. ``induction``: what followed earlier occurrences of the query's token
(Olsson et al. 2022, https://arxiv.org/abs/2209.11895). ``prompt``: the prompt but for its first token. ``goal``: the
places of the prompt that hold the very token that comes next, which an answer that copies has to find. ``reply``: what
a world has said. A query without a key of the pattern counts for none of its means. ``entropy`` is that of the weights,
in nats. ``uniform_scores`` are those of a head that looks at all keys alike: the floor to read a mass against, and
entropy's ceiling.

A mass says where a head looks, not what it is good for: what a head does is found by taking it away.
"""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int

MASSES = ("sink", "previous", "induction", "prompt", "goal", "reply")
PATTERNS = (*MASSES, "entropy")
TITLES = {
    "sink": "first token",
    "previous": "token before",
    "induction": "induction",
    "prompt": "prompt",
    "goal": "goal",
    "reply": "replies",
    "entropy": "entropy",
}
"""What figures and tables call a pattern."""

KeySets = dict[str, Bool[np.ndarray, "batch query length"]]


@dataclass(frozen=True)
class AttendedTexts:
    """Texts, right-padded or left-padded, and the places whose attention was read; ``query_mask`` is False in fillers.

    ``reply_mask`` is True where a world wrote the token.
    """

    input_ids: Int[np.ndarray, "batch length"]
    attention_mask: Bool[np.ndarray, "batch length"]
    prompt_length: Int[np.ndarray, " batch"]
    reply_mask: Bool[np.ndarray, "batch length"]
    queries: Int[np.ndarray, "batch query"]
    query_mask: Bool[np.ndarray, "batch query"]

    def select(self, rows: slice) -> "AttendedTexts":
        """Return some of the texts."""
        return AttendedTexts(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def visible(self) -> Bool[np.ndarray, "batch query length"]:
        """Return which keys a query may attend to: real ones up to itself; none of a filler."""
        places = np.arange(self.input_ids.shape[1])
        up_to = places <= self.queries[:, :, None]
        found: Bool[np.ndarray, "batch query length"] = (
            up_to & self.attention_mask[:, None] & self.query_mask[:, :, None]
        )
        return found


@dataclass(frozen=True)
class PatternSums:
    """Sums of each sequence over its queries that have a key of the pattern, and how many those are.

    The axis ``pattern`` is that of ``PATTERNS``.
    """

    total: Float[np.ndarray, "pattern batch layer head"]
    count: Int[np.ndarray, "pattern batch"]

    def mean(self) -> Float[np.ndarray, "pattern layer head"]:
        """Return means over all queries; NaN where no query has a key of the pattern."""
        count = self.count.sum(axis=1).astype(np.float64)
        count[count == 0] = np.nan
        means: Float[np.ndarray, "pattern layer head"] = self.total.sum(axis=1) / count[:, None, None]
        return means


def pattern_keys(texts: AttendedTexts) -> KeySets:
    """Return the keys of each pattern of ``MASSES``; all of them are visible to their query."""
    ids, visible, length = texts.input_ids, texts.visible(), texts.input_ids.shape[1]
    places, first = np.arange(length), texts.attention_mask.argmax(axis=1)
    queries = texts.queries[:, :, None]
    is_first = (places == first[:, None])[:, None]
    in_prompt = (texts.attention_mask.cumsum(axis=1) <= texts.prompt_length[:, None])[:, None]
    asking = np.take_along_axis(ids, texts.queries, axis=1)[:, :, None]
    before = np.zeros_like(ids)
    before[:, 1:] = ids[:, :-1]
    follows = np.zeros_like(texts.attention_mask)
    follows[:, 1:] = texts.attention_mask[:, :-1]
    has_next = queries[:, :, 0] + 1 < length
    after = np.minimum(texts.queries + 1, length - 1)
    has_next = has_next & np.take_along_axis(texts.attention_mask, after, axis=1)
    coming = np.take_along_axis(ids, after, axis=1)[:, :, None]
    keys = {
        # From the first token itself there is nothing else to look at.
        "sink": is_first & (queries > first[:, None, None]),
        "previous": places == queries - 1,
        # What followed an occurrence just before the query would be the query itself.
        "induction": (before[:, None] == asking) & follows[:, None] & (places < queries),
        "prompt": in_prompt & ~is_first,
        "goal": in_prompt & (ids[:, None] == coming) & has_next[:, :, None],
        "reply": texts.reply_mask[:, None],
    }
    return {name: keys[name] & visible for name in MASSES}


def attention_entropy(
    attention: Float[np.ndarray, "batch layer head query length"],
) -> Float[np.ndarray, "batch layer head query"]:
    """Return -sum_k a_k log a_k of each query's weights, in nats; 0 log 0 is 0."""
    weights = np.asarray(attention, dtype=np.float64)
    entropy: Float[np.ndarray, "batch layer head query"] = -(weights * np.log(np.where(weights > 0, weights, 1.0))).sum(
        axis=-1
    )
    return entropy


def pattern_sums(attention: Float[np.ndarray, "batch layer head query length"], texts: AttendedTexts) -> PatternSums:
    """Return the mass of each pattern and the entropy, summed over the queries of each sequence.

    Raises:
        ValueError: the weights of a query do not add up to 1, so they are no attention of these texts.
    """
    weights, visible = np.asarray(attention, dtype=np.float64), texts.visible()
    sums = np.einsum("blhqk,bqk->blhq", weights, visible.astype(np.float64)).transpose(0, 3, 1, 2)[texts.query_mask]
    if not np.allclose(sums, 1.0, rtol=0, atol=1e-3):
        raise ValueError(
            f"attention on the keys that a query can see adds up to {sums.min():.4f} .. {sums.max():.4f}, not 1; pass "
            "the maps of these very texts and queries."
        )
    keys = pattern_keys(texts)
    totals = [np.einsum("blhqk,bqk->blh", weights, keys[name].astype(np.float64)) for name in MASSES]
    counts = [keys[name].any(axis=2).sum(axis=1) for name in MASSES]
    of_query = np.where(texts.query_mask[:, None, None], attention_entropy(weights), 0.0)
    return PatternSums(
        total=np.stack([*totals, of_query.sum(axis=-1)]), count=np.stack([*counts, texts.query_mask.sum(axis=1)])
    )


def uniform_attention(texts: AttendedTexts) -> Float[np.ndarray, "batch 1 1 query length"]:
    """Return the map of one head that looks at all keys alike; a filler's is zero."""
    visible = texts.visible().astype(np.float64)
    alike: Float[np.ndarray, "batch 1 1 query length"] = (
        visible / np.maximum(visible.sum(axis=2, keepdims=True), 1.0)
    )[:, None, None]
    return alike


def uniform_scores(texts: AttendedTexts) -> Float[np.ndarray, " pattern"]:
    """Return the means of ``uniform_attention``: what each pattern gets of a head that does not choose."""
    return pattern_sums(uniform_attention(texts), texts).mean()[:, 0, 0]


def join_sums(parts: list[PatternSums]) -> PatternSums:
    """Return the sums of several batches as one."""
    return PatternSums(
        total=np.concatenate([part.total for part in parts], axis=1),
        count=np.concatenate([part.count for part in parts], axis=1),
    )


def attention_scalars(
    mean: Float[np.ndarray, "pattern layer head"], floor: Float[np.ndarray, " pattern"]
) -> dict[str, float]:
    """Return means over the heads of each layer, and its strongest head's, by the tags they are logged under.

    A pattern that no text has is left out. Of entropy it is the lowest, of the head that chooses most.
    """
    scalars: dict[str, float] = {}
    for number, name in enumerate(PATTERNS):
        if np.isnan(floor[number]):
            continue
        scalars[f"attention/{name}_uniform"] = float(floor[number])
        chosen, choose = ("lowest", np.min) if name == "entropy" else ("strongest", np.max)
        for layer, heads in enumerate(mean[number], start=1):
            scalars[f"attention/layer_{layer}/{name}"] = float(heads.mean())
            scalars[f"attention/layer_{layer}/{name}_{chosen}"] = float(choose(heads))
    return scalars
