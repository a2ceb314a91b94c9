"""A run from its start to its end: what is due, how long it took, who may train, and what an end is."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_jax

import harness
import harness.run
from envs import Episode, UserError, make_env
from harness import RunFolder
from harness.checkpoint import Checkpoints
from harness.lock import held
from harness.run import Run
from tests.running import TINY, enter

SHORT = {
    **{"env-id": "Pendulum-v1", "total-timesteps": 100, "log-frequency": 50, "eval-frequency": 100},
    **{"eval-episodes": 1, "checkpoint-frequency": 0},
}


def test_what_is_due_in_chunks_that_do_not_divide_it():
    """Checkpoints every 50,000 steps beside PPO's rollouts of 16,384."""

    def due(step, frequency):
        return Run.due(SimpleNamespace(step=step, args=SimpleNamespace(log_frequency=30)), frequency)

    steps = range(30, 331, 30)
    assert [step for step in steps if due(step, 100)] == [120, 210, 300]
    assert [step for step in steps if due(step, 10)] == [*steps]
    assert not any(due(step, 0) for step in steps)


@pytest.fixture
def clock(monkeypatch):
    """The time as a run sees it: `now`, and `compiled`, the seconds of compilation since a chunk's begin."""
    clock = SimpleNamespace(now=1000.0, compiled=0.0)
    monkeypatch.setattr(harness.run, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(harness.run, "compile_seconds", lambda begin=0.0: clock.compiled)
    return clock


def chunks(args, clock, *durations):
    """A run of two seeds with a chunk for each of (seconds, of which compilation, loss); its summary."""
    env = make_env(args.env_id, 1, 2)
    never = np.zeros((2, 50, 1), bool)
    episodes = Episode(never, np.zeros(never.shape), np.zeros(never.shape), ~never)
    result = {"return": np.zeros((2, 1)), "length": np.ones((2, 1)), "metrics": {}}
    with Run(args, env) as run:
        state = run.start(partial(tiny_jax.init_training, args, env))
        for seconds, clock.compiled, loss in durations:
            assert run.goes_on()
            clock.now += seconds
            run.log(state, episodes, {"losses/loss": np.full(2, loss)})
        assert not run.goes_on()
        run.finish(state, lambda *_: {"stochastic": result, "deterministic": result})
    return run.folder


def test_the_times_of_a_run_over_two_starts(tmp_path, clock):
    """Speeds are per seed and without compilation; that of the summary is of the chunks that learned."""
    sizes = {"env_id": "Pendulum-v1", "num_seeds": 2, "eval_frequency": 1000, "runs_folder": str(tmp_path)}
    args = tiny_jax.Args(total_timesteps=100, **sizes)
    folder = chunks(args, clock, (5.0, 3.0, np.nan), (4.0, 0.0, 1.0))
    first = folder.summary()
    assert first["steps_per_second"] == 12.5 and first["wall_seconds"] == 9.0
    speeds = [(step, seed, value) for step, _, seed, tag, value in folder.scalars() if tag == "charts/SPS"]
    assert speeds == [(50, 1, 25.0), (50, 2, 25.0), (100, 1, 12.5), (100, 2, 12.5)]
    clock.now += 1000.0
    args = tiny_jax.Args(total_timesteps=150, **sizes, resume=str(folder.path))
    second = chunks(args, clock, (2.0, 1.0, 1.0)).summary()
    assert second["steps_per_second"] == 20.0 and second["wall_seconds"] == 11.0  # 100 steps in 4 + 1 seconds


def test_a_signal_asks_for_one_checkpoint():
    saved, args = [], SimpleNamespace(checkpoint_frequency=0)
    run = SimpleNamespace(due=bool, args=args, _signals=SimpleNamespace(checkpoint=True), _save=saved.append)
    for state in "abc":
        Run.save_if_due(run, state)
    assert saved == ["a"]


def test_a_name_that_another_process_takes_meanwhile(tmp_path):
    """Between the look for a run of this name and the lock."""
    args = tiny_jax.Args(run_name="mine", runs_folder=str(tmp_path), total_timesteps=200)
    (tmp_path / "mine").mkdir()
    RunFolder(tmp_path / "mine").write_args(dataclasses.replace(args, seed=7))
    with pytest.raises(UserError, match="another process has just begun a run in"):
        Run(args, SimpleNamespace(on_device=False))
    assert RunFolder(tmp_path / "mine").stored_args()["seed"] == 7


def test_the_lock_is_held_until_all_is_closed(tmp_path, monkeypatch):
    close, locked = Checkpoints.close, []
    monkeypatch.setattr(Checkpoints, "close", lambda self: locked.append(held(self.folder.parent)) or close(self))
    enter(TINY, {**SHORT, "runs-folder": tmp_path})
    (folder,) = tmp_path.iterdir()
    assert locked == [True] and not held(folder)


def no_space(*_):
    raise OSError(28, "No space left on device")


def test_a_run_whose_last_checkpoint_fails_has_not_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "_seal", no_space)
    done = enter(TINY, {**SHORT, "runs-folder": tmp_path}, status=1)
    (folder,) = tmp_path.iterdir()
    assert done.stderr.startswith("error: ") and "there is no checkpoint yet" in done.stderr
    assert RunFolder(folder).status() == "unfinished"


def test_a_checkpoint_that_fails_in_the_background_is_noticed_at_the_next_chunk(tmp_path, monkeypatch):
    """Not only when the next checkpoint is due."""
    monkeypatch.setattr(Checkpoints, "check", no_space)
    assert "stopped at step 50; " in enter(TINY, {**SHORT, "runs-folder": tmp_path}, status=1).stderr
