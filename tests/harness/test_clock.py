"""Compilation: its time, how often, and how thoroughly."""

import itertools
import time
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sac_jax
from harness import RunFolder, clock
from harness.clock import compile_seconds, jit_for_few_calls
from tests.running import TINY, enter


@pytest.fixture
def compiled(monkeypatch):
    """Options of every `jax.jit` made, and the names of what is compiled."""
    options, names = [], []
    jit = jax.jit

    def noted(function, compiler_options=None, **how):
        options.append(compiler_options)
        return jit(function, compiler_options=compiler_options, **how)

    def heard(event, duration, fun_name="", **_):
        if event.endswith("backend_compile_duration"):
            names.append(fun_name)

    monkeypatch.setattr(jax, "jit", noted)
    jax.monitoring.register_event_duration_secs_listener(heard)
    yield options, names
    jax.monitoring.unregister_event_duration_listener(heard)


def scaled_normal(scale, key):
    return scale * jax.random.normal(key, (5, 3))


def test_of_few_calls_the_first_compiles_and_the_numbers_are_those_of_jit(compiled):
    options, names = compiled
    quick = jit_for_few_calls(scaled_normal, static_argnums=0)
    assert options == []  # no device was asked for
    for seed in (0, 1):
        expected = 2.0 * jax.random.normal(jax.random.key(seed), (5, 3))
        np.testing.assert_allclose(quick(2.0, jax.random.key(seed)), expected, rtol=1e-6)
    assert options == [{"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}]
    assert names.count("jit(scaled_normal)") == 1
    quick(3.0, jax.random.key(0))
    assert len(options) == 1 and names.count("jit(scaled_normal)") == 2


def test_other_devices_compile_as_ever(compiled, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jit_for_few_calls(jnp.sin)(1.0)
    assert compiled[0] == [None]


@pytest.mark.slow
@pytest.mark.usefixtures("all_optimizations")
def test_the_start_of_an_agent_compiles_sooner():
    """By half at the least; a sixth was measured."""
    sizes = SimpleNamespace(observation_size=11, action_size=3)
    start = jax.vmap(partial(sac_jax.init_agent, sac_jax.Args(), sizes))
    keys, seconds, agents = jax.vmap(jax.random.key)(jnp.arange(2)), [], []
    for how in (jax.jit, jit_for_few_calls):
        begin = time.process_time()
        agents.append(jax.device_get(how(start)(keys)))
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 0.5 * seconds[0], seconds
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *agents)


def test_the_time_of_compilation_is_counted_once():
    begin = time.monotonic()
    jax.block_until_ready(jax.jit(lambda x: jnp.linalg.qr(jnp.sin(x)))(jnp.eye(7)))
    wall = time.monotonic() - begin
    assert 0.0 < compile_seconds(begin) <= wall
    assert compile_seconds(time.monotonic()) == 0.0


def test_of_what_is_compiled_within_another_the_outer_one_counts(monkeypatch):
    """JAX reports the inner ones first."""
    monkeypatch.setattr(clock, "_intervals", [])
    for end, duration in ((9.0, 2.0), (10.0, 0.5), (12.0, 7.0), (20.0, 1.0)):  # the third contains the first two
        monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda end=end: end))
        clock._heard("/jax/core/compile/backend_compile_duration", duration)
    assert (clock.compile_seconds(), clock.compile_seconds(11.0), clock.compile_seconds(19.5)) == (8.0, 2.0, 0.5)


def test_a_clock_that_is_set_back_moves_no_duration(tmp_path, monkeypatch):
    """By a minute at every look: a run's speeds stay positive, and its rows and summary in order."""
    begin, looks, compiled_before = time.time(), itertools.count(), compile_seconds()
    monkeypatch.setattr(time, "time", lambda: begin - 60.0 * next(looks))
    enter(TINY, {"env-id": "Pendulum-v1", "total-timesteps": 200, "eval-frequency": 100, "runs-folder": tmp_path})
    (folder,) = map(RunFolder, tmp_path.iterdir())
    clocks = [clock for _, clock, *_ in folder.scalars()]
    assert clocks == sorted(clocks) and abs(clocks[0] - begin) < 3600
    speeds = [value for *_, tag, value in folder.scalars() if tag == "charts/SPS"]
    assert len(speeds) > 3 and min(speeds) > 0
    summary = folder.summary()
    assert 0 < summary["steps_per_second"] and 0 < summary["wall_seconds"] < 600
    assert compiled_before <= summary["compile_seconds"] < compiled_before + summary["wall_seconds"]
