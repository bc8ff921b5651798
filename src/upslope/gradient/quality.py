"""How good a sampled gradient is, from the gradients of the chunks it was averaged over.

K independent chunks of b_k samples, B = Σ b_k, with mean gradients g_k around the true gradient G
and per-sample covariance Σ:

    ḡ     = Σ b_k g_k / B                                   the gradient of the step
    tr Σ  ≈ 1/(K-1) (Σ b_k |g_k|² - B |ḡ|²)                  noise of one sample
    |G|²  ≈ |ḡ|² - tr Σ / B                                 signal

both unbiased. McCandlish et al. 2018, arXiv:1812.06162, section 2.2 and appendix A.1, there for two
batch sizes. Without signal and with normal g_k, B |ḡ|² / tr Σ, which is 1 + signal-to-noise, has
nearly the distribution F(ν, ν (K-1)): exactly if Σ is the identity in ν dimensions, else with

    ν     = (tr Σ)² / tr(Σ²)                             Satterthwaite 1946: its variance is right
    tr(Σ²) ≈ 2/(K(K-1)) Σ_{j<k} b_j b_k (g_j · g_k)²       or of the sample's Σ, if that is less

The ascent probability is that distribution function. Departure from the t-test of the K products
g_k · ḡ_{-k} with the mean of the other chunks, which seems natural: each pair of chunks enters two
of them, so that their mean varies twice as much as that test supposes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from upslope.errors import ArgumentError, NotFiniteError, check_range
from upslope.shapes import shaped


@dataclass(frozen=True, kw_only=True)
class GradientQuality:
    """How much of a step's gradient is signal; `str` of it is one line for people."""

    resolved: bool
    """Whether the estimate of |G|² is positive; if not, the next three are nan."""
    signal_to_noise: float
    """|G|² / (tr Σ / B), a power ratio: above 1 the step is more signal than noise."""
    noise_scale: float
    """tr Σ / |G|², in samples: the batch size at which signal and noise are equal."""
    cosine: float
    """Expected cosine of the step's gradient to the true one, sqrt(1 / (1 + noise scale / B))."""
    ascent_probability: float
    """1 - p of an F-test that chunks point the same way; 1/2 if all are 0, nan for two chunks."""
    trace: float
    """tr Σ, the trace of the covariance of one sample's gradient."""
    squared_norm: float
    """|G|² without bias: negative where the noise hides the signal."""
    chunks: int
    """K, the number of chunks."""
    samples: int
    """B, the number of samples in all chunks."""

    def __str__(self) -> str:
        """Return one line: what was found, and from how much."""
        source = f"{self.chunks} chunks, {self.samples} samples"
        if not self.resolved:
            return f"gradient not resolved: the noise hides the signal ({source})"
        return (
            f"signal-to-noise {self.signal_to_noise:.3g}, "
            f"noise scale {self.noise_scale:.3g} samples, "
            f"cosine {self.cosine:.3f}, ascent probability {self.ascent_probability:.3f} ({source})"
        )


@shaped
def quality(
    chunk_gradients: Float[Tensor, "K P"], chunk_size: int | Int[Tensor, " K"]
) -> GradientQuality:
    """Return how good the mean of `chunk_gradients` is, from how much its K >= 2 rows disagree.

    Rows are gradients averaged over independent chunks of `chunk_size` samples, one number or one
    per chunk. Equal rows have no noise: signal-to-noise without bound, cosine 1. Two chunks have
    one product, which no test can judge: their ascent probability is nan. The test supposes normal
    chunk gradients; from skewed ones it claims more than it should, as a t-test would.
    Raises ShapeError for other shapes, ArgumentError for fewer than two chunks or a size below 1,
    and NotFiniteError for NaN or infinity in a gradient.
    """
    chunks = len(chunk_gradients)
    if chunks < 2:
        raise ArgumentError(f"chunk_gradients takes at least 2 chunks, got {chunks}")
    product = _inner_products(chunk_gradients)
    size, square = _sizes(chunk_size, chunks), product.diagonal()
    along = product @ size  # B g_k · ḡ

    # K numbers each: NumPy's calls take a fifth of the time of torch's
    samples = float(size.sum())
    mean_square = float(size @ along) / samples**2
    noise, signal = _noise_and_signal(square, size, mean_square)
    resolved = signal > 0
    scale = noise / signal if resolved else math.nan

    return GradientQuality(
        resolved=resolved,
        signal_to_noise=_ratio(noise, signal, samples),
        noise_scale=scale,
        cosine=math.sqrt(1 / (1 + scale / samples)),
        ascent_probability=_ascent_probability(product, size, noise, samples * mean_square),
        trace=noise,
        squared_norm=signal,
        chunks=chunks,
        samples=int(samples),
    )


def signal_to_noise(
    square: Sequence[float], chunk_size: Sequence[int], mean_square: float
) -> float:
    """Return |G|² / (tr Σ / B), a power ratio, from |g_k|² and b_k of K chunks, and |ḡ|².

    What `quality` says of it, for who has no time for the rest or not all g_k at once. nan with
    fewer than two chunks, and where the noise hides the signal.
    """
    if len(square) < 2:
        return math.nan
    size = np.asarray(chunk_size, float)
    noise, signal = _noise_and_signal(np.asarray(square, float), size, mean_square)
    return _ratio(noise, signal, float(size.sum()))


def _noise_and_signal(
    square: np.ndarray, size: np.ndarray, mean_square: float
) -> tuple[float, float]:
    """Return tr Σ and |G|², the second without bias."""
    samples = float(size.sum())
    noise = max(float(size @ square - samples * mean_square) / (len(size) - 1), 0.0)
    return noise, mean_square - noise / samples


def _ratio(noise: float, signal: float, samples: float) -> float:
    if signal <= 0:
        return math.nan
    return signal * samples / noise if noise > 0 else math.inf


def _inner_products(gradients: Tensor) -> np.ndarray:
    """Return g_j · g_k of all pairs of rows, [K, K], in float64 on the CPU."""
    gradients = gradients.detach().double()
    product = (gradients @ gradients.T).cpu().numpy()
    if not math.isfinite(product.trace()):
        k = int(np.isfinite(product.diagonal()).argmin())
        raise NotFiniteError(f"chunk_gradients takes finite numbers, got NaN or inf in chunk {k}")
    return product


def _sizes(chunk_size: int | Tensor, chunks: int) -> np.ndarray:
    """Return b_k, [K] float64."""
    if isinstance(chunk_size, Tensor):
        size = chunk_size.cpu().numpy().astype(np.float64)
    else:
        size = np.full(chunks, float(chunk_size))
    check_range("chunk_size", float(size.min()), 1)
    return size


def _ascent_probability(product: np.ndarray, size: np.ndarray, noise: float, power: float) -> float:
    """Return P(F <= power / noise) of F(ν, ν (K-1)); at least one dimension, ν >= 1."""
    from scipy.special import betainc

    k = len(size)
    if k == 2:
        return math.nan
    if noise == 0:
        return 1.0 if power > 0 else 0.5
    weight = np.outer(size, size)
    squares = weight * product**2
    pairs = float(squares.sum() - squares.trace()) / (k * (k - 1))
    along = product @ size / size.sum()
    centred = product - along - along[:, None] + along @ size / size.sum()
    spread = float((weight * centred**2).sum()) / (k - 1) ** 2
    dimensions = max(1.0, noise**2 / max(min(pairs, spread), 1e-9 * noise**2))
    share = max(power, 0.0) / (max(power, 0.0) + (k - 1) * noise)
    return float(betainc(dimensions / 2, dimensions * (k - 1) / 2, share))
