"""What every agent has: environments, `learn`, `predict`, `save` and `load`.

One iteration collects a rollout and improves the policy on it:

    rollout = collect(policy);   policy = update(rollout)

An algorithm is a subclass with a configuration and `update`. Everything that evolves is in `state`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Self

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from upslope import checkpoint, recipes
from upslope.agents import saving
from upslope.agents.config import Config, make_config
from upslope.agents.evaluation import Best, check_learning, evaluate_policy
from upslope.agents.experience import make_collector
from upslope.agents.prediction import predict
from upslope.agents.progress import Progress
from upslope.engine.choose import make_engine
from upslope.engine.torch_engine import TorchEngine
from upslope.errors import ArgumentError, CheckpointError
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.make import make_policy
from upslope.rollout.buffer import Rollout
from upslope.rollout.collect import Collector
from upslope.rollout.make import Environment, checked_kwargs, make_stream
from upslope.seeding import derive32, generator

Callback = Callable[["Agent[Any]", dict[str, float]], bool | None]


class Agent(Generic[Config]):
    """An agent on a stream of experience; see the subclass for its algorithm."""

    config_class: type[Config]
    takes_tensors = False  # from an environment: see `rollout.resident`
    of_environments: tuple[str, ...] = ()  # what of `own_tensors` begins anew in other ones
    needs_values = False  # whether every update begins with the values of the whole rollout

    def __init__(
        self,
        env: Environment,
        *misplaced: Any,
        policy: str | nn.Module | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        backend: str = "auto",
        **settings: Any,
    ) -> None:
        name = type(self).__name__
        if misplaced or (isinstance(env, str) and env.endswith("Policy")):
            raise ArgumentError(
                f"{name} takes the environment first and the policy by name: "
                f'us.{name}(env, policy="mlp"), or just us.{name}(env)'
            )
        given = isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv)
        if given:
            found = getattr(env, "num_envs", 1)
            if settings.setdefault("n_envs", found) != found:
                raise ArgumentError(
                    f"n_envs={settings['n_envs']}, but the environment given has {found}: leave "
                    "n_envs out, or give an id or a factory"
                )
        if not isinstance(policy, nn.Module):
            settings["policy"] = policy
        self.config: Config = make_config(self.config_class, settings)
        self.env, self.env_kwargs = env, checked_kwargs(env_kwargs)
        checkpoint.check_meta(self.env_kwargs, "env_kwargs")
        self.device = torch.device(self.config.device)
        config = self.config
        self.stream = make_stream(env, config.n_envs, env_kwargs=self.env_kwargs, backend=backend)
        spaces = self.stream.observation_space, self.stream.action_space
        self.custom_policy = isinstance(policy, nn.Module)
        self.policy = self.make_policy(policy, *spaces).to(self.device)
        self.engine = self.make_engine()
        self.act = self.engine.act  # how actions are drawn while collecting
        self.collector = self.make_collector()
        self.collector.engine = self.engine
        self.collector.valuing = self.needs_values and not self.stream.on_all_cores
        self.iteration = 0
        self.num_timesteps = 0
        self.target_timesteps = 0
        self.best = Best()
        self.interrupted: Callable[[], int] = lambda: 0  # an exit code ends an evaluation
        self.prediction_generator = generator(config.seed, "predict", device=self.device)

    def make_policy(
        self, policy: str | nn.Module | None, *spaces: gymnasium.Space[Any]
    ) -> ActorCritic:
        """Return the untrained policy over the observation and the action space."""
        draws, kwargs = generator(self.config.seed, "weights"), self.config.policy_kwargs
        return make_policy(policy, *spaces, generator=draws, **kwargs)

    def make_engine(self) -> TorchEngine:
        """Return what takes the optimisation steps."""
        longest = self.config.max_grad_norm
        return make_engine(self.config.engine, self.policy, max_grad_norm=longest)

    def own_tensors(self) -> dict[str, Tensor]:
        """Return what an algorithm has that evolves beside policy and optimiser, by name, live.

        Saved with the agent, and written into when a state is taken up: shapes are fixed.
        """
        return {}

    def make_collector(self) -> Collector:
        """Return what collects the experience of an iteration."""
        steps, tensors = self.config.n_steps, self.takes_tensors
        return make_collector(self.config, self.stream, self.policy, steps, tensors=tensors)

    @classmethod
    def from_recipe(cls, env: str, **settings: Any) -> Self:
        """Return an agent with the tuned settings for an environment id, changed by `settings`.

        Raises ConfigError when there is no recipe for it.
        """
        recipe = recipes.find(cls.__name__, env)
        chosen = {"env_kwargs": recipe.env_kwargs} | recipe.settings | settings
        return cls(env, **chosen)

    # -- learning ------------------------------------------------------------------------------

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Improve the policy on one rollout; returns what is worth logging."""
        raise NotImplementedError

    @property
    def progress_remaining(self) -> float:
        """The share of the steps to learn that is still to come, from 1 to 0."""
        return max(0.0, 1 - self.num_timesteps / max(1, self.target_timesteps))

    def learn(
        self,
        total_timesteps: int,
        callback: Callback | None = None,
        *,
        progress_bar: bool = False,
        eval_freq: int | None = None,
        n_eval_episodes: int = 20,
        eval_env: Environment | None = None,
        eval_env_kwargs: Mapping[str, Any] | None = None,
        reset_num_timesteps: bool = True,
    ) -> Self:
        """Learn for `total_timesteps` environment steps (of all environments together).

        After every iteration `callback(agent, metrics)` is called; False stops. Every `eval_freq`
        environment steps, and at the end, `n_eval_episodes` episodes are played and the best policy
        kept (`best`, `restore_best`). `reset_num_timesteps=False` goes on counting.
        """
        if not isinstance(total_timesteps, int | np.integer) or total_timesteps < 1:
            raise ArgumentError(
                f"total_timesteps={total_timesteps!r}: learn takes a whole number of at least 1"
            )
        if reset_num_timesteps:
            self.num_timesteps = 0
        self.target_timesteps = self.num_timesteps + int(total_timesteps)
        return self.go_on(
            callback,
            progress_bar=progress_bar,
            eval_freq=eval_freq,
            n_eval_episodes=n_eval_episodes,
            eval_env=eval_env,
            eval_env_kwargs=eval_env_kwargs,
        )

    def go_on(
        self,
        callback: Callback | None = None,
        *,
        progress_bar: bool = False,
        eval_freq: int | None = None,
        n_eval_episodes: int = 20,
        eval_env: Environment | None = None,
        eval_env_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Go on to the end of the last `learn`, also after the agent was saved and loaded."""
        can_be_made = eval_env is not None or self.stream.remakes
        check_learning(callback, eval_freq, n_eval_episodes, can_be_made)
        total = self.target_timesteps
        with Progress(total, done=self.num_timesteps, shown=progress_bar) as progress:
            while self.num_timesteps < total:
                before = self.num_timesteps
                metrics = self.iterate()
                last = self.num_timesteps >= total
                if eval_freq and (last or before // eval_freq < self.num_timesteps // eval_freq):
                    metrics |= self.evaluate(n_eval_episodes, eval_env, eval_env_kwargs)
                progress.show(self.num_timesteps, metrics)
                answer = callback(self, metrics) if callback else None
                if isinstance(answer, bool | np.bool_) and not answer:
                    break
        return self

    def iterate(self) -> dict[str, float]:
        """Collect one rollout and update on it; returns the metrics of both."""
        seed = self.config.seed
        draws = generator(seed, "act", self.iteration, device=self.device)
        rollout = self.collector.collect(self.policy, draws, self.act)
        with self.engine.own_threads():
            metrics = self.update(rollout) if rollout.n_valid else {}
        self.num_timesteps += rollout.n_valid
        self.iteration += 1
        return self.collector.episodes.summary() | metrics

    def evaluate(
        self,
        episodes: int,
        env: Environment | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
    ) -> dict[str, float]:
        """Evaluate the policy as it is now and keep it if it is the best; returns the metrics."""
        own = env is None
        mean, std = evaluate_policy(
            self,
            self.env if env is None else env,
            n_eval_episodes=episodes,
            seed=derive32(self.config.seed, "evaluation", self.num_timesteps),
            env_kwargs=self.env_kwargs if own and env_kwargs is None else env_kwargs,
            backend=self.stream.backend if own and self.stream.remakes else "auto",
            interrupted=self.interrupted,
        )
        if mean >= self.best.mean:  # of equals the later, which has learned for longer
            tensors = {name: part.clone() for name, part in self.policy.state_dict().items()}
            normalizer = self.collector.observation_normalizer
            scale = None if normalizer is None else normalizer.state_dict()
            self.best = Best(self.num_timesteps, mean, tensors, scale)
        return {"eval_return": mean, "eval_return_std": std}

    def restore_best(self) -> Self:
        """Take back the policy of the best evaluation; raises ArgumentError when there was none."""
        if self.best.tensors is None:
            raise ArgumentError("there is no best policy yet: learn with eval_freq= keeps it")
        self.policy.load_state_dict(self.best.tensors)
        if self.collector.observation_normalizer and self.best.scale:
            self.collector.observation_normalizer.load_state_dict(self.best.scale)
        return self

    # -- acting --------------------------------------------------------------------------------

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """Return the action for one observation or for a batch [N, ...], and the state after it.

        `state` is what the last call returned, None at the beginning; where `episode_start` [N] is
        True it is forgotten. `action_masks` [N, columns], or as the environment gives them, are
        True where an action is legal; with use_action_masks=False the agent acts without them, as
        it learned. A policy without memory returns None as its state.

        Raises ArgumentError for an observation that is of neither shape or not finite, and for a
        state or masks that do not fit.
        """
        return predict(self, observation, state, episode_start, deterministic, action_masks)

    # -- saving and loading --------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return everything that evolves: named tensors, and a dictionary for JSON."""
        return saving.state_of(self)

    def load_state(
        self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], path: str | Path | None = None
    ) -> None:
        """Take up a saved state whole, or raise CheckpointError and change nothing."""
        saving.take_up(self, tensors, meta, path)

    def save(self, path: str | Path) -> Path:
        """Save the agent as a folder at `path`, replacing an agent saved there before."""
        return checkpoint.save_at(path, *self.state())

    @classmethod
    def load(
        cls, path: str | Path, env: Environment | None = None, *, policy: nn.Module | None = None
    ) -> Self:
        """Load an agent; `env` when it was trained on environments that have no id.

        Raises CheckpointError when the files are damaged or of another algorithm or shape.
        """
        tensors, meta = checkpoint.read(path)
        return cls.from_state(tensors, meta, env, policy=policy, path=path)

    @classmethod
    def from_state(
        cls,
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        env: Environment | None = None,
        *,
        policy: nn.Module | None = None,
        path: str | Path | None = None,
    ) -> Self:
        """Return the agent of a saved state; `path` is only named in errors."""
        if meta.get("algorithm") != cls.__name__:
            raise CheckpointError(
                f"{path} holds an agent of {meta.get('algorithm')}, not of {cls.__name__}"
            )
        saving.check_complete(meta, path)
        saving.check_given(meta, env, policy, path)
        wanted = meta["env"] if env is None else env
        settings = {**meta["config"], **saving.making(meta, wanted)}
        if policy is not None:
            settings["policy"] = policy
        agent = cls(wanted, **settings)
        if not saving.trained_on(meta, wanted):
            tensors, meta = saving.elsewhere(agent, tensors, meta)
        agent.load_state(tensors, meta, path)
        return agent
