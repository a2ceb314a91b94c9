"""run_all.sh and its scheduler: the lists, skipping, resuming, failures, interruption, progress.

Where training adds nothing, a script that only behaves like one stands in for it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import export, jobs, plot, speed
from tests.scripts import ROOT, TIMEOUT, environment

RUN_ALL = ROOT / "benchmarks" / "run_all.sh"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    """The tests' own settings only, not those of the shell that runs them."""
    for name in ("SUITE", "JOBS", "RUNS", "PYTHON", "STEPS", "LIST", "VMAP", "DRY_RUN", "NPROC"):
        monkeypatch.delenv(name, raising=False)


# Makes a run folder like the scripts do, in a second or so less. --behaviour: finish; fail; nan; wait:
# for SIGTERM, and finish when resumed.
STAND_IN = """
import json, os, pathlib, signal, sys, time
class Args:
    env_id: str = "Hopper-v4"
    seed: int = 1
    num_seeds: int = 1
    total_timesteps: int = 1000
    exp_name: str = "stand_in"
    runs_folder: str = "runs"
    behaviour: str = "finish"
    resume: str | None = None
words = sys.argv[1:]
given = {name[2:].replace("-", "_"): value for name, value in zip(words[::2], words[1::2])}
if "resume" in given:
    folder = pathlib.Path(given["resume"])
    args = json.loads((folder / "args.json").read_text())
else:
    args = {name: getattr(Args, name) for name in Args.__annotations__} | given
    args |= {name: int(args[name]) for name in ("seed", "num_seeds", "total_timesteps")}
    name = "{env_id}__{exp_name}__{seed}__".format(**args)
    folder = pathlib.Path(args["runs_folder"]) / f"{name}{time.time_ns()}"
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps({"script": "stand_in", **args}))
    (folder / "versions.json").write_text(json.dumps({"git_commit": "0123456789", "threads": os.environ["NPROC"]}))
    (folder / "scalars.csv").write_text("global_step,wall_time,seed,tag,value\\n250,1.0,1,charts/SPS,1.0\\n300,1.")
print("running", folder)
if args["behaviour"] == "fail":
    sys.exit("the reason of the failure")
if args["behaviour"] == "nan":
    (folder / "summary.json").write_text(json.dumps({"total_timesteps": args["total_timesteps"], "stopped": {"1": {}}}))
    sys.exit(3)
if args["behaviour"] == "wait" and "resume" not in given:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (folder / "summary.json").write_text(json.dumps({"interrupted_by": "SIGTERM"}))
    while True:
        time.sleep(0.1)
(folder / "summary.json").write_text(json.dumps({"total_timesteps": args["total_timesteps"]}))
"""


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    return path


def settings(tmp_path, lines, **more):
    """Environment variables of a call whose suite `mine` is `lines`."""
    (tmp_path / "list.txt").write_text("suite mine\n" + "\n".join(lines) + "\n")
    mine = {
        "SUITE": "mine",
        "LIST": str(tmp_path / "list.txt"),
        "RUNS": str(tmp_path / "runs"),
        "PYTHON": sys.executable,
    }
    return environment(**(mine | more))


def call(env, status=0):
    done = subprocess.run([str(RUN_ALL)], env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def listed(suite, vmap=False):
    """The suite's jobs as run_all.sh lists them."""
    return jobs.read_list(RUN_ALL.read_text().split("list='")[1].split("'\n")[0], suite, vmap)


# -------------------------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize("suite", ["quick", "committed", "turning", "gym", "full"])
def test_every_listed_run_has_valid_arguments(suite):
    """The script exists, has the flags, and accepts their values and the number of steps."""
    import importlib

    for job in {(job.script, job.flags, job.steps): job for job in listed(suite)}.values():
        module = importlib.import_module(job.script.removesuffix(".py"))
        flags = export.parse_flags(job.flags)
        module.Args(**flags, env_id=job.env_id, seed=job.first_seed, exp_name=job.name, total_timesteps=job.steps)


def test_suites_hold_what_they_promise():
    def runs(suite):
        return {(job.name, job.env_id, job.first_seed) for job in listed(suite)}

    assert len(listed("quick")) == 5 and {job.script for job in listed("quick")} == {
        f"{name}_jax.py" for name in ("sac", "diffsac", "diffwpo", "ppo", "diffppo")
    }
    mujoco = ("Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid")
    names = ("sac_jax", "diffsac_jax", "diffwpo_jax", "ppo_jax", "diffppo_jax")
    assert runs("gym") == {(name, f"{env}-v4", seed) for name in names for env in mujoco for seed in range(1, 6)}
    assert {job.steps for job in listed("gym")} == {1_000_000}
    assert runs("gym") < runs("full") and runs("turning") < runs("full")
    for prefix in ("diffsac", "diffppo"):
        assert {(f"{prefix}_k{k}", "Hopper-v4", 1) for k in (1, 2, 4, 8, 16)} <= runs("full")
    # On a GPU the five seeds of a line are one process.
    assert len(listed("gym", vmap=True)) == 25 and {job.seeds for job in listed("gym", vmap=True)} == {"1-5"}


def test_committed_suite_is_what_is_committed():
    """benchmarks/results holds the runs of `suite committed` and no others, to their full steps."""
    wanted = {
        (job.name, job.script, job.env_id, job.first_seed, job.arguments): job.steps for job in listed("committed")
    }
    found = {}
    for path in export.RESULTS.glob("*.csv"):
        for row in export.read_csv(path):
            key = (row["exp_name"], f"{row['script']}.py", row["env_id"], int(row["seed"]), row["arguments"])
            found[key] = max(found.get(key, 0), int(row["global_step"]))
    lines = "\n".join(export.list_lines())
    assert set(found) == set(wanted), f"the list should read\n{lines}"
    for key, steps in wanted.items():
        every = (export.defaults(key[1]) | export.parse_flags(key[4]))["eval_frequency"]
        assert found[key] == max(steps // every * every, min(every, steps)), key


def test_dry_run_prints_commands_and_starts_nothing(tmp_path):
    env = environment(SUITE="quick", DRY_RUN="1", RUNS=str(tmp_path / "runs"), PYTHON=sys.executable, STEPS="8000")
    lines = call(env).splitlines()
    assert lines[0].startswith("# 5 runs to do (0 resumed), 0 already finished")
    assert lines[1].startswith("# 40,000 environment steps, about ") and "minutes with JOBS=1" in lines[1]
    assert len(lines) == 7 and not (tmp_path / "runs").exists()
    assert lines[2].endswith(
        f"sac_jax.py --env-id Pendulum-v1 --seed 1 --total-timesteps 8000 --exp-name quick_sac --runs-folder "
        f"{tmp_path / 'runs'} --eval-frequency 2000 --learning-starts 1000 --hidden-dim 64"
    )


@pytest.mark.parametrize(
    "lines, more, message",
    [
        (["a | sac_jax.py | | Hopper-v4 | 1"], {}, "name | script | flags | environments | seeds | steps"),
        (["a | sac_jax.py | | Hopper-v4 | one | 1000"], {}, "name | script | flags | environments | seeds | steps"),
        (["a | sac_jax.py | q-lr 1 | Hopper-v4 | 1 | 1000"], {}, "is no flag"),
        (["a | sac_jax.py | | Hopper-v4 | 1 1 | 1000"], {}, "names a run twice"),
        ([], {"SUITE": "nothing"}, "no suite 'nothing'"),
        ([], {"JOBS": "0"}, "positive whole number"),
        ([], {"STEPS": "many"}, "positive whole number"),
    ],
)
def test_bad_lists_and_settings_are_one_line(tmp_path, lines, more, message):
    env = settings(tmp_path, lines, **more)
    done = subprocess.run([str(RUN_ALL)], env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr


# --------------------------------------------------------------------------------------------------------- scheduling


def test_a_failure_does_not_stop_the_others(tmp_path, stand_in):
    lines = [
        f"bad | {stand_in} | --behaviour fail | Hopper-v4 | 1 | 1000",
        f"nan | {stand_in} | --behaviour nan | Hopper-v4 | 1 | 1000",
        f"missing | {tmp_path}/no_such_script.py | | Hopper-v4 | 1 | 1000",
        f"good | {stand_in} | | Hopper-v4 Walker2d-v4 | 1 2 | 1000",
    ]
    out = call(settings(tmp_path, lines), status=1).splitlines()
    assert out[0].startswith("7 runs to do (0 resumed), 0 already finished, 0 failed before")
    assert "4 runs finished now, 0 before, 3 failed" in out
    failed = out[out.index("4 runs finished now, 0 before, 3 failed") + 1 :]
    assert [line.split(":")[1].strip() for line in failed] == [
        f"{x} Hopper-v4 seed 1" for x in ("bad", "nan", "missing")
    ]
    assert "exit status 1" in failed[0] and "the reason of the failure" in failed[0]
    assert "stopped by NaN or infinity" in failed[1]
    # The second call repeats what can be repeated; the run that NaN stopped is named and not trained again.
    before = len(list((tmp_path / "runs").glob("*__nan__*")))
    out = call(settings(tmp_path, lines), status=1)
    assert "2 runs to do (1 resumed), 4 already finished, 1 failed before" in out
    assert "failed: nan Hopper-v4 seed 1: a seed was stopped by NaN or infinity" in out
    assert "0 runs finished now, 4 before, 3 failed" in out
    assert len(list((tmp_path / "runs").glob("*__nan__*"))) == before == 1


def test_other_arguments_are_another_run(tmp_path, stand_in):
    """A finished run counts only for the arguments and the steps that it was made with."""
    call(settings(tmp_path, [f"a | {stand_in} | | Hopper-v4 | 1 | 1000"]))
    (folder,) = (tmp_path / "runs").glob("*__a__*")
    assert json.loads((folder / "versions.json").read_text())["threads"] == "1"
    out = call(settings(tmp_path, [f"a | {stand_in} | | Hopper-v4 | 1 | 1000"]))
    assert "0 runs to do (0 resumed), 1 already" in out and "already there were begun at commit 0123456" in out
    for line in (
        f"a | {stand_in} | | Hopper-v4 | 1 | 2000",
        f"a | {stand_in} | --behaviour slow | Hopper-v4 | 1 | 1000",
    ):
        assert "1 runs to do (0 resumed), 0 already" in call(settings(tmp_path, [line], DRY_RUN="1"))


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interruption_and_a_second_call_that_finishes(number, status, tmp_path, stand_in):
    lines = [
        f"a | {stand_in} | --behaviour wait | Hopper-v4 | 1 2 3 | 1000",
        f"b | {stand_in} | | Hopper-v4 | 1 | 1000",
    ]
    env = settings(tmp_path, lines, JOBS="2")
    process = subprocess.Popen(
        [str(RUN_ALL)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # The tests may run under nohup, which ignores it and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: len(list((tmp_path / "runs").glob("*__a__*/summary.json"))) == 2)
        process.send_signal(number)
        out, _ = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == status, out
    assert out.count("interrupted a Hopper-v4") == 2 and "0 runs finished now, 0 before, 0 failed" in out
    out = call(settings(tmp_path, lines, JOBS="2", DRY_RUN="1"))
    assert out.startswith("# 4 runs to do (2 resumed)") and out.count("--resume") == 2
    # The third run of `a` starts anew and would wait: it is taken off the list.
    lines[0] = lines[0].replace("1 2 3", "1 2")
    out = call(settings(tmp_path, lines, JOBS="2"))
    assert out.count("resume a Hopper-v4") == 2 and "3 runs finished now, 0 before, 0 failed" in out
    assert len(list((tmp_path / "runs").glob("Hopper-v4__a__*"))) == 2


def test_progress_over_all_jobs(tmp_path, stand_in, monkeypatch):
    """The share done of a running job is read from its scalars.csv, whose last line may be torn."""
    job = jobs.Job("a", str(stand_in), "--behaviour wait", "Hopper-v4", 1, 1, 1000)
    command = [sys.executable, *job.command(str(tmp_path / "runs"))]
    process = subprocess.Popen(command, env={**os.environ, "NPROC": "1"})
    try:
        wait_for(lambda: list((tmp_path / "runs").glob("*/summary.json")))
        assert jobs.progress(job, tmp_path / "runs", since=0.0) == 0.25
        assert jobs.progress(job, tmp_path / "runs", since=time.time() + 1000) == 0.0
        state, folder = jobs.find(job, tmp_path / "runs")
        assert state == "unfinished" and folder is not None
    finally:
        process.kill()
        process.wait()
    (options := jobs.Parser().parse_args([])).__dict__.update(runs=str(tmp_path / "runs"), jobs=2, report=1.0)
    scheduler = jobs.Scheduler([job], options)
    assert scheduler.estimate()[0].startswith("1 runs to do (1 resumed)")
    assert scheduler.seconds_begun == pytest.approx(0.25 * scheduler.seconds_total)
    # One of two equal jobs done in 100 s, the other half way: 50 s left.
    scheduler.seconds_begun, scheduler.seconds_total, scheduler.seconds_done = 0.0, 20.0, 15.0
    with monkeypatch.context() as clock:
        clock.setattr(jobs.time, "time", lambda: 1100.0)
        assert "75 % of all work, 0:00:33 left" in scheduler._report(1000.0)


def wait_for(condition):
    deadline = time.time() + TIMEOUT
    while not condition():
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.1)


# --------------------------------------------------------------------------------------------------------- end to end

TINY = (
    "--eval-frequency 200 --log-frequency 100 --learning-starts 100 --eval-episodes 2 --buffer-size 1000 "
    "--batch-size 16 --hidden-dim 16"
)


def test_runs_results_and_tables_end_to_end(tmp_path):
    """run_all.sh trains, a second call finds nothing to do, export.py and plot.py take it from there."""
    lines = [f"sac_jax | sac_jax.py | {TINY} | Pendulum-v1 | 1 2 | 400"]
    out = call(settings(tmp_path, lines, JOBS="2"))
    assert "2 runs finished now, 0 before, 0 failed" in out
    assert "0 runs to do (0 resumed), 2 already finished" in call(settings(tmp_path, lines))
    folders = sorted((tmp_path / "runs").glob("Pendulum*"))
    assert [json.loads((folder / "versions.json").read_text())["threads"] for folder in folders] == [1, 1]
    root = tmp_path / "checkout"
    (root / "benchmarks").mkdir(parents=True)
    (root / "README.md").write_text("<!-- table off-policy -->\n<!-- end -->\n")
    results = str(root / "benchmarks" / "results")
    for command in (
        ["export.py", "--results", results, "--allow-dirty", *map(str, (tmp_path / "runs").iterdir())],
        ["plot.py", "--tables", "--root", str(root)],
    ):
        subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / command[0]), *command[1:]], check=True, timeout=TIMEOUT
        )
    assert export.list_lines(root / "benchmarks" / "results") == [
        f"sac_jax | sac_jax.py | {' '.join(sorted_flags(TINY))} | Pendulum-v1 | 1 2 | 400"
    ]
    assert "| Pendulum-v1 | 0.4k | 1 2 |" in (root / "README.md").read_text()


def sorted_flags(flags):
    return export.arguments("sac_jax", export.parse_flags(flags)).split()


@pytest.mark.slow
def test_quick_suite_end_to_end(tmp_path):
    """All five scripts as the quick suite runs them, with fewer steps."""
    env = environment(SUITE="quick", STEPS="8000", RUNS=str(tmp_path / "runs"), PYTHON=sys.executable, JOBS="2")
    done = subprocess.run([str(RUN_ALL)], env=env, capture_output=True, text=True, timeout=3 * TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 runs finished now, 0 before, 0 failed" in done.stdout
    for folder in (tmp_path / "runs").glob("*__quick_*"):
        assert export.read_run(folder, allow_dirty=True)


def test_executable_and_clean():
    assert os.access(RUN_ALL, os.X_OK)
    subprocess.run(["bash", "-n", str(RUN_ALL)], check=True)


# -------------------------------------------------------------------------------------------------------------- speed


def test_speed_rows_are_replaced_and_shown(tmp_path):
    """`speed.py --save` replaces the quantities it measured and keeps the others; plot.py shows them."""
    path = tmp_path / "speed.csv"
    row = dict.fromkeys(speed.COLUMNS, "x")
    speed.save(path, [row | {"quantity": "a", "value": "1"}, row | {"quantity": "b", "value": "2"}])
    speed.save(path, [row | {"quantity": "c", "value": "4"}, row | {"quantity": "a", "value": "3"}])
    lines = plot.speed_table(path).splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [["| a", "3"], ["| b", "2"], ["| c", "4"]]


def test_speed_compares_within_a_round():
    """Measures take turns; a ratio is formed within a round and reported as the median with its range."""
    order = []
    measures = {name: lambda i, name=name: order.append(f"{name}{i}") or float(i + 1) for name in ("a", "b")}
    values = speed.in_turns(argparse.Namespace(rounds=3), measures)
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert speed.median(speed.ratios([2.0, 9.0, 8.0], values["b"]), 1, " x") == "2.7 x (2.0 to 4.5)"


def test_speed_skips_what_cannot_be_measured(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "speed.py"), "--rows", "sbx", "ppo", "--peers-python"]
    done = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0 and done.stdout.startswith("Commit ")
    assert done.stderr.splitlines() == [f"{row}: skipped, there is no {tmp_path / 'none'}" for row in ("sbx", "ppo")]
