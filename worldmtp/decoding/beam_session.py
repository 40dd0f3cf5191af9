"""A session of parallel decoding with a beam: rows of texts, and one forward of the trunk over a tree of each.

    score     the heads fill a tree after each text, the trunk reads it and says how likely every path is
    follow    some rows go on along some of their paths; a row may be followed along several, or none

The trunk's features of a path's last token, from the forward that scored it, are what the next tree grows from: its
next-token distribution, and the root of the heads. So a round is one forward, as in ``DecodingSession``, and unlike
there no token waits to be read. Nothing here knows which paths are good, or where a text ends.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.decoding.beam_drafts import draft_candidates
from worldmtp.decoding.beam_tree import BeamTree, path_log_probs
from worldmtp.decoding.drafts import write_drafts
from worldmtp.decoding.policy import DecodingPolicy
from worldmtp.decoding.sampling import SamplingConfig
from worldmtp.decoding.text import CachedTexts, IntArray
from worldmtp.decoding.trunk import TrunkRunner
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures


@dataclass(frozen=True)
class Candidates:
    """The paths of a round: ``log_probs`` are of all of a path's tokens, given the row's text."""

    tree: BeamTree
    tokens: Int[Tensor, "row node"]
    log_probs: Float[Tensor, "row node"]


class BeamSession:
    """Rows are the texts that are followed; ``capacity`` counts their tokens and the nodes of a tree."""

    def __init__(self, model: MTPModel, runner: TrunkRunner, widths: tuple[int, ...], capacity: int) -> None:
        config = model.trunk.config.get_text_config()
        self._model = model
        self._policy = DecodingPolicy(SamplingConfig(), None)
        self._trees = [BeamTree(widths[:depth]) for depth in range(1, len(widths) + 1)]
        self.texts = CachedTexts(
            runner,
            config.num_hidden_layers,
            capacity,
            model.device,
            getattr(config, "max_position_embeddings", None),
        )
        self._roots: TrunkFeatures | None = None
        self._read: tuple[Candidates, TrunkFeatures] | None = None

    @property
    def max_depth(self) -> int:
        """Tokens of a path, at most."""
        return len(self._trees)

    @torch.no_grad()
    def prefill(self, input_ids: Int[Tensor, "row length"], attention_mask: Bool[Tensor, "row length"]) -> None:
        """Start over from prompts, wherever their padding is."""
        features = self.texts.prefill(input_ids, attention_mask)
        last = torch.from_numpy(self.texts.num_cached - 1).to(self.texts.device)
        self._roots = _at(features, torch.arange(len(last), device=last.device), last)

    @torch.no_grad()
    def score(self, num_depths: int, is_last: bool = False) -> Candidates:
        """Every path of up to ``num_depths`` tokens after every row's text.

        Of the last round nothing is followed: the paths' last tokens are scored, and not read. Where they are the
        only ones there is no forward at all.
        """
        assert self._roots is not None
        texts, tree = self.texts, self._trees[num_depths - 1]
        after = [self._log_probs(self._roots)]
        positions = torch.from_numpy(texts.num_cached - 1).to(texts.device)
        tokens = draft_candidates(self._model, tree, self._roots, after[0][:, 0], positions)
        num_read = tree.num_inner if is_last else tree.num_nodes
        features = None
        if num_read:
            features = texts.forward(
                tokens[:, :num_read],
                (tree.depths[:num_read] - 1).to(texts.device),
                tree.ancestors[:num_read, :num_read].to(texts.device),
            )
            # What follows the deepest nodes is asked for of those that are followed only.
            inner = features.map(lambda hidden: hidden[:, : tree.num_inner])
            after += self._log_probs(inner).split(tree.level_sizes[:-1], dim=1) if tree.num_inner else ()
        found = Candidates(tree, tokens, path_log_probs(tree, tokens, after))
        self._read = None if is_last or features is None else (found, features)
        return found

    @torch.no_grad()
    def follow(self, rows: IntArray, nodes: Int[Tensor, " followed"]) -> None:
        """Row i becomes row ``rows[i]`` with the path to ``nodes[i]``, one of the deepest, as text."""
        assert self._read is not None
        found, features = self._read
        texts, depth = self.texts, len(found.tree.widths)
        index = torch.from_numpy(rows).to(texts.device)
        path = found.tree.paths.to(texts.device)[nodes]
        texts.select(rows)
        write_drafts(texts, found.tokens[index].gather(1, path), num_before=-1)
        texts.accept_path(path, np.full(len(rows), depth))
        self._roots, self._read = _at(features, index, nodes), None

    def _log_probs(self, features: TrunkFeatures) -> Float[Tensor, "row place vocab"]:
        """Of the trunk's next token, in float32 at least."""
        logits = self._model.logits_of(features.post_norm)
        return self._policy.log_probs(self._policy.processed(logits, self.texts))


def _at(features: TrunkFeatures, rows: Int[Tensor, " followed"], places: Int[Tensor, " followed"]) -> TrunkFeatures:
    """One place of some rows each."""
    return features.map(lambda hidden: hidden[rows, places][:, None])
