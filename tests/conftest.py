"""Test settings: on the CPU, two workers side by side (`pytest -n 2`), one thread each."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("NPROC", "1")
