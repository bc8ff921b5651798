"""Rollouts of a policy with memory: equal to a plain loop over the steps of each environment."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rollout.chain import Chain
from upslope.policies.make import make_policy
from upslope.rollout.buffer import Rollout
from upslope.rollout.collect import Collector
from upslope.rollout.make import make_stream
from upslope.rollout.values import evaluate_values
from upslope.seeding import generator

SEED, N_STEPS, N_ENVS = 3, 9, 3
# Three environments that end at different times; the last one also terminates.
CHAINS = [{"limit": 4}, {"limit": 5, "head_start": 2}, {"limit": 3, "terminates": True}]
MODES = [mode.name for mode in AutoresetMode]


def collector_of(kind: str, mode: str) -> tuple[Collector, torch.nn.Module]:
    env = SyncVectorEnv(
        [partial(Chain, **chain) for chain in CHAINS], autoreset_mode=AutoresetMode[mode]
    )
    stream = make_stream(env, N_ENVS)
    policy = make_policy(
        *(kind, stream.observation_space, stream.action_space),
        generator=generator(SEED, "weights"),
        memory_size=5,
        net_arch=(6,),
    )
    for name, parameter in policy.named_parameters():
        if "bias" in name:  # an empty memory must not be a fixed point
            torch.nn.init.normal_(parameter, generator=generator(SEED, name))
    head = policy.head
    rollout = Rollout(
        *(N_STEPS, N_ENVS, ((3,), np.dtype(np.float32)), (head.shape, head.dtype)),
        policy.memory_size,
    )
    return Collector(stream, rollout, seed=SEED, segment_length=10_000), policy


def one(policy, observation, memory):
    """One step of one environment: the distribution, the value and the memory after it."""
    row = torch.as_tensor(observation).unsqueeze(0)
    hidden, after = policy.memory(policy.features(row), memory)
    return policy.head(policy.actor(hidden)), policy.critic(hidden).squeeze(), after


def play(rollout: Rollout, policy, memory: torch.Tensor) -> SimpleNamespace:
    """Go through the recorded steps one by one, from `memory` [N, S] before the first."""
    shape = (N_STEPS, N_ENVS)
    value, next_value, log_prob = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
    cut = {(t, n): row for t, where, rows in rollout.cut for n, row in zip(where, rows)}  # noqa: B905
    after = []
    for n in range(N_ENVS):
        state = memory[[n]]
        for t in range(N_STEPS):
            pi, value[t, n], state = one(policy, rollout.observation[t, n], state)
            log_prob[t, n] = pi.log_prob(torch.as_tensor(rollout.action[t, n]).unsqueeze(0))
            last = t + 1 == N_STEPS
            if rollout.terminated[t, n]:
                pass
            elif rollout.truncated[t, n]:
                next_value[t, n] = one(policy, cut[t, n], state)[1]
            else:
                seen = rollout.last_observation[n] if last else rollout.observation[t + 1, n]
                next_value[t, n] = one(policy, seen, state)[1]
            if rollout.terminated[t, n] or rollout.truncated[t, n] or not rollout.valid[t, n]:
                state = torch.zeros_like(state)
        after.append(state)
    return SimpleNamespace(
        value=value, next_value=next_value, log_prob=log_prob, memory=torch.cat(after)
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("mode", MODES)
def test_values_and_memory_are_those_of_a_loop(mode, kind):
    """Over several rollouts, the first rows of which go on from the memory before them."""
    collector, policy = collector_of(kind, mode)
    before = torch.zeros(N_ENVS, policy.memory_size)
    seen = {"terminated": 0, "truncated": 0, "at the end": 0, "goes on": 0}
    for number in range(6):
        rollout = collector.collect(policy, generator(SEED, "act", number))
        evaluate_values(policy, rollout)
        with torch.no_grad():
            found = play(rollout, policy, before)
        valid = torch.from_numpy(rollout.valid)
        torch.testing.assert_close(rollout.memory, before)
        torch.testing.assert_close(rollout.value[valid], found.value[valid])
        torch.testing.assert_close(rollout.next_value[valid], found.next_value[valid])
        torch.testing.assert_close(rollout.log_prob[valid], found.log_prob[valid])
        torch.testing.assert_close(collector.memory, found.memory)
        log_prob, _, value = policy(rollout.flat(torch.device("cpu")))
        torch.testing.assert_close(value.view(valid.shape)[valid], found.value[valid])
        torch.testing.assert_close(log_prob.view(valid.shape)[valid], found.log_prob[valid])
        before = collector.memory.clone()
        ended = rollout.terminated | rollout.truncated
        seen["terminated"] += rollout.terminated.sum()
        seen["truncated"] += rollout.truncated.sum()
        seen["at the end"] += ended[-1].sum()
        seen["goes on"] += int(before.any(1).sum())
    assert min(seen.values()) > 0, seen


@pytest.mark.parametrize("mode", MODES)
def test_memory_tells_steps_apart(mode):
    """The same observations have other values later in an episode: memory does something."""
    collector, policy = collector_of("gru", mode)
    rollout = collector.collect(policy, generator(SEED, "act", 0))
    rollout.observation[:] = 1
    evaluate_values(policy, rollout)
    values = rollout.value[:4, 0]
    assert len(values.unique()) == 4
    first = policy.value(torch.ones(1, 3)).detach()  # an episode's first row
    torch.testing.assert_close(values[:1], first)


def test_a_minibatch_gives_what_the_whole_rollout_gives():
    collector, policy = collector_of("lstm", "NEXT_STEP")
    for number in range(2):
        rollout = collector.collect(policy, generator(SEED, "act", number))
    batch = rollout.flat(torch.device("cpu"))
    whole = policy(batch)
    for rows in rollout.minibatches(N_STEPS, SEED):
        assert len(rows) < len(batch.action)
        for all_of_them, some in zip(whole, policy(batch[rows]), strict=True):
            torch.testing.assert_close(some, all_of_them[rows])


# ---- segments and minibatches --------------------------------------------------------------------
def rollout_of(n_steps: int, n_envs: int) -> Rollout:
    shape = ((2,), np.dtype(np.float32))
    return Rollout(n_steps, n_envs, shape, ((), np.dtype(np.int64)), memory_size=1)


def test_segments_by_hand():
    rollout = rollout_of(5, 2)
    rollout.valid[:] = True
    rollout.terminated[1, 0] = rollout.truncated[2, 1] = True
    rollout.valid[3, 1] = False  # a reset in NEXT_STEP's way, after the end in row 2
    rollout.terminated[4, 0] = True  # nothing follows within the rollout
    assert rollout.segments().tolist() == [[0, 1], [0, 1], [2, 1], [2, 3], [2, 5]]


@given(st.data())
@settings(max_examples=60)
def test_segments_are_parts_of_episodes(data):
    n_steps, n_envs = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    rollout = rollout_of(n_steps, n_envs)
    flags = st.lists(st.sampled_from("----ttxi"), min_size=n_envs, max_size=n_envs)
    drawn = np.array([data.draw(flags) for _ in range(n_steps)])
    rollout.terminated[:], rollout.truncated[:] = drawn == "t", drawn == "x"
    rollout.valid[:] = drawn != "i"
    segments = rollout.segments()
    found: dict[int, list[tuple[int, int]]] = {}
    for n in range(n_envs):
        number, count = n, 0
        for t in range(n_steps):
            assert segments[t, n] == number
            found.setdefault(number, []).append((t, n))
            if drawn[t, n] != "-":
                count += 1
                number = n + count * n_envs
    assert all(len({n for _, n in rows}) == 1 for rows in found.values())


@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 50), st.integers(0, 99))
@settings(max_examples=60)
def test_minibatches_keep_environments_whole(n_steps, n_envs, batch_size, seed):
    rollout = rollout_of(n_steps, n_envs)
    rollout.valid[:] = np.random.default_rng(seed).random((n_steps, n_envs)) < 0.8
    parts = list(rollout.minibatches(batch_size, seed))
    rows = torch.cat([*parts, torch.zeros(0, dtype=torch.int64)])
    assert sorted(rows.tolist()) == np.flatnonzero(rollout.valid).tolist()
    owners = [set((part % n_envs).tolist()) for part in parts]
    assert sum(len(own) for own in owners) == len(set().union(*owners, set()))
    assert all(owners)
    assert len(parts) <= max(1, round(rollout.n_valid / batch_size))
    for part in parts:
        assert part.tolist() == sorted(part.tolist())  # in the order of time


def test_images_and_masks_go_with_memory():
    """`step`, `value` and `policy(batch)` agree where features, masks and memory are together."""
    observation = spaces.Dict(eye=spaces.Box(0, 255, (36, 36, 1), np.uint8), at=spaces.Discrete(3))
    action = spaces.MultiDiscrete([2, 3])
    policy = make_policy(
        "gru", observation, action, generator=generator(SEED, "weights"), memory_size=4
    )
    layout = policy.features.layout
    observation.seed(SEED)
    rows = torch.from_numpy(
        np.concatenate([layout.accept(observation.sample())[0] for _ in range(4)])
    )
    mask = torch.tensor([[1, 0, 1, 1, 0]] * 4).bool()
    pi, after = policy.step(rows, torch.zeros(4, 4), mask)
    assert after.shape == (4, 4)
    drawn = pi.sample(generator(SEED, "act"))
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, 1] < 2).all()
    batch = SimpleNamespace(observation=rows, action=drawn, action_mask=mask, sequences=None)
    log_prob, entropy, value = policy(batch)
    torch.testing.assert_close(log_prob, pi.log_prob(drawn))
    torch.testing.assert_close(entropy, pi.entropy())
    torch.testing.assert_close(value, policy.value(rows))
