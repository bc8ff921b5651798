"""The quality of a gradient: its formulas, its expectations, its edges."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import fdtr

from upslope.errors import ArgumentError, NotFiniteError, ShapeError
from upslope.gradient import quality


def noisy(chunks: int, size: int, dimensions: int, seed: int, signal: float = 1.0) -> torch.Tensor:
    """Gradients of chunks of samples: `signal` everywhere, noise of variance 1 a sample."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(chunks, dimensions, generator=generator, dtype=torch.float64)
    return signal + noise / math.sqrt(size)


# ---------------------------------------------------------------- formulas
def test_by_hand():
    """g = (3, 0), (1, 2), (2, 1) of 4 samples each: ḡ = (2, 1), Σ|g|² = 19, 3|ḡ|² = 15, B = 12."""
    report = quality(torch.tensor([[3.0, 0.0], [1.0, 2.0], [2.0, 1.0]]), 4)
    noise = 4 / 2 * (19 - 15)
    signal = 5 - noise / 12
    assert report.resolved
    assert report.trace == pytest.approx(noise)
    assert report.squared_norm == pytest.approx(signal)
    assert report.noise_scale == pytest.approx(noise / signal)
    assert report.signal_to_noise == pytest.approx(12 * signal / noise)
    assert report.cosine == pytest.approx(math.sqrt(1 / (1 + noise / signal / 12)))
    # (1, -1), (-1, 1) and (0, 0) about ḡ lie on a line: ν = 1; F = 60 / 8, and F(1, 2) is the
    # square of Student's t with two degrees of freedom
    assert report.ascent_probability == pytest.approx(math.sqrt(7.5 / (2 + 7.5)))
    assert (report.chunks, report.samples) == (3, 12)


def test_equal_sizes_as_a_number_or_as_a_tensor():
    gradients = noisy(5, 8, 10, 0)
    assert quality(gradients, 8) == quality(gradients, torch.full((5,), 8))
    assert quality(gradients.float(), 8).cosine == pytest.approx(quality(gradients, 8).cosine, 1e-6)


def test_unequal_sizes_by_the_definition():
    gradients, sizes = noisy(4, 2, 3, 3), torch.tensor([1, 2, 7, 3])
    samples, step = 13, (gradients * sizes[:, None]).sum(0) / 13
    noise, pairs = 0.0, 0.0
    for k in range(4):
        noise += sizes[k].item() * (gradients[k] - step).square().sum().item() / 3
        for j in range(k):
            pairs += (sizes[j] * sizes[k] * (gradients[j] @ gradients[k]) ** 2).item() / 6
    signal = step.square().sum().item() - noise / samples
    power = samples * step.square().sum().item()
    covariance = ((gradients - step).T * sizes) @ (gradients - step) / 3
    dimensions = max(1, noise**2 / min(pairs, covariance.square().sum().item()))
    report = quality(gradients, sizes)
    assert report.noise_scale == pytest.approx(noise / signal)
    assert report.signal_to_noise == pytest.approx(samples * signal / noise)
    below = fdtr(dimensions, 3 * dimensions, power / noise)
    assert report.ascent_probability == pytest.approx(below, rel=1e-6)


def test_a_report_does_not_depend_on_the_scale_or_the_order():
    gradients, sizes = noisy(5, 8, 10, 1), torch.tensor([8, 8, 4, 8, 16])
    first = quality(gradients, sizes)
    for other in (quality(1e-6 * gradients, sizes), quality(gradients.flip(0), sizes.flip(0))):
        assert other.signal_to_noise == pytest.approx(first.signal_to_noise)
        assert other.ascent_probability == pytest.approx(first.ascent_probability)


@pytest.mark.parametrize("sizes", [[16, 16, 16, 16], [4, 9, 16, 35]])
def test_signal_and_noise_are_right_on_average(sizes):
    """tr Σ = 6 and |G|² = 1.5, so a noise scale of 4; of the ratio's parts, the means over many."""
    generator = torch.Generator().manual_seed(0)
    size, dimensions, trials = torch.tensor(sizes), 6, 800
    noise, signal = [], []
    for _ in range(trials):
        z = torch.randn(len(sizes), dimensions, generator=generator, dtype=torch.float64)
        report = quality(0.5 + z / size[:, None].sqrt(), size)
        if not report.resolved:  # rare here: the signal is nine standard deviations
            continue
        step = ((0.5 + z / size[:, None].sqrt()) * size[:, None]).sum(0) / size.sum()
        share = report.signal_to_noise / (1 + report.signal_to_noise)
        signal.append(step.square().sum().item() * share)
        noise.append(signal[-1] * report.noise_scale)
    assert len(signal) == trials
    for found, truth in ((signal, 1.5), (noise, 6.0)):
        found = torch.tensor(found)
        error = found.std() / math.sqrt(trials)
        assert abs(found.mean() - truth) < 4.5 * error


def test_the_cosine_is_that_of_the_step():
    truth = torch.ones(50, dtype=torch.float64)
    cosines, predicted = [], []
    for seed in range(200):
        gradients = noisy(8, 4, 50, seed, signal=0.3)
        step = gradients.mean(0)
        cosines.append((step @ truth / step.norm() / truth.norm()).item())
        predicted.append(quality(gradients, 4).cosine)
    assert sum(predicted) / 200 == pytest.approx(sum(cosines) / 200, abs=0.01)


def test_ascent_probability_follows_the_signal():
    weak = [quality(noisy(16, 1, 20, s, signal=0), 1).ascent_probability for s in range(300)]
    strong = [quality(noisy(16, 1, 20, s, signal=1), 1).ascent_probability for s in range(20)]
    assert min(strong) > 0.999
    assert 0.4 < sum(weak) / 300 < 0.6


@pytest.mark.parametrize("chunks", [3, 8, 16])
@pytest.mark.parametrize("dimensions", [1, 1000])
def test_ascent_probability_without_signal(chunks, dimensions):
    """It exceeds c in no more than 1 - c of the cases, and .99 not in 4 or 5 of 100."""
    runs = 1000
    found = [quality(noisy(chunks, 1, dimensions, s, 0.0), 1) for s in range(runs)]
    for level in (0.9, 0.95, 0.99):
        above = sum(report.ascent_probability > level for report in found) / runs
        assert above < 1.2 * (1 - level) + 3 * math.sqrt(level * (1 - level) / runs)


# ---------------------------------------------------------------- edges
def test_not_resolved():
    report = quality(torch.tensor([[1.0, 0.0], [-1.0, 0.1], [0.0, 0.0]]), 10)
    assert not report.resolved
    assert report.squared_norm < 0 < report.trace
    for number in (report.signal_to_noise, report.noise_scale, report.cosine):
        assert math.isnan(number)
    assert 0 <= report.ascent_probability < 0.5
    assert "not resolved" in str(report)
    assert "3 chunks, 30 samples" in str(report)


def test_no_gradient_at_all_is_not_resolved():
    assert not quality(torch.zeros(4, 3), 2).resolved
    assert not quality(torch.zeros(4, 0), 2).resolved
    assert quality(torch.zeros(5, 3), 10).ascent_probability == 0.5
    assert quality(torch.eye(5), 10).ascent_probability == pytest.approx(0.5, abs=1e-4)


def test_equal_chunks_have_no_noise():
    report = quality(torch.tensor([0.1, 0.2, 0.7]).expand(4, 3), 2)
    assert report.signal_to_noise > 1e12
    assert report.cosine == pytest.approx(1)
    assert report.ascent_probability == pytest.approx(1)


def test_two_chunks_have_no_test():
    report = quality(torch.tensor([[1.0, 0.0], [1.0, 0.5]]), 2)
    assert report.resolved
    assert math.isnan(report.ascent_probability)
    assert report.cosine > 0.9


def test_a_resolved_report_is_one_line():
    text = str(quality(noisy(8, 4, 50, 0), 4))
    assert text.startswith("signal-to-noise ")
    assert "\n" not in text


def test_nothing_is_differentiated_or_changed():
    gradients = noisy(4, 2, 3, 0).requires_grad_()
    before = gradients.detach().clone()
    assert isinstance(quality(gradients, 2).cosine, float)
    assert torch.equal(gradients, before)


def test_refusals():
    gradients = noisy(4, 2, 3, 0)
    with pytest.raises(ArgumentError, match="chunk_gradients takes at least 2 chunks, got 1"):
        quality(gradients[:1], 2)
    with pytest.raises(ShapeError, match="chunk_gradients takes"):
        quality(gradients[0], 2)
    with pytest.raises(
        ShapeError, match=r"chunk_size takes .*K = 4 as in chunk_gradients, got \[3\]"
    ):
        quality(gradients, torch.ones(3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"chunk_size takes .*or a whole number, got float"):
        quality(gradients, 2.5)
    with pytest.raises(ArgumentError, match="chunk_size takes a number of at least 1, got 0"):
        quality(gradients, torch.tensor([1, 2, 0, 3]))
    gradients[2, 1] = math.nan
    with pytest.raises(NotFiniteError, match="chunk 2"):
        quality(gradients, 2)
