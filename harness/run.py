"""One training run: started or resumed, logged, saved, ended. `train` in a script shows the order."""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from envs import Environment, Episode, UserError
from harness import provenance
from harness.checkpoint import Checkpoints
from harness.clock import compile_seconds
from harness.devices import keep_compiled, new_training
from harness.experiment import Experiment
from harness.folder import RunFolder, RunFolderError
from harness.guard import not_finite, say_evaluation
from harness.lock import lock, unlock
from harness.log import Log, check_wandb, start_wandb
from harness.progress import Progress, say, say_header, say_summary
from harness.record import Record
from harness.resume import restored, say_unless_replayable
from harness.signals import Signals
from harness.video import check_video, record_video


class Run:
    """One training run and its folder, a context manager.

    Args:
      args: the script's arguments. With `resume` the run goes on in that folder.
      env: the training environments.

    Attributes:
      step: environment steps taken.
      record: what the run has come to.

    Raises:
      UserError: the folder cannot be made, or another process trains in it.
    """

    def __init__(self, args: Experiment, env: Environment):
        check_wandb(args)
        keep_compiled(env)
        check_video(args)
        self.args, self.env, self.step, self.record = args, env, 0, Record()
        self._begin, self._versions = time.monotonic(), provenance.versions()
        self.folder = RunFolder.create(args) if args.resume is None else RunFolder(args.resume)
        self._lock = lock(self.folder.path, new=args.resume is None)
        self._wandb = start_wandb(args, self.folder.path) if args.track else None
        self._checkpoints = Checkpoints(self.folder.path)
        self._signals = Signals(say)
        self._open: list[Any] = []

    def __enter__(self) -> "Run":
        self._signals.install()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self.step and isinstance(error, Exception) and not isinstance(error, UserError | RunFolderError):
            say(self._go_on())  # an environment failed, or memory ran out
        for part in (*self._open, self._checkpoints, self.env):
            with contextlib.suppress(Exception):  # a full disk was reported before
                part.close()
        self._signals.remove()
        unlock(self._lock, self.folder.path, ours=self.args.run_name is None)

    def start(self, init_training: Callable[[jax.Array], Any]) -> Any:
        """The state of every seed's training, leaves `[S, ..]`: new, or that of the last intact checkpoint.

        Args:
          init_training: key -> the state of one seed's training, with `agent` and `env_state`.

        Raises:
          UserError: no checkpoint is intact, or it does not fit the arguments.
        """
        keys, state = new_training(self.args, self.env, init_training)
        facts: dict[str, Any] = {}
        if self.args.resume is not None:
            state, facts = restored(self.args, self.env, self.folder, self._checkpoints, self._versions, state, keys)
        if facts:
            self.step, self.record = facts["step"], Record.from_json(facts["record"])
        with self._writing():
            self.folder.write_args(self.args)
            self.folder.add_versions(self.step, self._versions)
            self._log = Log(self.args, self.folder.path, self.step, facts.get("scalars_bytes"), self._wandb)
        self._progress = Progress(self.args.total_timesteps, self.step)
        self._open += [self._progress, self._log]
        say_header(self.args, self.env, self._versions, state, self.folder.path)
        return state

    def goes_on(self) -> bool:
        """Whether another chunk follows: not after the last step, a signal, or once every seed was stopped."""
        self._chunk_begin = time.monotonic()
        return self.step < self.args.total_timesteps and not self._signals.stop and bool(self.record.running(self.args))

    def log(self, state: Any, episodes: Episode, metrics: dict[str, jax.Array]) -> None:
        """Writes what a chunk reports and stops the seeds whose numbers are not finite.

        Args:
          state: the training state after the chunk.
          episodes: of its T steps, leaves `[S, T, N]`.
          metrics: by tag, `[S]`; NaN where there is no value.
        """
        episodes, metrics = jax.device_get((episodes, metrics))  # waits, so that the time measured is the chunk's
        if self.env.error:
            raise self.env.error
        seconds = time.monotonic() - self._chunk_begin - compile_seconds(self._chunk_begin)
        if any(np.isfinite(values).any() for values in metrics.values()):
            self.record.learning_seconds += seconds
            self.record.learning_steps += self.args.log_frequency
        bad = not_finite(episodes, metrics, state.agent, self.args.num_envs)
        begin, self.step = self.step, self.step + self.args.log_frequency
        with self._writing():
            self._checkpoints.check()
            for s, found in bad.items():
                if s not in self.record.stopped:
                    step = begin + found.pop("steps")
                    self.record.stopped[s] = {"step": step, **found}
                    say(f"seed {self.args.seeds[s]} stopped at step {step:,} ({found['cause']}): {found['what']}")
            running = self.record.running(self.args)
            last = self._log.episodes(begin, self.args.num_envs, episodes, running)
            self.record.last_return = self.record.last_return if last is None else last
            speed = np.full(self.args.num_seeds, self.args.log_frequency / seconds)
            self._log.values(self.step, {**metrics, "charts/SPS": speed}, running)
            self._log.flush()
        self._progress.update(self.step, self.record.last_return)

    def due(self, frequency: int) -> bool:
        """Whether a multiple of `frequency` steps lies in the last chunk; never with 0."""
        return bool(frequency) and self.step // frequency > (self.step - self.args.log_frequency) // frequency

    def log_evaluation(self, results: dict[str, dict[str, Any]]) -> None:
        """Writes an evaluation (see `harness.evaluation.Evaluator`)."""
        values, running = self.record.add_evaluation(results), self.record.running(self.args)
        say_evaluation(values, self.args, self.step, running)
        self._progress.evaluated(values["eval/episodic_return_deterministic"][running])
        with self._writing():
            self._log.values(self.step, values, running)
            self._log.flush()

    def save_if_due(self, state: Any) -> None:
        """Begins a checkpoint every `checkpoint_frequency` steps, and after SIGUSR1."""
        if self.due(self.args.checkpoint_frequency) or self._signals.checkpoint:
            self._signals.checkpoint = False
            self._save(state)

    def _save(self, state: Any) -> None:
        if self._checkpoints.begun == self.step or not self.record.running(self.args):
            return
        begin, first = time.monotonic(), self._checkpoints.begun is None
        with self._writing():
            record = {**self.record.to_json(), "wall_seconds": self.record.wall_seconds + begin - self._begin}
            facts = {"step": self.step, "record": record, "env": self.env.save_host()}
            self._checkpoints.save(self.step, state, {**facts, "scalars_bytes": self._log.flush(to_disk=True)})
        self.record.checkpoint_seconds += time.monotonic() - begin
        if first and not self._signals.stop:
            say_unless_replayable(self.env, facts["env"])

    def finish(self, state: Any, evaluate: Callable[[Any, int], dict]) -> None:
        """Saves the last checkpoint and the summary; records the video if asked to.

        Leaves the process with the exit status of `harness.cli.run` where the run was interrupted or a seed was
        stopped. A run too short for an evaluation gets one here, which a longer run with this beginning has not.
        """
        self._save(state)
        with self._writing():
            self._checkpoints.wait()
        running = self.record.running(self.args)
        interrupted = self._signals.stop if self.step < self.args.total_timesteps and running else None
        if not self.record.evaluations and not interrupted and running:
            self.log_evaluation(evaluate(state.agent, self.step))
        self.record.wall_seconds += time.monotonic() - self._begin
        with self._writing():
            summary = {"step": self.step, "interrupted_by": interrupted and interrupted.name}
            summary |= self.record.summary(self.args, state.agent) | {"compile_seconds": compile_seconds()}
            self.folder.write_json("summary.json", summary)
        self._progress.close()
        say_summary(summary, self.folder.path)
        if interrupted:
            say(f"{interrupted.name} at step {self.step:,}; continue with: {self.folder.resume_command(self.args)}")
            sys.exit(128 + interrupted)
        if self.args.capture_video and running:
            record_video(self.folder.path)
        if self.record.stopped:
            sys.exit(3)

    def _writing(self) -> contextlib.AbstractContextManager:
        """Whatever goes wrong with the folder becomes a RunFolderError that says how to go on."""
        return self.folder.writing(self._go_on)

    def _go_on(self) -> str:
        with contextlib.suppress(Exception):
            self._checkpoints.wait()  # the one in progress may still succeed
        step, then = self._checkpoints.step, "there is no checkpoint yet"
        if step is not None:
            then = f"from step {step:,} continue with: {self.folder.resume_command(self.args)}"
        return f"stopped at step {self.step:,}; {then}"
