"""A run that was stopped and resumed equals the run in one go: every scalar, every parameter.

Wall time and the tags that measure time are left out (`scripts.scalars`).
"""

import csv
import json
import shutil

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.scripts import ROOT, SMALL, run, scalars, train

COUNTING = "tests.environments:Counting-v0"  # Pendulum, episodes of 200 steps
OFF_POLICY = {
    **SMALL,
    "env-id": COUNTING,
    "total-timesteps": 800,
    "log-frequency": 50,
    "buffer-size": 300,
    "checkpoint-frequency": 300,
}
ON_POLICY = {
    **{name: OFF_POLICY[name] for name in ("env-id", "total-timesteps", "eval-frequency", "eval-episodes")},
    "checkpoint-frequency": 300,
    "num-envs": 2,
    "num-steps": 25,
    "num-minibatches": 2,
    "update-epochs": 2,
    "hidden-dim": 16,
    "anneal-lr": False,
}
DIFFUSION = {"num-denoising-steps": 2}
SETTINGS = {
    "sac_jax.py": OFF_POLICY,
    "diffsac_jax.py": {**OFF_POLICY, **DIFFUSION, "num-seeds": 2, "num-envs": 2},
    "diffwpo_jax.py": {**OFF_POLICY, **DIFFUSION},
    "ppo_jax.py": ON_POLICY,
    "diffppo_jax.py": {**ON_POLICY, **DIFFUSION, "num-seeds": 2},
}
SCRIPTS = [script for script in SETTINGS if (ROOT / script).exists()]
# For every script a finished run of half the length is extended, and stopped in the middle of an episode and a chunk;
# for one script also in the warm-up. `count` is of each environment's own steps.
STOPS = {
    "sac_jax.py": [(400, 30), (400, None), (800, 530), (800, None)],
    "diffsac_jax.py": [(400, None), (800, 280), (800, None)],
    "diffwpo_jax.py": [(400, None), (800, 530), (800, None)],
    "ppo_jax.py": [(400, None), (800, 280), (800, None)],
    "diffppo_jax.py": [(400, None), (800, 280), (800, None)],
}


@pytest.fixture(scope="module", params=SCRIPTS)
def pair(request, tmp_path_factory):
    """(script, folder of the run in one go, folder of the run in pieces)."""
    script, settings = request.param, SETTINGS[request.param]
    whole = train(script, tmp_path_factory.mktemp("whole"), settings)
    runs = tmp_path_factory.mktemp("pieces")
    for i, (total, signal_at) in enumerate(STOPS[script]):
        signals = {"TEST_SIGNALS": f"SIGTERM@{signal_at}"} if signal_at else {}
        status = 143 if signal_at else 0
        if i == 0:
            done = run(script, {**settings, "total-timesteps": total, "runs-folder": runs}, status, **signals)
            (pieces,) = runs.iterdir()
        else:
            done = run(script, {"resume": pieces, "total-timesteps": total}, status, **signals)
        summary = json.loads((pieces / "summary.json").read_text())
        if signal_at:
            assert summary["interrupted_by"] == "SIGTERM" and 0 < summary["step"] < total
            assert f"continue with: python {script} --resume {pieces}" in done.stdout
        else:
            assert summary["interrupted_by"] is None and summary["step"] == total
    return script, whole, pieces


def test_every_scalar_is_equal(pair):
    _, whole, pieces = pair
    assert len(scalars(whole)) > 50
    assert scalars(pieces) == scalars(whole)


def test_final_parameters_are_bit_identical(pair):
    _, whole, pieces = pair
    assert (pieces / "agent.msgpack").read_bytes() == (whole / "agent.msgpack").read_bytes()


def test_summary_is_equal(pair):
    a, b = (json.loads((folder / "summary.json").read_text()) for folder in pair[1:])
    for name in ("episodic_return", "evaluations", "updates", "total_timesteps", "step", "stopped"):
        assert a[name] == b[name], name


def test_arguments_are_equal(pair):
    a, b = (json.loads((folder / "args.json").read_text()) for folder in pair[1:])
    assert {**a, "runs_folder": ""} == {**b, "runs_folder": ""}


def test_tensorboard_shows_one_curve(pair):
    """What TensorBoard reads from all event files is what scalars.csv has: no point twice, none missing."""
    _, _, folder = pair
    with (folder / "scalars.csv").open() as file:
        rows = list(csv.DictReader(file))
    several = len({row["seed"] for row in rows}) > 1
    for seed in {row["seed"] for row in rows}:
        events = EventAccumulator(str(folder / f"seed_{seed}" if several else folder), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            shown = [(event.step, np.float32(event.value)) for event in events.Scalars(tag)]
            expected = [(row["global_step"], row["value"]) for row in rows if (row["seed"], row["tag"]) == (seed, tag)]
            assert shown == [(int(step), np.float32(value)) for step, value in expected], tag


def test_a_conflicting_argument_is_named(pair):
    script, whole, _ = pair
    before = (whole / "args.json").read_bytes()
    done = run(script, {"resume": whole, "gamma": 0.5}, status=2)
    assert "--gamma 0.5 conflicts" in done.stderr and len(done.stderr.splitlines()) == 1
    assert (whole / "args.json").read_bytes() == before


@pytest.mark.skipif("ppo_jax.py" not in SCRIPTS, reason="ppo_jax.py does not exist")
def test_annealing_fixes_the_length(pair):
    script, whole, _ = pair
    if "ppo" not in script:
        pytest.skip("has no annealed learning rate")
    args = json.loads((whole / "args.json").read_text())
    (whole / "args.json").write_text(json.dumps({**args, "anneal_lr": True}))
    done = run(script, {"resume": whole, "total-timesteps": 1600}, status=2)
    (whole / "args.json").write_text(json.dumps(args))
    assert "--total-timesteps 1600 conflicts" in done.stderr and "anneal" in done.stderr


def test_a_finished_run_has_nothing_to_redo(pair, tmp_path):
    script, whole, _ = pair
    if script != SCRIPTS[0]:
        pytest.skip("equal in all scripts")
    folder = tmp_path / "copy"  # and a run folder may be moved
    shutil.copytree(whole, folder)
    run(script, {"resume": folder})
    assert scalars(folder) == scalars(whole)
    done = run(script, {"resume": folder, "total-timesteps": 400}, status=2)
    assert "--total-timesteps 400 is below the checkpoint's step 800" in done.stderr
    assert json.loads((folder / "args.json").read_text())["total_timesteps"] == 800


@pytest.mark.parametrize(
    "script, env_id",
    [
        ("sac_jax.py", "Hopper-v4"),
        *(
            pytest.param(script, env_id, marks=pytest.mark.slow)
            for script in SCRIPTS
            for env_id in ("Hopper-v4", "Ant-v4", "Humanoid-v4", "Reacher-v4", "Pendulum-v1")
            if (script, env_id) != ("sac_jax.py", "Hopper-v4")
        ),
    ],
)
def test_equal_on_mujoco(script, env_id, tmp_path):
    """A finished run of 300 steps, which ends in the middle of an episode, is extended.

    It is too short for an evaluation, so it makes one at its end. The longer run has none there: it must be gone.
    """
    settings = {**SETTINGS[script], "env-id": env_id, "eval-episodes": 1, "eval-frequency": 600}
    whole = train(script, tmp_path / "whole", {**settings, "total-timesteps": 600})
    pieces = train(script, tmp_path / "pieces", {**settings, "total-timesteps": 300})
    assert any(row[2].startswith("eval/") for row in scalars(pieces))
    run(script, {"resume": pieces, "total-timesteps": 600})
    assert scalars(pieces) == scalars(whole)
    assert (pieces / "agent.msgpack").read_bytes() == (whole / "agent.msgpack").read_bytes()
