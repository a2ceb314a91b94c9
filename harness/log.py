"""What a run writes down while it goes on: scalars.csv, TensorBoard, Weights & Biases."""

import csv
import dataclasses
import errno
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from envs import Episode, UserError, one_line
from harness.experiment import Experiment
from harness.progress import say

HEADER = "global_step,wall_time,seed,tag,value\n"
ROW = re.compile(rb'\d+,[^,\n]*,\d+,("[^\n]*"|[^,\n]*),[^,\n]+\n')  # a complete one


class Log:
    """One value by step, seed and tag, into three places.

    Args:
      folder: the run's folder.
      step, num_bytes: of a resumed run's checkpoint: what came after it is dropped. `num_bytes` of scalars.csv.
      wandb: a Weights & Biases run, or None.
    """

    def __init__(self, args: Experiment, folder: Path, step: int, num_bytes: int | None, wandb: Any = None):
        self.folder, self.seeds, self.wandb = folder, args.seeds, wandb
        self._epoch = time.time() - time.monotonic()  # a clock that is set does not move what is written
        path = folder / "scalars.csv"
        if args.resume is not None:
            size = path.stat().st_size if path.exists() else 0
            if size < (num_bytes or 0):
                say(f"scalars.csv has {size:,} bytes of {num_bytes:,} at step {step:,}: rows before it are missing")
            if size:
                _cut(path, num_bytes, step)
        self.csv = path.open("a", buffering=1, newline="")
        self._rows = csv.writer(self.csv, lineterminator="\n")
        if self.csv.tell() == 0:
            self.csv.write(HEADER)
        self.events = []
        for seed in self.seeds:
            place = folder if args.num_seeds == 1 else folder / f"seed_{seed}"
            place.mkdir(exist_ok=True)
            self.events.append(_event_file(place))
            self._event(-1, self._now(), file_version="brain.Event:2")
            if args.resume is not None:  # TensorBoard drops what an earlier file has from this step on
                self._event(-1, self._now(), step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def episodes(self, step: int, num_envs: int, episodes: Episode, agents: list[int]) -> float | None:
        """Writes the episodes of `agents` that ended in a chunk which began at `step`; leaves `[S, T, N]`.

        Returns the last of their returns.
        """
        last = None
        for t, s, n in np.argwhere(episodes.done.swapaxes(0, 1)):
            if s in agents:
                at = step + (int(t) + 1) * num_envs
                last = float(episodes.return_[s, t, n])
                self.scalar(at, s, "charts/episodic_return", last)
                self.scalar(at, s, "charts/episodic_length", float(episodes.length[s, t, n]))
        return last

    def values(self, step: int, values: dict[str, np.ndarray], agents: list[int]) -> None:
        """Writes values by tag, `[S]`, of `agents`; NaN stands for no value."""
        for s in agents:
            for tag, x in values.items():
                if not np.isnan(x[s]):
                    self.scalar(step, s, tag, float(x[s]))

    def scalar(self, step: int, agent: int, tag: str, value: float) -> None:
        """Writes one value of agent number `agent`."""
        now = self._now()
        self._rows.writerow((step, f"{now:.3f}", self.seeds[agent], tag, value))
        self._event(agent, now, step=int(step), summary=summary.scalar(tag, value))
        if self.wandb:
            prefix = "" if len(self.seeds) == 1 else f"seed_{self.seeds[agent]}/"
            self.wandb.log({prefix + tag: value, "global_step": int(step)})

    def _now(self) -> float:
        return self._epoch + time.monotonic()

    def _event(self, agent: int, now: float, **fields: Any) -> None:
        self.events[agent].write(Event(wall_time=now, **fields).SerializeToString())

    def flush(self, to_disk: bool = False) -> int:
        """Returns the size of scalars.csv. Raises FileNotFoundError where it was deleted or replaced.

        Args:
          to_disk: forces its rows to disk, where a checkpoint that counts on them goes, too.
        """
        self.csv.flush()
        if to_disk:
            os.fsync(self.csv.fileno())
        for events in self.events:
            events.flush()
        if os.stat(self.folder / "scalars.csv").st_ino != os.fstat(self.csv.fileno()).st_ino:
            raise FileNotFoundError(errno.ENOENT, "it was replaced")
        return self.csv.tell()

    def close(self) -> None:
        """Closes what can be closed; drops a torn row: a disk was full in the middle of it."""
        for file in (self.csv, *self.events):
            try:
                file.close()
            except OSError:
                pass
        try:
            with (self.folder / "scalars.csv").open("rb+") as file:
                start = max(file.seek(0, os.SEEK_END) - 4096, 0)
                file.seek(start)
                file.truncate(start + file.read().rfind(b"\n") + 1)
        except OSError:
            pass


def _event_file(folder: Path) -> RecordWriter:
    """A new event file of `folder` that TensorBoard reads after those that are there.

    It reads them in the order of their names, which have the second of their start: a run that is resumed within that
    second, or under a clock that was set back, takes the next one.
    """
    starts = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*")]
    start = max([int(time.time()), *(int(start) + 1 for start in starts if start.isdigit())])
    return RecordWriter(str(folder / f"events.out.tfevents.{start}.{socket.gethostname()}"))


def _cut(path: Path, size: int | None, step: int) -> None:
    """Drops from scalars.csv what came after a checkpoint at `step`, when the file had `size` bytes.

    Where the file is no longer what it was then, complete rows up to `step` stay. Written beside and renamed.
    """
    text = path.read_bytes()
    if size is not None and len(text) >= size and text[:size].endswith(b"\n"):
        kept = text[:size]
    else:
        rows = text.splitlines(keepends=True)[1:]
        rows = [row for row in rows if ROW.fullmatch(row)]
        kept = HEADER.encode() + b"".join(row for row in rows if int(row.split(b",")[0]) <= step)
    if kept != text:
        beside = path.with_suffix(".part")
        beside.write_bytes(kept)
        beside.replace(path)


def start_wandb(args: Experiment, folder: Path) -> Any:
    """A Weights & Biases run named as the folder. Raises UserError: nothing was trained in the folder then."""
    name = identity = folder.resolve().name
    if args.run_name is not None:  # of which there may be several, one after the other or in several folders
        token = folder / "wandb_token"
        if not token.exists():
            token.write_text(secrets.token_hex(8))
        identity += token.read_text()
    try:
        import wandb

        run = wandb.init(
            project=args.wandb_project_name,
            entity=args.wandb_entity,
            name=name,
            id=hashlib.sha256(identity.encode()).hexdigest()[:16],
            resume="allow",
            config=dataclasses.asdict(args),
            dir=folder,
        )
    except Exception as error:  # no login, no network, ..
        if args.resume is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"--track: {one_line(error)} (WANDB_MODE=offline needs no login)") from error
    run.define_metric("*", step_metric="global_step")
    return run


def check_wandb(args: Experiment) -> None:
    """Raises UserError where --track needs what is not installed."""
    if args.track and importlib.util.find_spec("wandb") is None:
        raise UserError("--track needs Weights & Biases: pip install '.[track]'")
