"""A run that was stopped and resumed equals the run in one go: every scalar, every parameter.

Wall time and the tags that measure time are left out (`running.scalars`).
"""

import fcntl
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_jax
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from envs import UserError
from harness import RunFolder, log, provenance, resume
from tests.running import SCRIPTS, SMALL, TINY, agents, enter, known, scalars

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
    TINY: {**known(TINY, OFF_POLICY), "log-frequency": 25},
    "sac_jax.py": OFF_POLICY,
    "diffsac_jax.py": {**OFF_POLICY, **DIFFUSION, "num-seeds": 2, "num-envs": 2, "eval-frequency": 400},
    "diffwpo_jax.py": {**OFF_POLICY, **DIFFUSION},
    "crossq_jax.py": OFF_POLICY,
    "diffcrossq_jax.py": {**OFF_POLICY, **DIFFUSION},
    "ppo_jax.py": ON_POLICY,
    "diffppo_jax.py": {**ON_POLICY, **DIFFUSION, "num-seeds": 2},
}
assert list(SETTINGS)[1:] == sorted(SCRIPTS, key=list(SETTINGS).index)
# For every script a finished run of half the length is extended, and stopped in the middle of an episode and a chunk;
# for some also in the warm-up. The second number counts each environment's own steps, replayed ones included.
STOPS = {
    TINY: [(400, 30), (400, None), (800, 130), (800, None)],
    "sac_jax.py": [(400, 30), (400, None), (800, 130), (800, None)],
    "diffsac_jax.py": [(400, None), (800, 80), (800, None)],
    "diffwpo_jax.py": [(400, None), (800, 130), (800, None)],
    "crossq_jax.py": [(400, None), (800, 130), (800, None)],
    "diffcrossq_jax.py": [(400, None), (800, 130), (800, None)],
    "ppo_jax.py": [(400, None), (800, 80), (800, None)],
    "diffppo_jax.py": [(400, None), (800, 80), (800, None)],
}


def in_one_go(script, runs_folder, settings):
    """The run of `settings`; returns its folder."""
    enter(script, {**settings, "runs-folder": runs_folder})
    (folder,) = runs_folder.iterdir()
    return folder


def in_pieces(script, runs_folder, settings):
    """The run of `settings` with the stops of STOPS; returns its folder."""
    folder = None
    for total, signal_at in STOPS[script]:
        signals = {"TEST_SIGNALS": f"SIGTERM@{signal_at}"} if signal_at else {}
        start = {"resume": folder} if folder else {**settings, "runs-folder": runs_folder}
        done = enter(script, {**start, "total-timesteps": total}, 143 if signal_at else 0, **signals)
        (folder,) = runs_folder.iterdir()
        summary = RunFolder(folder).summary()
        if signal_at:
            assert summary["interrupted_by"] == "SIGTERM" and 0 < summary["step"] < total
            assert f"continue with: python {script} --resume {folder}" in done.stdout
        else:
            assert summary["interrupted_by"] is None and summary["step"] == total
    return folder


def assert_equal_agents(a, b):
    jax.tree.map(np.testing.assert_array_equal, *(jax.tree.leaves(agents(folder)) for folder in (a, b)))


def assert_equal_runs(a, b):
    assert len(scalars(a)) > 50
    assert scalars(a) == scalars(b)
    assert_equal_agents(a, b)
    summaries = [RunFolder(folder).summary() for folder in (a, b)]
    for name in ("episodic_return", "evaluations", "updates", "total_timesteps", "step", "stopped", "interrupted_by"):
        assert summaries[0][name] == summaries[1][name], name
    arguments = [RunFolder(folder).stored_args() for folder in (a, b)]
    assert {**arguments[0], "runs_folder": ""} == {**arguments[1], "runs_folder": ""}


def assert_tensorboard_shows_one_curve(folder):
    """What TensorBoard reads from all event files is what scalars.csv has: no point twice, none missing."""
    rows = RunFolder(folder).scalars()
    seeds = {row[2] for row in rows}
    for seed in seeds:
        place = folder / f"seed_{seed}" if len(seeds) > 1 else folder
        events = EventAccumulator(str(place), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            shown = [(event.step, np.float32(event.value)) for event in events.Scalars(tag)]
            expected = [(step, np.float32(value)) for step, _, s, t, value in rows if (s, t) == (seed, tag)]
            assert shown == expected, tag


# The others resume by the same lines of the harness; test_equal_on_mujoco has one of them.
QUICK = (TINY,)


@pytest.mark.parametrize("script", [pytest.param(s, marks=() if s in QUICK else pytest.mark.slow) for s in SETTINGS])
def test_in_pieces_equals_in_one_go(script, tmp_path, monkeypatch):
    # One commit for all starts, also where the tree is worked on meanwhile.
    monkeypatch.setattr(provenance, "commit_and_changes", lambda: ("0123abc", []))
    whole = in_one_go(script, tmp_path / "whole", SETTINGS[script])
    pieces = in_pieces(script, tmp_path / "pieces", SETTINGS[script])
    assert_equal_runs(pieces, whole)
    assert_tensorboard_shows_one_curve(pieces)
    if script == TINY:
        assert_what_no_resume_may_touch(script, whole)
        assert_other_versions_are_noted(script, pieces)
    if "anneal-lr" in SETTINGS[script]:
        assert_annealing_fixes_the_length(script, whole)


def assert_what_no_resume_may_touch(script, whole):
    """Other arguments, a running process, a length that has passed, checkpoints that were deleted."""
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file() and path.name != "lock"}
    done = enter(script, {"resume": whole, "learning-rate": 0.5}, status=2)
    assert "--learning-rate 0.5 conflicts" in done.stderr and len(done.stderr.splitlines()) == 1
    with (whole / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = enter(script, {"resume": whole}, status=2)
        assert "in use by process" in done.stderr
    done = enter(script, {"resume": whole, "total-timesteps": 400, "seed": 1}, status=2)
    assert "--total-timesteps 400 is below the checkpoint's step 800" in done.stderr
    (whole / "checkpoints").rename(whole.parent / "moved")
    done = enter(script, {"resume": whole, "total-timesteps": 1600}, status=2)
    assert "are missing" in done.stderr and len(done.stderr.splitlines()) == 1
    (whole.parent / "moved").rename(whole / "checkpoints")
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file() and path.name != "lock"} == before
    args = RunFolder(whole).stored_args()
    (whole / "args.json").write_text(json.dumps({**args, "layout": 1}))
    done = enter(script, {"resume": whole}, status=2)
    assert "layout 1" in done.stderr and len(done.stderr.splitlines()) == 1
    (whole / "args.json").write_text(json.dumps(args))


def test_a_name_is_a_run_that_goes_on(tmp_path):
    """The same command begins the run, goes on after an interruption, and leaves it alone once it is over."""
    settings = {**SETTINGS[TINY], "total-timesteps": 200, "runs-folder": tmp_path / "named", "run-name": "mine"}
    enter(TINY, settings, status=143, TEST_SIGNALS="SIGTERM@130")
    assert "resumed at step 150" in enter(TINY, settings).stdout
    (named,) = (tmp_path / "named").iterdir()
    assert named.name == "mine" and RunFolder(named).status() == "finished"

    before = {path: path.read_bytes() for path in named.rglob("*") if path.is_file()}
    moved = {**settings, "runs-folder": f"{tmp_path}/named/../named"}
    assert "has finished" in enter(TINY, moved).stdout
    for other in ({"learning-rate": 0.5}, {"seed": 2}, {"exp-name": "other"}):
        done = enter(TINY, {**settings, **other}, status=2)
        assert f"conflicts with '{named}'" in done.stderr and len(done.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in named.rglob("*") if path.is_file()} == before
    RunFolder(named).write_json("summary.json", {**RunFolder(named).summary(), "stopped": {"1": {}}})
    assert "has stopped" in enter(TINY, settings, status=3).stdout

    # One that was killed between its arguments and its first row.
    for path in named.iterdir():
        if path.name != "args.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "no checkpoint yet: starts from the beginning" in enter(TINY, settings).stdout
    assert RunFolder(named).status() == "finished"


def assert_other_versions_are_noted(script, folder):
    """A run that other code goes on with says from which step on; the same code again adds nothing."""
    versions = json.loads((folder / "versions.json").read_text())
    (folder / "versions.json").write_text(json.dumps({**versions, "git_commit": "other"}))
    for total in (850, 900):
        done = enter(script, {"resume": folder, "total-timesteps": total})
        assert f"git_commit other -> {versions['git_commit']}" in done.stdout
        stored = json.loads((folder / "versions.json").read_text())
        assert stored == {**versions, "git_commit": "other", "resumed": [{"step": 800, **versions}]}


def assert_annealing_fixes_the_length(script, whole):
    args = RunFolder(whole).stored_args()
    (whole / "args.json").write_text(json.dumps({**args, "anneal_lr": True}))
    done = enter(script, {"resume": whole, "total-timesteps": 1600}, status=2)
    assert "--total-timesteps 1600 conflicts" in done.stderr and "anneal" in done.stderr


def test_the_step_from_which_versions_ran(tmp_path):
    """Also where a damaged checkpoint sends a start back behind the one before it."""
    versions = {"git_commit": "a", "jax": "1"}
    folder = RunFolder(tmp_path)
    for step, commit, noted in (
        (0, "a", []),
        (100, "a", []),
        (200, "b", [(200, "b")]),
        (300, "b", [(200, "b")]),
        (400, "c", [(200, "b"), (400, "c")]),
        (300, "c", [(200, "b"), (400, "c"), (300, "c")]),
        (500, "a", [(200, "b"), (400, "c"), (300, "c"), (500, "a")]),
    ):
        folder.add_versions(step, {**versions, "git_commit": commit})
        stored = json.loads((tmp_path / "versions.json").read_text())
        assert [(x["step"], x["git_commit"]) for x in stored.get("resumed", [])] == noted
        assert [x["step"] for x in folder.versions()] == [0, *(step for step, _ in noted)]


@pytest.mark.parametrize("name", ["Hidden", "Dice"])
def test_an_environment_that_cannot_be_replayed_begins_new_episodes(name, tmp_path):
    """State that no attribute shows; a generator that belongs to Python."""
    settings = {
        **SETTINGS[TINY],
        "env-id": f"tests.environments:{name}-v0",
        "runs-folder": tmp_path,
        "num-envs": 2,
        "log-frequency": 50,
    }
    why = "(the same actions lead elsewhere)"
    begun = enter(TINY, {**settings, "total-timesteps": 600, "checkpoint-frequency": 500})
    line = f"the running episode of {settings['env-id']} cannot be replayed here {why}: "
    line += "a resumed run would begin a new one"
    assert begun.stdout.count(line) == 1 and begun.stdout.index(line) < begun.stdout.index("600 / 600 steps")
    (folder,) = tmp_path.iterdir()
    done = enter(TINY, {"resume": folder, "total-timesteps": 1000})
    assert f"cannot be replayed {why}: it begins a new one" in done.stdout and line not in done.stdout
    # Both environments were 100 steps into episodes of 200, which would have ended at 800.
    ends = sorted({row[0] for row in scalars(folder) if row[2] == "charts/episodic_return"})
    assert ends == [400, 1000]


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
    whole = in_one_go(script, tmp_path / "whole", {**settings, "total-timesteps": 600})
    pieces = in_one_go(script, tmp_path / "pieces", {**settings, "total-timesteps": 300})
    assert any(row[2].startswith("eval/") for row in scalars(pieces))
    enter(script, {"resume": pieces, "total-timesteps": 600})
    assert scalars(pieces) == scalars(whole)
    assert_equal_agents(pieces, whole)


def test_an_environment_that_refers_to_itself_is_replayed(tmp_path):
    settings = {**SETTINGS[TINY], "env-id": "tests.environments:Tree-v0", "total-timesteps": 250}
    folder = in_one_go(TINY, tmp_path, settings)
    done = enter(TINY, {"resume": folder, "total-timesteps": 300})
    assert "resumed at step 250" in done.stdout and "replayed" not in done.stdout


def test_a_path_is_no_pattern(tmp_path):
    """Brackets and backslashes, in the name of the experiment and of a folder above it."""
    settings = {**SETTINGS[TINY], "total-timesteps": 200, "eval-episodes": 1}
    folder = in_one_go(TINY, tmp_path / "[2026] a\\b", {**settings, "exp-name": "sac[256]"})
    enter(TINY, {"resume": folder, "total-timesteps": 300})
    assert RunFolder(folder).summary()["step"] == 300
    shutil.rmtree(folder / "checkpoints" / "000000000200")
    agents(folder)


def restored(step, args, **env):
    """What `restored` makes of a checkpoint at `step`, whose state is of two seeds."""
    state = tiny_jax.Training(None, None, None, None)
    checkpoints = SimpleNamespace(exist=lambda: True, restore=lambda *_: (state, {"step": step, "env": {}}))
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    folder = SimpleNamespace(versions=lambda: [])
    return resume.restored(args, SimpleNamespace(**env), folder, checkpoints, {}, state, keys)[0]


def test_new_episodes_of_a_resumed_run_are_not_its_first_ones():
    """Nor those of another resume."""
    args = SimpleNamespace(log_frequency=50, total_timesteps=1000, env_id="x")
    env = {"restore_host": lambda saved: "why", "reset": lambda key: jax.random.bits(key, (3,))}
    first = jax.vmap(env["reset"])(jax.vmap(jax.random.key)(jnp.arange(2)))
    drawn = np.concatenate([first, *(restored(step, args, **env).env_state for step in (100, 150))])
    assert len(np.unique(drawn)) == 18
    np.testing.assert_array_equal(restored(100, args, **env).env_state, drawn[2:4])


def test_chunks_of_a_resumed_run_meet_the_checkpoints_step():
    args = SimpleNamespace(log_frequency=30, total_timesteps=1000)
    with pytest.raises(UserError, match="--log-frequency 30 must divide the checkpoint's step 100"):
        restored(100, args, restore_host=lambda saved: None)


@pytest.mark.parametrize("frequency, last, missing", [(100, 250, True), (100, 200, False), (0, 900, False)])
def test_an_unfinished_run_whose_checkpoints_are_gone_is_not_begun_anew(tmp_path, frequency, last, missing):
    """By twice the frequency there was one."""
    folder = RunFolder(tmp_path)
    args = tiny_jax.Args(checkpoint_frequency=frequency, total_timesteps=1000)
    folder.write_args(args)
    (tmp_path / "scalars.csv").write_text(f"{log.HEADER}{last},1.0,1,a,1.0\n")
    none = SimpleNamespace(exist=lambda: False)
    if missing:
        with pytest.raises(UserError, match="are missing: it cannot go on"):
            resume.restored(args, None, folder, none, {}, "new", None)
    else:
        assert resume.restored(args, None, folder, none, {}, "new", None) == ("new", {})
