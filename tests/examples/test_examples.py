"""The examples run, draw, and find what they say; the corridor's curves are the book's."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import upslope as us

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURES = EXAMPLES.parent / "docs" / "images"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PRINTS = {
    "bernoulli_vae": r"exact \(enumerate\) +ELBO -\d+\.\d\d, variance 0\.000, squared bias 0\.000",
    "maximise_f1": r"expected F1, score estimator +F1 0\.\d+ ± 0\.\d+",
    "naive_estimator": r"naive expects \[0\.2821\], exact \[2\.0\]; biased: 0\.141 times",
    "short_corridor": r"optimum +-11\.6569",
}


def test_each_example_is_here():
    assert sorted(PRINTS) == NAMES


@pytest.mark.docs
@pytest.mark.parametrize("name", NAMES)
def test_it_prints_its_numbers_and_draws_its_picture(name, tmp_path):
    picture = tmp_path / "picture.png"
    command = [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"]
    run = subprocess.run(
        [*command, "--quick", "--picture", picture], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert re.search(PRINTS[name], run.stdout), run.stdout
    assert "nan" not in run.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("name", NAMES)
def test_its_picture_is_in_the_documentation(name):
    assert (PICTURES / f"{name}.png").stat().st_size < 150_000
    assert f"images/{name}.png" in (PICTURES.parent / "examples.md").read_text()


# ---- the short corridor --------------------------------------------------------------------------
def test_an_update_follows_the_gradient_of_the_library():
    corridor = load("short_corridor")
    generator = np.random.default_rng(0)
    theta, w = generator.normal(size=(2, 6)), generator.normal(size=6)
    action, to_go = generator.integers(2, size=6), -generator.integers(1, 50, size=6).astype(float)
    alpha, alpha_w = np.full(6, 0.3), np.full(6, 0.1)
    after, w_after = corridor.update(theta, w, action, to_go, alpha, alpha_w)

    parameter = torch.tensor(theta, requires_grad=True)
    log_prob = parameter.log_softmax(0)[torch.tensor(action), torch.arange(6)]
    value = us.gradient.surrogate(log_prob, torch.tensor(to_go), baseline=torch.tensor(w))
    (gradient,) = torch.autograd.grad(value.sum(), parameter)
    np.testing.assert_allclose(after, theta + 0.3 * gradient.numpy(), rtol=1e-12)
    np.testing.assert_allclose(w_after, w + 0.1 * (to_go - w), rtol=1e-12)


@pytest.mark.parametrize("p", [0.5, 2 - 2**0.5, 0.95])
def test_episodes_are_as_long_as_the_exact_ones(p):
    """The mean of 20,000 episode lengths, within 4.5 standard errors of -(4 - 2p) / (p (1 - p))."""
    corridor = load("short_corridor")
    actions = corridor.episode(np.full(20_000, p), np.random.default_rng(1))
    length = (actions >= 0).sum(0)
    error = length.std() / len(length) ** 0.5
    assert abs(length.mean() - (4 - 2 * p) / (p * (1 - p))) < 4.5 * error


def test_a_run_that_never_ends_is_locked_and_left_out(monkeypatch):
    corridor = load("short_corridor")
    monkeypatch.setattr(corridor, "LONGEST_EPISODE", 40)  # as short as to be reached often
    returns, locked = corridor.learn(np.full(50, 2.0**-13), np.zeros(50), episodes=3)
    assert 0 < locked.sum() < 50
    assert (returns[:, ~locked] > -40 - 1e-9).all()
    assert np.isnan(returns[-1, locked]).any()


@pytest.mark.slow
def test_the_corridor_learns_as_in_the_book():
    """Figures 13.1 and 13.2: 100 runs of 1000 episodes, over those that did not lock."""
    corridor = load("short_corridor")
    alpha, alpha_w = np.array(list(corridor.SETTINGS.values())[1::2]).T.repeat(100, 1)
    assert alpha[0] == 2**-13
    assert (alpha[-1], alpha_w[-1]) == (2**-9, 2**-6)
    returns, locked = corridor.learn(alpha, alpha_w, episodes=1000)
    assert locked[:100].mean() <= 0.02
    assert locked[100:].mean() <= 0.02
    plain, baseline = returns[:, :100][:, ~locked[:100]], returns[:, 100:][:, ~locked[100:]]
    assert -13.2 <= plain[-100:].mean() <= -11.8
    assert -12.4 <= baseline[-100:].mean() <= -11.5
    assert baseline[90:110].mean() - plain[90:110].mean() > 10


# ---- the naive estimator -------------------------------------------------------------------------
def test_the_naive_estimator_is_wrong_by_what_the_integral_says():
    """int p^2 (x - mu) x^2 dx = mu / (2 sqrt(pi)) at mu = 1; the score estimator has 2."""
    gaussian, softmax = load("naive_estimator").audit().values()
    assert gaussian["naive"].estimate.item() == pytest.approx(1 / (2 * np.pi**0.5), rel=1e-9)
    assert not gaussian["naive"].unbiased
    assert gaussian["score"].unbiased
    assert gaussian["score"].estimate.item() == pytest.approx(2, rel=1e-9)
    p = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64).softmax(0)
    f = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    expected = p * (p * f - (p**2 * f).sum())
    assert torch.allclose(softmax["naive"].estimate, expected, rtol=1e-9)
    assert softmax["naive"].cosine < 0.3
    assert softmax["score"].unbiased


# ---- F1 ------------------------------------------------------------------------------------------
@pytest.mark.docs
def test_f1_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    marked, truth = generator.integers(2, size=(5, 30)), generator.integers(2, size=30)
    expected = [metrics.f1_score(truth, row) for row in marked]
    np.testing.assert_allclose(load("maximise_f1").f1(marked, truth), expected, rtol=1e-12)


@pytest.mark.docs
def test_the_metric_itself_beats_cross_entropy_at_one_half():
    scores, curves = load("maximise_f1").compare(splits=3, steps=150)
    assert (scores[:, 2] > scores[:, 0] + 0.1).all()
    assert (curves[:, -1] > curves[:, 0] + 0.2).all()


# ---- the autoencoder -----------------------------------------------------------------------------
@pytest.mark.docs
def test_the_noise_of_the_estimators_is_ordered_and_only_the_relaxed_one_is_biased():
    vae = load("bernoulli_vae")
    (found,) = vae.train(vae.EXACT, 100, 101, vae.noise)[:1]
    variance = {name: parts[0] for name, parts in found.items()}
    assert variance["score"] > 5 * variance["score, leave-one-out"]
    assert variance["score, leave-one-out"] > variance["relaxed, pathwise"]
    far = {name: found[name][1] / found[name][2] for name in vae.SAMPLED}  # in standard errors
    assert far["relaxed, pathwise"] > 10
    assert all(abs(far[name]) < 4.5 for name in vae.SAMPLED if name != "relaxed, pathwise")
