"""What the return does not show: the turning agent, the bandits with known densities, and the entropy meter."""

import csv
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logit

import diffsac_jax
import sac_jax
from benchmarks import bandit, plot, turning
from common import diffusion, evaluation
from common.distributions import tanh_log_det
from tests import scripts

TURNING = "benchmarks.turning:TurningAgent-v0"


# ------------------------------------------------------------------------------------------------------ turning agent


def test_turning_reward_by_hand():
    action = np.array([0.5, -0.5, 0.0, 1.0, -1.0, 0.25, 0.75])
    expected = [1.0, 1.0, 0.85, 0.0, 0.0, 0.85 + 0.15 * (1 - 0.75**2), 1 - (0.3125 / 0.75) ** 2]
    np.testing.assert_allclose(turning.reward(action), expected, rtol=1e-12)


def test_turning_agent_moves_by_45_degrees_and_is_truncated():
    env = gym.make(TURNING)
    starts, sides = set(), set()
    for seed in range(40):
        obs, _ = env.reset(seed=seed)
        starts.add(tuple(np.round(obs, 3)))
        after, *_ = env.step(np.zeros(1, np.float32))
        sides.add(float(np.sign(obs[0] * after[1] - obs[1] * after[0])))
    assert len(starts) == 8, "the heading at the reset is any multiple of 45 degrees"
    assert sides == {-1.0, 1.0}, "a = 0 turns to a random side"

    obs, _ = env.reset(seed=0)
    for t in range(100):
        action = np.array([0.3 if t % 3 else -0.9], np.float32)
        before = np.arctan2(obs[1], obs[0])
        obs, reward, terminated, truncated, _ = env.step(action)
        turned = (np.arctan2(obs[1], obs[0]) - before + np.pi) % (2 * np.pi) - np.pi
        np.testing.assert_allclose(np.degrees(turned), 45 * np.sign(action[0]), atol=1e-3)
        assert reward == pytest.approx(float(turning.reward(action)[0]))
        assert not terminated
        assert truncated == (t == 99)
    env.close()


def test_turning_report_by_hand():
    angle = np.radians([0, 0, 0, 0, 45, 45, 315])
    obs = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    action = np.array([[-0.5], [-0.3], [0.2], [0.6], [0.9], [0.26], [-0.1]])
    report = turning.TurningAgent.evaluation_report(obs, action)
    assert len(report) == 8
    assert report["heading_000"] == {"left": 0.5, "middle": 0.25, "right": 0.25}
    assert report["heading_045"] == {"left": 0.0, "middle": 0.0, "right": 1.0}
    assert report["heading_315"] == {"left": 0.0, "middle": 1.0, "right": 0.0}
    assert np.isnan(report["heading_180"]["left"])


@pytest.fixture(scope="module")
def turning_run(tmp_path_factory):
    settings = {"env-id": TURNING, "total-timesteps": 200, "num-seeds": 2, "num-denoising-steps": 3}
    settings |= {"autotune": False, "alpha": 0.05, "gamma": 0.9, "eval-episodes": 8}
    return scripts.train("diffwpo_jax.py", tmp_path_factory.mktemp("turning"), settings)


def test_a_run_logs_the_report_and_the_entropy_meter(turning_run):
    values = {(seed, tag): float(value) for step, seed, tag, value in scripts.scalars(turning_run) if step == "200"}
    for seed in "12":
        for heading in range(0, 360, 45):
            shares = [values[seed, f"eval/heading_{heading:03d}_{side}"] for side in ("left", "middle", "right")]
            assert sum(shares) == pytest.approx(1.0)
        assert values[seed, "diffusion/entropy_bound"] <= values[seed, "diffusion/entropy_estimate"] + 0.05
        assert np.isfinite(values[seed, "losses/kl_multiplier"])
        assert values[seed, "diffusion/kl"] >= 0.0
    assert values["1", "eval/heading_000_left"] != values["2", "eval/heading_000_left"]


def test_evaluate_prints_the_shares_per_heading(turning_run):
    done = scripts.run("diffwpo_jax.py", {"evaluate": turning_run, "eval-episodes": 8})
    lines = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("heading_")]
    assert [line[0] for line in lines] == [f"heading_{h:03d}" for h in range(0, 360, 45)] * 2
    assert all(line[1::2] == ["left", "middle", "right"] for line in lines)


def test_turning_results_and_their_table(turning_run, tmp_path):
    run, results = tmp_path / "run", tmp_path / "turning.csv"
    shutil.copytree(turning_run, run)
    versions = json.loads((run / "versions.json").read_text())
    (run / "versions.json").write_text(json.dumps(versions | {"git_commit": "c" * 40, "git_dirty": False}))
    command = [sys.executable, "-m", "benchmarks.turning", run, "--episodes", "16", "--results", results]
    for _ in range(2):  # the second measurement replaces the first
        done = subprocess.run(command, cwd=scripts.ROOT, env=scripts.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    with results.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["heading"]) for row in rows] == [(s, str(h)) for s in "12" for h in range(0, 360, 45)]
    assert all(
        sum(float(row[side]) for side in ("left", "middle", "right")) == pytest.approx(1, abs=2e-4) for row in rows
    )
    line = plot.turning_table(results).splitlines()[2]
    assert line.startswith("| DiffWPO | `--log-frequency 100 ") and "| ccccccc |" in line
    of_seed = [row for row in rows if row["seed"] == "1"]
    side = min(float(row[side]) for row in of_seed for side in ("left", "right"))
    assert f"| {side:.2f} | {max(float(row['middle']) for row in of_seed):.2f} |" in line
    (run / "summary.json").unlink()
    done = subprocess.run(command, cwd=scripts.ROOT, env=scripts.environment(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


# ------------------------------------------------------------------------------------------------------ entropy meter


def test_entropy_terms_are_exact_without_drift():
    """f = 0: every path gives log p(a^0) itself, so the bound and the estimate are the same sample of the entropy."""
    schedule = diffusion.NoiseSchedule(logit(jnp.full((4, 2), 0.3)), prior_std=0.7)
    terms = jax.jit(
        lambda key: diffusion.entropy_terms(key, lambda a, k: jnp.zeros_like(a), schedule, (20_000,), tanh_log_det)
    )(jax.random.key(0))
    bound, estimate = terms["diffusion/entropy_bound"], terms["diffusion/entropy_estimate"]
    np.testing.assert_allclose(bound, estimate, atol=1e-4)
    x = np.linspace(-6, 6, 100_001) * 0.7
    log_p = -0.5 * (x / 0.7) ** 2 - 0.5 * np.log(2 * np.pi * 0.7**2)
    log_q = log_p - np.asarray(tanh_log_det(x[:, None]))
    entropy = -2 * np.sum(np.exp(log_p) * log_q) * (x[1] - x[0])
    assert float(bound.mean()) == pytest.approx(entropy, abs=0.02)


def test_entropy_estimate_rises_to_the_entropy():
    """A linear drift makes a^0 Gaussian with known variance: bound < estimate(4) < estimate(64) < entropy."""
    beta, slope = np.linspace(0.1, 0.7, 5), 0.8
    schedule = diffusion.NoiseSchedule(logit(beta)[:, None], 1.3, "noise")
    variance = 1.3**2
    for b in beta[::-1]:
        variance = (np.sqrt(1 - b) - slope * np.sqrt(b) * 1.3) ** 2 * variance + b * 1.3**2
    entropy = 0.5 * np.log(2 * np.pi * np.e * variance)

    @jax.jit
    def terms(key):
        keys = jax.random.split(key)

        def sample(key, num_noised):
            no_squash = lambda a: jnp.zeros(a.shape[:-1])  # noqa: E731
            drift = lambda a, k: -slope * a  # noqa: E731
            return diffusion.entropy_terms(key, drift, schedule, (20_000,), no_squash, num_noised)

        return sample(keys[0], 4), sample(keys[1], 64)

    few, many = jax.tree.map(lambda x: float(x.mean()), terms(jax.random.key(0)))
    bound = few["diffusion/entropy_bound"]
    assert bound < few["diffusion/entropy_estimate"] - 0.02 < many["diffusion/entropy_estimate"] - 0.04
    assert many["diffusion/entropy_estimate"] < entropy + 0.01
    assert entropy - many["diffusion/entropy_estimate"] < 0.25 * (entropy - bound)


def test_sac_logs_its_entropy_and_evaluation_is_unchanged_by_the_meter():
    args = sac_jax.Args(env_id=TURNING, hidden_dim=8, eval_episodes=3)
    functions = args, sac_jax.sample_action, sac_jax.deterministic_action
    evaluator, without = evaluation.Evaluator(*functions, sac_jax.entropy), evaluation.Evaluator(*functions)
    agents = jax.jit(jax.vmap(lambda key: sac_jax.init_agent(args, evaluator.env, key)))(jax.random.key(0)[None])
    results, plain = evaluator(agents, 0), without(agents, 0)
    np.testing.assert_array_equal(results["stochastic"]["return"], plain["stochastic"]["return"])
    assert "eval/entropy" not in plain["stochastic"]["metrics"]
    entropy = results["stochastic"]["metrics"]["eval/entropy"]
    assert entropy.shape == (1,)
    assert -5.0 < entropy[0] < np.log(2.0), "no density on [-1, 1] has a larger entropy than the uniform one"
    assert results["deterministic"]["metrics"] == {}


# ------------------------------------------------------------------------------------------------------------ bandits


def bandit_named(name):
    return next(b for b in bandit.BANDITS if b.name == name)


def exact_samples(n=50_000):
    rng = np.random.default_rng(0)
    means = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.5], [0.0, -2.5]])
    return means[rng.integers(4, size=n)] + 0.4 * rng.standard_normal((n, 2))


def test_normalisers():
    """Mixtures are normalised over x = 4u: over u the integral is 4^-A. The Gaussian ridge: 2 pi 0.2 / 4^2."""
    assert bandit.log_normaliser(bandit_named("two")) == pytest.approx(-np.log(4), abs=1e-3)
    assert bandit.log_normaliser(bandit_named("four")) == pytest.approx(-np.log(16), abs=1e-3)
    assert bandit.log_normaliser(bandit_named("ridge")) == pytest.approx(np.log(2 * np.pi * 0.2 / 16), abs=1e-3)


def test_measures_of_exact_and_of_collapsed_samples():
    four, x = bandit_named("four"), exact_samples()
    exact = bandit.measure(four, x, np.zeros(len(x)))
    assert exact["elbo_gap"] == exact["log_z_error"] == 0.0
    assert exact["ess"] == pytest.approx(1.0)
    assert exact["worst_region"] > 0.95
    assert exact["grid_kl"] < 0.03
    one_mode = x[x[:, 0] > 1.2]
    collapsed = bandit.measure(four, one_mode, np.full(len(one_mode), -np.log(4)))
    assert collapsed["worst_region"] == 0.0
    assert collapsed["grid_kl"] == pytest.approx(np.log(4), abs=0.1)
    assert collapsed["elbo_gap"] == pytest.approx(np.log(4))
    assert bandit.measure(four, x, np.log(1.0 + np.arange(len(x)) % 2))["ess"] == pytest.approx(0.9)


def test_exact_critic_is_exact_at_level_0_and_learned_above():
    args = bandit.make_args("diffsac", 2, 4)
    env = SimpleNamespace(observation_size=1, action_size=2)
    agent = diffsac_jax.init_agent(args, env, jax.random.key(0))
    bandits = tuple(b for b in bandit.BANDITS if b.size == 2)
    critic = bandit.ExactCritic(agent.critic, bandits, tuple(bandit.log_normaliser(b) for b in bandits))
    obs, action = jnp.array([[0.0], [2.0]]), jnp.array([[0.5, 0.0], [0.1, 0.1]])
    q = critic.apply(agent.critic_params, obs, action)
    np.testing.assert_allclose(q[0], q[1])
    np.testing.assert_allclose(q[0, 0], np.log(0.25 / (2 * np.pi * 0.16)) + np.log(16), rtol=1e-3)
    np.testing.assert_allclose(q[0, 1], -0.5 * 0.32 - np.log(2 * np.pi * 0.2 / 16), rtol=1e-3)
    mixed = critic.apply(agent.critic_params, obs, action, jnp.array([0, 1]))
    learned = agent.critic.apply(agent.critic_params, obs, action, jnp.array([0, 1]))
    np.testing.assert_allclose(mixed[:, 0], q[:, 0])
    np.testing.assert_allclose(mixed[:, 1], learned[:, 1], rtol=1e-6)


def test_bandit_benchmark_end_to_end(tmp_path):
    settings = ["--algorithms", "sac", "diffwpo", "--steps", "1", "--updates", "5", "--samples", "500"]
    settings += ["--hidden-dim", "8", "--results", str(tmp_path / "bandit.csv"), "--figure", str(tmp_path / "b.png")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bandit", *settings],
        cwd=scripts.ROOT,
        env=scripts.environment(),
        capture_output=True,
        text=True,
        timeout=scripts.TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "bandit.csv").open() as file:
        rows = list(csv.DictReader(file))
    algorithms = ("sac", ""), ("diffwpo", "1")
    names = [(name, *algorithm) for name in ("two", "four", "ring", "ridge") for algorithm in algorithms]
    assert [(row["bandit"], row["algorithm"], row["K"]) for row in rows] == names
    assert all(np.isfinite(float(row[column])) for row in rows for column in plot.BANDIT_COLUMNS)
    assert (tmp_path / "b.png").stat().st_size > 5000
    assert done.stdout.count("| four |") == 2
