"""Upslope: policy gradients, from the log-derivative trick to GRPO.

    import upslope as us
    agent = us.PPO("CartPole-v1", seed=0).learn(total_timesteps=100_000)
    mean, std = us.evaluate_policy(agent, "CartPole-v1", n_eval_episodes=100)

The public names are imported when they are first used, so `import upslope` takes milliseconds.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # type checkers read it as True; importing `typing` would double the time
if TYPE_CHECKING:
    from upslope import envs, errors, exact, gradient, losses, returns
    from upslope.agents.actor_critic import ActorCritic
    from upslope.agents.dqn import DQN
    from upslope.agents.evaluation import evaluate_policy
    from upslope.agents.ppo import PPO
    from upslope.agents.q_learning import QLearning
    from upslope.agents.reinforce import REINFORCE
    from upslope.agents.table import load
    from upslope.language.dpo import DPO
    from upslope.language.grpo import GRPO

__version__ = "0.1.0"

__all__ = [
    "DPO",
    "DQN",
    "GRPO",
    "PPO",
    "REINFORCE",
    "ActorCritic",
    "QLearning",
    "__version__",
    "envs",
    "errors",
    "evaluate_policy",
    "exact",
    "gradient",
    "load",
    "losses",
    "returns",
]

# name -> the module that defines it; a name that is absent here is a submodule
_HOME = {
    "ActorCritic": "upslope.agents.actor_critic",
    "DQN": "upslope.agents.dqn",
    "PPO": "upslope.agents.ppo",
    "REINFORCE": "upslope.agents.reinforce",
    "QLearning": "upslope.agents.q_learning",
    "DPO": "upslope.language.dpo",
    "GRPO": "upslope.language.grpo",
    "load": "upslope.agents.table",
    "evaluate_policy": "upslope.agents.evaluation",
}


if not TYPE_CHECKING:  # so that a type checker finds a misspelt name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'upslope' has no attribute {name!r}")
        home = _HOME.get(name)
        if home is None:
            value: object = importlib.import_module(f"upslope.{name}")
        else:
            value = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
