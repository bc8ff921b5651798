"""Experience: one stream from any vector environment, normalisers, buffers, collection."""

from __future__ import annotations
