"""Flappy Bird by itself: hand numbers, Gymnasium's conventions, state, refusals and pictures."""

from __future__ import annotations

import io
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import upslope.envs
from upslope.envs.flappy_bird import FlappyBirdEnv, FlappyBirdVectorEnv
from upslope.envs.flappy_drawing import draw
from upslope.envs.flappy_rules import COURSE
from upslope.errors import ArgumentError

ID = "upslope/FlappyBird-v0"


def careful(seen: np.ndarray) -> np.ndarray:
    """Flap only when the bird would else sink below its gap: passes hundreds of pipes."""
    floor = 512 * np.where(seen[:, 0] < 10 / 288, seen[:, 5], seen[:, 2])
    floor[floor > 500] = 256
    return (512 * seen[:, 9] + 24 + np.minimum(10 * seen[:, 10] + 1, 10) > floor).astype(np.int64)


def mixed(seen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Play carefully with even birds, at random with odd ones."""
    actions = careful(seen)
    actions[1::2] = rng.random(len(actions[1::2])) < 0.1
    return actions


# ------------------------------------------------------------------ registration and conventions
def test_gymnasium_makes_one_bird_and_thousands() -> None:
    upslope.envs.register()  # again
    assert isinstance(gymnasium.make(ID).unwrapped, FlappyBirdEnv)
    birds = gymnasium.make_vec(ID, num_envs=4096, vectorization_mode="vector_entry_point")
    assert isinstance(birds, FlappyBirdVectorEnv)
    assert birds.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    seen, info = birds.reset(seed=1)
    assert birds.observation_space.contains(seen)
    assert info["score"].shape == (4096,)
    assert gymnasium.make_vec(ID, num_envs=2, vectorization_mode="sync").num_envs == 2


def test_gymnasiums_own_check_passes() -> None:
    check_env(gymnasium.make(ID, render_mode="rgb_array").unwrapped)


def test_a_gymnasium_time_limit_and_episode_statistics_apply() -> None:
    env = gymnasium.make(ID, max_episode_steps=7)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(7)] == [False] * 6 + [True]
    birds = gymnasium.make_vec(ID, num_envs=3, max_episode_steps=7)
    birds = gymnasium.wrappers.vector.RecordEpisodeStatistics(birds)
    birds.reset(seed=0)
    for _ in range(7):
        _, _, terminated, truncated, info = birds.step(np.zeros(3, np.int64))
    assert truncated.all()
    assert not terminated.any()
    assert info["episode"]["l"].tolist() == [7, 7, 7]


def test_same_step_reset_reads_as_gymnasiums_synchronous_environment() -> None:
    ours = FlappyBirdVectorEnv(1, score_limit=3)
    theirs = SyncVectorEnv(
        [lambda: FlappyBirdEnv(score_limit=3)], autoreset_mode=AutoresetMode.SAME_STEP
    )
    (a, info), (b, their_info) = ours.reset(seed=5), theirs.reset(seed=5)
    rng, ends, truncations = np.random.default_rng(0), 0, 0
    for t in range(1500):
        np.testing.assert_array_equal(a, b)
        assert info["score"] == their_info["score"]
        action = careful(a) if t % 400 < 250 else (rng.random(1) < 0.1).astype(np.int64)
        (a, *rest, info), (b, *their_rest, their_info) = ours.step(action), theirs.step(action)
        np.testing.assert_array_equal(rest, their_rest)
        assert info.keys() == their_info.keys()
        if "final_obs" in info:
            ends, truncations = ends + 1, truncations + int(rest[2][0])
            np.testing.assert_array_equal(info["_final_obs"], their_info["_final_obs"])
            np.testing.assert_array_equal(info["_final_info"], their_info["_final_info"])
            np.testing.assert_array_equal(info["final_obs"][0], their_info["final_obs"][0])
            assert info["final_info"]["score"] == their_info["final_info"]["score"]
            assert info["final_info"]["_score"] == their_info["final_info"]["_score"]
    assert ends > truncations > 3


# ------------------------------------------------------------------ rules
def test_pipes_come_back_at_397_6_with_spacings_36_36_41() -> None:
    moments = np.flatnonzero(COURSE.returned)
    assert moments.tolist() == [86, 122, 158, 199, 235]
    assert np.diff(np.append(moments[2:], 158 + 113)).tolist() == [41, 36, 36]
    assert (COURSE.x[moments, 2] == 397.6).all()
    after_the_last = np.append(COURSE.x[-1, 1:], 397.6) - [4, 4, 0]
    np.testing.assert_array_equal(COURSE.x[COURSE.following[-1]], after_the_last)
    # 48 -> 44 for the first pipes, 45.6 -> 41.6 for those that came back
    np.testing.assert_allclose(COURSE.x[COURSE.passed, 0], [44, 44, 44, 41.6, 41.6, 41.6])


def test_the_first_frames_by_hand() -> None:
    env = FlappyBirdVectorEnv(2)
    seen, _ = env.reset(seed=0)
    gap = env.get_state()["gap"][0]
    assert set(gap) <= set(range(100, 180, 10))
    expected = [[1, g / 512, (g + 100) / 512, 1, 0, 1, 1, 0, 1, 244 / 512, -0.9, 0.5] for g in gap]
    np.testing.assert_array_equal(seen, np.float32(expected))
    # bird 0 flaps: no gravity on that frame; bird 1 does not: gravity at once
    seen, reward, terminated, truncated, _ = env.step(np.array([1, 0]))
    np.testing.assert_array_equal(seen[:, 0], np.float32([284 / 288] * 2))
    np.testing.assert_array_equal(seen[:, 9], np.float32([235 / 512, 236 / 512]))
    np.testing.assert_array_equal(seen[:, 10], np.float32([-0.9, -0.8]))
    np.testing.assert_array_equal(seen[:, 11], np.float32([45 / 90, 42 / 90]))
    assert reward.tolist() == [0.1, 0.1]
    assert not (terminated | truncated).any()


def test_velocity_ends_at_10_and_rotation_at_minus_90() -> None:
    env = FlappyBirdVectorEnv(2)
    env.reset(seed=0)
    state = env.get_state()
    state["velocity"][:], state["rotation"][:] = [9, 10], [-87, -90]  # no life lasts so long
    env.set_state(state)
    seen, *_ = env.step(np.zeros(2, np.int64))
    np.testing.assert_array_equal(seen[:, 10:], [[1, -1], [1, -1]])


def test_a_bird_that_never_flaps_falls_to_the_ground_and_one_that_always_flaps_hits_a_pipe() -> (
    None
):
    env = FlappyBirdVectorEnv(2, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    rewards, done, flown = [], np.zeros(2, bool), np.zeros(2, int)
    for _ in range(50):
        assert not done.all()
        _, reward, terminated, *_ = env.step(np.array([0, 1]))
        rewards.append(reward[1])
        flown += ~done
        done |= terminated
        if terminated[0] and not terminated[1]:
            env.reset(options={"reset_mask": np.array([True, False])})
    # y = 244 - 36 at the top after 8 frames, then 1 + ... + 10 = 55 down, then 10 a frame to 380
    assert flown[0] == 8 + 1 + 10 + 12
    # pipe at 288 - 4 t < 91 first at t = 50; -0.5 from the frame with 244 - 9 t < 0
    assert flown[1] == 50
    assert rewards == [0.1] * 27 + [-0.5] * 22 + [-1]


def test_score_limit_truncates_on_the_frame_that_passes_the_last_pipe() -> None:
    env = FlappyBirdVectorEnv(64, score_limit=2)
    seen, _ = env.reset(seed=0)
    alive, passed = np.ones(64, bool), np.zeros(64, int)
    for _ in range(96):
        seen, reward, terminated, truncated, info = env.step(careful(seen))
        assert not truncated.any()
        alive &= ~terminated
        passed += reward == 1
        np.testing.assert_array_equal(info["score"][alive], passed[alive])
    assert alive.sum() > 50
    # the pipe from 432 is at 48 at age 96, and the frame that leads to 97 counts it
    assert (passed[alive] == 1).all()
    _, reward, terminated, truncated, info = env.step(careful(seen))
    assert truncated[alive].all()
    assert not (truncated & ~alive).any()
    np.testing.assert_array_equal(info["_final_info"], terminated | truncated)
    assert (info["final_info"]["score"][alive] == 2).all()
    assert (info["score"][alive] == 0).all()
    assert (reward[alive & ~terminated] == 1).all()


# ------------------------------------------------------------------ arrays, seeds and state
def test_arrays_returned_are_never_written_again() -> None:
    env = FlappyBirdVectorEnv(32)
    rng = np.random.default_rng(1)
    seen, info = env.reset(seed=0)
    kept = [(seen, seen.copy()), (info["score"], info["score"].copy())]
    for _ in range(200):
        seen, reward, terminated, truncated, info = env.step(mixed(seen, rng))
        arrays = [seen, reward, terminated, truncated, info["score"]]
        if "final_obs" in info:
            arrays += [info["final_obs"], info["_final_obs"], info["final_info"]["score"]]
        kept += [(array, array.copy()) for array in arrays]
    for array, copy in kept:
        np.testing.assert_array_equal(array, copy)


def play(env: FlappyBirdVectorEnv, seen: np.ndarray, frames: int, seed: int) -> list[np.ndarray]:
    rng, told = np.random.default_rng(seed), []
    for _ in range(frames):
        seen, reward, terminated, truncated, info = env.step(mixed(seen, rng))
        told += [seen, reward, terminated, truncated, info["score"]]
    return told


def test_a_seed_is_a_game() -> None:
    env, other = FlappyBirdVectorEnv(16), FlappyBirdVectorEnv(16)
    first = play(env, env.reset(seed=3)[0], 300, 0)
    again = play(other, other.reset(seed=3)[0], 300, 0)
    third = play(env, env.reset(seed=4)[0], 300, 0)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, third, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("frames", [0, 1, 157, 158, 400])
def test_state_continues_bit_for_bit(frames: int) -> None:
    env = FlappyBirdVectorEnv(7, score_limit=4)
    seen = env.reset(seed=11)[0]
    told = play(env, seen, frames, 1)
    seen = told[-5] if told else seen
    file = io.BytesIO()
    np.savez(file, **env.get_state())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        state = dict(arrays)
    expected = play(env, seen, 500, 2)
    fresh = FlappyBirdVectorEnv(7, score_limit=4)
    fresh.set_state(state)
    for a, b in zip(expected, play(fresh, seen, 500, 2), strict=True):
        np.testing.assert_array_equal(a, b)
    for name, array in env.get_state().items():
        np.testing.assert_array_equal(array, fresh.get_state()[name])


def test_state_of_one_bird_continues() -> None:
    env = FlappyBirdEnv()
    env.reset(seed=2)
    for _ in range(20):
        env.step(0)
    state, fresh = env.get_state(), FlappyBirdEnv()
    fresh.set_state(state)
    for _ in range(11):
        (a, *rest), (b, *their_rest) = env.step(0), fresh.step(0)
        np.testing.assert_array_equal(a, b)
        assert rest == their_rest
    assert rest[1]  # both died
    np.testing.assert_array_equal(env.reset()[0], fresh.reset()[0])


def test_reset_mask_starts_only_those_birds_anew() -> None:
    env = FlappyBirdVectorEnv(4, autoreset_mode=AutoresetMode.DISABLED)
    start, _ = env.reset(seed=0)
    for _ in range(10):
        before = env.step(np.zeros(4, np.int64))[0]
    mask, options = np.array([True, False, False, True]), {}
    options["reset_mask"] = mask
    after, _ = env.reset(options=options)
    assert options == {"reset_mask": mask}  # the caller's dictionary is left alone
    np.testing.assert_array_equal(after[~mask], before[~mask])
    np.testing.assert_array_equal(after[mask][:, 9:], start[mask][:, 9:])
    assert env.get_state()["steps"].tolist() == [0, 10, 10, 0]


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_envs": 0}, "num_envs takes a whole number of at least 1, got 0"),
        ({"num_envs": None}, "num_envs takes a whole number of at least 1, got None"),
        ({"num_envs": 2.5}, "num_envs takes a whole number of at least 1, got 2.5"),
        ({"num_envs": True}, "num_envs takes a whole number of at least 1, got True"),
        ({"score_limit": 0}, "score_limit takes a whole number of at least 1, got 0"),
        ({"score_limit": "9"}, "score_limit takes a whole number of at least 1, got '9'"),
        ({"max_episode_steps": -1}, "max_episode_steps takes a whole number of at least 1, got -1"),
        ({"render_mode": "rgb_aray"}, "got 'rgb_aray' .did you mean 'rgb_array'"),
        ({"render_mode": "human"}, "render_mode takes None or 'rgb_array', got 'human'$"),
        ({"autoreset_mode": AutoresetMode.NEXT_STEP}, "takes SAME_STEP or DISABLED, got"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        FlappyBirdVectorEnv(**arguments)


@pytest.mark.parametrize(
    ("actions", "sentence"),
    [
        (np.zeros(2, np.int64), r"actions takes shape \(3,\), got \(2,\)"),
        (np.zeros((3, 1), np.int64), r"actions takes shape \(3,\), got \(3, 1\)"),
        (1, r"actions takes shape \(3,\), got \(\)"),
        (np.zeros(3), "actions takes whole numbers, got float64"),
        (np.zeros(3, bool), "actions takes whole numbers, got bool"),
        (np.array([0, 1, 2]), "actions takes 0 or 1, got 2 for bird 2"),
        (np.array([0, -1, 0], np.int32), "actions takes 0 or 1, got -1 for bird 1"),
        (np.array([2**64 - 1, 0, 0], np.uint64), "got 18446744073709551615 for bird 0"),
    ],
)
def test_wrong_actions_are_refused_and_change_nothing(actions: Any, sentence: str) -> None:
    env = FlappyBirdVectorEnv(3)
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(ArgumentError, match=sentence):
        env.step(actions)
    for name, array in env.get_state().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("action", [2, -1, 0.0, None, np.array([1])])
def test_a_wrong_action_of_one_bird_is_refused(action: Any) -> None:
    env = FlappyBirdEnv()
    env.reset(seed=0)
    with pytest.raises(ArgumentError, match="action takes 0 or 1, got"):
        env.step(action)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"seed": -1}, "seed takes a whole number of at least 0 or None, got -1"),
        ({"seed": [1, 2]}, "seed takes a whole number"),
        ({"options": {"mask": 1}}, r"options takes the key 'reset_mask', got \['mask'\]"),
        ({"options": {"reset_mask": [True, False]}}, r"bool array of shape \(2,\), got \[True"),
        ({"options": {"reset_mask": np.ones(3, bool)}}, r"shape \(2,\), got bool \(3,\)"),
        ({"options": {"reset_mask": np.ones(2)}}, r"shape \(2,\), got float64 \(2,\)"),
        ({"options": {"reset_mask": np.zeros(2, bool)}}, "marks at least one bird"),
        ({"options": {"reset_mask": np.array([True, False])}}, "in the first reset all of them"),
    ],
)
def test_wrong_resets_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        FlappyBirdVectorEnv(2).reset(**arguments)


@pytest.mark.parametrize("method", ["step", "render", "get_state"])
def test_what_needs_a_reset_says_so(method: str) -> None:
    env = FlappyBirdVectorEnv(1, render_mode="rgb_array")
    arguments = [np.zeros(1, np.int64)] if method == "step" else []
    with pytest.raises(ArgumentError, match=method + r"\(\) takes an environment that has been"):
        getattr(env, method)(*arguments)


def test_a_dead_bird_is_not_stepped_on() -> None:
    env = FlappyBirdEnv()
    env.reset(seed=0)
    assert [env.step(0)[2] for _ in range(31)] == [False] * 30 + [True]
    with pytest.raises(ArgumentError, match="but bird 0 is to be reset"):
        env.step(0)
    env.reset()
    env.step(0)


def test_a_wrong_state_is_refused() -> None:
    env = FlappyBirdVectorEnv(2)
    env.reset(seed=0)
    state = env.get_state()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({k: v for k, v in state.items() if k != "y"}, "state takes the arrays"),
        (
            {**state, "y": state["y"][:1]},
            r"state\['y'\] takes float32 of shape \(2,\), got float32",
        ),
        ({**state, "score": state["score"] * 1.0}, r"state\['score'\] takes int64"),
        ({**state, "phase": state["phase"] + 271}, "takes 0 to 270"),
    ]
    for given, sentence in wrong:
        with pytest.raises(ArgumentError, match=sentence):
            env.set_state(given)
    for name, array in env.get_state().items():
        np.testing.assert_array_equal(array, state[name])


# ------------------------------------------------------------------ pictures
def test_frames_follow_gymnasiums_convention() -> None:
    birds, one = FlappyBirdVectorEnv(2, render_mode="rgb_array"), FlappyBirdEnv(None, "rgb_array")
    birds.reset(seed=0)
    frames = birds.render()
    assert isinstance(frames, tuple)
    assert [(f.shape, f.dtype) for f in frames] == [((512, 288, 3), np.dtype(np.uint8))] * 2
    one.reset(seed=0)
    frame = one.render()
    assert frame.shape == (512, 288, 3)
    one.step(1)
    assert (one.render() != frame).any()
    with pytest.raises(ArgumentError, match="render_mode='rgb_array'"):
        FlappyBirdVectorEnv(2).render()


def test_the_picture_shows_pipes_bird_and_score_where_they_are() -> None:
    scene = {"bird_y": 200.0, "rotation": 45.0, "pipes": [], "frame": 0, "score": 7}
    empty = draw(**scene)

    def rows_and_columns(**change: Any) -> tuple[tuple[int, int], tuple[int, int]]:
        differs = (draw(**{**scene, **change}) != empty).any(axis=-1)
        rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
        return (rows[0], rows[-1]), (columns[0], columns[-1])

    piped = draw(**{**scene, "pipes": [(150.0, 130.0)]})
    differs = (piped != empty).any(axis=-1)
    assert rows_and_columns(pipes=[(150.0, 130.0)])[1] == (150, 150 + 52 - 1)
    assert not differs[130:230].any()
    assert differs[130 - 24 : 130, 150:202].all()
    assert differs[230 : 230 + 24, 150:202].all()
    assert not differs[404:].any()
    assert not (draw(**{**scene, "pipes": [(288.0, 130.0), (-52.0, 130.0)]}) != empty).any()

    (top, bottom), (left, right) = rows_and_columns(bird_y=100.0)
    assert 95 <= top <= 100
    assert 220 <= bottom <= 230
    assert 50 <= left <= 57
    assert 88 <= right <= 95
    (top, bottom), (left, right) = rows_and_columns(score=8)
    assert 40 <= top < bottom <= 74
    assert left + right == pytest.approx(288, abs=24)
    assert rows_and_columns(frame=1)[0][0] >= 404  # the ground moves
    assert 195 <= rows_and_columns(frame=3)[0][0] <= 230  # and the wing
    for extreme in (-92.0, 380.48):
        draw(**{**scene, "bird_y": extreme, "score": 10**15})
