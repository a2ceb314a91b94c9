"""Checkpoints on disk: what comes back, what is kept, damage, interruption at every point, full disk."""

import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from common import UserError, checkpoints, replay

CAPACITY, SEEDS = 10, 2


@struct.dataclass
class State:
    agent: dict
    buffer: dict | None
    key: jax.Array


def new_state(buffer=True):
    rows = {"obs": jax.ShapeDtypeStruct((3,), jnp.float32), "terminated": jax.ShapeDtypeStruct((), jnp.bool_)}
    return State(
        agent={"w": jnp.zeros((SEEDS, 4)), "count": jnp.zeros(SEEDS, jnp.int32)},
        buffer=jax.tree.map(lambda x: jnp.stack([x] * SEEDS), replay.init(CAPACITY, rows)) if buffer else None,
        key=jax.random.split(jax.random.key(0), SEEDS),
    )


def advance(state, step, steps):
    """`steps` made-up training steps after `step`."""
    for t in range(step, step + steps):
        if state.buffer is not None:
            rows = {"obs": jnp.full((SEEDS, 1, 3), t + 1.0), "terminated": jnp.full((SEEDS, 1), t % 3 == 0)}
            state = state.replace(buffer=jax.vmap(replay.insert, in_axes=(0, None, 0))(state.buffer, t, rows))
        agent = {"w": state.agent["w"] + 0.1 * t, "count": state.agent["count"] + 1}
        state = state.replace(agent=agent, key=jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.key, t))
    return state


def host(step):
    return {"step": step, "nan": float("nan")}, [np.arange(step), np.array(step, np.float32)]


def write(folder, steps, buffer=True, store=None):
    """Checkpoints at `steps`; returns the states by step and the writer."""
    store = store or checkpoints.Checkpoints(folder, on_done=lambda state: None)
    state, states = new_state(buffer), {0: new_state(buffer)}
    for before, step in zip([0, *steps], steps, strict=False):
        states[step] = state = advance(state, before, step - before)
        store.save(step, state, *host(step))
    store.wait()
    return states, store


def read(folder, buffer=True):
    said = []
    store = checkpoints.Checkpoints(folder, on_done=lambda state: None)
    restored = store.restore(new_state(buffer), said.append)
    return restored, said, store


def assert_equal(a, b):
    a, b = (checkpoints.host_tree(x) for x in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("steps", [[4], [4, 7], [4, 7, 9, 12, 13, 14], [3, 40, 47], [10, 20, 30], [9, 10, 11]])
@pytest.mark.parametrize("buffer", [True, False])
def test_the_same_state_comes_back(tmp_path, steps, buffer):
    states, _ = write(tmp_path, steps, buffer)
    (state, saved, arrays), said, store = read(tmp_path, buffer)
    assert_equal(state, states[steps[-1]])
    assert said == [] and store.step == steps[-1] == saved["step"] and np.isnan(saved["nan"])
    np.testing.assert_array_equal(arrays[0], np.arange(steps[-1]))
    assert arrays[1].shape == () and arrays[1].dtype == np.float32
    kept = [p.name for p in (tmp_path / "checkpoints").iterdir() if not p.name.startswith("rows")]
    assert sorted(int(name) for name in kept) == steps[-2:]


def test_goes_on_after_restoring(tmp_path):
    """The pieces of the buffer are continued, in both places, over several rounds of the ring."""
    write(tmp_path, [3, 6])
    for step in range(6, 60, 7):
        (state, saved, _), _, store = read(tmp_path)
        assert saved["step"] == step
        state = advance(state, step, 4)
        store.save(step + 4, state, *host(step + 4))
        state = advance(state, step + 4, 3)
        store.save(step + 7, state, *host(step + 7))
        store.wait()
        assert_equal(read(tmp_path)[0][0], state)
    assert len(list((tmp_path / "checkpoints").glob("rows_*/*"))) < 12


def files_of(folder, step):
    manifest = json.loads((folder / "checkpoints" / f"{step:012d}" / "manifest.json").read_text())
    own = [p for p in (folder / "checkpoints" / f"{step:012d}").rglob("*") if p.is_file()]
    return own + [folder / "checkpoints" / f"rows_{manifest['slot']}" / piece["file"] for piece in manifest["rows"]]


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
def test_damage_to_any_file_is_named_and_the_previous_checkpoint_used(tmp_path, harm):
    whole, random = tmp_path / "whole", np.random.default_rng(0)
    whole.mkdir()
    states, _ = write(whole, [3, 6, 9, 12])
    names = [path.relative_to(whole) for path in files_of(whole, 12)]
    assert len(names) > 8 and any("rows_1" in str(name) for name in names)
    for i, name in enumerate(names):
        folder = tmp_path / str(i)
        shutil.copytree(whole, folder)
        before = (folder / name).read_bytes()
        harm(folder / name, random)
        if name.name == "manifest.json" and harm is flip:
            try:  # a flipped blank, or a letter of a number's exponent, may leave the same content
                if json.loads((folder / name).read_bytes()) == json.loads(before):
                    continue
            except ValueError:
                pass
        (state, saved, _), said, store = read(folder)
        assert saved["step"] == 9 and len(said) == 1 and name.name in said[0], (name, said)
        assert_equal(state, states[9])
        # The run goes on, and both checkpoints are good again.
        for step in (12, 15):
            state = advance(state, step - 3, 3)
            store.save(step, state, *host(step))
        store.wait()
        assert_equal(read(folder)[0][0], state)
        flip(folder / "checkpoints" / "000000000015" / "host.json", random)
        assert_equal(read(folder)[0][0], states[12])


def test_damaged_rows_of_the_older_checkpoint_are_not_taken_over(tmp_path):
    """After a resume the next checkpoint takes the older one's place, and its rows where they are intact."""
    write(tmp_path, [3, 6, 9, 12])
    pieces = [path for path in files_of(tmp_path, 9) if path.parent.name.startswith("rows_")]
    assert len(pieces) > 1
    flip(pieces[0], np.random.default_rng(0))
    (state, saved, _), said, store = read(tmp_path)
    assert saved["step"] == 12 and said == []
    state = advance(state, 12, 3)
    store.save(15, state, *host(15))
    store.wait()
    (restored, saved, _), said, _ = read(tmp_path)
    assert saved["step"] == 15 and said == []
    assert_equal(restored, state)


def test_nothing_intact_is_one_line_and_deletes_nothing(tmp_path):
    write(tmp_path, [3, 6])
    for step in (3, 6):
        (tmp_path / "checkpoints" / f"{step:012d}" / "host.npz").write_bytes(b"")
    with pytest.raises(UserError, match="intact"):
        read(tmp_path)
    assert (tmp_path / "checkpoints" / "000000000006").is_dir()


def test_another_state_is_refused(tmp_path):
    write(tmp_path, [3], buffer=False)
    store = checkpoints.Checkpoints(tmp_path, on_done=lambda state: None)
    state = new_state(False)
    with pytest.raises(UserError, match=r"agent\.w is float32\[2, 4\] there and float32\[2, 5\] here"):
        store.restore(state.replace(agent={**state.agent, "w": jnp.zeros((SEEDS, 5))}), print)
    with pytest.raises(UserError, match=r"agent\.new"):
        store.restore(state.replace(agent={**state.agent, "new": jnp.zeros(SEEDS)}), print)


def test_no_checkpoint_is_none(tmp_path):
    assert read(tmp_path)[0] is None


def test_no_file_holds_a_pickle(tmp_path):
    write(tmp_path, [3, 6])
    for path in files_of(tmp_path, 6):
        assert path.suffix not in (".pkl", ".pickle")
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                assert all(arrays[name].dtype != object for name in arrays.files)


class Killed(BaseException):
    pass


def test_interrupted_at_every_operation_the_last_complete_checkpoint_is_there(tmp_path, monkeypatch):
    """Stops the writing before each of its changes to the disk in turn, as a kill would: nothing cleans up."""
    operations = [
        (checkpoints, "_save_arrays"),
        (checkpoints, "_seal"),
        (checkpoints, "_sync_folder"),
        (checkpoints.Path, "rename"),
        (checkpoints.Path, "unlink"),
        (checkpoints.Path, "write_text"),
        (checkpoints.shutil, "rmtree"),
    ]
    whole = tmp_path / "whole"
    whole.mkdir()
    states, _ = write(whole, [3, 6, 9, 12])
    states[15] = advance(states[12], 12, 3)
    at = 0
    while True:
        folder = tmp_path / str(at)
        shutil.copytree(whole, folder)
        store = read(folder)[2]
        count = 0

        def interruptible(original):
            def operation(*args, **kwargs):
                nonlocal count
                count += 1
                if count > at:
                    raise Killed
                return original(*args, **kwargs)

            return operation

        with monkeypatch.context() as patch:
            for owner, name in operations:
                patch.setattr(owner, name, interruptible(getattr(owner, name)))
            try:
                store._write(15, store._slot, *written(store, states[15]))
                finished = True
            except Killed:
                finished = False
        (state, saved, _), said, again = read(folder)
        assert saved["step"] in (12, 15) and said == []
        assert_equal(state, states[saved["step"]])
        state = advance(state, saved["step"], 20 - saved["step"])
        again.save(20, state, *host(20))
        again.wait()
        assert_equal(read(folder)[0][0], state)
        if finished:
            break
        at += 1
    assert at > 10  # as many points were tried


def written(store, state):
    """The arguments of `_write` for a checkpoint of `state` at step 15, as `save` makes them."""
    first = max(store._pieces[store._slot][-1]["end"], 15 - CAPACITY)
    rows = checkpoints.read_rows(state.buffer, first, 15)
    return state.replace(buffer=None), rows, first, *host(15)


def test_full_disk_leaves_the_last_checkpoint(tmp_path):
    """A limit on the size of a file stands for a full disk: both end a write in the middle with an error."""
    states, store = write(tmp_path, [3, 6])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 100, 1000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            store.save(9, states[6], *host(9))
            with pytest.raises(Exception, match=r"large|LIMIT|exceed|EFBIG"):
                store.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not list((tmp_path / "checkpoints").glob("*.part"))
        restored, said, store = read(tmp_path)
        assert_equal(restored[0], states[6])
        assert said == []
