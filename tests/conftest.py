"""Test settings: on the CPU, two workers side by side (`pytest -n 2`), one thread each, and XLA without most of its
optimisations: most tests compile more than they compute."""

import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "0")  # nothing is left in the user's folders
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("NPROC", "1")


@pytest.fixture(scope="module")
def all_optimizations():
    """For modules that compute more than they compile, and to see the programs that users run."""
    import jax  # reads the environment set above

    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
