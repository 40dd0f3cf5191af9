"""Token strips of saved evaluations."""

from worldmtp.analysis.artefacts import EvalArtefact
from worldmtp.tracking.strips import StripRow, TokenStrip


def token_strip(artefact: EvalArtefact, row: int, caption: str = "") -> TokenStrip:
    """Return sequence ``row`` with what each depth held most probable of each of its policy tokens."""
    length = int(artefact.attention_mask[row].sum())
    texts = artefact.tokens_text
    rows = []
    for k in range(1, artefact.num_depths + 1):
        probability = artefact.head_top1_prob[row, :length, k - 1]
        # What was said from inside the prompt of a token more than one ahead of its end is not shown: the root must
        # have seen the whole prompt. Nor is what was said over the end of a turn: the reply in between is no action.
        spoken = [
            place - k >= artefact.prompt_length[row] - 1
            and bool(artefact.action_mask[row, place - k + 1 : place + 1].all())
            and value == value
            for place, value in enumerate(probability)
        ]
        rows.append(
            StripRow(
                label=f"depth {k}",
                tokens=tuple(
                    texts[artefact.head_top1[row, place, k - 1]] if said else None for place, said in enumerate(spoken)
                ),
                probabilities=tuple(
                    float(value) if said else 0.0 for value, said in zip(probability, spoken, strict=True)
                ),
            )
        )
    return TokenStrip(
        tokens=tuple(texts[token] for token in artefact.input_ids[row, :length]),
        prompt_length=int(artefact.prompt_length[row]),
        rows=tuple(rows),
        caption=caption,
    )


def imagined_strip(artefact: EvalArtefact, row: int, caption: str = "") -> TokenStrip:
    """Return sequence ``row`` with what was imagined from each of its prefixes: likeliest tokens, a row a prefix.

    Unlike a row of ``token_strip``, which reads the realized tokens in between, a row here goes on from its own.
    """
    length, start = int(artefact.attention_mask[row].sum()), int(artefact.prompt_length[row])
    texts = artefact.tokens_text
    rows = []
    for root in range(length - 1):
        probabilities = artefact.imagined_token_prob[row, root]
        steps = [h for h, p in enumerate(probabilities) if p == p and root + 1 + h < length]
        if not steps:
            continue
        tokens: list[str | None] = [None] * length
        shades = [0.0] * length
        for h in steps:
            tokens[root + 1 + h] = texts[artefact.imagined_tokens[row, root, h]]
            shades[root + 1 + h] = float(probabilities[h])
        rows.append(StripRow(f"after {root + 1 - start}", tuple(tokens), tuple(shades)))
    return TokenStrip(tuple(texts[token] for token in artefact.input_ids[row, :length]), start, tuple(rows), caption)
