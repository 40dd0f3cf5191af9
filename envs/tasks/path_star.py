"""PathStar: the smallest task whose first token asks for a plan, and whose later tokens give the plan away.

Arms of equal length leave one start; the edges come shuffled, and the answer is the arm that ends in the goal. Trained
on next tokens with the true prefix, a model learns to follow edges (each next node is a look-up from the node before)
and guesses the first: it walks a whole arm, the right one in 1 of ``degree`` texts. Bachmann and Nagarajan 2024, "The
pitfalls of next-token prediction", https://arxiv.org/abs/2403.06963, section 4.

We differ in the text: one character a node, no separators inside the prompt, and the answer leaves out the start, which
the prompt has just named. Left out: the reversed answer and the teacherless prompt of the paper.
"""

import string
from itertools import pairwise

import numpy as np
from jaxtyping import Int64

from worldmtp.envs.task import Example, Score
from worldmtp.envs.tasks.strings import check_reward, position_match

NODE_NAMES = string.ascii_lowercase + string.ascii_uppercase + string.digits
"""Characters a node can be called by; a graph uses the first ``num_names`` of them."""


class PathStar:
    """Walk from the start to the goal: ``"bcadabde" + "ae" + "=" -> "de"``, the arms being a-b-c and a-d-e.

    Args:
        degree: arms of the star.
        length: nodes of a path, start and goal included.
        num_names: the names are drawn anew for each graph from the first ``num_names`` of ``NODE_NAMES``.
        reward: "exact" pays 1 or 0, "score" the share of right positions.
        separator: what ends the prompt.

    Raises:
        ValueError: if there is no choice (degree or length too small), the names do not suffice for the nodes, or the
            reward is unknown.
    """

    def __init__(
        self, degree: int = 2, length: int = 5, num_names: int = 9, reward: str = "exact", separator: str = "="
    ) -> None:
        if degree < 2 or length < 3:
            raise ValueError(f"expected degree >= 2 and length >= 3, got {degree} and {length}: nothing to choose.")
        num_nodes = 1 + degree * (length - 1)
        if not num_nodes <= num_names <= len(NODE_NAMES):
            raise ValueError(
                f"num_names={num_names} must lie in {num_nodes}..{len(NODE_NAMES)}: "
                f"{degree} arms of {length} nodes that share the start are {num_nodes} nodes."
            )
        check_reward(reward)
        self.degree, self.length, self.num_names = degree, length, num_names
        self.reward, self.separator = reward, separator
        self.probe_bound = 0.0 if reward == "exact" else 0.2

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """A graph with fresh names, its edges in random order, and one of its arms asked for."""
        num_nodes = 1 + self.degree * (self.length - 1)
        names = "".join([NODE_NAMES[index] for index in rng.permutation(self.num_names)[:num_nodes]])
        start, width = names[0], self.length - 1
        arms = [names[first : first + width] for first in range(1, num_nodes, width)]
        edges = [source + target for arm in arms for source, target in pairwise(start + arm)]
        shuffled = "".join([edges[index] for index in rng.permutation(len(edges))])
        # names are exchangeable, so that the first arm is asked for favours no node and no place in the prompt
        answer = arms[0]
        return Example(prompt=f"{shuffled}{start}{answer[-1]}{self.separator}", answer=answer)

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """1 for the arm that ends in the goal, else 0 or the share of right positions.

        The components tell a wrong plan from a wrong walk: ``first_node`` is the plan, ``walks_an_arm`` is 1 for any
        whole arm of the graph, so that next-token training shows near 1 there and near 1 / degree in the value.
        """
        answer = example.answer or ""
        match, exact = position_match(answer, text), text == answer
        components = {
            "position_match": match,
            "first_node": float(text[:1] == answer[:1]),
            "walks_an_arm": float(self._walks_an_arm(example.prompt, text)),
        }
        return Score(value=match if self.reward == "score" else float(exact), components=components, exact=exact)

    def _walks_an_arm(self, prompt: str, text: str) -> bool:
        body = prompt.removesuffix(self.separator)
        edges, start = body[:-2], body[-2]
        steps = {edges[place : place + 2] for place in range(0, len(edges), 2)}
        walk = start + text
        return len(walk) == self.length and all(source + target in steps for source, target in pairwise(walk))
