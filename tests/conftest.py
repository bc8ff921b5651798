"""What every test runs under: set before torch is imported, and inherited by what tests start."""

from __future__ import annotations

import os
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"  # the test processes share the cores: one thread each
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["SDL_VIDEODRIVER"] = "dummy"
os.environ["SDL_AUDIODRIVER"] = "dummy"
os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # SDL complains without one
os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"

from hypothesis import settings

# deadline: a machine is slow at times. derandomize: what fails in CI fails everywhere.
settings.register_profile("upslope", deadline=None, derandomize=True, database=None)
settings.load_profile("upslope")
