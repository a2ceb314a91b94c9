"""Environments on the device in whole runs: resumed, seeds spread over devices, compiled programs kept."""

import os
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from harness import RunFolder, devices
from tests.running import TINY, agents, enter, run, scalars

WALK = {
    "env-id": "tests.jax_environments:Walk",
    "env-kwargs": '{"dictionary": true}',
    "num-seeds": 4,
    "num-envs": 2,
    "total-timesteps": 200,
    "log-frequency": 50,
    "eval-frequency": 100,
    "eval-episodes": 3,
}


def trained(place, how=enter, **more):
    """Trains with WALK; returns the run's folder."""
    before = set(place.glob("*"))
    how(TINY, {**WALK, "runs-folder": place}, **more)
    (folder,) = set(place.glob("*")) - before
    return folder


def assert_close_runs(a, b):
    (rows, agent), (expected, expected_agent) = ((scalars(x), jax.tree.leaves(agents(x))) for x in (a, b))
    assert [row[:3] for row in rows] == [row[:3] for row in expected] and len(rows) > 50
    np.testing.assert_allclose([row[3] for row in rows], [row[3] for row in expected], rtol=1e-5, atol=1e-6)
    for x, y in zip(agent, expected_agent, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.fixture
def programs_are_kept(tmp_path, monkeypatch):
    """What one run compiles the next ones take, here and in other processes."""
    settings = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        monkeypatch.setenv(name.upper(), str(value))
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures("programs_are_kept")
def test_seeds_on_four_devices_equal_seeds_on_one_and_checkpoints_change_places(tmp_path):
    """Started on one and resumed on four, the other way round, and in one go: the same. Resumed on one: exactly."""
    inherited = os.environ.get("XLA_FLAGS", "")  # which decide how numbers are rounded
    four = {"XLA_FLAGS": f"{inherited} --xla_force_host_platform_device_count=4"}
    tmp_path.joinpath("runs").mkdir()
    on_one = trained(tmp_path / "runs")
    on_four = trained(tmp_path / "runs", how=run, **four)
    assert_close_runs(on_four, on_one)
    stays = tmp_path / "stays"
    shutil.copytree(on_one, stays)
    longer = {"total-timesteps": 400}
    enter(TINY, {"resume": stays, **longer})
    whole = tmp_path / "whole"
    enter(TINY, {**WALK, **longer, "runs-folder": whole})
    (whole,) = whole.iterdir()
    assert scalars(stays) == scalars(whole) and len(scalars(whole)) > 100
    jax.tree.map(np.testing.assert_array_equal, *(jax.tree.leaves(agents(x)) for x in (stays, whole)))
    said = run(TINY, {"resume": on_one, **longer}, **four).stdout
    assert "resumed at step 200" in said and "begins a new one" not in said
    enter(TINY, {"resume": on_four, **longer})
    for folder in (on_one, on_four):
        assert RunFolder(folder).status() == "finished"
        assert_close_runs(folder, whole)


@pytest.mark.parametrize("num_seeds, num_devices, used", [(4, 4, 4), (8, 4, 4), (6, 4, 3), (5, 4, None), (1, 4, None)])
def test_as_many_devices_as_divide_the_seeds(num_seeds, num_devices, used, monkeypatch, capsys):
    monkeypatch.setattr(jax, "devices", lambda: [*range(num_devices)])
    monkeypatch.setattr(jax.sharding, "Mesh", lambda chosen, names: (len(chosen), names))
    monkeypatch.setattr(jax.sharding, "NamedSharding", lambda mesh, spec: (*mesh, spec))
    args = SimpleNamespace(num_seeds=num_seeds, env_id="Hopper-v4")
    expected = used and (used, ("seeds",), jax.sharding.PartitionSpec("seeds"))
    assert devices.seed_sharding(args, SimpleNamespace(on_device=True)) == expected
    left_over = num_seeds > 1 and (used or 1) < num_devices
    line = f"of {num_devices} devices {used or 1} used, because they share the seeds evenly\n" if left_over else ""
    assert capsys.readouterr().out == line
    # An environment on the host has all its seeds on one device.
    assert devices.seed_sharding(args, SimpleNamespace(on_device=False)) is None
    line = "of 4 devices 1 used, because Hopper-v4 is stepped on the host\n" if num_seeds > 1 else ""
    assert capsys.readouterr().out == line


def test_programs_are_kept_in_the_users_cache_unless_told_otherwise(monkeypatch, tmp_path):
    set_to = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: set_to.append((name, value)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    devices.keep_compiled(SimpleNamespace(on_device=False))
    assert set_to == []
    devices.keep_compiled(SimpleNamespace(on_device=True))
    ((name, folder),) = set_to
    assert name == "jax_compilation_cache_dir" and folder.startswith(str(tmp_path / "diffusion-maxent-rl"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # whose user has no home
    devices.keep_compiled(SimpleNamespace(on_device=True))
    assert len(set_to) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", ".")
    devices.keep_compiled(SimpleNamespace(on_device=True))
    assert len(set_to) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    devices.keep_compiled(SimpleNamespace(on_device=True))
    assert len(set_to) == 2
