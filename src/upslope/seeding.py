"""Derived randomness: every generator is made from (seed, purpose, counters) where it is needed.

No global generator is read or written, so evaluation, logging or saving cannot change training,
and a checkpoint holds no random state: the generator of iteration k is made again from k.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, purpose: str, *counters: int) -> int:
    """Return a 63-bit integer from the SHA-256 of (seed, purpose, counters).

    Different purposes or counters give unrelated streams; the same ones always the same stream.
    """
    text = "/".join([str(int(seed)), purpose, *(str(int(counter)) for counter in counters)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def derive32(seed: int, purpose: str, *counters: int) -> int:
    """Return a seed for environments: 31 bits, since Gymnasium adds an environment's index."""
    return derive(seed, purpose, *counters) >> 32


def generator(
    seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a torch generator derived from (seed, purpose, counters)."""
    return torch.Generator(device).manual_seed(derive(seed, purpose, *counters))
