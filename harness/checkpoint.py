"""Checkpoints of a run: Orbax's CheckpointManager, and a seal that it lacks.

RUN/checkpoints/{step}/, the last two:
  agent/, rest/    the agents, and all else of the training state (Orbax, no pickle)
  facts/           what is not in the training state: environments on the host, evaluations, counters (JSON)
  seal.json        size and SHA-256 of every file in these three

Orbax writes in the background beside the final place and renames at the end. It does not notice a flipped bit in an
array's data, and it does not force files to disk: before it renames, what it has written is forced to disk and sealed.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from envs import UserError
from harness.quiet import quieten_failed_writes, quieten_orbax
from harness.seal import damage, seal

KEEP = 2


class Checkpoints:
    """The checkpoints in a run's folder.

    Attributes:
      step: environment step of the newest complete checkpoint, or None.
      begun: that of the newest that was begun, or None.
    """

    def __init__(self, run: Path):
        import orbax.checkpoint  # here, because importing it takes half a second

        quieten_orbax()
        self._orbax, self.folder = orbax.checkpoint, run / "checkpoints"
        self.step: int | None = None
        self.begun: int | None = None
        # To Orbax and TensorStore brackets are a pattern and a backslash is a slash: they see the folder by this link.
        self._links = tempfile.TemporaryDirectory()
        self._link = Path(self._links.name) / "run"
        self._link.symlink_to(run.absolute(), target_is_directory=True)
        self._manager: Any = None

    def exist(self) -> bool:
        """Whether there is any complete checkpoint, intact or not."""
        return bool(complete(self.folder))

    def save(self, step: int, state: Any, facts: dict[str, Any]) -> None:
        """Begins to write a checkpoint. Raises what went wrong with the one before it."""
        if self._manager is None:
            quieten_failed_writes()
            options = self._orbax.CheckpointManagerOptions(
                max_to_keep=KEEP,
                step_format_fixed_length=12,
                cleanup_tmp_directories=True,
                async_options=self._orbax.AsyncOptions(
                    post_finalization_callback=self._seal,
                    # Otherwise threads wait minutes for a folder that was deleted.
                    create_directories_asynchronously=False,
                ),
            )
            self._manager = self._orbax.CheckpointManager(self._link / "checkpoints", options=options)
        self.wait()
        args, self.begun = self._orbax.args, step
        items = {"agent": args.StandardSave(state.agent), "rest": args.StandardSave(state.replace(agent=None))}
        self._manager.save(step, args=args.Composite(**items, facts=args.JsonSave(facts)))

    def wait(self) -> None:
        """Waits until the checkpoint in progress is complete. Raises what went wrong with it."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self.check()
            self.step = next((int(found.name) for found in complete(self.folder)), None)

    def check(self) -> None:
        """Raises what went wrong in the background, without waiting."""
        if self._manager is not None:
            self._manager.check_for_errors()

    def close(self) -> None:
        if self._manager is not None:
            self._manager.close()
        self._links.cleanup()

    def _seal(self) -> None:
        (part,) = self.folder.glob("*.orbax-checkpoint-tmp*")
        seal(part)

    def restore(self, state: Any, say: Callable[[str], None]) -> tuple[Any, dict[str, Any]]:
        """State and facts of the newest intact checkpoint.

        Args:
          state: a training state with the structure, shapes and types of the saved one. It is consumed.
          say: called with a line about every damaged checkpoint; those are deleted once an intact one is found.

        Raises:
          UserError: no checkpoint is there or intact, or it belongs to another state.
        """
        checkpoint, damaged = newest_intact(self.folder, say)
        agent, rest = self._read(checkpoint, "agent", state.agent), state.replace(agent=None)
        rest = self._read(checkpoint, "rest", rest)
        for folder in damaged:
            shutil.rmtree(folder)
        self.step = self.begun = int(checkpoint.name)
        return rest.replace(agent=agent), json.loads((checkpoint / "facts" / "metadata").read_text())

    def restore_agents(self, agents: Any) -> Any:
        """The agents of the newest intact checkpoint. `agents`: their structure and shapes. Raises UserError."""
        return self._read(newest_intact(self.folder, lambda line: None)[0], "agent", agents)

    def _read(self, checkpoint: Path, item: str, tree: Any) -> Any:
        place = self._link / checkpoint.relative_to(self.folder.parent) / item
        with self._orbax.StandardCheckpointer() as checkpointer:
            if (found := checkpointer.metadata(place).item_metadata) is None:  # in a small copy of a run
                raise UserError(f"{checkpoint} has no {item} of the training state: no run can go on from it")
            saved, here = named_leaves(found.tree), named_leaves(tree)
            for name in sorted(saved.keys() | here.keys()):
                if name not in saved or name not in here:
                    raise UserError(f"{checkpoint} does not fit this script: {item}.{name} is in only one of them")
                data = jax.eval_shape(lambda x: jax.random.key_data(x) if _is_key(x) else x, here[name])
                (was, is_) = (f"{x.dtype}{list(x.shape)}" for x in (saved[name], data))
                if was != is_:
                    raise UserError(f"{checkpoint} does not fit this script: {item}.{name} is {was} there, {is_} here")
            template = jax.tree.map(self._orbax.utils.to_shape_dtype_struct, tree)
            for array in jax.tree.leaves(tree):
                if isinstance(array, jax.Array):
                    array.delete()  # room for the saved one
            return checkpointer.restore(place, template)


def complete(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the newest first."""
    found = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return sorted(found, reverse=True)


def newest_intact(folder: Path, say: Callable[[str], None]) -> tuple[Path, list[Path]]:
    """The newest checkpoint in `folder` that is what its seal says, and the damaged ones after it. Raises UserError."""
    damaged: list[Path] = []
    for checkpoint in complete(folder):
        if (why := damage(checkpoint)) is None:
            return checkpoint, damaged
        say(f"checkpoint {checkpoint} is damaged ({why}): going back to the one before it")
        damaged.append(checkpoint)
    raise UserError(f"no checkpoint in {folder} is intact" if damaged else f"there is no checkpoint in {folder}")


def named_leaves(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by name, such as `actor.params.Dense_0.bias`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def _is_key(x: Any) -> bool:
    return jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
