"""A task without ends from one with episodes: time limits are taken away, ends lead to a start.

    s_t, a_t -> r_t, s_{t+1}    where s_{t+1} ~ h where the episode would have terminated

What an end meant is then told by rewards alone, for agents of the average reward. Sutton and Barto
2018, section 3.4, for one notation over both; here an end takes no step of its own.
"""

from __future__ import annotations

from typing import Any

import gymnasium


class Continuing(gymnasium.Wrapper):
    """Lets `env` go on for ever: `us.ActorCritic(lambda: Continuing(make()), setting="average")`.

    Time limits below the wrapper are passed over, also those of `gymnasium.make`; where an episode
    terminates, the observation is the first of the next one. An environment that truncates on its
    own, and refuses to go on after that, is not for this wrapper.
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step, which never ends an episode."""
        observation, reward, terminated, _, info = self.env.step(action)
        if terminated:
            observation, beginning = self.env.reset()
            info = {**info, **beginning}  # such as which actions are legal now
        return observation, reward, False, False, info
