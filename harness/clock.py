"""Compilation: the time that it took, and what would make it happen twice."""

import time
from typing import Any

import jax

_intervals: list[tuple[float, float]] = []  # begin and end, in order, none within another


def _heard(event: str, duration: float, **_: Any) -> None:
    if event.startswith("/jax/core/compile/"):
        end = time.time()
        while _intervals and _intervals[-1][0] >= end - duration:
            _intervals.pop()  # a part of this one
        _intervals.append((end - duration, end))


jax.monitoring.register_event_duration_secs_listener(_heard)


def compile_seconds(begin: float = 0.0) -> float:
    """Seconds since `begin` (of `time.time`) that this process traced and compiled."""
    return sum(end - max(start, begin) for start, end in _intervals if end > begin)


def strongly_typed(tree: Any) -> Any:
    """The same arrays without weak types: of a state that has them, the loop's second chunk would be compiled again."""

    def strong(x: jax.Array) -> jax.Array:
        return x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) else jax.lax.convert_element_type(x, x.dtype)

    return jax.tree.map(strong, tree)
