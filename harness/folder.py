"""The run folder: its name and its small files. Whoever reads a run folder does it through here.

runs/{env_id}__{exp_name}__{seed}__{time}/, or runs/{run_name}/
  args.json       every argument; `script` names the algorithm's file, `layout` the form of this folder
  versions.json   git commit, versions of the libraries, device; `resumed`: later starts with others, each with its step
  scalars.csv     global_step,wall_time,seed,tag,value: everything that TensorBoard shows, flushed at every log
  events.*        TensorBoard (one file per seed and start, in seed_*/ where there are several seeds)
  checkpoints/    the last two states of the whole run (see `harness.checkpoint`)
  summary.json    at the end: evaluations, speed, memory, how the run ended
  lock            held by the process that trains here
"""

import contextlib
import csv
import dataclasses
import datetime
import errno
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from envs import UserError, one_line
from harness import provenance
from harness.experiment import Experiment, script_of
from harness.scripts import import_script

LAYOUT = 2  # the form of a run folder; raised when older folders can no longer be read


class RunFolderError(Exception):
    """The run's folder can no longer be written. The scripts print it as one line and exit with status 1."""


class RunFolder:
    """A run folder, to be read or written.

    Attributes:
      path: where it is.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    # ---- reading

    def stored_args(self) -> dict[str, Any]:
        """args.json: every argument by name, `script` and `layout`; its lists were tuples. Raises UserError."""
        path = self.path / "args.json"
        try:
            stored = json.loads(path.read_text())
            script, layout = stored["script"], stored.get("layout", 1)
        except FileNotFoundError:
            raise UserError(f"{str(self.path)!r} is not a run folder: it has no args.json") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{str(path)!r} is not the args.json of a run: {one_line(error)}") from None
        if layout != LAYOUT:
            raise UserError(
                f"{str(self.path)!r} has the layout {layout} of another version of {script}.py (this one writes "
                f"{LAYOUT}): use the commit that its versions.json names"
            )
        return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}

    def arguments(self, Args: type[Experiment]) -> Experiment:
        """The run's arguments as a script's class of them. Raises UserError: the run is another script's."""
        stored = self.stored_args()
        script, fields = stored.pop("script"), {field.name for field in dataclasses.fields(Args)}
        if script != (own := script_of(Args)):
            raise UserError(f"{str(self.path)!r} was made by {script}.py, not by {own}.py: use that script")
        del stored["layout"]
        if stored.keys() != fields:
            differ = ", ".join(sorted(stored.keys() ^ fields))
            raise UserError(
                f"{str(self.path)!r} was made by another version of {script}.py, which differs in {differ}: use that "
                "version, or give its args.json the arguments with which this one does the same"
            )
        return Args(**stored)

    def script(self) -> Any:
        """The module of the script that made the run. Raises UserError."""
        name = self.stored_args()["script"]
        try:
            return import_script(name)
        except UserError as error:
            raise UserError(f"the run {str(self.path)!r} needs its script: {error}") from None

    def versions(self) -> list[dict[str, Any]]:
        """What the run ran with, in order: each has the `step` from which on. Empty where nothing can be read."""
        try:
            first = json.loads((self.path / "versions.json").read_text())
            later = first.pop("resumed", [])
        except (OSError, ValueError, AttributeError, TypeError):
            return []
        return [{"step": 0, **first}, *later]

    def summary(self) -> dict[str, Any]:
        """summary.json, empty where there is none."""
        try:
            return dict(json.loads((self.path / "summary.json").read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def status(self) -> str:
        """How the run stands: "finished", "stopped" (a seed was, not finite) or "unfinished". Raises UserError."""
        summary = self.summary()
        # A run that was to be extended and was killed still has the summary of its first end.
        if summary.get("interrupted_by") or summary.get("total_timesteps") != self.stored_args()["total_timesteps"]:
            return "unfinished"
        return "stopped" if summary.get("stopped") else "finished"

    def scalars(self, last_bytes: int | None = None) -> list[tuple[int, float, int, str, float]]:
        """The rows (global_step, wall_time, seed, tag, value) of scalars.csv, or of its end. Raises UserError."""
        path = self.path / "scalars.csv"
        if not path.exists():  # killed before the first
            return []
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - last_bytes, 0) if last_bytes else 0)
            lines, _, _ = file.read().decode(errors="replace").rpartition("\n")
        try:
            rows = [row for row in csv.reader(lines.splitlines()) if len(row) == 5][1:]  # none torn
            return [(int(step), float(clock), int(seed), tag, float(value)) for step, clock, seed, tag, value in rows]
        except (ValueError, csv.Error) as error:
            raise UserError(f"{str(path)!r} is damaged: {one_line(error)}") from None

    # ---- writing

    @classmethod
    def create(cls, args: Experiment) -> "RunFolder":
        """A new folder in `args.runs_folder`; one called `args.run_name` may be there already. Raises UserError."""
        parent, name = Path(args.runs_folder), args.prefix + datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        names = [name, *(f"{name}-{i}" for i in range(2, 100))] if args.run_name is None else [args.run_name]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for name in names:
                with contextlib.suppress(FileExistsError):
                    (parent / name).mkdir(exist_ok=args.run_name is not None)
                    return cls(parent / name)
            raise FileExistsError(errno.EEXIST, "File exists", str(parent / name))
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise UserError(f"cannot make a folder in {str(parent)!r}: {error.strerror}{where}") from None

    def write_args(self, args: Experiment) -> None:
        stored = {"layout": LAYOUT, "script": script_of(type(args)), **dataclasses.asdict(args), "resume": None}
        self.write_json("args.json", stored)

    def resume_command(self, args: Experiment) -> str:
        """The command that goes on with the run, from the folder that this process was started in."""
        name = script_of(type(args))
        script = sys.argv[0] if Path(sys.argv[0]).stem == name else f"{name}.py"
        return f"python {shlex.quote(script)} --resume {shlex.quote(str(self.path))}"

    def add_versions(self, step: int, versions: dict[str, Any]) -> None:
        """Notes that `versions` run from `step` on, unless they are those that ran before it."""
        first, *later = self.versions() or [{"step": 0, **versions}]
        last = (later or [first])[-1]
        if provenance.changes(last, versions) or last["step"] > step:  # it went back to an older checkpoint
            later.append({"step": step, **versions})
        del first["step"]
        self.write_json("versions.json", {**first, **({"resumed": later} if later else {})})

    def write_json(self, name: str, content: Any) -> None:
        """Written beside and renamed into place."""
        beside = self.path / f"{name}.part"
        beside.write_text(json.dumps(_without_nan(content), indent=2) + "\n")
        beside.replace(self.path / name)

    @contextlib.contextmanager
    def writing(self, go_on: Callable[[], str]) -> Iterator[None]:
        """Whatever goes wrong with the folder becomes a RunFolderError; `go_on()` says from where to go on, and how."""
        try:
            yield
        except Exception as error:
            then = go_on()
            gone = False
            with contextlib.suppress(OSError):  # what cannot be reached is not gone
                gone = not any((self.path / name).exists() for name in ("lock", "args.json", "scalars.csv"))
            if gone:
                shutil.rmtree(self.path, ignore_errors=True)  # what a checkpoint in progress made again
                raise RunFolderError(f"the folder {self.path} was deleted or moved: nothing is left there") from error
            known = isinstance(error, OSError)
            what = "cannot write to" if known else "something went wrong while writing to"
            reason = error.strerror if known and error.strerror else one_line(error)
            raise RunFolderError(f"{what} {self.path} ({reason}): {then}") from error


def _without_nan(content: Any) -> Any:
    """NaN and infinities become null: JSON has none."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not np.isfinite(content) else content
