"""suites.toml: every listed run can be run, and the committed suite is what is committed."""

import dataclasses
import shlex

import pytest

from benchmarks import export, suites
from envs import UserError

ALL, _ = suites.read_suites()
SCRIPTS = {f"{name}_jax.py" for name in ("sac", "diffsac", "diffwpo", "crossq", "diffcrossq", "ppo", "diffppo")}


def runs(suite):
    return {(job.args.exp_name, job.args.env_id, job.args.seed) for job in suites.jobs_of(ALL, suite)}


@pytest.mark.parametrize("suite", ALL)
def test_every_listed_run_has_valid_arguments(suite):
    """The script exists, and its own parser takes what its command would say."""
    jobs = suites.jobs_of(ALL, suite)
    assert jobs
    for job in {(job.script, job.flags): job for job in jobs}.values():
        script, *words = job.command("runs")
        assert suites.parse(script, words) == dataclasses.replace(job.args, runs_folder="runs", run_name=job.name)


def test_suites_hold_what_they_promise():
    quick = suites.jobs_of(ALL, "quick")
    assert len(quick) == 7 and {job.script for job in quick} == SCRIPTS
    mujoco = ("Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid")
    names = [script.removesuffix(".py") for script in SCRIPTS]
    assert runs("gym") == {(name, f"{env}-v4", seed) for name in names for env in mujoco for seed in range(1, 11)}
    assert {job.args.total_timesteps for job in suites.jobs_of(ALL, "gym")} == {1_000_000}
    small = [f"{env}-v4" for env in mujoco[:3]]
    assert runs("off_policy") == {run for run in runs("gym") if run[1] in small and "ppo" not in run[0]}
    assert {job.args.total_timesteps for job in suites.jobs_of(ALL, "off_policy")} == {100_000}
    full = runs("full")
    ablations = runs("ablations")
    assert full == runs("gym") | runs("turning") | runs("hidden") | ablations
    for prefix, env_id in (("diffsac", "Walker2d-v4"), ("diffsac", "HalfCheetah-v4"), ("diffppo", "Hopper-v4")):
        assert {(f"{prefix}_k{k}", env_id, 5) for k in (1, 2, 4, 8, 16)} <= ablations
        assert {
            job.args.num_denoising_steps for job in suites.jobs_of(ALL, "ablations") if f"{prefix}_k16" in job.name
        } == {16}


def test_a_name_is_of_one_run():
    """In no two suites, and for no other settings: what one suite has done is not taken for another's."""
    named = {}
    for suite in ALL:
        for job in suites.jobs_of(ALL, suite):
            assert named.setdefault(job.name, job) == job
    (job,) = {job for job in named.values() if job.label == "sac_jax Hopper-v4 seed 1" and job.suite == "gym"}
    assert job.name.startswith("Hopper-v4__sac_jax__1__gym-") and "/" not in job.name
    others = {"total_timesteps": 5000, "q_lr": 0.5, "eval_frequency": 20_000, "seed": 2, "num_seeds": 2}
    names = {dataclasses.replace(job, args=dataclasses.replace(job.args, **{k: v})).name for k, v in others.items()}
    names |= {dataclasses.replace(job, suite="mine").name, dataclasses.replace(job, script="crossq_jax.py").name}
    assert len(names - {job.name}) == len(others) + 2
    for same in ({"runs_folder": "elsewhere"}, {"checkpoint_frequency": 1}, {"track": True}):
        assert dataclasses.replace(job, args=dataclasses.replace(job.args, **same)).name == job.name


def test_consecutive_seeds_are_one_process():
    jobs = suites.jobs_of(ALL, "gym", vmap=True)
    assert len(jobs) == 35 and {job.seeds for job in jobs} == {"1-10"}
    assert jobs[0].name.startswith("Hopper-v4__sac_jax__1-10__gym-")
    assert "--seed 1 --num-seeds 10 --total-timesteps" in shlex.join(jobs[0].command("runs"))
    entry = {"name": "a", "script": "sac_jax.py", "envs": ["Hopper-v4"], "seeds": [1, 3], "steps": 10_000}
    assert [job.seeds for job in suites.jobs_of({"mine": {"runs": [entry]}}, "mine", vmap=True)] == ["1", "3"]


def test_the_committed_suite_is_the_results():
    """Every seed of every file is a run with the arguments of its rows, which reach its full steps."""
    found = {}
    for path in export.RESULTS.glob("*.csv"):
        for row in export.read_csv(path):
            key = (row["exp_name"], f"{row['script']}.py", row["env_id"], int(row["seed"]), row["arguments"])
            found[key] = max(found.get(key, 0), int(row["global_step"]))
    jobs = suites.jobs_of(ALL, "committed")
    assert len(jobs) == len(found) > 200
    for job in jobs:
        flags = export.arguments(job.script, dataclasses.asdict(job.args))
        reached = found[job.args.exp_name, job.script, job.args.env_id, job.args.seed, flags]
        steps, every = job.args.total_timesteps, job.args.eval_frequency
        assert reached == max(steps // every * every, min(every, steps)), job.label


def test_exported_runs_are_a_suite_and_damaged_ones_stop_no_other(tmp_path):
    entry = {"name": "a", "script": "sac_jax.py", "envs": ["Hopper-v4"], "seeds": [1], "steps": 10_000}
    mine = {"exported": {"results": str(tmp_path)}, "other": {"runs": [entry]}}
    file = tmp_path / "sac_jax__Hopper-v4.csv"
    file.write_bytes((export.RESULTS / file.name).read_bytes())
    seeds = {int(row["seed"]) for row in export.read_csv(file)}
    assert {(job.label, job.args.total_timesteps) for job in suites.jobs_of(mine, "exported")} == {
        (f"sac_jax Hopper-v4 seed {seed}", 100_000) for seed in seeds
    }
    file.write_bytes(b"\xff")
    with pytest.raises(UserError, match=f"{file} is damaged"):
        suites.jobs_of(mine, "exported")
    assert len(suites.jobs_of(mine, "other")) == 1


def test_a_script_of_the_same_name_elsewhere_is_not_taken_for_it(tmp_path):
    """Python finds the checkout's; silently it would be that which is swept."""
    other = tmp_path / "sac_jax.py"
    other.write_text((suites.ROOT / "sac_jax.py").read_text())
    entry = {"name": "a", "script": str(other), "envs": ["Hopper-v4"], "seeds": [1], "steps": 10_000}
    with pytest.raises(UserError, match=rf"{other} is not the script of its name that Python finds, .*set PYTHONPATH"):
        suites.jobs_of({"mine": {"runs": [entry]}}, "mine")
    own = {**entry, "script": str(suites.ROOT / "sac_jax.py")}
    assert [job.file for job in suites.jobs_of({"mine": {"runs": [own]}}, "mine")] == ["sac_jax.py"]
