"""Checkpoints of a run: written beside and renamed into place, checked by checksum, free of pickle.

RUN/checkpoints/
  {step}/               one per checkpoint; the last two are kept and share no file
    state/              Orbax: every array of the training state except the replay buffer, by name
    host.json, host.npz what lives outside the device: the environments, the evaluations, counters
    manifest.json       size and sha256 of every file, the rows' included
  rows_0/, rows_1/      the replay buffers of the two checkpoints, in pieces {first}-{end}.npz of environment steps

A buffer of a million rows takes up to gigabytes and changes by a few thousand rows between two checkpoints. So it is
never written as a whole: each of the two checkpoints has its own pieces, and a new checkpoint adds to the pieces of the
one that it replaces the rows written since.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common import UserError

KEEP = 2


class Damaged(Exception):
    """A checkpoint's files are not what its manifest says; the message names the file."""


class Checkpoints:
    """The checkpoints in a run's folder.

    Attributes:
      step: environment step of the newest complete checkpoint, or None.
      on_done: called in the writing thread after a checkpoint is complete, with the saved state (without buffer).
    """

    def __init__(self, run: Path, on_done: Callable[[Any], None]):
        self.folder = run / "checkpoints"
        self.on_done = on_done
        self.step: int | None = None
        self.begun: int | None = None  # the newest that was begun
        self._slot = 0  # of the next checkpoint
        self._pieces: list[list[dict[str, Any]]] = [[], []]
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, state: Any, host: dict[str, Any], host_arrays: list[np.ndarray]) -> None:
        """Copies the state and writes it in the background. Raises what went wrong with the checkpoint before it."""
        self.wait()
        slot, buffer = self._slot, getattr(state, "buffer", None)
        rows, first = {}, step
        if buffer is not None:
            pieces, capacity = self._pieces[slot], num_rows(buffer)
            first = max(pieces[-1]["end"] if pieces else 0, step - capacity)
            rows = read_rows(buffer, first, step) if step > first else {}
            state = state.replace(buffer=None)
            self._pieces[slot] = [piece for piece in pieces if piece["end"] > step - capacity]
        # A copy on the device: the next chunk takes over the memory of the state itself.
        write = partial(self._write, step, slot, _copy(state), rows, first, host, host_arrays)
        self.begun, self._slot = step, 1 - slot
        self._thread = threading.Thread(target=self._guarded, args=(write,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits until the checkpoint in progress is complete. Raises what went wrong."""
        if self._thread:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises what went wrong in the background, without waiting."""
        if self._error:
            error, self._error = self._error, None
            raise error

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:
            self._error = error

    def _write(self, step, slot, state, rows, first, host, host_arrays) -> None:
        ocp = _orbax()
        self.folder.mkdir(exist_ok=True)
        target, part = self.folder / f"{step:012d}", self.folder / f"{step:012d}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                checkpointer.save(part.absolute() / "state", host_tree(state))
            (part / "host.json").write_text(json.dumps(host))
            _save_arrays(part / "host.npz", {str(i): x for i, x in enumerate(host_arrays)})
            files = {str(path.relative_to(part)): _seal(path) for path in sorted(part.rglob("*")) if path.is_file()}
            pieces = self._pieces[slot]
            if rows:
                piece = self.folder / f"rows_{slot}" / f"{first:012d}-{step:012d}.npz"
                piece.parent.mkdir(exist_ok=True)
                _save_arrays(piece, rows)
                pieces = [*pieces, {"first": first, "end": step, "file": piece.name, **_seal(piece)}]
            manifest = {"step": step, "slot": slot, "files": files, "rows": pieces}
            manifest["sha256"] = _own_sha256(manifest)
            (part / "manifest.json").write_text(json.dumps(manifest, indent=1))
            _seal(part / "manifest.json")
            if target.exists():
                shutil.rmtree(target)
            part.rename(target)
            _sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)  # a full disk gets its space back
            raise
        self._pieces[slot] = pieces
        self.step = step
        for old in self._complete()[KEEP:]:
            shutil.rmtree(old)
        for path in (self.folder / f"rows_{slot}").glob("*"):
            if path.name not in {piece["file"] for piece in pieces}:
                path.unlink()
        self.on_done(state)

    def restore(self, state: Any, say: Callable[[str], None]) -> tuple[Any, dict[str, Any], list[np.ndarray]] | None:
        """The newest intact checkpoint: (state, host, host_arrays), or None where there is none at all.

        Args:
          state: a training state with the structure, shapes and types of the saved one. It is consumed.
          say: called with a line about every damaged checkpoint; those are deleted once an intact one is found.

        Raises:
          UserError: checkpoints exist, but none is intact, or they belong to another state.
        """
        damaged = []
        for folder in self._complete():
            try:
                manifest = self._check(folder)
            except Damaged as error:
                say(f"checkpoint {folder} is damaged ({error}): going back to the one before it")
                damaged.append(folder)
                continue
            except OSError as error:
                raise UserError(f"cannot read {folder}: {error.strerror}") from None
            restored = self._read(folder, manifest, state)
            for bad in damaged:
                shutil.rmtree(bad)
            self._adopt(manifest)
            return restored
        if damaged:
            raise UserError(f"no checkpoint in {self.folder} is intact")
        return None

    def _complete(self) -> list[Path]:
        """Folders of complete checkpoints, the newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if path.name.isdigit()), reverse=True)

    def _manifest(self, folder: Path) -> dict[str, Any]:
        try:
            manifest = json.loads((folder / "manifest.json").read_bytes())
            intact = manifest.pop("sha256") == _own_sha256(manifest)
        except FileNotFoundError:
            raise Damaged("manifest.json is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Damaged("manifest.json cannot be read") from None
        if not intact or manifest["step"] != int(folder.name):
            raise Damaged("manifest.json has another checksum")
        return manifest

    def _check(self, folder: Path) -> dict[str, Any]:
        """The manifest, after every file was compared with it. Raises Damaged."""
        manifest = self._manifest(folder)
        rows = self.folder / f"rows_{manifest['slot']}"
        expected = [(folder / name, seal) for name, seal in manifest["files"].items()]
        expected += [(rows / piece["file"], piece) for piece in manifest["rows"]]
        for path, seal in expected:
            name = path.relative_to(self.folder)
            if not path.is_file():
                raise Damaged(f"{name} is missing")
            if path.stat().st_size != seal["size"]:
                raise Damaged(f"{name} has {path.stat().st_size} bytes instead of {seal['size']}")
            if _sha256(path) != seal["sha256"]:
                raise Damaged(f"{name} has another checksum")
        return manifest

    def _read(self, folder: Path, manifest: dict[str, Any], state: Any) -> tuple[Any, dict[str, Any], list[np.ndarray]]:
        ocp = _orbax()
        with ocp.PyTreeCheckpointer() as checkpointer:
            saved = checkpointer.restore(folder.absolute() / "state")
        buffer = getattr(state, "buffer", None)
        rest = state if buffer is None else state.replace(buffer=None)
        named, structure = named_leaves(rest)
        for name in sorted(saved.keys() | named.keys()):
            if name not in saved or name not in named:
                raise UserError(f"{folder} does not fit this script: {name} is in only one of them")
            data = _data(named[name])
            if (data.shape, data.dtype) != (saved[name].shape, saved[name].dtype):
                raise UserError(
                    f"{folder} does not fit this script: {name} is {saved[name].dtype}{list(saved[name].shape)} "
                    f"there and {data.dtype}{list(data.shape)} here"
                )
        rest = jax.tree.unflatten(structure, [_like(leaf, saved[name]) for name, leaf in named.items()])
        if buffer is not None:
            rest = rest.replace(buffer=self._read_rows(manifest, buffer))
        host = json.loads((folder / "host.json").read_bytes())
        with np.load(folder / "host.npz", allow_pickle=False) as arrays:
            return rest, host, [arrays[str(i)] for i in range(len(arrays.files))]

    def _read_rows(self, manifest: dict[str, Any], buffer: Any) -> Any:
        named, structure = named_leaves(buffer)
        capacity = num_rows(buffer)
        filled = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in named.items()}
        for leaf in named.values():
            leaf.delete()  # the empty buffer: room for the saved one
        for piece in manifest["rows"]:
            with np.load(self.folder / f"rows_{manifest['slot']}" / piece["file"], allow_pickle=False) as arrays:
                for name in named:
                    data = arrays[name]
                    start = piece["first"] % capacity
                    head = min(capacity - start, data.shape[1])
                    filled[name][:, start : start + head] = data[:, :head]
                    filled[name][:, : data.shape[1] - head] = data[:, head:]
        return jax.tree.unflatten(structure, [jnp.array(filled.pop(name)) for name in named])

    def _adopt(self, manifest: dict[str, Any]) -> None:
        """Goes on after the checkpoint of `manifest`: the next one takes the other's place."""
        self.step = self.begun = manifest["step"]
        slot = manifest["slot"]
        self._slot, self._pieces = 1 - slot, [[], []]
        self._pieces[slot] = manifest["rows"]
        for folder in self._complete():
            with contextlib.suppress(Damaged, OSError):  # then its place is written anew
                other = self._manifest(folder)
                if other["slot"] != slot and other["step"] < manifest["step"]:
                    self._pieces[1 - slot] = self._check(folder)["rows"]
                    return


def _orbax() -> Any:
    import orbax.checkpoint as ocp  # here, because importing it takes half a second

    # What it raises it also logs, with the traceback of a thread, into the one line that the run prints.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return ocp


# ------------------------------------------------------------------------------------------------------------- arrays


def named_leaves(tree: Any) -> tuple[dict[str, Any], Any]:
    """The arrays of a pytree by name, such as `agent.actor_params.params.Dense_0.bias`, and its structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}, structure


def host_tree(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a pytree by name, copied to the host; PRNG keys as their data."""
    return {name: np.array(_data(x)) for name, x in named_leaves(tree)[0].items()}


def num_rows(buffer: Any) -> int:
    """Rows of a replay buffer with leaves `[S, rows, ..]`."""
    return jax.tree.leaves(buffer)[0].shape[1]


def read_rows(buffer: Any, first: int, end: int) -> dict[str, np.ndarray]:
    """What the environment steps `first` .. `end - 1` wrote, `[S, end - first, ..]` by name (see `replay.insert`)."""
    capacity = num_rows(buffer)
    start = first % capacity
    head = min(capacity - start, end - first)
    parts = [_slice(buffer, start, head)]
    if head < end - first:
        parts.append(_slice(buffer, 0, end - first - head))
    parts = [jax.device_get(named_leaves(part)[0]) for part in parts]
    return parts[0] if len(parts) == 1 else {n: np.concatenate([part[n] for part in parts], axis=1) for n in parts[0]}


@partial(jax.jit, static_argnames="size")
def _slice(buffer, start, size):
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), buffer)


@jax.jit
def _copy(tree):
    return jax.tree.map(jnp.copy, tree)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _like(leaf: Any, saved: np.ndarray) -> Any:
    saved = jnp.array(saved)
    return jax.random.wrap_key_data(saved, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else saved


# -------------------------------------------------------------------------------------------------------------- files


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _seal(path: Path) -> dict[str, Any]:
    """Forces a file to disk; its size and checksum."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_sha256(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
