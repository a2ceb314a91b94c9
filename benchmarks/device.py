"""What a device makes of the scripts: steps/s of all seeds together, compile time and peak memory.

    python -m benchmarks.device                        Hopper-v4 with 1, 8 and 32 seeds; CheetahRun with 4
    python -m benchmarks.device --save                 also into benchmarks/speed.csv, which the tables show
    python -m benchmarks.device --save --of runs/RUN   of runs that are there
    python -m benchmarks.device --small                tiny sizes, to rehearse on a CPU

Each row is one run in a process of its own, on the device that JAX picks, from its summary.json.
`benchmarks/gpu.sh` calls it on a machine with one GPU.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import speed
from benchmarks.rounds import ROOT, Skip, run_process
from envs import UserError
from harness import RunFolder, provenance
from harness.cli import one_line_errors


def commands(small: bool) -> list[list[str]]:
    """The runs: off-policy ones by number of seeds, then on-policy ones of many environments on the device."""
    steps, seeds, env_id, envs, rollout = 4000, (1, 8, 32), "playground/CheetahRun", 2048, 60
    if small:
        steps, seeds, env_id, envs, rollout = 500, (2,), "Pendulum-v1", 8, 40
    off = f"--env-id Hopper-v4 --total-timesteps {steps} --learning-starts {steps // 4} --log-frequency {steps // 4}"
    on = f"--env-id {env_id} --num-envs {envs} --num-steps {rollout} --total-timesteps {3 * envs * rollout}"
    runs = [f"{script} {off} --num-seeds {n}" for n in seeds for script in ("sac_jax.py", "diffsac_jax.py")]
    runs += [f"{script} {on} --num-seeds {1 if small else 4}" for script in ("ppo_jax.py", "diffppo_jax.py")]
    return [run.split() for run in runs]


def run(command: list[str], runs_folder: str, seconds: float) -> Path:
    """Trains on the device that JAX picks. Returns the run's folder; raises Skip: it failed, or took longer."""
    more = ["--eval-episodes", "1", "--eval-frequency", "1000000000", "--checkpoint-frequency", "0"]
    words = [sys.executable, *command, *more, "--runs-folder", runs_folder]
    run_process(words, ROOT, round(seconds), JAX_PLATFORMS=os.environ.get("JAX_PLATFORMS", ""))
    (folder,) = Path(runs_folder).iterdir()
    return folder


def row(folder: RunFolder) -> speed.Row:
    """Quantity, value, how it was measured. Raises UserError: no run, or one that has not ended or not learned."""
    args, summary = folder.arguments(folder.script().Args), folder.summary()
    if summary.get("steps_per_second") is None:
        raise UserError(f"{str(folder.path)!r} has no speed: it has not ended, or never learned")
    envs = f", {args.num_envs} environments" if args.num_envs > 1 else ""
    what = f"{args.exp_name}.py, {args.env_id}{envs}, {args.num_seeds} seed{'s' if args.num_seeds > 1 else ''}"
    value = (
        f"{args.num_seeds * summary['steps_per_second']:.0f} steps/s of all seeds, "
        f"compiled in {summary['compile_seconds']:.0f} s, {summary['peak_memory_bytes'] / 1e9:.2f} GB"
    )
    return what, value, f"one run of {summary['step']:,} steps"


def main() -> int:
    """Returns the exit status: 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write the rows into benchmarks/speed.csv as well")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--of", nargs="+", type=Path, metavar="RUN", help="run folders, in place of runs of its own")
    parser.add_argument("--seconds", type=float, default=300.0, help="for all runs together")
    options = parser.parse_args()
    here, end, failed = {**speed.facts(), "device": provenance.device()}, time.monotonic() + options.seconds, False

    def tell(found: speed.Row) -> None:
        print(": ".join(found[:2]), flush=True)
        if options.save:  # at once: the machine may be taken away
            saved = dict(zip(speed.COLUMNS, (*found, *here.values()), strict=True))
            saved["quantity"] += f" ({here['device']})"
            speed.save(ROOT / "benchmarks" / "speed.csv", [saved])

    for folder in options.of or []:
        try:
            tell(row(RunFolder(folder)))
        except UserError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    for command in [] if options.of else commands(options.small):
        with tempfile.TemporaryDirectory() as place:
            try:
                tell(row(RunFolder(run(command, place, max(1.0, end - time.monotonic())))))
            except (Skip, UserError) as error:
                failed = True
                print(f"{' '.join(command)}: {error}", flush=True)
    return int(failed)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
