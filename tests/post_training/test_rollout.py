"""Episodes as TRL takes them, played by a stub of its trainer; no trl here. Ids: pad 0, EOS 1, a 2 .. d 5, = 6."""

from types import SimpleNamespace

import gymnasium
import pytest
import torch

from worldmtp.envs import Example, Score, TextGenVectorEnv, VectorActionMask, VectorEpisodeRecorder, read_episodes
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.post_training import TextGenRollout, env_reward


class Parrot:
    """Opens with "=", repeats what it was told in two turns, and pays 1/2 for each that begins with its letter."""

    def reset(self, seed):
        self._letter, self._turns = "abcd"[seed % 4], 0
        return "=", {}

    def step(self, text):
        self._turns += 1
        return text[:1] + "=", 0.5 * text.startswith(self._letter), self._turns == 2, False, {}


class Coin:
    """Opens with "="; the first reply is a or b, as the dice or else the seed say, and the second one the last."""

    has_dice = True

    def reset(self, seed):
        self._side, self._turns = "ab"[seed % 2], 0
        return "=", {}

    def throw_dice(self, seed):
        self._side = "ab"[seed % 2]

    def step(self, text):
        self._turns += 1
        return self._side, 0.0, self._turns == 2, False, {}


class FirstLetter:
    """Prompt: two letters and "=". The answer is the first of them, then EOS; exactly that is paid."""

    def sample(self, rng, split):
        letters = "".join(rng.choice(list("abcd"), size=2))
        return Example(f"{letters}=", letters[0])

    def score(self, example, text, ids):
        return Score(float(text == example.answer), exact=text == example.answer)


class Accelerator:
    process_index = 0

    def unwrap_model(self, model):
        return model


def make_trainer(model, **args):
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
    return SimpleNamespace(
        model=model,
        accelerator=Accelerator(),
        args=SimpleNamespace(**(sampling | {"generation_kwargs": None} | args)),
        state=SimpleNamespace(global_step=0),
    )


def make_conversations(num_envs, world=Parrot, **options):
    return TextGenVectorEnv(
        num_envs,
        autoreset_mode="disabled",
        task=WorldTask(world, **options),
        tokenizer={"kind": "char", "alphabet": "abcd="},
        max_prompt=1,
        max_new=10,
        max_turn=2,
        pool_size=8,
    )


@pytest.fixture
def text_env():
    """Makes rows of prompts of three tokens and answers of up to three."""
    return lambda num_envs: TextGenVectorEnv(
        num_envs,
        autoreset_mode="disabled",
        task=FirstLetter(),
        tokenizer={"kind": "char", "alphabet": "abcd="},
        max_prompt=3,
        max_new=3,
        pool_size=8,
        pool_seed=1,
        heldout_fraction=0.25,
    )


@pytest.fixture
def trunk(tiny_trunk):
    return tiny_trunk("llama", vocab_size=7).train()


def teacher_forced(trunk, prompt_ids, completion_ids, temperature=1.0):
    """Log-probabilities of a completion by one plain forward of the model."""
    ids = torch.tensor([prompt_ids + completion_ids])
    with torch.no_grad():
        log_policy = (trunk(ids).logits[0].double() / temperature).log_softmax(-1)
    return [float(log_policy[len(prompt_ids) + t - 1, token]) for t, token in enumerate(completion_ids)]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_answers(text_env, trunk, tmp_path, temperature):
    """Six prompts in rows of four, repeated as TRL repeats them: the last rows play twice and count once."""
    envs = VectorEpisodeRecorder(text_env(4), tmp_path / "episodes.jsonl")
    rollout = TextGenRollout(envs, seed=5)
    rows = rollout.rows("train", 3, seed=0)
    prompts = [row["prompt"] for row in rows for _ in range(2)]
    played = rollout(prompts, make_trainer(trunk, temperature=temperature))
    assert [envs.tokenizer.decode(ids) for ids in played["prompt_ids"]] == prompts
    assert all(len(column) == 6 for column in played.values())
    assert all(mask == [1] * len(ids) for mask, ids in zip(played["env_mask"], played["completion_ids"], strict=True))
    # The same ids were scored: the answer is the prompt's first letter, and EOS alone is no text.
    letters = dict(zip("abcd", range(2, 6), strict=True))
    by_hand = [
        float([token for token in ids if token != 1] == [letters[prompt[0]]])
        for prompt, ids in zip(prompts, played["completion_ids"], strict=True)
    ]
    assert played["env_reward"] == by_hand
    assert sum(by_hand) > 0
    assert played["env_exact"] == [reward == 1.0 for reward in by_hand]
    lines = read_episodes(tmp_path / "episodes.jsonl")
    assert len(lines) == 8
    assert sorted(played["completion_ids"])[0] in [line["ids"] for line in lines]
    for prompt_ids, ids, logprobs in zip(
        played["prompt_ids"], played["completion_ids"], played["logprobs"], strict=True
    ):
        # Both in float32, by other orders of summation.
        assert logprobs == pytest.approx(teacher_forced(trunk, prompt_ids, ids, temperature), abs=1e-5)


def test_conversations(trunk):
    """Prompt "=", then twice: a turn of two tokens or to EOS, and the parrot's reply of its first letter and "="."""
    envs = make_conversations(4)
    rollout = TextGenRollout(envs, seed=5)
    rows = rollout.rows("train", 3, seed=0)
    assert [row["prompt"] for row in rows] == [f"= [{row['example_key']}]" for row in rows]
    played = rollout([row["prompt"] for row in rows], make_trainer(trunk))
    assert played["prompt_ids"] == [[6]] * 3
    worlds = {example.key: example.meta["seed"] for example in envs.examples("train", 3, 0)}
    num_replies = 0
    for row, ids, mask, logprobs, reward, paid in zip(
        rows,
        *[played[key] for key in ("completion_ids", "env_mask", "logprobs", "env_reward", "token_rewards")],
        strict=True,
    ):
        expected_mask, expected_paid, by_hand, at = [], [], 0.0, 0
        letter = "abcd"[worlds[row["example_key"]] % 4]
        for _ in range(2):
            turn = ids[at : at + 1] if ids[at] == 1 else ids[at : at + 2]
            text = envs.tokenizer.decode(turn)
            reply = envs.tokenizer.encode(text[:1] + "=")
            by_hand += 0.5 * text.startswith(letter)
            assert ids[at + len(turn) : at + len(turn) + len(reply)] == reply
            expected_mask += [1] * len(turn) + [0] * len(reply)
            expected_paid += [0.0] * (len(turn) - 1) + [0.5 * text.startswith(letter)] + [0.0] * len(reply)
            at += len(turn) + len(reply)
            num_replies += 1
        assert (len(ids), mask, reward, paid) == (at, expected_mask, by_hand, expected_paid)
        truth = teacher_forced(trunk, [6], ids)
        assert logprobs == pytest.approx([m * p for m, p in zip(mask, truth, strict=True)], abs=1e-5)
    assert num_replies == 6
    assert played["env_truncated"] == [False] * 3


def test_draws_depend_on_seed_step_call_and_process_only(text_env, trunk):
    def draw(seed=0, step=0, process=0, skip=0):
        rollout = TextGenRollout(text_env(4), seed)
        prompts = [row["prompt"] for row in rollout.rows("train", 4, seed=0)] * 4
        trainer = make_trainer(trunk)
        trainer.state.global_step, trainer.accelerator.process_index = step, process
        for _ in range(skip):
            rollout(prompts, trainer)
        return rollout(prompts, trainer)["completion_ids"]

    first = draw()
    assert draw() == first
    assert all(draw(**other) != first for other in ({"seed": 1}, {"step": 1}, {"process": 1}, {"skip": 1}))
    assert draw(skip=1) == draw(skip=1)


def test_an_evaluation_does_not_move_the_draws_of_training(text_env, trunk):
    """A run resumed at its step does not evaluate there again."""

    def draws(*modes):
        rollout = TextGenRollout(text_env(4), seed=0)
        prompts = [row["prompt"] for row in rollout.rows("train", 4, seed=0)] * 4
        trainer = make_trainer(trunk)
        return [rollout(prompts, trainer)["completion_ids"] for mode in modes if trunk.train(mode) is trunk]

    straight, resumed = draws(False, True, False, True), draws(True, True)
    assert straight[1::2] == resumed
    assert len({str(drawn) for drawn in straight}) == 4  # nor do the two draw alike


def test_each_episode_has_dice_of_its_own(trunk):
    def sides(seed, **options):
        rollout = TextGenRollout(make_conversations(4, Coin, **options), seed)
        prompts = [rollout.rows("train", 1, seed=0)[0]["prompt"]] * 16  # a group of TRL's
        played = rollout(prompts, make_trainer(trunk))
        replies = zip(played["completion_ids"], played["env_mask"], strict=True)
        return [next(token for token, acted in zip(*one, strict=True) if not acted) for one in replies]

    assert set(sides(seed=0)) == {2, 3}  # all alike by chance: 2 ** -15
    assert sides(seed=0) == sides(seed=0) != sides(seed=1)
    assert len(set(sides(seed=0, dice="start"))) == 1  # where luck belongs to the start, a group shares it


def test_the_model_is_left_as_it_was(text_env, trunk):
    trunk.train()
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    rollout = TextGenRollout(text_env(4), seed=0)
    prompts = [row["prompt"] for row in rollout.rows("train", 2, seed=0)]
    rollout(prompts, make_trainer(trunk))
    assert trunk.training
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in trunk.parameters())
    with torch.no_grad():
        trunk.get_input_embeddings().weight.mul_(-3.0)  # a training step
    played = rollout(prompts, make_trainer(trunk))
    trunk.eval()
    for prompt_ids, ids, logprobs in zip(
        *[played[key] for key in ("prompt_ids", "completion_ids", "logprobs")], strict=True
    ):
        assert logprobs == pytest.approx(teacher_forced(trunk, prompt_ids, ids), abs=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"top_p": 0.9}, r"the trainer samples with \{'top_p': 0.9\}"),
        ({"top_k": 5, "repetition_penalty": 1.1}, r"\{'top_k': 5, 'repetition_penalty': 1.1\}"),
        ({"generation_kwargs": {"min_new_tokens": 2}}, "min_new_tokens"),
    ],
)
def test_other_samplings_are_refused(text_env, trunk, args, message):
    rollout = TextGenRollout(text_env(2), seed=0)
    prompts = [row["prompt"] for row in rollout.rows("train", 2, seed=0)]
    with pytest.raises(ValueError, match=message):
        rollout(prompts, make_trainer(trunk, **args))


def test_sharded_weights_are_refused(text_env, trunk):
    rollout = TextGenRollout(text_env(2), seed=0)
    trainer = make_trainer(trunk)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="the model's weights are sharded"):
        rollout([rollout.rows("train", 1, seed=0)[0]["prompt"]], trainer)


def test_what_cannot_be_played_is_refused(text_env, trunk):
    rollout = TextGenRollout(text_env(2), seed=0)
    with pytest.raises(ValueError, match=r"the prompt 'zz=' is none of the 0 that rows\(\) gave"):
        rollout(["zz="], make_trainer(trunk))
    envs = gymnasium.make_vec("worldmtp/Copy-v0", 2)
    with pytest.raises(ValueError, match="autoreset_mode=SAME_STEP would mix episodes"):
        TextGenRollout(envs, seed=0)


@pytest.mark.parametrize("num_rows", [6, 9])
def test_another_vocabulary_is_refused_before_anything_is_played(text_env, tiny_trunk, num_rows):
    """A padded one too: TRL's loss is over all of it, the environment takes 7 ids."""
    rollout = TextGenRollout(text_env(2), seed=0)
    prompt = rollout.rows("train", 1, seed=0)[0]["prompt"]
    message = rf"tokenizer has 7 ids and the model a vocabulary of {num_rows}; .*resize_token_embeddings\(7\)"
    with pytest.raises(ValueError, match=message):
        rollout([prompt], make_trainer(tiny_trunk("llama", vocab_size=num_rows)))


def test_the_reward_function_hands_on():
    assert env_reward(["p"], ["c"], [[1]], env_reward=[0.25], env_exact=[False]) == [0.25]
    with pytest.raises(ValueError, match="there is no field 'env_reward'; pass rollout_func"):
        env_reward(["p"], ["c"], [[1]])


def test_a_mask_that_trls_loss_knows_nothing_of_is_refused(text_env, trunk):
    rollout = TextGenRollout(VectorActionMask(text_env(2), alphabet="ab"), seed=0)
    prompts = [row["prompt"] for row in rollout.rows("train", 2, seed=0)]
    with pytest.raises(ValueError, match="the environment masks actions, and TRL's loss takes its softmax over all"):
        rollout(prompts, make_trainer(trunk))


class Later:
    """One prompt; the answer is a or b, by the parity of a draw."""

    def sample(self, rng, split):
        return Example("a=", "ab"[int(rng.integers(2))])

    def score(self, example, text, ids):
        return Score(float(text == example.answer))


def test_two_questions_of_one_prompt_are_refused():
    env = TextGenVectorEnv(
        2, autoreset_mode="disabled", task=Later(), tokenizer="char:ab=", max_prompt=2, max_new=2, heldout_fraction=0.0
    )
    answers = {seed: env.examples("train", 1, seed)[0].answer for seed in range(20)}
    rollout = TextGenRollout(env, seed=0)
    rollout.rows("train", 1, seed=next(seed for seed, answer in answers.items() if answer == "a"))
    with pytest.raises(ValueError, match=r"answer='b'.* has the prompt of .*answer='a'.* and is another question"):
        rollout.rows("train", 1, seed=next(seed for seed, answer in answers.items() if answer == "b"))
