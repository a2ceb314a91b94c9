"""ppo_jax.py and diffppo_jax.py as a user runs them."""

import json

import jax
import numpy as np
import pytest

from common.evaluation import load_agent
from tests import scripts

SMALL = {
    "env-id": "Pendulum-v1",
    "total-timesteps": 128,
    "eval-frequency": 64,
    "eval-episodes": 2,
    "num-envs": 4,
    "num-steps": 8,
    "num-minibatches": 4,
    "update-epochs": 2,
    "hidden-dim": 8,
}
SCRIPTS = {"ppo": {}, "diffppo": {"num-denoising-steps": 2, "alpha": 0.01}}


@pytest.fixture(scope="module", params=SCRIPTS)
def trained(request, tmp_path_factory):
    """(script, settings, run folder) of one small run."""
    script, folder = f"{request.param}_jax.py", tmp_path_factory.mktemp(request.param)
    settings = {**SMALL, **SCRIPTS[request.param], "runs-folder": folder}
    scripts.run(script, settings)
    (run,) = folder.iterdir()
    return script, settings, run


def test_run_folder(trained):
    script, _, run = trained
    rows = scripts.scalars(run)
    tags = {tag for _, _, tag, _ in rows}
    learning = {"policy_loss", "value_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac", "explained_variance"}
    assert tags >= {f"losses/{name}" for name in learning} | {"losses/first_ratio_error", "charts/learning_rate"}
    assert tags >= {"eval/episodic_return_stochastic", "eval/episodic_return_deterministic"}
    diffusion = {"diffusion/beta_min", "diffusion/beta_max", "diffusion/log_ratio_1", "diffusion/log_ratio_2"}
    diffusion |= {"diffusion/entropy_bound", "diffusion/entropy_estimate"}
    assert (tags & diffusion) == (diffusion if script.startswith("diff") else set())
    assert all(np.isfinite(float(value)) for *_, value in rows)
    ratio_errors = [float(value) for _, _, tag, value in rows if tag == "losses/first_ratio_error"]
    assert len(ratio_errors) == 4 and max(ratio_errors) < 1e-4
    rates = [(int(step), float(value)) for step, _, tag, value in rows if tag == "charts/learning_rate"]
    assert rates == [(32 * (i + 1), pytest.approx(3e-4 * (1 - i / 4), rel=1e-5)) for i in range(4)]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["updates"] == 4 * 2 * 4 and summary["evaluations"] == 2


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(trained, tmp_path):
    """Also with evaluation at other times, which may not change training."""
    script, settings, run = trained
    scripts.run(script, {**settings, "eval-frequency": 128, "runs-folder": tmp_path})
    (again,) = tmp_path.iterdir()

    def training(folder):
        return [row for row in scripts.scalars(folder) if not row[2].startswith(("eval/", "diffusion/entropy"))]

    assert training(again) == training(run) and len(training(run)) > 20
    assert scripts.scalars(again)[-1] == scripts.scalars(run)[-1]
    assert (again / "agent.msgpack").read_bytes() == (run / "agent.msgpack").read_bytes()


def test_evaluate_and_load_agent(trained):
    """--evaluate repeats the last evaluation; the loaded policy normalises observations with the saved statistics."""
    script, settings, run = trained
    output = scripts.run(script, {"evaluate": run, "eval-episodes": settings["eval-episodes"]}).stdout
    last = {tag: float(value) for _, _, tag, value in scripts.scalars(run) if tag.startswith("eval/episodic_return")}
    for policy in ("stochastic", "deterministic"):
        assert f"{policy:13s} return {last[f'eval/episodic_return_{policy}']:9.2f}" in output

    act = load_agent(run, deterministic=True)
    action = act(np.array([0.5, 0.5, 1.0]), jax.random.key(0))
    assert action.shape == (1,) and np.abs(action) <= 2.0
    np.testing.assert_array_equal(action, act(np.array([0.5, 0.5, 1.0]), jax.random.key(1)))
    samples = [load_agent(run)(np.zeros((5, 3)), jax.random.key(i)) for i in (0, 1)]
    assert samples[0].shape == (5, 1) and np.abs(samples[0] - samples[1]).max() > 1e-3


@pytest.mark.parametrize(
    "change, words",
    [
        ({"total-timesteps": 100}, "--total-timesteps 100 must be a multiple of --num-envs times --num-steps = 32"),
        ({"eval-frequency": 33}, "--eval-frequency 33 must be a multiple of --num-envs times --num-steps = 32"),
        ({"num-minibatches": 5}, "--num-minibatches 5 must divide the 32 rows of a rollout"),
        ({"num-steps": 0}, "--num-steps must be positive, not 0"),
        ({"gae-lambda": 1.5}, "--gae-lambda must not be above 1"),
        ({"clip-coef": -0.1}, "--clip-coef must be positive, not -0.1"),
    ],
)
def test_bad_arguments_are_one_line(change, words):
    import ppo_jax
    from common import UserError

    values = {name.replace("-", "_"): value for name, value in {**SMALL, **change}.items()}
    with pytest.raises(UserError) as error:
        ppo_jax.Args(**values)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)
