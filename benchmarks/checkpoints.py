"""What a checkpoint costs: its size, how long training waits for it, until it is complete, how long restoring takes.

    python -m benchmarks.checkpoints            Hopper-v4 and Humanoid-v4, a full buffer of a million rows
    python -m benchmarks.checkpoints --speed    steps/s with checkpoints at the default frequency against without

The first measures `harness.checkpoint` with the training state of sac_jax.py, of which the buffer holds random rows; a
number is the median over --rounds checkpoints. The second runs sac_jax.py in turns.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sac_jax
from benchmarks.rounds import ROOT, Skip, in_turns, median, ratios, run_process
from envs import Environment, make_env
from harness import RunFolder
from harness.checkpoint import Checkpoints, complete


def filled_state(args: sac_jax.Args, env: Environment) -> Any:
    """A training state whose buffer is full of random rows, leaves `[1, ..]`."""
    state = jax.jit(jax.vmap(partial(sac_jax.init_training, args, env)))(jax.random.key(0)[None])
    random = np.random.default_rng(0)

    def fill(x):
        x.delete()  # room for the new one
        if x.dtype == jnp.bool_:
            return jnp.array(random.random(x.shape) < 0.01)
        return jnp.array(random.standard_normal(x.shape, np.float32))

    return state.replace(buffer=jax.tree.map(fill, state.buffer))


def measure(env_id: str, rows: int, rounds: int) -> list[float]:
    """Of a checkpoint: bytes, and seconds that training waits, until it is complete, until it is restored."""
    env = make_env(env_id, 1)
    state = filled_state(sac_jax.Args(env_id=env_id, buffer_size=rows), env)
    waits, ends = [], []
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:  # on the disk that runs are written to
        store = Checkpoints(Path(folder))
        for step in range(rounds + 1):
            begin = time.perf_counter()
            store.save(step, state, {"env": env.save_host()})
            waits.append(time.perf_counter() - begin)
            store.wait()
            ends.append(time.perf_counter() - begin)
        store.close()
        size = sum(
            path.stat().st_size for path in complete(Path(folder) / "checkpoints")[0].rglob("*") if path.is_file()
        )
        store = Checkpoints(Path(folder))
        begin = time.perf_counter()
        jax.block_until_ready(store.restore(state, print)[0])
        restored = time.perf_counter() - begin
        store.close()
    env.close()
    # The first checkpoint also starts what writes them.
    return [size, float(np.median(waits[1:])), float(np.median(ends[1:])), restored]


def rate(steps: int, *flags: str) -> float:
    """Steps/s of sac_jax.py between the first log that learned and the last one, checkpoints included."""
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        words = ["--total-timesteps", str(steps), "--eval-frequency", str(steps), "--learning-starts", "1000"]
        run_process([sys.executable, "sac_jax.py", *words, "--runs-folder", folder, *flags], ROOT)
        (run,) = Path(folder).iterdir()
        logs = [(step, clock) for step, clock, _, tag, _ in RunFolder(run).scalars() if tag == "charts/SPS"]
    (first, begin), (last, end) = logs[1], logs[-1]
    return (last - first) / (end - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["Hopper-v4", "Humanoid-v4"])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the buffer")
    parser.add_argument("--rounds", type=int, default=3, help="checkpoints; with --speed, runs of each kind")
    parser.add_argument("--speed", action="store_true", help="measure steps/s of whole runs instead")
    parser.add_argument("--steps", type=int, default=110_000, help="with --speed: length of a run")
    options = parser.parse_args()
    if options.speed:
        measures = {
            "with checkpoints": lambda i: rate(options.steps),
            "without": lambda i: rate(options.steps, "--checkpoint-frequency", "0"),
        }
        try:
            with_, without = in_turns(options.rounds, measures).values()
        except Skip as reason:
            sys.exit(f"error: {reason}")
        print(f"steps/s with checkpoints {median(with_, 0)}, without {median(without, 0)}")
        print(f"with / without {median(ratios(with_, without), 3)}")
        return
    print(f"{'':12s}{'size':>12s}{'waits':>12s}{'complete':>12s}{'restored':>12s}")
    for env_id in options.envs:
        size, *seconds = measure(env_id, options.rows, options.rounds)
        print(f"{env_id:12s}{size / 1e6:>9,.0f} MB" + "".join(f"{x:>10.2f} s" for x in seconds), flush=True)


if __name__ == "__main__":
    main()
