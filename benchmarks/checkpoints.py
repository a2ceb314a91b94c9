"""What a checkpoint costs: size, how long training waits for it, how long it takes, how long resuming takes.

    python benchmarks/checkpoints.py                    Hopper-v4 and Humanoid-v4, a full buffer of a million rows
    python benchmarks/checkpoints.py --speed            steps/s with checkpoints every 10k steps against without

The first measures `common.checkpoints` with the training state of sac_jax.py, of which the buffer holds random rows.
The first columns are a checkpoint as most are: its size, how long training waits, until it is complete, CPU time. It
has the rows of the last two times --every steps to write. "whole" is the first checkpoint after a damaged one, which
has every row to write. The second runs sac_jax.py in turns.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sac_jax  # noqa: E402
from common import checkpoints, envs  # noqa: E402


def filled_state(args, env, seed):
    """A training state whose buffer is full of random rows, leaves `[1, ..]`."""
    state = jax.jit(jax.vmap(partial(sac_jax.init_state, args, env)))(jax.vmap(jax.random.key)(jnp.array([seed])))
    random = np.random.default_rng(seed)

    def fill(x):
        x.delete()
        if x.dtype == jnp.bool_:
            return jnp.array(random.random(x.shape) < 0.01)
        return jnp.array(random.standard_normal(x.shape, np.float32))

    return state.replace(buffer=jax.tree.map(fill, state.buffer))


def measure(env_id, rows, every):
    """Prints one line of the table."""
    args = sac_jax.Args(env_id=env_id, buffer_size=rows)
    env = envs.make_env(env_id, 1)
    state = filled_state(args, env, 1)

    def save(store, step):
        begin, cpu = time.perf_counter(), time.process_time()
        store.save(step, state, {"step": step}, env.save_host()[1])
        waited = time.perf_counter() - begin
        store.wait()
        return waited, time.perf_counter() - begin, time.process_time() - cpu

    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        store = checkpoints.Checkpoints(Path(folder), on_done=lambda state: None)
        whole = [save(store, 3 * rows + i * every) for i in range(2)]
        routine = [save(store, 3 * rows + i * every) for i in range(2, 8)]
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 2
        begin = time.perf_counter()
        store = checkpoints.Checkpoints(Path(folder), on_done=lambda state: None)
        jax.block_until_ready(store.restore(state, print)[0])
        resume = time.perf_counter() - begin
    waited, complete, cpu = (float(np.median([x[i] for x in routine[1:]])) for i in range(3))
    columns = f"{size / 1e6:.0f} MB", f"{waited * 1e3:.0f} ms", f"{complete:.2f} s", f"{cpu:.2f} s"
    columns += f"{whole[1][0]:.2f} s", f"{whole[1][1]:.2f} s", f"{resume:.2f} s"
    print(f"{env_id:12s}" + "".join(f"{column:>13s}" for column in columns), flush=True)


def speed(steps, turns):
    """Prints steps/s of sac_jax.py, wall time between the first and the last log, with and without checkpoints."""
    rates = {10_000: [], 0: []}
    for _ in range(turns):
        for every in rates:
            with tempfile.TemporaryDirectory(dir=ROOT) as folder:
                command = [sys.executable, "sac_jax.py", "--total-timesteps", str(steps), "--runs-folder", folder]
                command += ["--eval-frequency", str(steps), "--learning-starts", "1000"]
                subprocess.run(
                    [*command, "--checkpoint-frequency", str(every)], cwd=ROOT, check=True, capture_output=True
                )
                (run,) = Path(folder).iterdir()
                rows = [line.split(",") for line in (run / "scalars.csv").read_text().splitlines()]
                ends = [(int(row[0]), float(row[1])) for row in rows if row[3] == "charts/SPS" and int(row[0]) >= 2000]
                rates[every].append((ends[-1][0] - ends[0][0]) / (ends[-1][1] - ends[0][1]))
                waited = json.loads((run / "summary.json").read_text())["checkpoint_seconds"]
                print(f"every {every:6d}: {rates[every][-1]:7.1f} steps/s, waited {waited:.2f} s", flush=True)
    with_, without = (np.array(x) for x in rates.values())
    print(f"with / without: {np.round(with_ / without, 3)}, of the means {with_.mean() / without.mean():.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["Hopper-v4", "Humanoid-v4"])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the buffer")
    parser.add_argument("--every", type=int, default=10_000, help="environment steps between checkpoints")
    parser.add_argument("--speed", action="store_true", help="measure steps/s of whole runs instead")
    parser.add_argument("--steps", type=int, default=52_000, help="with --speed: length of a run")
    parser.add_argument("--turns", type=int, default=3, help="with --speed: runs of each kind")
    options = parser.parse_args()
    if options.speed:
        speed(options.steps, options.turns)
        return
    columns = ("size", "waits", "complete", "CPU", "whole: waits", "complete", "resume")
    print(f"{'':12s}" + "".join(f"{column:>13s}" for column in columns))
    for env_id in options.envs:
        measure(env_id, options.rows, options.every)


if __name__ == "__main__":
    main()
