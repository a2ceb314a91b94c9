"""Compilation: the time that it takes, and what would make it happen twice."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jax

_intervals: list[tuple[float, float]] = []  # begin and end, in order, none within another


def _heard(event: str, duration: float, **_: Any) -> None:
    if event.startswith("/jax/core/compile/"):
        end = time.monotonic()
        begin = end - max(duration, 0.0)  # JAX measures it by a clock that can be set back
        while _intervals and _intervals[-1][0] >= begin:
            _intervals.pop()  # a part of this one
        _intervals.append((begin, end))


jax.monitoring.register_event_duration_secs_listener(_heard)


def compile_seconds(begin: float = 0.0) -> float:
    """Seconds since `begin` (of `time.monotonic`) that this process traced and compiled."""
    return sum(end - max(start, begin) for start, end in _intervals if end > begin)


def jit_for_few_calls(function: Callable, **how: Any) -> Callable:
    """`jax.jit` of what is called seldom: on a CPU without most optimisations, whose time a few calls do not win back.

    The start of an agent compiles in a sixth of the time: random numbers for every layer are much code.
    """

    @cache
    def compiled() -> Callable:  # at the first call, because it asks for the device
        quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        return jax.jit(function, compiler_options=quick if jax.default_backend() == "cpu" else None, **how)

    return lambda *args: compiled()(*args)


def strongly_typed(tree: Any) -> Any:
    """The same arrays without weak types: of a state that has them, the loop's second chunk would be compiled again."""

    def strong(x: jax.Array) -> jax.Array:
        return x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) else jax.lax.convert_element_type(x, x.dtype)

    return jax.tree.map(strong, tree)
