"""``worldmtp envs play <id>``: a person is the policy, a line of the terminal an answer or a turn."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from worldmtp.agents.policies import TrunkPolicy
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.dataset import draw_examples
from worldmtp.envs.task import Example, TurnTask
from worldmtp.model import MTPModel
from worldmtp.training.config import EnvConfig
from worldmtp.training.make import check_fits, make_env


def play_env(env: EnvConfig, split: str, num_episodes: int, seed: int, model: MTPModel | None = None) -> None:
    """Ask, read lines and tell what they earned, until the episodes are over or the input is.

    A model plays in the person's place, greedily; what it writes and what the world replies are set apart.

    Raises:
        ValueError: the environment cannot be made, the split cannot be filled, or the model does not fit.
    """
    # What is asked is drawn here; the pool, which every environment has, may be small.
    envs = make_env(replace(env, kwargs={"pool_size": 1} | env.kwargs), 1)
    if model is not None:
        check_fits(model.config, envs)
        model.limit_tokens(envs.tokenizer.vocab_size)
    examples = draw_examples(
        envs.task, split, num_episodes, seed, purpose="evaluation", heldout_fraction=envs.dataset.heldout_fraction
    )
    scores = []
    for number, example in enumerate(examples, start=1):
        print(f"--- episode {number} of {num_episodes}, {split}, seed {seed}")
        watched = None if model is None else TrunkPolicy(model, temperature=1.0)
        final = (
            _play_episode(envs, example, split) if watched is None else _watch_episode(envs, example, split, watched)
        )
        if final is None:
            print("\nthe input has ended.")
            break
        _tell(final, example)
        scores.append(final["score"])
    if len(scores) > 1:
        print(f"--- mean score {np.mean(scores):.3f} of {len(scores)} episodes")


@dataclass(frozen=True)
class _Turn:
    """What came of a line; ``reply`` is None where nothing was written behind it, ``final`` until the text ends."""

    reward: float
    reply: str | None
    truncated: bool
    final: dict[str, Any] | None


def _play_episode(envs: TextVectorEnv, example: Example, split: str) -> dict[str, Any] | None:
    """Return what the environment said of the ended text; None where the input ended first."""
    obs, _ = envs.reset(options={"split": split, "group_size": 1, "prompts": [example]})
    print(example.prompt)
    length = int(obs["length"][0, 0])
    while (ids := _read_ids(envs)) is not None:
        turn, length = _take_turn(envs, [*ids, envs.tokenizer.eos_id], length)
        if turn.reply is not None:
            print(turn.reply)
        if turn.final is None or isinstance(envs.task, TurnTask):
            print(f"    reward {turn.reward:.3f}")
        if turn.truncated:
            print("    truncated: the room of the episode is used up")
        if turn.final is not None:
            return turn.final
    return None


def _watch_episode(envs: TextVectorEnv, example: Example, split: str, policy: TrunkPolicy) -> dict[str, Any] | None:
    """Return what the environment said of the text that the policy ended."""
    obs, infos = envs.reset(options={"split": split, "group_size": 1, "prompts": [example]})
    print(example.prompt)
    written: list[int] = []
    length, reward = int(obs["length"][0, 0]), 0.0
    while True:
        token = int(policy.act(obs, infos, None).actions[0])
        obs, rewards, _, is_truncated, infos = envs.step(np.array([token]))
        written, reward = [*written, token], reward + float(rewards[0])
        before, length = length, int(obs["length"][0, 0])
        ended = "final_info" in infos
        if length <= before + 1 and not ended:
            continue
        text = envs.tokenizer.decode([one for one in written if one != envs.tokenizer.eos_id])
        print(f"policy> {text}")
        if length > before + 1:
            print(f"world > {envs.tokenizer.decode(obs['tokens'][0, before + 1 : length].tolist())}")
        if isinstance(envs.task, TurnTask):
            print(f"    reward {reward:.3f}")
        if bool(is_truncated[0]):
            print("    truncated: the room of the episode is used up")
        if ended:
            return _final_of(infos)
        written, reward = [], 0.0


def _final_of(infos: dict[str, Any]) -> dict[str, Any]:
    """Return the only row of the account of an ended text."""
    return {key: value if isinstance(value, dict) else value[0] for key, value in infos["final_info"].items()}


def _take_turn(envs: TextVectorEnv, ids: list[int], length: int) -> tuple[_Turn, int]:
    """Write tokens until they are all written, the environment writes, or the text ends; and the row's length then."""
    reward, reply, final, truncated = 0.0, None, None, False
    for token in ids:
        obs, rewards, _, is_truncated, infos = envs.step(np.array([token]))
        before, length = length, int(obs["length"][0, 0])
        reward, truncated = reward + float(rewards[0]), bool(is_truncated[0])
        if length > before + 1:
            reply = envs.tokenizer.decode(obs["tokens"][0, before + 1 : length].tolist())
        if "final_info" in infos:
            final = _final_of(infos)
        if reply is not None or final is not None:
            break
    return _Turn(reward, reply, truncated, final), length


def _read_ids(envs: TextVectorEnv) -> list[int] | None:
    """Return the tokens of the next line that can be written; None at the end of the input."""
    while True:
        try:
            line = input("> ")
        except EOFError:
            return None
        try:
            return envs.tokenizer.encode(line.replace("\\n", "\n"))
        except ValueError as error:
            print(f"    {error}")


def _tell(final: dict[str, Any], example: Example) -> None:
    """Print the account of an ended episode."""
    print(f"score {final['score']:.3f}, {'solved' if final['exact'] else 'not solved'}, reason: {final['reason']}")
    components = {name: values[0] for name, values in final["components"].items() if not name.startswith("_")}
    if components:
        print("components: " + ", ".join(f"{name} {value:g}" for name, value in components.items()))
    print("the task shows no answer." if example.answer is None else f"an answer: {example.answer}")
