"""``worldmtp envs play <id>``: a person is the policy, a line of the terminal an answer or a turn."""

from dataclasses import replace
from typing import Any

import numpy as np

from worldmtp.agents.policies import TrunkPolicy
from worldmtp.envs import TextVectorEnv
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
    examples = envs.dataset.draw(split, num_episodes, seed, "evaluation")
    scores = []
    for number, example in enumerate(examples, start=1):
        print(f"--- episode {number} of {num_episodes}, {split}, seed {seed}")
        policy = None if model is None else TrunkPolicy(model, temperature=1.0)
        final = _play_episode(envs, example, split, policy)
        if final is None:
            print("\nthe input has ended.")
            break
        _tell(final, example)
        scores.append(final["score"])
    if len(scores) > 1:
        print(f"--- mean score {np.mean(scores):.3f} of {len(scores)} episodes")


def _play_episode(
    envs: TextVectorEnv, example: Example, split: str, policy: TrunkPolicy | None
) -> dict[str, Any] | None:
    """Return what the environment said of the ended text; None where the input ended first.

    A turn is over when a person's line is written, or the environment writes, or the text ends.
    """
    obs, infos = envs.reset(options={"split": split, "group_size": 1, "prompts": [example]})
    print(example.prompt)
    eos_id, length = envs.tokenizer.eos_id, int(obs["length"][0, 0])
    line, written, reward = list[int](), list[int](), 0.0
    while True:
        if policy is not None:
            token = int(policy.act(obs, infos, None).actions[0])
        else:
            typed = [] if line else _read_ids(envs)
            if typed is None:
                return None
            line = line or [*typed, eos_id]
            token = line.pop(0)
        obs, rewards, _, is_truncated, infos = envs.step(np.array([token]))
        written, reward = [*written, token], reward + float(rewards[0])
        before, length = length, int(obs["length"][0, 0])
        has_reply, ended = length > before + 1, "final_info" in infos
        if not has_reply and not ended and (line or policy is not None):
            continue
        if policy is not None:
            print(f"policy> {envs.tokenizer.decode([one for one in written if one != eos_id])}")
        if has_reply:
            reply = envs.tokenizer.decode(obs["tokens"][0, before + 1 : length].tolist())
            print(reply if policy is None else f"world > {reply}")
        if isinstance(envs.task, TurnTask) or (policy is None and not ended):
            print(f"    reward {reward:.3f}")
        if bool(is_truncated[0]):
            print("    truncated: the room of the episode is used up")
        if ended:
            return _final_of(infos)
        line, written, reward = [], [], 0.0


def _final_of(infos: dict[str, Any]) -> dict[str, Any]:
    """Return the only row of the account of an ended text."""
    return {key: value if isinstance(value, dict) else value[0] for key, value in infos["final_info"].items()}


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
