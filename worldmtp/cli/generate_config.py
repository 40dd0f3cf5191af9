"""What ``worldmtp generate`` is asked to do, checked before torch is loaded."""

from dataclasses import dataclass
from pathlib import Path

from worldmtp.agents.search_config import SCALES, ActingSearch
from worldmtp.choices import check_choice
from worldmtp.search.config import SearchConfig

AUTO = "auto"
DRAFTS = ("none", "mtp", "tree", "lookup", "model")
DEFAULT_BATCH_SIZE = 32
DEFAULT_SIMULATIONS = 32
DEFAULT_WIDTH = 16
SEARCHES = ("gumbel", "puct")
SEARCHED_DYNAMICS = ("mtp", "oracle")


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
    three_phase: bool = False
    beam: int | None = None
    widths: tuple[int, ...] | None = None
    search: str | None = None
    simulations: int | None = None
    dynamics: str | None = None
    depth: int | None = None
    width: int | None = None
    scale: str | None = None
    gamma: float | None = None
    commit: int | None = None
    tree_html: Path | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    batch_size: int = DEFAULT_BATCH_SIZE
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    explain: bool = False
    json: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch-size {self.batch_size} must be at least 1 prompt at a time.")
        if "" in self.stop:
            raise ValueError("--stop '' is in every text and would end it at once; give some text.")
        self._check_sampling()
        self._check_drafts()
        self._check_search()
        if self.beam is not None or self.widths is not None:
            self._check_beam()
        if self.explain and self.search is None:
            self._check_explain()

    @property
    def acting_search(self) -> ActingSearch:
        """The search that is asked for; only where there is one."""
        assert self.search is not None  # asked for
        tree = SearchConfig(
            self.simulations or DEFAULT_SIMULATIONS, self.depth, self.width or DEFAULT_WIDTH, self.gamma
        )
        return ActingSearch(self.search, self.dynamics or "mtp", tree, self.scale or ActingSearch.scale)

    def _check_sampling(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"--temperature {self.temperature} must be at least 0, which takes the likeliest tokens.")
        if self.temperature == 0 and (self.top_k, self.top_p) != (0, 1.0):
            raise ValueError(
                f"--top-k {self.top_k} and --top-p {self.top_p} matter where tokens are drawn, and --temperature 0 "
                "takes the likeliest; give a temperature above 0, or leave them out."
            )

    def _check_drafts(self) -> None:
        if self.draft is not None:
            check_choice("--draft", self.draft, DRAFTS)
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
        if self.three_phase and (self.draft in ("none", "tree") or self.num_draft == AUTO or self.temperature > 0):
            raise ValueError(
                "--three-phase is greedy decoding with chains of drafts; leave out --temperature, --tree, --draft none "
                "and --num-draft auto."
            )

    def _check_beam(self) -> None:
        if self.beam is None:
            raise ValueError("--widths are candidates of a beam; say how many texts it keeps, --beam N.")
        if self.beam < 1:
            raise ValueError(f"--beam {self.beam} must keep at least 1 text.")
        self._refuse(
            "--beam searches for likely texts by the trunk's own probabilities",
            *("--draft", "--num-draft", "--three-phase", "--stop", "--temperature", "--repetition-penalty"),
        )

    def _check_search(self) -> None:
        given = {
            "--simulations": self.simulations,
            "--dynamics": self.dynamics,
            "--depth": self.depth,
            "--width": self.width,
            "--scale": self.scale,
            "--gamma": self.gamma,
            "--commit": self.commit,
            "--tree-html": self.tree_html,
        }
        if self.search is None:
            for name, value in given.items():
                if value is not None:
                    raise ValueError(f"{name} {value} belongs to a search; add --search gumbel or --search puct.")
            return
        check_choice("--search", self.search, SEARCHES)
        if self.dynamics is not None:
            check_choice("--dynamics", self.dynamics, SEARCHED_DYNAMICS)
        if self.scale is not None:
            check_choice("--scale", self.scale, SCALES)
        for name in ("--simulations", "--depth", "--width", "--commit"):
            value = given[name]
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} {value} must be at least 1.")
        _ = self.acting_search  # its config refuses a discount outside (0, 1]
        self._refuse(
            "--search plans every token by the model's own values",
            *("--draft", "--num-draft", "--beam", "--three-phase", "--stop", "--top-k or --top-p"),
            *("--repetition-penalty", "--explain beside --json"),
        )

    def _check_explain(self) -> None:
        if self.num_draft == AUTO:
            raise ValueError("--explain shows a draft's steps, and --num-draft auto times rounds; give a number.")
        if self.draft == "none":
            raise ValueError("--explain shows drafts and what became of them, and --draft none makes none.")
        self._refuse("--explain shows the rounds of one prompt", "--json", "--stop", "--beam", "--three-phase")

    def _refuse(self, purpose: str, *names: str) -> None:
        """Raise if options were given that the purpose has no use for."""
        is_given = {
            "--draft": self.draft is not None,
            "--num-draft": self.num_draft is not None,
            "--beam": self.beam is not None,
            "--three-phase": self.three_phase,
            "--stop": bool(self.stop),
            "--temperature": self.temperature > 0,
            "--top-k or --top-p": (self.top_k, self.top_p) != (0, 1.0),
            "--repetition-penalty": self.repetition_penalty != 1,
            "--json": self.json,
            "--explain beside --json": self.explain and self.json,
        }
        given = [name for name in names if is_given[name]]
        if given:
            raise ValueError(
                f"{purpose}, and has no use for {', '.join(given)}; leave {'it' if len(given) == 1 else 'them'} out."
            )
