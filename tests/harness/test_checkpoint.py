"""Checkpoints on disk: what comes back, what is kept, damage, interruption, full disk."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from flax.training.train_state import TrainState

from envs import UserError
from harness import checkpoint, seal
from harness.checkpoint import Checkpoints, named_leaves
from tests.running import ROOT, TIMEOUT, Killed, environment

SEEDS = 2


@struct.dataclass
class State:
    agent: Any
    buffer: dict | None
    key: jax.Array


def new_state(buffer=True):
    params = {"params": {"w": jnp.zeros((SEEDS, 4))}}
    network = TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3)).replace(step=jnp.zeros(SEEDS, int))
    return State(
        agent={"network": network, "count": jnp.zeros(SEEDS, jnp.int32)},
        buffer={"obs": jnp.zeros((SEEDS, 10, 3)), "terminated": jnp.zeros((SEEDS, 10), bool)} if buffer else None,
        key=jax.random.split(jax.random.key(0), SEEDS),
    )


def advance(state, step):
    """A made-up training up to `step`."""
    agent = {**state.agent, "count": state.agent["count"] + step}
    agent["network"] = agent["network"].apply_gradients(grads={"params": {"w": jnp.full((SEEDS, 4), float(step))}})
    buffer = state.buffer and jax.tree.map(lambda x: x.at[:, step % 10].set(step % 3 == 0), state.buffer)
    return State(agent, buffer, jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.key, step))


def facts(step):
    return {"step": step, "nan": float("nan"), "env": {"actions": "AAAA"}}


def write(folder, steps, buffer=True, state=None):
    """Checkpoints at `steps`; returns the states by step."""
    store, state, states = Checkpoints(folder), state or new_state(buffer), {}
    for step in steps:
        states[step] = state = advance(state, step)
        store.save(step, state, facts(step))
    store.wait()
    assert store.step == steps[-1]
    store.close()
    return states


def read(folder, buffer=True):
    said = []
    store = Checkpoints(folder)
    state, restored = store.restore(new_state(buffer), said.append)
    store.close()
    return state, restored["step"], said


def assert_equal(a, b):
    a, b = named_leaves(a), named_leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        x, y = (jax.random.key_data(v[name]) if name == "key" else v[name] for v in (a, b))
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints 3 and 6, and the states by step; not to be changed."""
    folder = tmp_path_factory.mktemp("two")
    return folder, write(folder, [3, 6])


@pytest.mark.parametrize("steps", [[4], [4, 7, 9]])
@pytest.mark.parametrize("buffer", [True, False])
def test_the_same_state_comes_back(tmp_path, steps, buffer):
    states = write(tmp_path, steps, buffer)
    state, step, said = read(tmp_path, buffer)
    assert_equal(state, states[steps[-1]])
    assert said == [] and step == steps[-1]
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == steps[-2:]


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    """The next chunk takes over the memory of the state that is being saved."""
    states = {"saved": advance(new_state(), 3)}
    expected = jax.tree.map(lambda x: x.copy() if x.ndim else x, states["saved"])
    store = Checkpoints(tmp_path)
    state = jax.tree.map(lambda x: x.copy(), states.pop("saved"))
    store.save(3, state, facts(3))
    spoil = jax.jit(lambda s: jax.tree.map(lambda x: x if x.dtype == s.key.dtype else x * 0, s), donate_argnums=0)
    jax.block_until_ready(spoil(state))
    store.wait()
    store.close()
    assert_equal(read(tmp_path)[0], expected)


def flip(path, random):
    data = bytearray(path.read_bytes())
    position = random.integers(len(data)) if data else 0
    data[position : position + 1] = bytes([data[position] ^ (1 << random.integers(8))]) if data else b"x"
    path.write_bytes(data)


def truncate(path, random):
    data = path.read_bytes()
    path.write_bytes(data[: random.integers(len(data))] if data else b"x")


def remove(path, random):
    path.unlink()


@pytest.mark.parametrize("harm", [flip, truncate, remove])
def test_damage_to_any_file_is_named_and_the_previous_checkpoint_used(two, tmp_path, harm):
    whole, _ = two
    random = np.random.default_rng(0)
    newest = whole / "checkpoints" / "000000000006"
    names = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file() and path.parent != newest]
    assert len(names) > 8
    for name in [*names, checkpoint.Path("seal.json")]:
        folder = tmp_path / "x"
        shutil.copytree(whole, folder)
        path = folder / "checkpoints" / newest.name / name
        before = path.read_bytes()
        harm(path, random)
        if name.name == "seal.json" and harm is flip:
            try:  # a flipped blank, or a letter of a number's exponent, may leave the same content
                if json.loads(path.read_bytes()) == json.loads(before):
                    continue
            except ValueError:
                pass
        said = []
        found, damaged = checkpoint.newest_intact(folder / "checkpoints", said.append)
        assert int(found.name) == 3 and [int(x.name) for x in damaged] == [6], name
        assert len(said) == 1 and name.name in said[0], (name, said)
        shutil.rmtree(folder)


def test_a_run_goes_on_after_damage_and_both_checkpoints_are_good_again(two, tmp_path):
    whole, states = two
    folder = tmp_path / "x"
    shutil.copytree(whole, folder)
    flip(folder / "checkpoints" / "000000000006" / "facts" / "metadata", np.random.default_rng(0))
    state, step, said = read(folder)
    assert step == 3 and len(said) == 1 and "facts/metadata" in said[0]
    assert_equal(state, states[3])
    states = write(folder, [6, 9], state=state)
    assert_equal(read(folder)[0], states[9])
    flip(folder / "checkpoints" / "000000000009" / "facts" / "metadata", np.random.default_rng(0))
    assert_equal(read(folder)[0], states[6])


def test_nothing_intact_is_one_line_and_deletes_nothing(two, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(two[0], folder)
    for path in (folder / "checkpoints").glob("*/facts/metadata"):
        path.write_bytes(b"")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match="intact"):
        read(folder)
    assert sorted(folder.rglob("*")) == before


def test_another_state_is_refused_by_name(two):
    store = Checkpoints(two[0])
    state = new_state()
    wide = {**state.agent, "count": jnp.zeros((SEEDS, 5), jnp.int32)}
    with pytest.raises(UserError, match=r"agent\.count is int32\[2\] there, int32\[2, 5\] here"):
        store.restore(state.replace(agent=wide), print)
    with pytest.raises(UserError, match=r"agent\.new is in only one of them"):
        store.restore(new_state().replace(agent={**new_state().agent, "new": jnp.zeros(SEEDS)}), print)
    store.close()


def test_no_checkpoint(tmp_path):
    assert not Checkpoints(tmp_path).exist()
    with pytest.raises(UserError, match="there is no checkpoint"):
        read(tmp_path)


def test_no_file_holds_a_pickle(two):
    for path in two[0].rglob("*"):
        assert path.suffix not in (".pkl", ".pickle")
        assert path.is_dir() or not re.match(rb"\x80[\x02-\x05]", path.read_bytes())  # a pickle's protocol


@pytest.mark.parametrize("operation", ["_to_disk", "_sha256"])
def test_what_is_not_sealed_is_not_there(two, tmp_path, monkeypatch, operation):
    """Killed while it seals, at every file in turn: the folder keeps Orbax's temporary name and is never read."""
    whole, states = two
    for at in (0, 1, 5):
        folder = tmp_path / f"{operation}{at}"
        shutil.copytree(whole, folder)
        count, original = 0, getattr(seal, operation)

        def interruptible(path):
            nonlocal count
            count += 1
            if count > at:
                raise Killed
            return original(path)

        with monkeypatch.context() as patch:
            patch.setattr(seal, operation, interruptible)
            store = Checkpoints(folder)
            with pytest.raises(BaseException):  # noqa: B017 (Orbax wraps it)
                store.save(9, advance(states[6], 9), facts(9))
                store.wait()
        state, step, said = read(folder)
        assert step == 6 and said == []
        assert_equal(state, states[6])
        assert_equal(read_after(folder, state), advance(states[6], 12))


def read_after(folder, state):
    write(folder, [12], state=state)
    return read(folder)[0]


def save_on_a_full_disk(folder):
    """Tries to save twice and exits with the number of errors. A limit on the size of a file stands for a full disk:
    both end a write in the middle with an error."""
    errors, state = 0, advance(new_state(), 9)
    for limit in (0, 100):
        store = Checkpoints(folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            store.save(9, state, facts(9))
            store.wait()
        except Exception as error:
            errors += any(word in str(error) for word in ("large", "LIMIT", "exceed", "EFBIG"))
    sys.exit(errors)


def test_full_disk_leaves_the_last_checkpoint(two, tmp_path):
    """In a process of its own: writes that are still under way after the first error can bring TensorStore down."""
    folder = tmp_path / "x"
    shutil.copytree(two[0], folder)
    process = multiprocessing.get_context("spawn").Process(target=save_on_a_full_disk, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == 2 or process.exitcode < 0
    state, step, said = read(folder)
    assert step == 6 and said == []
    assert_equal(state, two[1][6])


ONLY_READS_THEN_WRITES = """
import logging, pathlib, shutil, sys
import jax.numpy as jnp
from harness.checkpoint import Checkpoints
from tests.harness.test_checkpoint import State

before = sys.unraisablehook
store = Checkpoints(pathlib.Path(sys.argv[2]))
assert store.exist()
store.close()
assert sys.unraisablehook is before and logging.getLogger("asyncio").isEnabledFor(logging.ERROR)

arrays = {str(i): jnp.ones((2000, 20)) for i in range(20)}
for number in range(5):
    run = pathlib.Path(sys.argv[1]) / str(number)
    run.mkdir()
    store = Checkpoints(run)
    store.save(1, State(arrays, arrays, jnp.zeros(2)), {})
    run.rename(run.with_suffix(".gone"))
    shutil.rmtree(run.with_suffix(".gone"))
    try:
        store.wait()
    except Exception:
        print("raised")
"""


def test_writes_under_way_when_one_fails_say_nothing(two, tmp_path):
    """TensorStore reports them to an event loop that is closed, with a traceback each. Who only reads keeps the logs
    and the hook."""
    command = [sys.executable, "-c", ONLY_READS_THEN_WRITES, str(tmp_path), str(two[0])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=TIMEOUT)
    assert (done.stdout, done.stderr, done.returncode) == ("raised\n" * 5, "", 0)


def test_a_seal_forces_every_file_to_disk(tmp_path, monkeypatch):
    """Its own, too."""
    forced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: forced.append(os.fstat(file).st_ino) or fsync(file))
    for name in ("agent/d/a", "agent/b", "facts/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    seal.seal(tmp_path)
    files = [path.stat().st_ino for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4 and sorted(forced) == sorted(files)
