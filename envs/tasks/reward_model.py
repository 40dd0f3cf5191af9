"""RewardModelTask: what a sequence classifier says of prompt and answer, as a probability.

A judge of text reads text: it has a tokenizer of its own, so here, and only here, what was generated is encoded again.
Nothing is learnt from those ids; the ids of the policy stay as they were sampled.

Left out: comparisons of two answers, and rewards of single tokens.
"""

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from worldmtp.choices import did_you_mean, env_settings
from worldmtp.envs.registry import make_task
from worldmtp.envs.task import Example, Score, Task
from worldmtp.envs.tokenizer import NO_TEXT, read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RewardModelTask:
    """Prompts of another task, worth what a checkpoint of ``AutoModelForSequenceClassification`` says of the answers.

    The value is a probability: the sigmoid of a single output, or what softmax gives ``label`` among several (the
    sigmoid again where the checkpoint's ``problem_type`` says that labels do not exclude one another).

    Args:
        checkpoint: directory of the model and its tokenizer, as ``save_pretrained`` writes it.
        prompts: where prompts come from: a task, or its name for ``make_task``, such as "Data".
        prompts_kwargs: what the named task is made with, such as ``{"path": "prompts.jsonl", "answer": None, ...}``.
        label: name or index of the label that is good; needed where there are several.
        template: how the judged text is made of ``{prompt}`` and ``{text}``.
        exact_from: the value from which an answer counts as solved.
        show_answers: whether answers of the prompts' task are shown as demonstrations. They are what that task calls
            right, and this one need not count them as solved.
        device: of the model.
        batch_size: answers judged at once. With 1 a value does not depend on what else is judged; more is faster, and
            equal but for rounding. A tokenizer without a padding token needs 1.
        max_length: tokens of a judged text; a longer one raises. None is no limit.
        probe_bound: the largest mean value that content-free text may earn; a judge promises nothing by itself.

    Raises:
        ValueError: if there is no checkpoint, it cannot be read or lacks weights, the label is missing or unknown, or
            an argument is out of range.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        prompts: str | Task | None = None,
        prompts_kwargs: Mapping[str, Any] | None = None,
        *,
        label: str | int | None = None,
        template: str = "{prompt}{text}",
        exact_from: float = 0.5,
        show_answers: bool = False,
        device: str = "cpu",
        batch_size: int = 1,
        max_length: int | None = None,
        probe_bound: float = 1.0,
    ) -> None:
        if checkpoint is None or prompts is None:
            needed = {"task_kwargs.checkpoint": "path/to/model", "task_kwargs.prompts": "<task>"}
            raise ValueError(f"a reward model needs a checkpoint and the task of its prompts: {env_settings(needed)}.")
        if batch_size < 1 or (max_length is not None and max_length < 1):
            raise ValueError(f"batch_size={batch_size} and max_length={max_length} must be positive.")
        if {name for _, name, _, _ in string.Formatter().parse(template) if name is not None} != {"prompt", "text"}:
            raise ValueError(f"template={template!r} must name {{prompt}} and {{text}}, and nothing else.")
        self.checkpoint, self.template, self.device = str(checkpoint), template, device
        self.exact_from, self.show_answers, self.probe_bound = exact_from, show_answers, probe_bound
        self.batch_size, self.max_length = batch_size, max_length
        self._label, self._is_exclusive = _read_label(self.checkpoint, label)
        read_tokenizer(self.checkpoint)
        _read_classifier(self.checkpoint, device_map="meta")  # names and shapes: a score that raises would pay 0
        self._prompts = make_task(prompts, prompts_kwargs)
        self.universe_size = getattr(self._prompts, "universe_size", None)
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the model: a scoring process loads its own."""
        return {**self.__dict__, "_loaded": None}

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """A prompt of the other task."""
        example = self._prompts.sample(rng, split)
        answer = example.answer if self.show_answers else None
        return Example(prompt=example.prompt, answer=answer, meta=example.meta, hidden=example.hidden)

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """The probability that the answer is good; ``ids`` are the policy's and not looked at."""
        return self.score_batch([(example, text, ids)])[0]

    def score_batch(self, answers: Sequence[tuple[Example, str, np.ndarray]]) -> list[Score]:
        """Of several answers, in order; one that holds a special token, or spells one of the judge's, is worth 0.

        Raises:
            ValueError: if a text has no tokens or more than ``max_length``, or cannot be padded, or a prompt spells a
                special token.
        """
        texts = [self.template.format(prompt=example.prompt, text=text) for example, text, _ in answers]
        plain = [
            index
            for index, (text, (example, said, _)) in enumerate(zip(texts, answers, strict=True))
            if NO_TEXT not in said and not self._spells_special(text, example.prompt)
        ]
        scores = [Score(0.0, reason="special_token")] * len(texts)
        for first in range(0, len(plain), self.batch_size):
            chosen = plain[first : first + self.batch_size]
            for index, value in zip(chosen, self._probabilities([texts[index] for index in chosen]), strict=True):
                scores[index] = Score(value=value, exact=value >= self.exact_from)
        return scores

    def _spells_special(self, text: str, prompt: str) -> bool:
        """Whether a judged text spells a special token that the template does not: a border that is the judge's own."""
        _, tokenizer = self._load()
        marked = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        template = self.template.format(prompt="", text="")
        for token in marked.union(tokenizer.all_special_tokens):
            if token in prompt:
                raise ValueError(
                    f"the prompt {prompt!r} spells {token!r}, a special token of {self.checkpoint!r}, which would read "
                    "it as a border; leave it out of the prompts, or put it into the template."
                )
            if text.count(token) > template.count(token):
                return True
        return False

    def _probabilities(self, texts: list[str]) -> list[float]:
        import torch

        model, tokenizer = self._load()
        if len(texts) > 1 and tokenizer.pad_token is None:
            raise ValueError(f"the tokenizer of {self.checkpoint!r} has no padding token; set batch_size=1.")
        inputs = tokenizer(texts, padding=len(texts) > 1, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        if length == 0 or (self.max_length is not None and length > self.max_length):
            raise ValueError(f"a judged text has {length} tokens; expected 1..{self.max_length or 'any number'}.")
        with torch.inference_mode():
            logits = model(**inputs.to(self.device)).logits.double()
        probs = logits.softmax(dim=-1) if self._is_exclusive else logits.sigmoid()
        result: list[float] = probs[:, self._label].tolist()
        return result

    def _load(self) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
        if self._loaded is None:
            model = _read_classifier(self.checkpoint).to(self.device).eval()
            tokenizer = read_tokenizer(self.checkpoint)
            # Decoders find the last token of a row by its padding, which must be theirs and on the right.
            tokenizer.padding_side = "right"
            model.config.pad_token_id = tokenizer.pad_token_id
            self._loaded = (model, tokenizer)
        return self._loaded


def _read_classifier(checkpoint: str, **how: Any) -> Any:
    """Return the model, all of whose weights are the checkpoint's: a head drawn at random would judge at random."""
    from transformers import AutoModelForSequenceClassification

    from worldmtp.model.guards import check_weights_loaded  # torch, which a task of another kind does without

    how |= {"local_files_only": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(checkpoint, **how)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the reward model in {checkpoint!r} cannot be read: {error} Put the files there that "
            "model.save_pretrained writes, of a model for sequence classification."
        ) from error
    model, info = loaded
    check_weights_loaded(model, info, checkpoint)
    return model


def _read_label(checkpoint: str, label: str | int | None) -> tuple[int, bool]:
    """The index of the good label, and whether labels exclude one another."""
    if not (Path(checkpoint) / "config.json").is_file():
        raise ValueError(
            f"checkpoint={checkpoint!r} is no directory with a config.json; save one with model.save_pretrained and "
            "tokenizer.save_pretrained."
        )
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if len(names) == 1 and label in (None, 0, names[0]):
        return 0, False
    index = names.index(label) if label in names else label
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(names):
        raise ValueError(
            f"label={label!r} of {checkpoint!r}: say which label is good{did_you_mean(label, names)} "
            f"Its labels: {names}."
        )
    return index, config.problem_type != "multi_label_classification"
