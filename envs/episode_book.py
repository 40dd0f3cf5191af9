"""What a referee of random play writes down of every row, and holds infos against when its episode ends."""

from typing import Any

import numpy as np

from worldmtp.envs.tokenizer import Tokenizer, written_text

Observation = dict[str, np.ndarray]


class EpisodeBook:
    """Questions, returns and whose tokens are whose, by row, from the outside."""

    def __init__(self, tokenizer: Tokenizer, num_envs: int, length: int) -> None:
        self._tokenizer = tokenizer
        self._questions: list[dict[str, Any]] = [{} for _ in range(num_envs)]
        self.returns = np.zeros(num_envs)
        self._acted = np.zeros((num_envs, length), dtype=bool)

    def begin(self, infos: dict[str, Any], rows: np.ndarray) -> None:
        """These rows show a new prompt, told of in infos.

        Raises:
            AssertionError: if a question is told of another row or not told of one of these.
        """
        for key in ("prompt_text", "example_key", "group"):
            if key in infos:
                told = infos.get(f"_{key}", np.zeros(len(self.returns), dtype=bool))
                assert (told == np.isin(np.arange(len(told)), rows)).all(), (
                    f"infos tell {key} of rows {np.flatnonzero(told).tolist()}, by the mask _{key}; rows "
                    f"{rows.tolist()} were given a prompt."
                )
        for row in rows.tolist():
            self._questions[row] = {
                key: infos[key][row] for key in ("prompt_text", "example_key", "group") if key in infos
            }
        self.returns[rows] = 0.0
        self._acted[rows] = False

    def act(self, before: Observation, rows: np.ndarray, rewards: np.ndarray) -> None:
        """The policy wrote a token in these rows and was paid."""
        self._acted[rows, before["length"][rows, 0]] = True
        self.returns[rows] += rewards[rows]

    def end(self, row: int, final: Observation, told: dict[str, Any]) -> None:
        """See that what is told of an episode that ended is so.

        Raises:
            AssertionError: what is told, and what was seen.
        """
        info = {key: column[row] for key, column in told.items() if not key.startswith("_") and key != "components"}
        masks = {key: told.get(f"_{key}") for key in info}
        missing = [key for key, mask in masks.items() if mask is None or not mask[row]]
        assert not missing, f"row {row} ended, but the masks of final_info leave out its {missing}."
        score, paid = info["score"], self.returns[row]
        assert abs(score - paid) < 1e-9, f"row {row}: final_info says score {score}, paid in all was {paid}."
        for key, value in self._questions[row].items():
            assert info[key] == value, f"row {row}: final_info says {key} {info[key]!r}, it began with {value!r}."
        response = final["tokens"][int(final["prompt_length"][0]) : int(final["length"][0])]
        text, num_tokens = written_text(self._tokenizer, response.tolist()), int(self._acted[row].sum())
        assert info["text"] == text, f"row {row}: final_info says text {info['text']!r}, the row holds {text!r}."
        assert info["num_tokens"] == num_tokens, (
            f"row {row}: final_info says {info['num_tokens']} tokens, the policy wrote {num_tokens}."
        )
        if "acted" in info:
            assert (info["acted"] == self._acted[row]).all(), f"row {row}: final_info's acted is not what was acted."

    def reply(self, row: int, written: np.ndarray, reply: str, is_full: bool) -> None:
        """See that a reply is what stands in the row, as far as there was room for it.

        Raises:
            AssertionError: what is told, and what stands there.
        """
        told, seen = self._tokenizer.encode(reply), written.tolist()
        fits = told[: len(seen)] == seen and (is_full or len(told) == len(seen))
        assert fits, f"row {row}: infos say the reply {reply!r}, the row holds {self._tokenizer.decode(seen)!r}."
