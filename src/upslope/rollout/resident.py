"""Experience that stays where it arises: environments whose observations are torch tensors.

Simulators on a GPU step thousands of environments at a time and return tensors there. Observations
and actions then never leave the device: the policy acts on them, the rollout keeps them, and the
minibatches are taken from them. What the host needs, rewards and ends, follows once in a rollout,
as arrays [T, N]; at each step it only asks whether an episode was cut.

A vector environment is taken for one of these if `env.unwrapped.device` is a device torch has here.
`reset` and `step` are Gymnasium's, with tensors on that device: observations [N, ...], rewards [N],
`terminated` and `truncated` [N] bool, and the actions that `step` is given. Under SAME_STEP
autoreset, `info["final_obs"]` [N, ...] holds the observations that episodes ended in. Where `reset`
gives `info["action_mask"]` [N, columns], True or 1 where an action is legal, every step does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from upslope.errors import ArgumentError
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout.acting import Act
from upslope.rollout.buffer import Rollout
from upslope.rollout.collect import Collector
from upslope.rollout.halves import Ahead
from upslope.rollout.masks import KEY
from upslope.rollout.stream import Step, Stream
from upslope.seeding import derive32


def device_of(env: gymnasium.Env | VectorEnv) -> torch.device | None:
    """Return where a vector environment's tensors are; None if it returns arrays."""
    device = getattr(env.unwrapped, "device", None)
    if not isinstance(env, VectorEnv) or not isinstance(device, str | torch.device):
        return None
    try:
        return torch.empty(0, device=device).device  # with its number: cuda is cuda:0
    except (RuntimeError, AssertionError):  # another library's name for one, or none that is here
        return None


class ResidentStream(Stream):
    """A stream of tensors on `device`, over a vector environment that stays its owner's to close.

    Raises ArgumentError for spaces and autoreset modes that it has no form of.
    """

    def __init__(self, env: VectorEnv, device: torch.device) -> None:
        super().__init__(env=env)
        self.device = device
        observation, action = self.observation_space, self.action_space
        if not isinstance(observation, spaces.Box):
            raise ArgumentError(f"an environment of tensors takes Box observations: {observation}")
        if not isinstance(action, spaces.Box | spaces.Discrete | spaces.MultiDiscrete):
            kinds = "Box, Discrete or MultiDiscrete"
            raise ArgumentError(f"an environment of tensors takes {kinds} actions: {action}")
        if self.autoreset_mode is AutoresetMode.DISABLED:
            raise ArgumentError(
                "an environment of tensors takes autoreset SAME_STEP or NEXT_STEP, and declares "
                "DISABLED"
            )
        self.mask: Tensor | None = None
        """[N, columns] bool: which actions are legal now; None where environments do not say."""
        self.squash = False
        """Whether actions of a Box are meant through tanh: see `ActionHead`."""
        if isinstance(action, spaces.Box):
            self._bounds = [torch.as_tensor(b, device=device) for b in (action.low, action.high)]

    @property
    def action_mask(self) -> np.ndarray | None:
        """Which actions are legal now, as an array [N, columns]."""
        return None if self.mask is None else self.mask.cpu().numpy()

    def reset(  # type: ignore[override]
        self, seed: int | None = None, *, in_halves: bool = False
    ) -> Tensor:
        """Begin anew with `seed`; returns s_0 [N, ...]."""
        self._checks.seed, self._checks.steps = seed, 0
        raw, info = self._call(self._env.reset, seed=seed)
        self.observation = self._taken("observation", raw, self.layout.shape)
        self.acting = torch.ones(self.n_envs, dtype=torch.bool, device=self.device)
        told = self._checks.masks.columns and KEY in info
        self.mask = self._legal(info) if told else None
        self.running = True
        return self.observation

    def step(self, action: Any, ahead: Ahead | None = None) -> Step:
        """Take one action, given as an array; what it meant comes as arrays: for evaluation."""
        before, sent = self.seen, self._checked_action(action)
        found = self._advance(torch.as_tensor(sent, device=self.device))
        final, reward, terminated, truncated, valid = (tensor.cpu().numpy() for tensor in found)
        return Step(before, sent, reward, final, terminated, truncated, valid, {})

    def advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Take one packed action [N, ...] in every environment.

        Returns the true s_{t+1} [N, ...] and, each [N], the reward, `terminated`, `truncated` and
        where the step counts: see `Step`. Raises EnvironmentFault for another shape or another
        device.
        """
        return self._advance(self._sent(action))

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        self._checks.steps += 1
        self._checks.total_steps += 1
        answer = self._call(self._env.step, action)
        names = ("observation", "reward", "terminated", "truncated")
        shapes: list[tuple[int, ...]] = [self.layout.shape, (), (), ()]
        parts = zip(names, answer[:4], shapes, strict=True)
        after, reward, terminated, truncated = (self._taken(*part) for part in parts)
        valid, final, info = self.acting, after, answer[4]
        terminated, truncated = terminated.bool(), truncated.bool()
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self.acting = ~(terminated | truncated)
        elif "final_obs" in info:
            final = self._taken("final_obs", info["final_obs"], self.layout.shape)
        elif (ended := terminated | truncated).any():
            what = "no info['final_obs'] at the end of an episode, which SAME_STEP takes"
            raise self._checks.fault(what, int(ended.nonzero()[0, 0]))
        if self.mask is not None:
            self.mask = self._legal(info)
        self.observation = after
        truncated = truncated & ~terminated & valid
        return final, reward * valid, terminated & valid, truncated, valid

    def check(self, rollout: Rollout) -> None:
        """Raise EnvironmentFault for a number that is not finite, or where no action is legal."""
        observation = rollout.observation
        numbers = {"reward": torch.from_numpy(rollout.reward)}
        if observation.is_floating_point():
            numbers["observation"] = observation
        for name, tensor in numbers.items():
            if not (fine := tensor.isfinite()).all():
                step, index = fine.logical_not().nonzero()[0, :2].tolist()
                what = f"a number as {name} that is not finite, in row {step} of a rollout"
                raise self._checks.fault(what, index)
        if rollout.action_mask is not None:
            legal = torch.as_tensor(rollout.action_mask).flatten(0, 1).cpu().numpy()
            if (row := self._checks.masks.without_option(legal)) is not None:
                step, index = divmod(row, self.n_envs)
                raise self._checks.fault(f"no legal action, in row {step} of a rollout", index)

    def _taken(self, name: str, raw: Any, shape: tuple[int, ...]) -> Tensor:
        wanted = (self.n_envs, *shape)
        if not isinstance(raw, Tensor) or raw.device != self.device or raw.shape != wanted:
            got = f"{tuple(raw.shape)} on {raw.device}" if isinstance(raw, Tensor) else type(raw)
            raise self._checks.fault(f"{name} as {got}, not a tensor {wanted} on {self.device}")
        return raw

    def _legal(self, info: Mapping[str, Any]) -> Tensor:
        """Return which actions are legal now; all are where the next step only resets."""
        mask = self._taken(f"info[{KEY!r}]", info.get(KEY), (self._checks.masks.columns,))
        return mask.bool() | ~self.acting.unsqueeze(1)

    def _sent(self, action: Tensor) -> Tensor:
        space = self.action_space
        if isinstance(space, spaces.Box):
            (low, high), shaped = self._bounds, action.view(self.n_envs, *space.shape)
            if self.squash:  # as `ActionHead` has it for arrays
                within = (high / 2 - low / 2) * (1 - shaped.tanh().abs())
                shaped = torch.where(shaped > 0, high - within, low + within)
            return shaped.clamp(low, high)
        start = torch.as_tensor(space.start, device=self.device)  # type: ignore[attr-defined]
        return action + start


class ResidentCollector(Collector):
    """Fills rollouts of which observations and actions are tensors on the environments' device."""

    stream: ResidentStream

    def __init__(self, stream: ResidentStream, rollout: Rollout, **kwargs: Any) -> None:
        super().__init__(stream, rollout, **kwargs)
        if self.observation_normalizer is not None or self.reward_normalizer is not None:
            raise ArgumentError(
                "normalize_observation and normalize_reward take environments that return arrays"
            )
        if rollout.recurrent:
            raise ArgumentError("an environment of tensors takes a policy without memory")
        self._dtype = rollout.observation.dtype
        for name in ("observation", "last_observation", "action"):
            host = torch.from_numpy(getattr(rollout, name))
            setattr(rollout, name, torch.zeros_like(host, device=stream.device))
        shape = rollout.n_steps, rollout.n_envs
        kinds = {
            "reward": torch.float32,
            **dict.fromkeys(("terminated", "truncated", "valid"), torch.bool),
        }
        self._signals = {
            name: torch.zeros(shape, dtype=kind, device=stream.device)
            for name, kind in kinds.items()
        }
        self._log_prob = torch.zeros(shape, device=stream.device)

    def _fill(self, policy: ActorCritic, generator: torch.Generator, act: Act | None) -> Rollout:
        act = act or policy.act
        rollout, stream, signals = self.rollout, self.stream, self._signals
        rollout.begin(self.memory)
        memory, stream.squash = self.memory.to(stream.device), policy.head.squash
        with torch.no_grad():
            policy.head.explore(generator, rollout.n_envs)
            for t in range(rollout.n_steps):
                rollout.observation[t] = stream.observation
                mask = self._recorded(t)
                action, self._log_prob[t], _ = act(rollout.observation[t], generator, memory, mask)
                rollout.action[t] = action
                final, *found = stream.advance(rollout.action[t])
                for name, tensor in zip(signals, found, strict=True):
                    signals[name][t] = tensor
                if found[2].any():
                    cut = found[2].nonzero()[:, 0]
                    rollout.cut.append(
                        (t, cut.cpu().numpy(), final[cut].to(rollout.observation.dtype))
                    )
            rollout.last_observation.copy_(stream.observation)
        rollout.log_prob.copy_(self._log_prob)
        for name, tensor in signals.items():
            torch.from_numpy(getattr(rollout, name)).copy_(tensor)
        stream.check(rollout)
        self.segment_steps += rollout.n_steps
        self._count(rollout)
        return rollout

    def prepared(self, observation: np.ndarray) -> np.ndarray:
        """Return observations [N, ...], given as an array, as the policy sees them."""
        return observation.astype(self._dtype, copy=False)

    def _recorded(self, t: int) -> Tensor | None:
        """Put which actions are legal now into row t of the rollout, and return it."""
        mask = self.stream.mask
        return self.rollout.keep_mask(t, mask) if self.use_action_masks else None

    def _begin_segment(self, number: int) -> None:
        self.segment, self.segment_steps = number, 0
        self.episodes.begin()
        self.stream.reset(derive32(self.seed, "environment", number))

    def _count(self, rollout: Rollout) -> None:
        """Put the rewards and ends of a rollout into the statistics of episodes."""
        for t in range(rollout.n_steps):
            self.episodes.add(rollout.reward[t], rollout.valid[t])
            self.episodes.end(np.flatnonzero(rollout.terminated[t] | rollout.truncated[t]))
