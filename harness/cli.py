"""The command line of a script: arguments by tyro, errors as one line, exit statuses."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import tyro

from envs import UserError
from envs.gymnasium_make import prefer_headless_rendering
from harness.experiment import Experiment, flag, rules
from harness.folder import RunFolder, RunFolderError


def run(Args: type[Experiment], train: Callable[[Any], None]) -> None:
    """Parses the command line and trains.

    Exit status: 0 finished, 1 the run's folder can no longer be written, 2 bad input, 3 a seed was stopped because a
    number was not finite, 130 and 143 interrupted by SIGINT and SIGTERM.
    """
    prefer_headless_rendering()
    with one_line_errors():
        train(parse(Args, sys.argv[1:]))


class one_line_errors:
    """Ends the process with one line and the right status where a `with` block meets an error of ours."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, UserError | RunFolderError):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2 if isinstance(error, UserError) else 1)
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)


def parse(Args: type[Experiment], words: list[str]) -> Experiment:
    """The arguments of a command line. With --resume those stored in the run's folder, changed as far as they may be.

    Raises UserError.
    """
    description = sys.modules[Args.__module__].__doc__
    run = resumed(words)
    if run is None:
        return tyro.cli(Args, description=description, args=words)
    stored = dataclasses.replace(RunFolder(run).arguments(Args), resume=run)
    args = tyro.cli(Args, description=description, default=stored, args=words)
    reasons = stored.fixed_on_resume()
    for field in dataclasses.fields(args):
        old, new = getattr(stored, field.name), getattr(args, field.name)
        if old != new and (not rules(field).get("may_change") or field.name in reasons):
            because = f" ({reasons[field.name]})" if field.name in reasons else ""
            raise UserError(f"{flag(field.name)} {new} conflicts with {run!r}, which was begun with {old}{because}")
    return args


def resumed(words: list[str]) -> str | None:
    """What follows --resume."""
    for word, following in zip(words, [*words, None][1:], strict=True):
        if word in ("--help", "-h"):
            return None
        if word == "--resume" or word.startswith("--resume="):
            return following if word == "--resume" else word.removeprefix("--resume=")
    return None
