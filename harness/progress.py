"""What a run says on the terminal."""

import datetime
import math
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from envs import Environment
from harness.clock import compile_seconds
from harness.evaluation import POLICIES
from harness.experiment import Experiment
from harness.record import num_parameters


def say(line: str) -> None:
    """Prints a line above the progress bar. Whoever read the output may be gone: training is not."""
    try:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # also what Python flushes at its end


def say_header(args: Experiment, env: Environment, versions: dict[str, Any], state: Any, folder: Path) -> None:
    """What is about to run, and where. `state`: of the training, leaves `[S, ..]`."""
    seeds = f"seed {args.seed}" if args.num_seeds == 1 else f"seeds {args.seed}..{args.seeds[-1]}"
    facts = (
        f"{args.env_id} (obs {env.observation_size}, actions {env.action_size})",
        f"{args.exp_name} {seeds}",
        f"{num_parameters(state.agent):,} parameters",
        f"state {sum(x.nbytes for x in jax.tree.leaves(state)) / 1e9:.2f} GB",
        versions["device"],
        f"jax {versions['jax']}, mujoco {versions['mujoco']}",
    )
    say(" | ".join(facts))
    say(f"folder {folder}")
    say("compiling ..")


def say_summary(summary: dict[str, Any], folder: Path) -> None:
    """What a run has come to. `summary`: as in summary.json."""
    for seed, returns in summary["episodic_return"].items():
        last = {policy: returns[f"{policy}_last"] for policy in POLICIES}
        last = [f"{policy} {value:.1f}" for policy, value in last.items() if value is not None]
        if last:
            say(f"seed {seed}: last evaluation {', '.join(last)}")
    speed = f"{summary['steps_per_second']:.0f} steps/s per seed, " if summary["steps_per_second"] else ""
    say(f"{speed}compiled in {summary['compile_seconds']:.1f} s; all of it in {folder}")


class Progress:
    """A live bar on a terminal, a plain line every five per cent elsewhere."""

    def __init__(self, total: int, done: int = 0):
        self.total, self.marks = total, deque([(done, time.monotonic())], maxlen=2)  # of the last two lines
        self.next_line, self.evaluation = done + total / 20, math.nan
        self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True) if sys.stderr.isatty() else None

    def update(self, step: int, last_return: float) -> None:
        """After a chunk. `last_return`: of training, NaN before an episode has ended, as `evaluation` before one."""
        values = {"return": last_return, "evaluation": self.evaluation}
        if self.bar is not None:
            known = [f"{name} {value:.1f}" for name, value in values.items() if not math.isnan(value)]
            self.bar.set_postfix_str(", ".join(known), refresh=False)
            self.bar.update(step - self.bar.n)
        elif step >= self.next_line or step == self.total:
            self.next_line += self.total / 20
            # Over two lines: random steps before learning, and compiling, say nothing about those to come.
            first, begin = self.marks[0]
            rate = (step - first) / max(time.monotonic() - begin - compile_seconds(begin), 1e-6)
            self.marks.append((step, time.monotonic()))
            left = datetime.timedelta(seconds=round((self.total - step) / rate))
            last, evaluation = ("-" if math.isnan(value) else f"{value:.1f}" for value in values.values())
            say(
                f"{step:>9,} / {self.total:,} steps, {rate:5.0f} steps/s, last return {last:>8},"
                f" evaluation {evaluation:>8}, {left} left"
            )

    def evaluated(self, returns: np.ndarray) -> None:
        """Keeps the deterministic return, mean over the running seeds that have one, for the next line."""
        if len(finite := returns[np.isfinite(returns)]):
            self.evaluation = float(finite.mean())

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
