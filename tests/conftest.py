"""Test settings: on the CPU, two workers side by side (`pytest -n 2`), one thread each."""

import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("NPROC", "1")


@pytest.fixture(scope="module")
def quick_compilation():
    """XLA without most optimisations, as in tests/running.py: for modules that compile more than they compute."""
    import jax  # reads the environment set above

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
