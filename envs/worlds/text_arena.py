"""A single-player game of TextArena as an object with ``reset(seed)`` and ``step(text)``.

Read in TextArena 0.7.4 (https://github.com/LeonGuertler/TextArena): observations are fetched apart from steps, rewards
come from ``close()`` when the game is over, and observation wrappers keep all they have seen in ``full_observations``,
which no reset clears, so that the second episode opens with the first one's text.
"""

from typing import Any

PLAYER = 0


class TextArenaGame:
    """What is said is only what is new. Wrappers that show the whole history are cut to what it has gained.

    A history gains whole lines. An observation that repeats the last one, or goes on within its last line ("Score: 1",
    "Score: 10"), shows what is now and is said as it is.

    A wrapper's text repeats the player's own move ("[Player] [5]"); the "-raw" variants of games do not, as their
    messages are taken without the player's own. The last reply is the game's stated reason for its outcome. TextArena
    knows one ``done``, so a game is always terminated.

    Args:
        env: what ``textarena.make`` makes.

    Raises:
        TypeError: if it has not the methods of a TextArena environment.
    """

    def __init__(self, env: Any) -> None:
        missing = [name for name in ("reset", "step", "get_observation", "close") if not hasattr(env, name)]
        if missing:
            raise TypeError(f"{type(env).__name__} is no TextArena environment: it has no {missing}.")
        self.env = env
        self._seen = ""

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        """The game's prompt.

        Raises:
            ValueError: if the game cannot be played by one.
        """
        layer: Any = self.env
        while layer is not None:  # __dict__, since wrappers pass on what they have not
            if "full_observations" in vars(layer):
                layer.full_observations = {}
            layer = vars(layer).get("env")
        self._seen = ""
        try:
            self.env.reset(num_players=1, seed=seed)
        except AssertionError as error:
            raise ValueError(
                f"{type(self.env).__name__} cannot be reset with num_players=1: {error}. Only single-player games are "
                "worlds; a game against others, or against oneself, is not decided by its seed."
            ) from error
        return self._observe(), {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """What is new, or, when the game is over, why.

        Raises:
            ValueError: if a game that is over has no reward.
        """
        done, info = self.env.step(text)
        if not done:
            return self._observe(), 0.0, False, False, dict(info)
        rewards, game_info = self.env.close()
        if not rewards or PLAYER not in rewards:
            raise ValueError(f"{type(self.env).__name__} is over and close() paid {rewards!r}; expected {{0: reward}}.")
        of_player = dict((game_info or {}).get(PLAYER, {}))
        reply = str(of_player.get("reason") or "")
        return reply, float(rewards[PLAYER]), True, False, {**info, "game_info": of_player}

    def _observe(self) -> str:
        player, observation = self.env.get_observation()
        if player != PLAYER:
            raise ValueError(f"player {player} of {type(self.env).__name__} is to move; expected player 0 alone.")
        if not isinstance(observation, str):
            return "\n".join(message for sender, message, *_ in observation if sender != PLAYER)
        new, self._seen = _gained(self._seen, observation), observation
        return new


def _gained(seen: str, observation: str) -> str:
    """Return the lines that a history has gained, or the whole of what is no history of more lines."""
    new = observation.removeprefix(seen)
    begins_a_line = new != observation and (seen.endswith("\n") or new.startswith("\n"))
    return new if new and begins_a_line else observation
