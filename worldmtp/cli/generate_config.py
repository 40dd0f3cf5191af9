"""What ``worldmtp generate`` is asked to do, checked before torch is loaded."""

from dataclasses import dataclass
from pathlib import Path

from worldmtp.choices import check_choice

AUTO = "auto"
DRAFTS = ("none", "mtp", "tree", "lookup", "model")


@dataclass(frozen=True)
class GenerateConfig:
    """What the command line asks for; None where the model decides. ``temperature`` 0 is greedy.

    Raises:
        ValueError: values out of range, or options that do not go together.
    """

    draft: str | None = None
    draft_model: Path | None = None
    num_draft: int | str | None = None
    tree: tuple[int, ...] | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    explain: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        if self.draft is not None:
            check_choice("--draft", self.draft, DRAFTS)
        if self.temperature < 0:
            raise ValueError(f"--temperature {self.temperature} must be at least 0, which takes the likeliest tokens.")
        if self.temperature == 0 and (self.top_k, self.top_p) != (0, 1.0):
            raise ValueError(
                f"--top-k {self.top_k} and --top-p {self.top_p} matter where tokens are drawn, and --temperature 0 "
                "takes the likeliest; give a temperature above 0, or leave them out."
            )
        if self.tree is not None and self.draft != "tree":
            raise ValueError(f"--tree goes with --draft tree, not with --draft {self.draft}.")
        if (self.draft_model is not None) != (self.draft == "model"):
            raise ValueError(
                f"--draft {self.draft} with --draft-model {self.draft_model}: a model that drafts is given by both, "
                "--draft model --draft-model PATH."
            )
        if self.num_draft is not None and self.draft in ("none", "tree"):
            instead = "nothing is drafted" if self.draft == "none" else "--tree has a number for each token ahead"
            raise ValueError(f"--num-draft {self.num_draft} with --draft {self.draft}: {instead}; leave it out.")
        if self.explain and self.num_draft == AUTO:
            raise ValueError("--explain shows a draft's steps, and --num-draft auto times rounds; give a number.")
        if self.explain and self.draft == "none":
            raise ValueError("--explain shows drafts and what became of them, and --draft none makes none.")
