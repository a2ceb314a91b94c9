"""SAC and DiffSAC as commands: train, evaluate, save, reload; the same seed gives the same numbers."""

import csv
import importlib.util
import json

import jax
import numpy as np
import pytest

from common import UserError, envs, evaluation
from tests import scripts

SCRIPTS = sorted(path.name for path in scripts.ROOT.glob("*_jax.py"))
REPLAY = ["sac_jax.py", "diffsac_jax.py"]


def settings_of(script, **more):
    settings = {**scripts.small(script), "total-timesteps": 200}
    if script.startswith("diff"):
        settings["num-denoising-steps"] = 2
    return {**settings, **more}


@pytest.fixture(scope="module", params=REPLAY)
def trained(request, tmp_path_factory):
    """(script, run folder) of one small run."""
    return request.param, scripts.train(request.param, tmp_path_factory.mktemp("runs"), settings_of(request.param))


@pytest.mark.parametrize("script", SCRIPTS)
def test_identity_12_no_key_is_used_twice(script, tmp_path):
    """Over start, warm-up, updates and evaluations of a whole run."""
    run = scripts.train(script, tmp_path, settings_of(script), JAX_DEBUG_KEY_REUSE="1")
    assert (run / "summary.json").exists()


def test_identity_12_the_check_sees_a_key_used_twice():
    """Also inside a scan under vmap, which is where the scripts use theirs."""

    def step(key, _):
        return jax.random.split(key)[0], jax.random.normal(key)

    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.jit(jax.vmap(lambda key: jax.lax.scan(step, key, None, length=3)[1]))(jax.random.split(jax.random.key(0)))


def test_run_folder_says_all_about_the_run(trained):
    script, run = trained
    args, summary = (json.loads((run / name).read_text()) for name in ("args.json", "summary.json"))
    assert args["script"] == script.removesuffix(".py") and args["total_timesteps"] == 200
    versions = json.loads((run / "versions.json").read_text())
    assert {"git_commit", "python", "jax", "flax", "gymnasium", "mujoco", "device", "threads"} <= set(versions)
    platform, model = versions["device"].split(" ", 1)
    assert platform == jax.devices()[0].platform and model != platform
    assert (run / "agent.msgpack").stat().st_size > 0 and list(run.glob("events.*"))
    rows = scripts.scalars(run)
    tags = {tag for _, _, tag, _ in rows}
    assert {"losses/qf_loss", "losses/actor_loss", "losses/alpha", "losses/entropy"} <= tags
    assert {f"eval/episodic_return_{policy}" for policy in evaluation.POLICIES} <= tags
    assert ("diffusion/log_ratio_2" in tags) == (script == "diffsac_jax.py")
    assert all(np.isfinite(float(value)) for *_, value in rows)
    last = {tag: float(value) for _, _, tag, value in rows}
    for policy in evaluation.POLICIES:
        assert summary["episodic_return"]["1"][f"{policy}_last"] == last[f"eval/episodic_return_{policy}"]
    assert summary["updates"] == 100


def test_same_seed_same_scalars(trained, tmp_path):
    script, run = trained
    again = scripts.train(script, tmp_path, settings_of(script))
    assert scripts.scalars(again) == scripts.scalars(run)


def test_another_seed_gives_other_scalars(trained, tmp_path):
    script, run = trained
    other = scripts.train(script, tmp_path, settings_of(script, seed=2))
    losses = [[value for _, _, tag, value in scripts.scalars(r) if tag.startswith("losses/")] for r in (run, other)]
    assert len(losses[0]) == len(losses[1]) > 0
    assert not set(losses[0]) & set(losses[1])


def test_evaluate_reloads_the_agent(trained):
    """`--evaluate RUN` at the run's end is the last evaluation: the same agent, start states and keys."""
    script, run = trained
    done = scripts.run(script, {"evaluate": run, "eval-episodes": 2})
    summary = json.loads((run / "summary.json").read_text())["episodic_return"]["1"]
    for policy, line in zip(evaluation.POLICIES, done.stdout.strip().splitlines(), strict=True):
        assert policy in line
        assert float(line.split("return")[1].split("+-")[0]) == pytest.approx(summary[f"{policy}_last"], abs=0.01)


def test_evaluate_refuses_another_script(trained):
    script, run = trained
    other = {"sac_jax.py": "diffsac_jax.py", "diffsac_jax.py": "sac_jax.py"}[script]
    done = scripts.run(other, {"evaluate": run}, status=2)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and script in done.stderr


def test_load_agent(trained):
    _, run = trained
    act, mean = evaluation.load_agent(run), evaluation.load_agent(run, deterministic=True)
    obs = np.array([[1.0, 0.0, 0.1], [0.0, 1.0, -2.0]])
    actions = act(obs, jax.random.key(0))
    assert actions.shape == (2, 1) and np.all(np.abs(actions) <= 2.0)  # Pendulum's own units
    assert act(obs[0], jax.random.key(0)).shape == (1,)
    assert np.any(actions != act(obs, jax.random.key(1)))
    np.testing.assert_array_equal(mean(obs, jax.random.key(0)), mean(obs, jax.random.key(1)))
    with pytest.raises(UserError, match="not 7"):
        evaluation.load_agent(run, seed=7)


def test_a_video_that_cannot_be_rendered_is_one_line(trained, monkeypatch, capsys):
    _, run = trained
    make = envs.make_gymnasium

    def no_rendering(*args, **more):
        if "render_mode" in more:
            raise OSError("no display")
        return make(*args, **more)

    monkeypatch.setattr(envs, "make_gymnasium", no_rendering)
    assert evaluation.record_video(run) is None
    assert capsys.readouterr().err == "no video: Pendulum-v1 cannot be rendered here (OSError: no display)\n"


def test_a_video_without_moviepy_is_one_line(trained, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "moviepy" else find(name))
    assert evaluation.record_video(trained[1]) is None
    assert capsys.readouterr().err == "no video: it needs moviepy: pip install '.[video]'\n"


WANDB = """
import json, os
def init(**settings):
    if "LOGIN" not in os.environ:
        raise RuntimeError("No API key configured.\\nUse `wandb login`.")
    return Run(settings)
class Run:
    def __init__(self, settings):
        self.file = open(os.environ["LOGIN"], "w")
        self.file.write(json.dumps(settings, default=str) + "\\n")
    def define_metric(self, name, step_metric): pass
    def log(self, values):
        self.file.write(json.dumps(values) + "\\n")
"""


def test_track_mirrors_every_scalar(tmp_path):
    """A stand-in for the wandb package writes down what it is given."""
    (tmp_path / "wandb.py").write_text(WANDB)
    settings = {**settings_of("sac_jax.py"), "track": True, "num-seeds": 2, "runs-folder": tmp_path / "runs"}
    more = {"PYTHONPATH": f"{tmp_path}", "LOGIN": f"{tmp_path / 'log'}"}
    scripts.run("sac_jax.py", settings, **more)
    (run,) = (tmp_path / "runs").iterdir()
    start, *logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert (
        start["name"] == run.name
        and start["dir"] == str(run)
        and start["config"]["seed"] == 1
        and start["project"] == "diffusion-maxent-rl"
    )
    with (run / "scalars.csv").open() as file:
        rows = [
            (int(row["global_step"]), f"seed_{row['seed']}/{row['tag']}", row["value"]) for row in csv.DictReader(file)
        ]
    assert len(rows) > 20
    assert [(x.pop("global_step"), *((tag, repr(value)) for tag, value in x.items())) for x in logged] == [
        (step, (tag, value)) for step, tag, value in rows
    ]
    del more["LOGIN"]
    done = scripts.run("sac_jax.py", settings, status=2, **more)
    assert done.stderr.splitlines()[-1].startswith("error: --track: RuntimeError: No API key configured. Use")
    assert list((tmp_path / "runs").iterdir()) == [run]
    # A run that is to go on keeps what it has.
    before = sorted(path.name for path in run.iterdir())
    done = scripts.run("sac_jax.py", {"resume": run}, status=2, **more)
    assert "--track: RuntimeError: No API key" in done.stderr
    assert sorted(path.name for path in run.iterdir()) == before
