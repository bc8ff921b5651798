"""Gradients of expectations, and how good a sampled gradient is."""

from __future__ import annotations

from upslope.gradient.quality import GradientQuality, quality

__all__ = ["GradientQuality", "quality"]
