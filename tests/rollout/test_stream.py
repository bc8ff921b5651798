from __future__ import annotations

import time
import warnings
from contextlib import closing

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from tests.rollout.chain import Chain, Faulty, Scripted
from upslope.errors import ArgumentError, EnvironmentFault, ShapeError
from upslope.rollout.autoreset import final_info
from upslope.rollout.make import make_stream
from upslope.rollout.stream import Stream
from upslope.rollout.workers import close_environments

YES, NO = np.array([True, True]), np.array([False, False])
FIRST = np.array([True, False])
IDLE = np.zeros(2, np.int64)


def started(*script, **kwargs) -> Stream:
    stream = Stream(env=Scripted(2, *script, **kwargs))
    stream.reset(0)
    return stream


# ---------------------------------------------------------------- what a step means
def test_terminated_wins_over_truncated():
    step = started({"terminated": FIRST, "truncated": YES}).step(IDLE)
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [False, True]


def test_reset_row_says_nothing_whatever_the_environment_says():
    """Its reward and ends are dropped; an end there makes the next row a reset too."""
    junk = {"reward": np.array([5.0, 6.0]), "terminated": YES, "truncated": YES}
    stream = started({"truncated": FIRST}, junk)
    stream.step(IDLE)
    assert stream.acting.tolist() == [False, True]
    step = stream.step(IDLE)
    assert step.valid.tolist() == [False, True]
    assert step.reward.tolist() == [0, 6]
    assert step.terminated.tolist() == [False, True]
    assert step.truncated.tolist() == [False, False]
    assert stream.acting.tolist() == [False, False]


def test_nan_reward_of_a_reset_row_is_no_fault():
    stream = started({"truncated": FIRST}, {"reward": np.array([np.nan, 1.0])})
    stream.step(IDLE)
    assert stream.step(IDLE).reward.tolist() == [0, 1]


@pytest.mark.parametrize("dense", [True, False])
def test_final_observation_of_same_step(dense):
    final = np.array([[7.0, 8.0], [50.0, 50.0]], np.float32)
    if not dense:
        rows, final = final, np.full(2, None, object)
        final[0] = rows[0]
    info = {"final_obs": final, "_final_obs": FIRST}
    following = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    script = {"observation": following, "truncated": FIRST, "info": info}
    stream = started(script, mode=AutoresetMode.SAME_STEP)
    step = stream.step(IDLE)
    assert step.next_observation.tolist() == [[7, 8], [3, 4]]
    assert stream.observation.tolist() == [[1, 2], [3, 4]]
    assert step.valid.all()
    assert stream.acting.all()


@pytest.mark.parametrize(
    "info", [{}, {"final_obs": np.zeros((2, 2), np.float32), "_final_obs": ~FIRST}]
)
def test_same_step_without_the_final_observation_is_refused(info):
    stream = started({"truncated": FIRST, "info": info}, mode=AutoresetMode.SAME_STEP)
    with pytest.raises(EnvironmentFault, match=r"environment 0 returned no info\['final_obs'\]"):
        stream.step(IDLE)


@pytest.mark.parametrize("dense", [True, False])
def test_final_observation_is_checked(dense):
    final = np.array([[0.0, 0.0], [0.0, np.nan]], np.float32)
    if not dense:
        rows, final = final, np.full(2, None, object)
        final[1] = rows[1]
    script = {"truncated": ~FIRST, "info": {"final_obs": final, "_final_obs": ~FIRST}}
    stream = started(script, mode=AutoresetMode.SAME_STEP)
    with pytest.raises(
        EnvironmentFault, match=r"environment 1 returned nan as final observation at \[1\]"
    ):
        stream.step(IDLE)


def test_disabled_resets_only_what_ended_and_keeps_the_other_rows():
    env = Scripted(
        2,
        {"observation": np.full((2, 2), 4.0, np.float32), "terminated": FIRST},
        mode=AutoresetMode.DISABLED,
        first=np.full((2, 2), 9.0, np.float32),  # in all rows, also of those not reset
    )
    stream = Stream(env=env)
    stream.reset(0)
    step = stream.step(IDLE)
    assert env.resets == 2
    assert env.masks[0].tolist() == [True, False]
    assert step.next_observation.tolist() == [[4, 4], [4, 4]]
    assert stream.observation.tolist() == [[9, 9], [4, 4]]
    stream.step(IDLE)
    assert env.resets == 2


def test_mode_that_is_not_declared_is_taken_for_next_step_and_said():
    with pytest.warns(UserWarning, match=r"no metadata\['autoreset_mode'\]: taken for NEXT_STEP"):
        stream = Stream(env=Scripted(2, {"truncated": FIRST}, {}, mode=None))
    stream.reset(0)
    stream.step(IDLE)
    assert stream.step(IDLE).valid.tolist() == [False, True]


@pytest.mark.parametrize(
    "script",
    [
        [{"truncated": FIRST}, {"reward": np.array([1.0, 0.0])}],
        [{"truncated": FIRST, "info": {"final_obs": np.zeros((2, 2))}}, {}],
    ],
    ids=["reward in a reset row", "final_obs"],
)
def test_mode_that_is_not_declared_and_not_next_step_is_found_out(script):
    with pytest.warns(UserWarning, match="taken for NEXT_STEP"):
        stream = Stream(env=Scripted(2, *script, mode=None))
    stream.reset(0)
    with pytest.raises(EnvironmentFault, match="declares no autoreset mode"):
        play(stream, [IDLE] * len(script))


def test_mode_by_its_name_and_by_a_wrong_one():
    assert started(mode="SameStep").autoreset_mode is AutoresetMode.SAME_STEP
    with pytest.raises(ArgumentError, match="'Later', which takes one of"):
        Stream(env=Scripted(2, mode="Later"))


# ---------------------------------------------------------------- checks
NAN_OBSERVATION = np.array([[0, 0], [0, np.nan]], np.float32)
OVERFLOW = np.full((2, 2), 1e39)
BAD = {
    "nan observation": (
        {"observation": NAN_OBSERVATION},
        r"environment 1 .* nan as observation at \[1\]",
    ),
    "too large for float32": ({"observation": OVERFLOW}, r"environment 0 .* inf as observation"),
    "inf observation": (
        {"observation": np.full((2, 2), -np.inf)},
        "environment 0 .* -inf as observation",
    ),
    "nan reward": ({"reward": np.array([0, np.nan])}, "environment 1 returned nan as reward,"),
    "inf reward": ({"reward": np.array([-np.inf, 0])}, "environment 0 returned -inf as reward,"),
    "shape of observation": (
        {"observation": np.zeros((2, 3))},
        r"shape \(2, 3\) where .* \(2, 2\)",
    ),
    "one environment": (
        {"observation": np.zeros(2)},
        r"shape \(2,\) where the space says \(2, 2\)",
    ),
    "type of observation": ({"observation": np.zeros((2, 2), complex)}, "type complex128 where"),
    "shape of reward": ({"reward": np.zeros((2, 1))}, r"rewards of shape \(2, 1\)"),
    "type of reward": ({"reward": np.array(["a", "b"])}, "rewards of type <U1"),
    "shape of an end": ({"terminated": np.zeros((2, 1), bool)}, r"`terminated` as bool of shape"),
    "type of an end": ({"truncated": np.zeros(2)}, "`truncated` as float64"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_environment_may_return(name):
    bad, message = BAD[name]
    stream = started(*[{}] * 998, {}, bad)
    for _ in range(999):
        stream.step(IDLE)
    with pytest.raises(EnvironmentFault, match=message) as caught:
        stream.step(IDLE)
    assert str(caught.value).endswith("at step 1000 since the reset, 1000 in all, seed 0")


def test_large_finite_numbers_are_no_fault():
    large = np.full((2, 2), 3e38, np.float32)
    assert started({"observation": large}, high=np.inf).step(
        IDLE
    ).next_observation.max() == np.float32(3e38)


def test_fault_counts_steps_since_the_reset_and_in_all():
    stream = started({}, {}, {}, {"reward": np.array([np.nan, 0])})
    for _ in range(3):
        stream.step(IDLE)
    stream.reset(0)
    with pytest.raises(EnvironmentFault, match="at step 1 since the reset, 4 in all"):
        stream.step(IDLE)


def test_first_observation_is_checked():
    stream = Stream(env=Scripted(2, first=NAN_OBSERVATION))
    with pytest.raises(
        EnvironmentFault, match=r"environment 1 returned nan .* at a reset after 0 steps"
    ):
        stream.reset(0)


def test_float64_observations_become_what_the_space_says():
    step = started({"observation": np.full((2, 2), 0.1)}).step(IDLE)
    assert step.next_observation.dtype == np.float32
    assert step.reward.dtype == np.float32


def test_whole_numbers_and_images_are_taken():
    pixels = np.full((2, 2), 200, np.uint8)
    step = started(
        {"observation": pixels, "reward": np.array([1, 2])}, dtype=np.uint8, high=255
    ).step(IDLE)
    assert step.next_observation.tolist() == pixels.tolist()
    assert step.reward.tolist() == [1, 2]


def test_actions_have_one_row_for_each_environment():
    stream = started()
    with pytest.raises(ShapeError, match=r"action takes shape \(2,\), .* got \(3,\)"):
        stream.step(np.zeros(3, np.int64))
    with pytest.raises(ShapeError, match=r"got \(2, 1\)"):
        stream.step(np.zeros((2, 1), np.int64))


def test_a_step_needs_a_reset_first():
    stream = Stream(env=Scripted(2))
    with pytest.raises(ArgumentError, match="step takes a stream that was reset"):
        stream.step(IDLE)


def test_a_space_that_is_not_supported_is_refused_when_the_stream_is_made():
    env = Chain()
    env.observation_space = gymnasium.spaces.Dict({"a": gymnasium.spaces.Text(3)})
    with pytest.raises(ArgumentError, match=r"observation space\['a'\] Text\(.* is not supported"):
        make_stream(env)


# ---------------------------------------------------------------- whose arrays
def test_arrays_returned_are_not_written_to_again():
    """Neither by an environment that returns one array for ever, nor by a vector of such ones."""
    makers = [lambda: Chain(reuses=True)] * 2
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
        stream = Stream(env=SyncVectorEnv(makers, copy=False, autoreset_mode=mode))
        stream.reset(0)
        steps, copies = [], []
        for _ in range(14):
            steps.append(stream.step(IDLE))
            copies.append([np.copy(field) for field in steps[-1][:-1]])
        for step, copy in zip(steps, copies, strict=True):
            for field, kept in zip(step[:-1], copy, strict=True):
                np.testing.assert_array_equal(field, kept)


def test_flags_that_the_environment_goes_on_using_are_copied():
    flags = np.array([True, False])
    stream = started({"truncated": flags}, {})
    step = stream.step(IDLE)
    flags[:] = False
    assert step.truncated.tolist() == [True, False]


def test_last_observation_survives_an_environment_that_resets_in_place():
    """In the streams that make_stream makes; Gymnasium's own SAME_STEP loses it."""
    stream = make_stream(lambda: Chain(reuses=True), 2)
    stream.reset(0)
    for _ in range(5):
        step = stream.step(IDLE)
    assert step.truncated.all()
    assert step.next_observation.tolist() == [[1, 5, 0], [1, 5, 0]]
    assert stream.observation.tolist() == [[0, 0, 1], [0, 0, 1]]


# ---------------------------------------------------------------- faults in the environments
def test_what_an_environment_raises_comes_through_with_a_note():
    makers = [Chain, lambda: Faulty(3), Chain]
    stream = Stream(env=SyncVectorEnv(makers))
    stream.reset(0)
    stream.step(np.zeros(3, int))
    stream.step(np.zeros(3, int))
    with pytest.raises(LookupError, match="the cart is gone") as caught:
        stream.step(np.zeros(3, int))
    assert caught.value.__notes__ == [
        "raised by environment 1 at step 3 since the reset, 3 in all, seed 0, action 0"
    ]


@pytest.mark.slow
def test_what_a_worker_raises_comes_through_with_a_note():
    env = AsyncVectorEnv([Chain, lambda: Faulty(2)], context="spawn")
    try:
        stream = Stream(env=env)
        stream.reset(0)
        stream.step(IDLE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium logs the worker's trace as a warning
            with pytest.raises(LookupError, match="the cart is gone") as caught:
                stream.step(IDLE)
        assert caught.value.__notes__ == [
            "raised by environment 1 at step 2 since the reset, 2 in all, seed 0, action 0"
        ]
    finally:
        close_environments(env)


@pytest.mark.slow
def test_closing_does_not_wait_for_a_worker_that_is_dead_or_asleep():
    env = AsyncVectorEnv([lambda: Faulty(1, "sleeps"), Chain, Chain], context="spawn")
    env.reset(seed=0)
    env.processes[1].kill()
    env.processes[1].join()
    env.parent_pipes[0].send(("step", 0))
    began = time.monotonic()
    close_environments(env, patience=0.5)
    assert time.monotonic() - began < 5
    assert not any(process.is_alive() for process in env.processes)
    close_environments(env)  # again changes nothing


# ---------------------------------------------------------------- beginning anew
def test_reset_makes_the_environments_anew():
    made = []

    def make() -> SyncVectorEnv:
        made.append(SyncVectorEnv([lambda: Chain(start_from_seed=True)] * 4))
        return made[-1]

    stream = Stream(make)
    assert stream.remakes
    first = stream.reset(5).copy()
    assert len(made) == 1  # what was made to learn the spaces is used
    for _ in range(3):
        stream.step(np.zeros(4, int))
    assert stream.steps == 3
    np.testing.assert_array_equal(stream.reset(5), first)
    assert len(made) == 2
    assert made[0].closed
    assert (stream.steps, stream.total_steps) == (0, 3)
    assert not np.array_equal(stream.reset(6)[:, 0], first[:, 0])
    stream.close()
    assert made[2].closed
    with pytest.raises(ArgumentError, match="not closed since"):
        stream.step(np.zeros(4, int))


def test_reset_clears_what_was_to_be_skipped():
    stream = started({"truncated": YES})
    stream.step(IDLE)
    stream.reset(0)
    assert stream.step(IDLE).valid.all()


def test_what_was_given_is_neither_made_anew_nor_closed():
    env = SyncVectorEnv([Chain] * 2)
    stream = Stream(env=env)
    stream.reset(np.int64(3))
    stream.reset(3)
    assert not stream.remakes
    stream.close()
    assert not env.closed


def test_a_stream_takes_environments():
    with pytest.raises(ArgumentError, match="`make` or `env`"):
        Stream()


# ---------------------------------------------------------------- state
def play(stream: Stream, flaps) -> list[np.ndarray]:
    rows = []
    for flap in flaps:
        step = stream.step(flap)
        rows += [step.observation, step.reward, step.next_observation, step.terminated]
    return [*rows, stream.observation, stream.acting]


def test_state_continues_bit_for_bit():
    flaps = (np.random.default_rng(0).random((120, 32)) < 0.1).astype(np.int64)
    with closing(make_stream("upslope/FlappyBird-v0", 32)) as stream:
        assert stream.saves_state
        with pytest.raises(ArgumentError, match="get_state takes a stream that was reset"):
            stream.get_state()
        stream.reset(1)
        play(stream, flaps[:60])
        state = {name: np.copy(array) for name, array in stream.get_state().items()}
        expected = play(stream, flaps[60:])
        with closing(make_stream("upslope/FlappyBird-v0", 32)) as other:
            other.set_state(state)
            assert (other.steps, other.total_steps) == (60, 60)
            for got, want in zip(play(other, flaps[60:]), expected, strict=True):
                np.testing.assert_array_equal(got, want)
            with pytest.raises(ArgumentError, match=r"state lacks \['steps'\]"):
                other.set_state({name: v for name, v in state.items() if name != "steps"})


class SavesState(Scripted):
    """A NEXT_STEP environment that can save its state."""

    def get_state(self) -> dict[str, np.ndarray]:
        return {}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        pass


def test_state_knows_which_rows_are_to_be_skipped():
    stream = Stream(env=SavesState(2, {"truncated": FIRST}))
    stream.reset(0)
    stream.step(IDLE)
    other = Stream(env=SavesState(2, {"reward": np.array([5.0, 6.0])}))
    other.set_state(stream.get_state())
    step = other.step(IDLE)
    assert step.valid.tolist() == [False, True]
    assert step.reward.tolist() == [0, 6]
    assert other.step(IDLE).valid.tolist() == [True, True]


def test_state_that_cannot_be_saved():
    stream = started()
    assert not stream.saves_state
    with pytest.raises(ArgumentError, match="saves_state"):
        stream.get_state()
    with pytest.raises(ArgumentError, match="saves_state"):
        stream.set_state({})


# ---------------------------------------------------------------- info
def test_final_info_in_each_form():
    score = np.array([3, 4])
    assert final_info({}, "score") is None
    assert final_info({"score": score}, "score") is score
    both = {"score": np.zeros(2), "final_info": {"score": score}, "_final_info": YES}
    assert final_info(both, "score") is score
    assert final_info({"score": score, "final_info": {}}, "score") is None
