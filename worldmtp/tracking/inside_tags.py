"""Tags of what is inside a model: attention's patterns (``worldmtp.analysis.attention_patterns``), the heads' weights.

And of what it knows of a source whose law is known (``worldmtp.analysis.truth``). Rows of the table in
``worldmtp.tracking.tags``.
"""

from worldmtp.tracking.tag_table import scalar_rows

_LOOKS_AT = {
    "sink": "the first token",
    "previous": "the token before",
    "induction": "what followed earlier occurrences of the token",
    "prompt": "the prompt but for its first token",
    "goal": "places of the prompt that hold the token that comes next",
    "reply": "what a world has replied",
}

ATTENTION_TAGS = scalar_rows(
    "attention",
    *(
        row
        for name, keys in _LOOKS_AT.items()
        for row in (
            (f"layer_{{k}}/{name}", f"weight on {keys}, a mean over heads and held-out answers' queries", "share"),
            (f"layer_{{k}}/{name}_strongest", f"the same of layer k's head with the most weight on {keys}", "share"),
            (f"{name}_uniform", f"floor: the weight on {keys} of a head that looks at all tokens alike", "share"),
        )
    ),
    ("layer_{k}/entropy", "entropy of a query's weights, a mean over queries and heads", "nats"),
    ("layer_{k}/entropy_lowest", "the same of the head of layer k that chooses most: the lowest", "nats"),
    ("entropy_uniform", "ceiling: entropy of a head that looks at all tokens alike", "nats"),
)

HEAD_TAGS = scalar_rows(
    "heads",
    *(
        (f"{group}/{name}", f"{meaning} of {of}", unit)
        for group, of in (("depth_{k}", "depth k's own weights"), ("shared", "weights that all depths share"))
        for name, meaning, unit in (
            ("norm", "Frobenius norm", "1"),
            ("stable_rank", "mean of squared Frobenius over squared spectral norm, over the matrices,", "directions"),
            ("drift", "norm of the change since the run began over the norm then,", "1"),
        )
    ),
    ("depth_{k}/cosine", "cosine between the matrices of depth k and of depth k - 1, as one vector each", "1"),
)

TRUTH_TAGS = scalar_rows(
    "truth",
    *(
        (f"depth_{{k}}/{name}", f"{meaning}; on held-out texts of a source whose law is known", unit)
        for name, meaning, unit in (
            ("loss", "-sum_v p log q_k, p the true law of the token given all before it", "nats/token"),
            ("noise", "what is unknown to who knows all before the token: closed form", "nats/token"),
            ("structural", "what heads that average over the tokens in between cannot know: closed form", "nats/token"),
            ("error", "loss less the least that heads of this kind can lose", "nats/token"),
            ("error_lo90", "lower end of its 90 % interval over texts", "nats/token"),
            ("error_hi90", "upper end of its 90 % interval over texts", "nats/token"),
            ("accept", "sum_v min(p, q_k): drafts of the head that the true law would keep", "probability"),
            ("accept_exact", "the same of the perfect head of this kind", "probability"),
        )
    ),
    ("belief_r2", "share of the exact beliefs that a ridge regression reads off the trunk's states", "share"),
    (
        "value_bias",
        "mean of imagined return - exact value over states of held-out answers, enumerated",
        "reward",
    ),
    ("value_bias_lo90", "lower end of its 90 % interval over answers", "reward"),
    ("value_bias_hi90", "upper end of its 90 % interval over answers", "reward"),
    ("value_corr", "Pearson correlation of imagined return and exact value over the same states", "1"),
    (
        "value_ceiling",
        "that of exact value and realized return: the most that imagination can have with draws",
        "1",
    ),
    ("value_missing", "bound of the probability that the enumeration left out", "probability"),
    ("belief_r2_last_token", "floor: the same off the last token alone", "share"),
)
