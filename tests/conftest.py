"""Test settings: on the CPU, two workers side by side (`pytest -n 2`), one thread each. Most tests compile more than
they compute: XLA goes without most of its optimisations, and its older CPU emitters, on whole programs, take 0.4 of the
time of the newer ones. They were once seen to give NaN where the newer ones are right: scripts/test_as_commands.py has
the newer ones (three scripts with `-m slow`), and `XLA_FLAGS= pytest` takes them for all tests."""

import contextlib
import importlib.metadata
import os
import signal
import sys

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA ends a process for a flag that it does not know
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", flags)
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "0")  # nothing is left in the user's folders
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("NPROC", "1")


# Files that take longest. They begin first: the last ones to end would otherwise leave a worker without work.
LONGEST = ("survival", "sac", "ppo", "as_commands", "exactness", "resume", "diffwpo", "keep", "devices", "checkpoint")


def pytest_collection_modifyitems(items):
    place = {f"test_{name}.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(autouse=True)
def signals_are_left_alone():
    """SIGPIPE above all: where it is not ignored it ends a worker without a word, and many tests later: a thread of
    asyncio's writes to a socket that another has just closed, and counts on an error."""
    before = _signal_handlers()
    yield
    assert _signal_handlers() == before


def _signal_handlers():
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped():
    """After each module: a worker would hold 3 GB of them at the end."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture
def all_optimizations():
    """For what computes more than it compiles, and to see the programs that users run."""
    import jax  # reads the environment set above

    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_testnodedown(node, error):
    """Says what a worker that died ended with, which xdist does not: -9 may be a lack of memory, -13 is SIGPIPE."""
    with contextlib.suppress(Exception):  # execnet has no public name for its process
        if error:
            print(f"\n[{node.gateway.id}] exit status {node.gateway._io.popen.wait(timeout=60)}")
