"""The command line of a script: arguments by tyro, errors as one line, exit statuses."""

import dataclasses
import itertools
import os
import re
import select
import signal
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import tyro

from envs import UserError, one_line
from envs.gymnasium_make import prefer_headless_rendering
from envs.interface import parse_kwargs
from harness.experiment import WHOLE_CHUNKS, Experiment, flag, rules
from harness.folder import RunFolder, RunFolderError
from harness.progress import say


def run(Args: type[Experiment], train: Callable[[Any], None]) -> None:
    """Parses the command line and trains.

    Exit status: 0 finished; 1 the run's folder can no longer be written, memory ran out, or an environment failed;
    2 bad input; 3 a seed was stopped because a number was not finite; 130 and 143 interrupted by SIGINT and SIGTERM.
    """
    prefer_headless_rendering()
    with one_line_errors():
        args = parse(Args, sys.argv[1:])
        check_jax()
        if args.resume is not None and resumed(sys.argv[1:]) is None:
            leave_if_over(RunFolder(args.resume), args)
        train(args)


def leave_if_over(folder: RunFolder, args: Experiment) -> None:
    """Ends the process where the run that --run-name found is over: its command may be given again at any time."""
    if folder.summary().get("total_timesteps") == args.total_timesteps and folder.status() != "unfinished":
        say(f"{str(folder.path)!r} has {folder.status()}")
        sys.exit(3 if folder.status() == "stopped" else 0)


def check_jax() -> None:
    """Raises UserError where JAX is set up in a way that the scripts cannot use."""
    if jax.config.jax_disable_jit:
        raise UserError("JAX_DISABLE_JIT is set: a step of training would take minutes; unset it")
    if jax.config.jax_enable_x64:
        raise UserError("JAX_ENABLE_X64 is set: the scripts compute in float32; unset it")
    threads = os.environ.get("NPROC", "")
    if threads and not threads.isdecimal():
        raise UserError(f"NPROC, the number of threads, is {threads!r}")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"JAX finds no device: {one_line(error)}") from None


class one_line_errors:
    """Ends the process with one line and the right status where a `with` block meets an error of ours.

    And without a traceback where who read the output is gone, as in `| head -1`.
    """

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is None or isinstance(error, BrokenPipeError | SystemExit):
            cut = isinstance(error, BrokenPipeError) and nobody_reads()  # a simulator's pipe may break, too
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                cut = True
            if cut:
                sys.stdout = open(os.devnull, "w")  # what Python flushes at its end
                sys.exit(128 + signal.SIGPIPE)
        if isinstance(error, UserError | RunFolderError):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2 if isinstance(error, UserError) else 1)
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            print(f"error: out of memory: {one_line(error)[:200]}", file=sys.stderr)
            sys.exit(1)


def nobody_reads() -> bool:
    """Whether the output is a pipe whose other end is closed."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, select.POLLOUT)
    except (OSError, ValueError):  # no file at all
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def parse(Args: type[Experiment], words: list[str]) -> Experiment:
    """The arguments of a command line. With --resume those stored in the run's folder, changed as far as they may be.

    With --run-name, where there is such a run, `resume` is its folder. Raises UserError.
    """
    description = sys.modules[Args.__module__].__doc__
    words = as_tyro_has_them(Args, words)
    run = resumed(words)
    if run is None:
        args = say_rounding(tyro.cli(Args, description=description, args=words), words, Args)
        return args if args.run_name is None else named(args)
    stored = dataclasses.replace(RunFolder(run).arguments(Args), resume=run)
    args = tyro.cli(Args, description=description, default=stored, args=words)
    check_unchanged(stored, args, run)
    return dataclasses.replace(say_rounding(args, words, stored), env_kwargs=stored.env_kwargs)


def named(args: Experiment) -> Experiment:
    """The arguments, with `resume` where there is a run called `run_name`. Raises UserError: it has others."""
    path = Path(args.runs_folder) / args.run_name
    if not os.path.exists(path / "args.json"):  # where the name is too long, too
        return args
    place = {"runs_folder": args.runs_folder, "run_name": args.run_name}
    stored = dataclasses.replace(RunFolder(path).arguments(type(args)), **place)
    check_unchanged(stored, args, str(path))
    return dataclasses.replace(args, resume=str(path), env_kwargs=stored.env_kwargs)


def check_unchanged(stored: Experiment, args: Experiment, run: str) -> None:
    """Raises UserError where an argument differs from that of the run's folder and may not."""
    reasons = stored.fixed_on_resume()
    for field in dataclasses.fields(args):
        old, new = getattr(stored, field.name), getattr(args, field.name)
        if field.name == "env_kwargs" and parse_kwargs(old) == parse_kwargs(new):
            continue
        if old != new and (not rules(field).get("may_change") or field.name in reasons):
            because = f" ({reasons[field.name]})" if field.name in reasons else ""
            raise UserError(f"{flag(field.name)} {new} conflicts with {run!r}, which was begun with {old}{because}")


def as_tyro_has_them(Args: type[Experiment], words: list[str]) -> list[str]:
    """Also understands what sweep tools write: `--autotune=True`, `--autotune false`, `--total_timesteps 1e6`."""
    types = {flag(name): kind for name, kind in typing.get_type_hints(Args).items()}
    words = [re.sub("^--[^=]*", lambda name: name[0].replace("_", "-"), word) for word in words]
    parts = [part for word in words for part in (word.split("=", 1) if word.split("=")[0] in types else [word])]
    out: list[str] = []
    for i, part in enumerate(parts):
        before = parts[i - 1] if i else ""
        if types.get(before) is bool and part.lower() in ("true", "1", "false", "0"):
            if part.lower() in ("false", "0"):
                out[-1] = "--no-" + before.removeprefix("--")
        elif types.get(before) is int and re.fullmatch(r"\d*\.?\d+[eE]\+?\d+", part) and float(part).is_integer():
            out.append(str(int(float(part))))
        else:
            out.append(part)
    return out


def say_rounding(args: Experiment, words: list[str], default: Any) -> Experiment:
    """Says where a number of steps became another, from the command line or from `default`. Returns `args`."""
    own = "log_frequency" in {field.name for field in dataclasses.fields(args)}
    chunk = "--log-frequency" if own else "--num-envs times --num-steps"
    for name in WHOLE_CHUNKS:
        given = [value for word, value in itertools.pairwise(words) if word == flag(name)]
        asked = int(given[-1]) if given else getattr(default, name)
        if asked != getattr(args, name):
            what = f"{flag(name)} {asked:,} becomes {getattr(args, name):,}"
            say(f"{what}: whole chunks of {args.log_frequency} environment steps ({chunk})")
    return args


def resumed(words: list[str]) -> str | None:
    """What follows --resume."""
    for word, following in zip(words, [*words, None][1:], strict=True):
        if word in ("--help", "-h"):
            return None
        if word == "--resume" or word.startswith("--resume="):
            return following if word == "--resume" else word.removeprefix("--resume=")
    return None
