"""Collecting experience: the policy acts in the environments, and a rollout is filled.

Experience comes in *segments* of a fixed number of steps, independent of when a run is saved. At a
segment's start the environments are made anew with a seed derived from its number; the episodes
that a segment cuts are truncations. So the environments' state need not be saved: their making and
the actions since then give it back exactly. Environments that can save their state do so instead,
and then there are no segments.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.errors import CheckpointError
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout.acting import Act, Acting, RowEngine, Rows, act_ahead, begin_acting
from upslope.rollout.autoreset import final_info, scores
from upslope.rollout.buffer import Rollout
from upslope.rollout.counting import RECENT, Episodes
from upslope.rollout.halves import Ahead
from upslope.rollout.masks import KEY, final_mask
from upslope.rollout.named import under, under_any
from upslope.rollout.normalizers import ObservationNormalizer, RewardNormalizer
from upslope.rollout.replay import Replay
from upslope.rollout.stream import Step, Stream
from upslope.seeding import derive32

ELSEWHERE = (
    "the environments did not come back to where they were: after replaying {} steps of segment {} "
    "they give another observation, so this run cannot be continued exactly"
)


class Collector:
    """Everything about the experience that evolves: environments, normalisers, episode counts."""

    takes_halves = True  # one half of the environments may be a step ahead of the other

    def __init__(
        self,
        stream: Stream,
        rollout: Rollout,
        *,
        seed: int,
        segment_length: int,
        observation_normalizer: ObservationNormalizer | None = None,
        reward_normalizer: RewardNormalizer | None = None,
        use_action_masks: bool = True,
    ) -> None:
        self.stream, self.rollout, self.seed = stream, rollout, seed
        self.segment_length = segment_length
        self.observation_normalizer = observation_normalizer
        self.reward_normalizer = reward_normalizer
        self.use_action_masks = use_action_masks
        self.behaviour: Act | None = None
        """What acts instead of the policy, in the same form, where learning is off-policy."""
        self.engine: RowEngine | None = None  # acts on rows in place, where its `act` is what acts
        self.valuing = False
        """Whether an engine finds v(s) of each step while the environments take the next."""
        self.replay: Replay | None = None  # every rollout is added to it
        self.memory = rollout.memory.clone()
        """[N, S] what a recurrent policy remembers, nothing at the beginning of an episode."""
        self.segment, self.segment_steps = -1, 0
        self.broken_off = False
        """Whether the environments are somewhere else than at a rollout's end: they begin anew."""
        self.actions: list[np.ndarray] = []
        self.observation = rollout.last_observation.copy()
        self.episodes = Episodes(stream.n_envs)
        self._saved: dict[str, Any] | None = None  # what is to be restored at the next step

    def collect(
        self, policy: ActorCritic, generator: torch.Generator, act: Act | None = None
    ) -> Rollout:
        """Step the environments T times under the policy; returns the filled rollout.

        `act` is another form of `policy.act`, such as an engine's; `behaviour` goes before both.
        What interrupts it, or what an environment raises, breaks off the segment.
        """
        self._go_on(policy)
        self.broken_off = True
        try:
            rollout = self._fill(policy, generator, act)
        finally:
            policy.head.matrix = None  # the noise of this rollout
        self.broken_off = False
        return rollout

    def _go_on(self, policy: ActorCritic) -> None:
        """Bring the environments to where the rollout begins."""
        saved = self._saved
        if self.segment < 0 or self.broken_off or self.segment_is_over() or saved == {}:
            self.broken_off, self._saved = True, None  # until it is begun
            self._begin_segment(self.segment + 1)
        elif saved is not None:
            self._restore_environments(policy, saved)
            self._saved = None

    def _fill(self, policy: ActorCritic, generator: torch.Generator, act: Act | None) -> Rollout:
        rollout = self.rollout
        with torch.inference_mode():
            acts, rows = self._begin_acting(policy, act, generator)
            for t in range(rollout.n_steps):
                ahead = self._ahead(t + 1, policy, rows)
                step, memory = self._step(t, policy, acts, ahead)
                self._record(t, step, self.stream.acting)
                if rollout.recurrent:
                    self._remember(t, memory)
        self._end_acting(rows)
        rollout.last_mask = self.stream.action_mask
        self.segment_steps += rollout.n_steps
        if self.replays:
            self.actions.append(rollout.action.copy())
        if self.replay is not None:
            self.replay.add(rollout, self.segment)
        return rollout

    def _begin_acting(
        self, policy: ActorCritic, act: Act | None, draws: torch.Generator
    ) -> tuple[Acting, Rows | None]:
        act = self.behaviour or act or policy.act
        self.rollout.begin(self.memory)
        return begin_acting(self.rollout, policy, act, self.engine, draws, valuing=self.valuing)

    def _end_acting(self, rows: Rows | None) -> None:
        """Note what the rollout ends in, and have all values that were begun."""
        self.rollout.last_observation[:] = self.observation
        if rows is not None and self.rollout.valued:
            self.rollout.valued = rows.begin_value(self.rollout.n_steps)
        if self.engine is not None:
            self.engine.finish()

    def _step(
        self, t: int, policy: ActorCritic, acts: Acting, ahead: Ahead | None = None
    ) -> tuple[Step, Tensor]:
        """Act on the current observations, into row t of the rollout; returns what came of it."""
        rollout, memory = self.rollout, self.memory
        action = rollout.action[t]
        if not self.stream.begun:
            rollout.observation[t] = self.observation
            memory = acts(t, self._recorded_mask(t), memory)
            action = policy.head.to_environment(action)
        return self.stream.step(action, ahead), memory

    def _ahead(self, t: int, policy: ActorCritic, rows: Rows | None) -> Ahead | None:
        """Return what acts on each half of row t as soon as it is there; None where none does."""
        if self.stream.halves is None or rows is None or t == self.rollout.n_steps:
            return None
        return partial(act_ahead, policy, self.rollout, rows, t)

    def _recorded_mask(self, t: int) -> np.ndarray | None:
        """Put which actions are legal now into row t of the rollout, and return it."""
        mask = self.stream.action_mask
        return self.rollout.keep_mask(t, mask) if self.use_action_masks else None

    def _remember(self, t: int, memory: Tensor) -> None:
        """Keep what the policy remembers after step t, and nothing where an episode begins."""
        rollout = self.rollout
        begins = rollout.terminated[t] | rollout.truncated[t] | ~rollout.valid[t]
        self.memory = memory.cpu() * torch.from_numpy(~begins).unsqueeze(1)

    def _record(self, t: int, step: Step, acting: np.ndarray) -> None:
        """Put one step into row t of the rollout and into the statistics.

        `acting` [N] is where the observation that is now the current one counts.
        """
        rollout = self.rollout
        rollout.terminated[t], rollout.truncated[t] = step.terminated, step.truncated
        rollout.valid[t] = step.valid
        self.episodes.add(step.reward, step.valid)
        ended = step.terminated | step.truncated
        if self.reward_normalizer is None:
            rollout.reward[t] = step.reward
        else:
            rollout.reward[t] = self.reward_normalizer(step.reward, ended, step.valid)
        if step.truncated.any():
            cut = np.flatnonzero(step.truncated)
            rollout.cut.append((t, cut, self.prepared(step.next_observation[cut])))
            told = final_info(step.info, KEY)
            rollout.cut_mask.append(final_mask(told, cut, rollout.action_mask))
        if ended.any():
            self.episodes.end(np.flatnonzero(ended), scores(step.info))
        if not self.stream.begun:  # or it was seen, and acted on, half by half
            self._see(self.stream.observation, acting)

    def prepared(self, observation: np.ndarray) -> np.ndarray:
        """Return observations [N, ...] as the policy sees them; changes no statistics."""
        normalizer = self.observation_normalizer
        found = observation if normalizer is None else normalizer(observation)
        return found.astype(self.rollout.observation.dtype, copy=False)

    def _see(self, observation: np.ndarray, acting: np.ndarray) -> None:
        """Make `observation` the current one; rows that a reset will skip leave no trace."""
        if self.observation_normalizer is not None:
            self.observation_normalizer.update(observation, acting)
        self.observation = self.prepared(observation)

    # -- segments and resuming -----------------------------------------------------------------

    @property
    def replays(self) -> bool:
        """Whether the environments' state is given back by replaying the segment's actions."""
        return self.stream.remakes and not self.stream.saves_state

    def segment_is_over(self) -> bool:
        """Whether the environments are made anew before the next step."""
        return self.replays and self.segment_steps >= self.segment_length

    def _begin_segment(self, number: int) -> None:
        """Make the environments anew with the seed of segment `number`; forget open episodes."""
        self.segment, self.segment_steps = number, 0
        self.actions.clear()
        self.memory = torch.zeros_like(self.memory)
        self.episodes.begin()
        if self.reward_normalizer is not None:
            self.reward_normalizer.start()
        self._reset_environments(number)
        self._see(self.stream.observation, self.stream.acting)

    def _reset_environments(self, number: int) -> None:
        """Ask for halves if an engine acts in place, and on observations that need nothing more."""
        rows = None
        if self.takes_halves and self.engine is not None and self.observation_normalizer is None:
            rows = self.engine.rows(self.rollout, torch.Generator())
        self.stream.reset(derive32(self.seed, "environment", number), in_halves=rows is not None)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return everything that evolves, as named arrays and as numbers for JSON."""
        arrays = self._fixed() | {"recent": self.episodes.last()}
        numbers = {"segment": self.segment, "segment_steps": self.segment_steps}
        if self.broken_off:  # nothing is asked of the environments, which may be gone
            numbers["broken_off"] = 1
        else:
            arrays |= self._environments() if self._saved is None else self._saved
        numbers["episodes"] = self.episodes.ended
        if self.replay is not None:
            kept, counted = self.replay.state()
            arrays |= {f"transitions/{name}": array for name, array in kept.items()}
            numbers |= {f"transitions_{name}": number for name, number in counted.items()}
        return arrays, numbers

    def _fixed(self) -> dict[str, Any]:
        """Return the arrays whose shapes the settings decide."""
        arrays: dict[str, Any] = {"observation": self.observation, **self.episodes.arrays()}
        if self.rollout.recurrent:
            arrays["memory"] = self.memory.numpy()
        for prefix, normalizer in self._normalizers().items():
            arrays |= {prefix + name: value for name, value in normalizer.state_dict().items()}
        return arrays

    def expected(self, numbers: dict[str, Any]) -> dict[str, Any]:
        """Return what `state` must hold with these numbers: arrays of its shapes and dtypes."""
        n_envs, layout = self.stream.n_envs, self.stream.layout
        episodes = min(max(numbers.get("episodes", 0), 0), RECENT)
        arrays = self._fixed() | {"recent": np.zeros((episodes, 3))}
        if self.replay is not None:
            kept = self.replay.expected(under("transitions_", numbers))
            arrays |= {f"transitions/{name}": array for name, array in kept.items()}
        if numbers.get("segment", -1) < 0 or numbers.get("broken_off"):
            return arrays
        if self.stream.saves_state:
            if not self.stream.running:
                self.stream.reset(0)
            state = self.stream.get_state()
            arrays |= {f"environment/{name}": value for name, value in state.items()}
        elif self.replays:
            action = self.rollout.action
            steps = max(numbers.get("segment_steps", 0), 0)
            one = np.zeros((), action.dtype)  # repeated without memory: what is expected, not had
            arrays["replay/actions"] = np.broadcast_to(one, (steps, *action.shape[1:]))
            arrays["replay/observation"] = np.empty((n_envs, *layout.shape), layout.dtype)
        return arrays

    def load_state(self, arrays: dict[str, Any], numbers: dict[str, Any]) -> None:
        """Take up a saved state. The environments follow when they are first needed."""
        self.segment, self.segment_steps = numbers["segment"], numbers["segment_steps"]
        self.broken_off = bool(numbers.get("broken_off"))
        self.observation = arrays["observation"].copy()
        if self.rollout.recurrent:
            self.memory = torch.tensor(arrays["memory"])
        self.episodes.load(numbers["episodes"], arrays)
        for prefix, normalizer in self._normalizers().items():
            normalizer.load_state_dict(under(prefix, arrays))
        if self.replay is not None:
            self.replay.load_state(under("transitions/", arrays), under("transitions_", numbers))
        self._saved = under_any(("replay/", "environment/"), arrays)

    def _normalizers(self) -> dict[str, ObservationNormalizer | RewardNormalizer]:
        found = {"observation": self.observation_normalizer, "reward": self.reward_normalizer}
        return {f"{name}_normalizer/": each for name, each in found.items() if each is not None}

    def _environments(self) -> dict[str, Any]:
        """Return what brings the environments back: their own state, or the actions to replay."""
        if self.segment >= 0 and self.stream.saves_state:
            return {f"environment/{name}": value for name, value in self.stream.get_state().items()}
        if self.segment < 0 or not self.replays:
            return {}
        actions = np.concatenate([self.rollout.action[:0], *self.actions])
        return {"replay/actions": actions, "replay/observation": self.stream.observation}

    def _restore_environments(self, policy: ActorCritic, saved: dict[str, Any]) -> None:
        """Bring the environments to where they were when the state was saved.

        Raises CheckpointError when replaying does not give the observation that was saved.
        """
        self._reset_environments(self.segment)
        if self.stream.saves_state:
            self.stream.set_state(under("environment/", saved))
            return
        actions = saved["replay/actions"]
        for action in actions:
            self.stream.step(policy.head.to_environment(action))
        if not np.array_equal(self.stream.observation, saved["replay/observation"]):
            raise CheckpointError(ELSEWHERE.format(len(actions), self.segment))
        self.actions = [actions.copy()]
