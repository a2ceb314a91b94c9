"""The scripts as commands: whole runs in which no key is used twice, and what is in their folders afterwards."""

import jax
import numpy as np
import pytest

from harness import RunFolder
from harness.evaluation import POLICIES
from tests.running import SCRIPTS, agents, known, module_of, scalars, small, train

pytestmark = pytest.mark.usefixtures("quick_compilation")

OFF_POLICY = [script for script in SCRIPTS if known(script, {"learning-starts": 0})]
DIFFUSION = [script for script in SCRIPTS if known(script, {"num-denoising-steps": 0})]
K = 2


def settings_of(script, **more):
    """200 steps of two agents side by side, with every loss that the script has."""
    settings = {"total-timesteps": 200, "eval-frequency": 100, "num-denoising-steps": K, "num-seeds": 1, "seed": 3}
    if script == "diffppo_jax.py":
        settings["alpha"] = 0.01
    return known(script, {**small(script), **settings, **more})


@pytest.fixture(scope="module", params=SCRIPTS)
def trained(request, quick_compilation, tmp_path_factory):
    """(script, folder of its run); a key that is used twice is an error here."""
    with jax.debug_key_reuse(True):
        folder = train(request.param, tmp_path_factory.mktemp("runs"), settings_of(request.param))
    return request.param, folder


def test_identity_12_no_key_is_used_twice(trained):
    """Over start, warm-up, updates and evaluations of a whole run."""
    _, folder = trained
    summary = RunFolder(folder).summary()
    assert RunFolder(folder).status() == "finished"
    assert summary["step"] == 200 and summary["evaluations"] == 2 and summary["updates"] > 0


def test_identity_12_the_check_sees_a_key_used_twice():
    """Also inside a scan under vmap, which is where the scripts use theirs."""

    def step(key, _):
        return jax.random.split(key)[0], jax.random.normal(key)

    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.jit(jax.vmap(lambda key: jax.lax.scan(step, key, None, length=3)[1]))(jax.random.split(jax.random.key(0)))


def tags_of(script):
    """What a script logs, at the least."""
    tags = {"charts/episodic_return", "charts/episodic_length", "charts/SPS", "losses/entropy"}
    tags |= {f"eval/episodic_{what}_{policy}" for what in ("return", "length") for policy in POLICIES}
    if script in OFF_POLICY:
        tags |= {"losses/qf_loss", "losses/actor_loss", "losses/alpha"}
    else:
        losses = ("policy_loss", "value_loss", "old_approx_kl", "approx_kl", "clipfrac", "explained_variance")
        tags |= {f"losses/{name}" for name in (*losses, "first_ratio_error")} | {"charts/learning_rate"}
    if script in DIFFUSION:
        tags |= {"diffusion/beta_min", "diffusion/beta_max", "diffusion/entropy_bound", "diffusion/entropy_estimate"}
    else:
        tags.add("eval/entropy")
    return tags


def test_run_folder_says_all_about_the_run(trained):
    script, folder = trained
    run = RunFolder(folder)
    args = run.arguments(module_of(script).Args)
    assert run.stored_args()["script"] == script.removesuffix(".py") == args.exp_name
    assert run.script() is module_of(script) and (args.total_timesteps, args.seed) == (200, 3)
    (versions,) = run.versions()
    assert {"git_commit", "git_dirty", "python", "jax", "flax", "gymnasium", "mujoco", "threads"} <= set(versions)
    platform, model = versions["device"].split(" ", 1)
    assert platform == jax.devices()[0].platform and model != platform
    assert all(list(folder.glob(f"seed_{seed}/events.*")) for seed in (3, 4))
    rows, summary = run.scalars(), run.summary()
    for seed in (3, 4):
        last = {tag: value for _, _, s, tag, value in rows if s == seed}
        assert tags_of(script) <= set(last)
        if script not in DIFFUSION:
            assert not [tag for tag in last if tag.startswith("diffusion/")]
        for policy in POLICIES:
            returns = [v for _, _, s, tag, v in rows if (s, tag) == (seed, f"eval/episodic_return_{policy}")]
            assert summary["episodic_return"][str(seed)][f"{policy}_last"] == returns[-1]
            assert summary["episodic_return"][str(seed)][f"{policy}_mean_of_last_10"] == pytest.approx(np.mean(returns))
    assert all(np.isfinite(value) for *_, value in rows)
    assert summary["parameters"] > 0 and summary["steps_per_second"] > 0 and summary["peak_memory_bytes"] > 1e6


def test_number_of_updates(trained):
    """After the warm-up two environment steps at a time with an update each; or epochs times minibatches a rollout."""
    script, folder = trained
    assert RunFolder(folder).summary()["updates"] == (100 if script in OFF_POLICY else 2 * 2 * 2)


def values(folder, tag, seed):
    return [(step, value) for step, s, t, value in scalars(folder) if (s, t) == (seed, tag)]


def test_first_minibatch_and_learning_rate(trained):
    """The first minibatch of a rollout has the policy that acted; the rate falls linearly."""
    script, folder = trained
    for seed in (3, 4):
        errors, rates = (values(folder, tag, seed) for tag in ("losses/first_ratio_error", "charts/learning_rate"))
        if script in OFF_POLICY:
            assert errors == rates == []
        else:
            assert [step for step, _ in errors] == [100, 200] and max(error for _, error in errors) < 1e-4
            assert rates == [(100, pytest.approx(3e-4, rel=1e-5)), (200, pytest.approx(1.5e-4, rel=1e-5))]


def test_another_seed_gives_other_scalars(trained):
    """Of the two agents side by side."""
    script, folder = trained
    for tag in tags_of(script):
        if tag in ("losses/qf_loss", "losses/actor_loss", "losses/policy_loss", "losses/value_loss", "losses/entropy"):
            a, b = values(folder, tag, 3), values(folder, tag, 4)
            assert len(a) == len(b) > 0 and not {x for _, x in a} & {x for _, x in b}, tag


# Of the others tests/harness/test_resume.py compares a whole run with one in pieces.
SAME = [pytest.param(s, marks=() if s in ("diffsac_jax.py", "ppo_jax.py") else pytest.mark.slow) for s in SCRIPTS]


@pytest.mark.parametrize("trained", SAME, indirect=True)
def test_the_same_seed_gives_the_same_scalars(trained, tmp_path):
    """Also with evaluations at other times and of other length, which may not change training."""
    script, folder = trained
    again = train(script, tmp_path, settings_of(script, **{"eval-frequency": 200, "eval-episodes": 1}))

    def training(folder):
        return [row for row in scalars(folder) if not row[2].startswith(("eval/", "diffusion/entropy"))]

    assert training(again) == training(folder) and len(training(folder)) > 20
    jax.tree.map(np.testing.assert_array_equal, *(jax.tree.leaves(agents(x)) for x in (again, folder)))
