"""Shared by all tests: one thread for TVM, and a fixed hypothesis profile."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("TVM_NUM_THREADS", "1")

settings.register_profile("tvmflow", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tvmflow")
