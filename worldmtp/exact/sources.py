"""Sources by name: a Markov chain, hidden ones, two streams of one hidden state, brackets, path-star, any token MDP.

Each is small enough to enumerate and asks something else of a predictor: how fast a chain is forgotten
(``markov_chain``), whether the belief is kept (``mess3``), what heads that average lose (``block_hmm``, ``path_star``:
the log of the number of blocks or arms), a stack (``bounded_dyck``), a second sense (``two_streams``). ``text_rows``
makes a warm start's data of their sequences.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.dynamics.exact import TokenMDP
from worldmtp.exact.source import Source, stationary


def markov_chain(transition: Float[Tensor, "symbol symbol"], start: Float[Tensor, " symbol"] | None = None) -> Source:
    """Return the chain whose state is its last token; it starts stationary unless said."""
    return hidden_markov(transition, torch.eye(len(transition), dtype=transition.dtype), start)


def hidden_markov(
    transition: Float[Tensor, "state state"],
    emission: Float[Tensor, "state symbol"],
    start: Float[Tensor, " state"] | None = None,
) -> Source:
    """Return the source that moves, then emits from the state where it arrived: T_x[i, j] = A[i, j] B[j, x]."""
    edges = torch.einsum("ij,jx->xij", transition, emission)
    return Source(edges, stationary(transition) if start is None else start)


def cycle(num_symbols: int = 5, forward: float = 0.6, stay: float = 0.2) -> Source:
    """Return a Markov chain on a ring: one on with ``forward``, the same again with ``stay``, else any uniformly.

    Raises:
        ValueError: a number is below 1.
    """
    _require_positive(num_symbols=num_symbols)
    same = torch.eye(num_symbols, dtype=torch.float64)
    rest = torch.full_like(same, (1 - forward - stay) / num_symbols)
    return markov_chain(forward * same.roll(1, dims=1) + stay * same + rest)


def mess3(x: float = 0.05, alpha: float = 0.85) -> Source:
    """Return Mess3: three states, each left for either other with probability ``x``, own token with ``alpha``.

    Marzen & Crutchfield 2017 (https://doi.org/10.1007/s10955-017-1793-z); x = .05 and alpha = .85 are those of Shai et
    al. 2024 (https://arxiv.org/abs/2405.15943), whose figure shows the beliefs as a fractal.
    """
    return hidden_markov(_sticky(3, 1 - 3 * x), _sticky(3, alpha - (1 - alpha) / 2))


def block_hmm(num_blocks: int = 3, block_length: int = 3, noise: float = 0.1) -> Source:
    """Return words without spaces: one of ``num_blocks`` blocks is drawn, its own tokens follow in order, then another.

    Each token is replaced by a uniform one with probability ``noise``. Without noise, at the first token of a block all
    is open, log(num_blocks) nats, and nothing after it; heads that average do not know it, so that each depth inside
    the block has the structural gap log(num_blocks). It starts between blocks.

    Raises:
        ValueError: a number is below 1.
    """
    _require_positive(num_blocks=num_blocks, block_length=block_length)
    num_states = num_blocks * block_length
    transition = torch.zeros(num_states, num_states, dtype=torch.float64)
    for state in range(num_states):
        if (state + 1) % block_length:
            transition[state, state + 1] = 1
        else:
            transition[state, ::block_length] = 1 / num_blocks
    start = torch.zeros(num_states, dtype=torch.float64)
    start[block_length - 1 :: block_length] = 1 / num_blocks
    return hidden_markov(transition, _sticky(num_states, 1 - noise), start)


def two_streams(
    transition: Float[Tensor, "state state"],
    first: Float[Tensor, "state first_symbol"],
    second: Float[Tensor, "state second_symbol"],
) -> Source:
    """Return two senses of one hidden chain, told in turns: a_1 b_1 a_2 b_2 ...; ids of b go on behind those of a.

    The chain moves before each a; a and b of a pair are drawn from the same state, independently given it. A factorial
    chain (Ghahramani & Jordan 1997, https://doi.org/10.1023/A:1007425814087) is a Kronecker product of ``transition``s
    with emissions of the product state. State i of the result is chain state i before an a, state S + i before a b.
    """
    num_states, num_first = first.shape
    edges = torch.zeros(num_first + second.shape[1], 2 * num_states, 2 * num_states, dtype=torch.float64)
    edges[:num_first, :num_states, num_states:] = torch.einsum("ij,jx->xij", transition, first)
    edges[num_first:, num_states:, :num_states] = torch.diag_embed(second.T)
    return Source(edges, torch.cat([stationary(transition), torch.zeros(num_states, dtype=torch.float64)]))


def two_senses(
    num_values: int = 3, stay: float = 0.9, first_clarity: float = 0.6, second_clarity: float = 0.8
) -> Source:
    """Return two hidden values u and v, told in turns: a noisy view of u, then one of u + v (modulo ``num_values``).

    A factorial chain: each value stays with ``stay`` and is drawn anew otherwise; state u * n + v holds both. A view
    shows what it is of with its clarity, else a uniform symbol. To foretell the first sense one has to know u, of which
    the second tells only who keeps a belief about v.

    Raises:
        ValueError: a number is below 1.
    """
    _require_positive(num_values=num_values)
    return two_streams(*factorial_parts(num_values, stay, first_clarity, second_clarity))


def factorial_parts(
    num_values: int, stay: float, first_clarity: float, second_clarity: float
) -> tuple[Float[Tensor, "state state"], Float[Tensor, "state symbol"], Float[Tensor, "state symbol"]]:
    """Return the chain of ``two_senses`` and what its two senses show of each state."""
    chain = _sticky(num_values, stay)
    u, v = torch.arange(num_values**2) // num_values, torch.arange(num_values**2) % num_values
    first, second = _sticky(num_values, first_clarity)[u], _sticky(num_values, second_clarity)[(u + v) % num_values]
    return torch.kron(chain, chain), first, second


def bounded_dyck(num_kinds: int = 2, max_depth: int = 3, open_prob: float = 0.5, end_prob: float = 0.3) -> Source:
    """Return balanced brackets of several kinds, nested ``max_depth`` deep at most, then the end for ever.

    Tokens: the openings 0 .. n - 1, the closings n .. 2n - 1, the end 2n. With nothing open it ends with ``end_prob``
    and opens otherwise; at the greatest depth it closes; in between it opens with ``open_prob``. Kinds are uniform.

    Raises:
        ValueError: a number is below 1.
    """
    _require_positive(num_kinds=num_kinds, max_depth=max_depth)
    stacks: list[tuple[int, ...]] = [()]
    for stack in stacks:  # breadth first: it grows while it is read
        if len(stack) < max_depth:
            stacks += [(*stack, kind) for kind in range(num_kinds)]
    place = {stack: index for index, stack in enumerate(stacks)}
    end_state, end_token = len(stacks), 2 * num_kinds
    edges = torch.zeros(end_token + 1, end_state + 1, end_state + 1, dtype=torch.float64)
    edges[end_token, end_state, end_state] = 1
    for stack, state in place.items():
        opening = 0.0 if len(stack) == max_depth else open_prob if stack else 1 - end_prob
        if stack:
            edges[num_kinds + stack[-1], state, place[stack[:-1]]] = 1 - opening
        else:
            edges[end_token, state, end_state] = 1 - opening
        for kind in range(num_kinds if opening else 0):
            edges[kind, state, place[(*stack, kind)]] = opening / num_kinds
    return Source(edges, _one_hot(0, end_state + 1))


def path_star(degree: int, length: int) -> Source:
    """Return the answers of a path-star graph to who does not know the goal: an arm is drawn, its nodes follow.

    Tokens are the nodes, arm by arm, without the centre, then the end for ever. The first node is log(degree) nats, the
    others none; for heads that average each depth is log(degree), and all of them right give an arm with probability
    degree^(2 - length) (Bachmann & Nagarajan 2024, https://arxiv.org/abs/2403.06963).
    """
    num_nodes = degree * (length - 1)
    edges = torch.zeros(num_nodes + 1, num_nodes + 2, num_nodes + 2, dtype=torch.float64)
    start_state = num_nodes + 1
    for arm in range(degree):
        nodes = range(arm * (length - 1), (arm + 1) * (length - 1))
        edges[nodes[0], start_state, nodes[0]] = 1 / degree
        for node, following in zip(nodes, [*nodes[1:], num_nodes], strict=True):
            edges[following, node, following] = 1
    edges[num_nodes, num_nodes, num_nodes] = 1
    return Source(edges, _one_hot(start_state, num_nodes + 2))


def token_mdp(mdp: TokenMDP, logits: Float[Tensor, "prefix vocab"]) -> Source:
    """Return the episodes of an MDP under a tabular policy; token ``vocab_size`` follows their end for ever."""
    num_prefixes, end = mdp.num_prefixes, mdp.vocab_size
    probs, ends = logits.double().softmax(dim=-1), mdp.ends()
    edges = torch.zeros(end + 1, num_prefixes + 1, num_prefixes + 1, dtype=torch.float64)
    edges[end, num_prefixes, num_prefixes] = 1
    prefixes = torch.arange(num_prefixes)
    for action in range(end):
        token = torch.full_like(prefixes, action)
        child = torch.where(ends[:, action], num_prefixes, mdp.child(prefixes, token))
        edges[action, prefixes, child] = probs[:, action]
    return Source(edges, _one_hot(0, num_prefixes + 1))


def text_rows(tokens: Int[Tensor, "sequence time"], prompt_length: int, symbols: Sequence[str]) -> list[dict[str, str]]:
    """Return rows with a prompt and an answer, as a file for ``env=data`` has them; token i is written ``symbols[i]``.

    Raises:
        ValueError: the prompt leaves no answer, or symbols are missing or not one character each.
    """
    if not 0 < prompt_length < tokens.shape[1]:
        raise ValueError(
            f"prompt_length={prompt_length} must lie in 1 .. {tokens.shape[1] - 1}, so that both have text."
        )
    if int(tokens.max()) >= len(symbols) or any(len(symbol) != 1 for symbol in symbols):
        raise ValueError(f"symbols={symbols!r} needs one character for each token up to {int(tokens.max())}.")
    texts = ["".join(symbols[token] for token in row) for row in tokens.tolist()]
    return [{"prompt": text[:prompt_length], "answer": text[prompt_length:]} for text in texts]


def _require_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name}={number} must be at least 1.")


def _sticky(size: int, stay: float) -> Float[Tensor, "size size"]:
    """Return stay * identity + (1 - stay) * uniform."""
    uniform = torch.full((size, size), 1 / size, dtype=torch.float64)
    return stay * torch.eye(size, dtype=torch.float64) + (1 - stay) * uniform


def _one_hot(place: int, size: int) -> Float[Tensor, " size"]:
    found = torch.zeros(size, dtype=torch.float64)
    found[place] = 1
    return found
