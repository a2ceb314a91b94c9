"""The scripts as commands: whole runs in which no key is used twice, and what is in their folders afterwards."""

import os
import re

import jax
import numpy as np
import pytest

from harness import RunFolder
from harness.evaluation import POLICIES
from tests.running import SCRIPTS, known, module_of, run, scalars, small, train

OFF_POLICY = [script for script in SCRIPTS if known(script, {"learning-starts": 0})]
DIFFUSION = [script for script in SCRIPTS if known(script, {"num-denoising-steps": 0})]


def settings_of(script, **more):
    """200 steps in episodes of 50, with every loss that the script has."""
    settings = {"total-timesteps": 200, "eval-frequency": 100, "num-denoising-steps": 2}
    settings["env-kwargs"] = '{"max_episode_steps": 50}'
    if script == "diffppo_jax.py":
        settings["alpha"] = 0.01
    return known(script, {**small(script), **settings, **more})


# XLA's own emitters, where tests/conftest.py has chosen others.
OWN_CHOICES = {"XLA_FLAGS": ""} if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", "") else {}

# Their training and main are those of SAC and DiffSAC, byte for byte (test_diff.py).
SLOW = ("diffwpo_jax.py", "crossq_jax.py", "diffcrossq_jax.py")


@pytest.fixture(scope="module", params=[pytest.param(s, marks=[pytest.mark.slow] * (s in SLOW)) for s in SCRIPTS])
def trained(request, tmp_path_factory):
    """(script, folder of its run, what JAX compiled); a key that is used twice is an error here.

    Of one agent: JAX's check takes a scan over the keys of several for a second use.
    """
    said = []
    folder = train(
        request.param,
        tmp_path_factory.mktemp("runs"),
        settings_of(request.param),
        how=lambda *words, **more: said.append(run(*words, **more).stderr),
        **{"JAX_DEBUG_KEY_REUSE": "1", "JAX_LOG_COMPILES": "1", **OWN_CHOICES},
    )
    return request.param, folder, re.findall(r"Compiling (?:jit\()?(\w+)", said[0])


def test_each_jitted_function_compiles_once(trained):
    """Over a whole run: the chunk once, the evaluation's rollout once for both policies."""
    *_, compiled = trained
    counts = {name: compiled.count(name) for name in ("train_chunk", "_start", "_rollout")}
    assert counts == {"train_chunk": 1, "_start": 1, "_rollout": 1}


def test_identity_14_no_key_is_used_twice(trained):
    """Over start, warm-up, updates and evaluations of a whole run."""
    _, folder, _ = trained
    summary = RunFolder(folder).summary()
    assert RunFolder(folder).status() == "finished"
    assert summary["step"] == 200 and summary["evaluations"] == 2 and summary["updates"] > 0


def test_identity_14_the_check_sees_a_key_used_twice():
    """Also inside a scan, which is where the scripts use theirs."""

    def step(key, _):
        return jax.random.split(key)[0], jax.random.normal(key)

    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.jit(lambda key: jax.lax.scan(step, key, None, length=3)[1])(jax.random.key(0))


def tags_of(script):
    """What a script logs, at the least."""
    tags = {"charts/episodic_return", "charts/episodic_length", "charts/SPS", "eval/entropy"}
    tags |= {f"eval/episodic_{what}_{policy}" for what in ("return", "length") for policy in POLICIES}
    if script in OFF_POLICY:
        tags |= {"losses/qf_loss", "losses/actor_loss", "losses/alpha"}
    else:
        losses = ("policy_loss", "value_loss", "old_approx_kl", "approx_kl", "clipfrac", "explained_variance")
        tags |= {f"losses/{name}" for name in (*losses, "first_ratio_error")} | {"charts/learning_rate"}
    if script != "diffppo_jax.py":
        tags.add("losses/entropy")
    if script in DIFFUSION:
        tags |= {"losses/entropy_bound"} | {f"eval/entropy_{what}" for what in ("bound", "low", "high")}
        tags |= {"diffusion/beta_min", "diffusion/beta_max", "diffusion/rho_1", "diffusion/rho_2"}
    return tags


def test_run_folder_says_all_about_the_run(trained):
    script, folder, _ = trained
    stored = RunFolder(folder)
    args = stored.arguments(module_of(script).Args)
    assert stored.stored_args()["script"] == script.removesuffix(".py") == args.exp_name
    assert stored.script() is module_of(script) and args.total_timesteps == 200
    (versions,) = stored.versions()
    assert {"git_commit", "git_dirty", "python", "jax", "flax", "gymnasium", "mujoco", "threads"} <= set(versions)
    platform, model = versions["device"].split(" ", 1)
    assert platform == jax.devices()[0].platform and model != platform
    assert list(folder.glob("events.*"))
    rows, summary = stored.scalars(), stored.summary()
    tags = {tag for *_, tag, _ in rows}
    assert tags_of(script) <= tags
    assert any(tag.startswith(("diffusion/", "eval/entropy_")) for tag in tags) == (script in DIFFUSION)
    assert all(np.isfinite(value) for *_, value in rows)
    for policy in POLICIES:
        returns = [value for _, value in values(folder, f"eval/episodic_return_{policy}")]
        assert summary["episodic_return"]["1"][f"{policy}_last"] == returns[-1]
        assert summary["episodic_return"]["1"][f"{policy}_score"] == pytest.approx(np.mean(returns))
    assert summary["parameters"] > 0 and summary["steps_per_second"] > 0 and summary["peak_memory_bytes"] > 1e6


def test_number_of_updates(trained):
    """After the warm-up an update for each step; or epochs times minibatches a rollout."""
    script, folder, _ = trained
    assert RunFolder(folder).summary()["updates"] == (100 if script in OFF_POLICY else 2 * 2 * 2)


def values(folder, tag):
    return [(step, value) for step, _, t, value in scalars(folder) if t == tag]


def test_first_minibatch_and_learning_rate(trained):
    """On the first minibatch of a rollout the ratio is 1, old and new densities being of one agent; the rate falls."""
    script, folder, _ = trained
    errors, rates = (values(folder, tag) for tag in ("losses/first_ratio_error", "charts/learning_rate"))
    if script in OFF_POLICY:
        assert errors == rates == []
    else:
        assert [step for step, _ in errors] == [100, 200] and max(error for _, error in errors) < 1e-4
        assert rates == [(100, pytest.approx(3e-4, rel=1e-5)), (200, pytest.approx(1.5e-4, rel=1e-5))]


@pytest.mark.slow  # tests/harness/test_resume.py compares runs too
def test_the_same_seed_gives_the_same_scalars(trained, tmp_path):
    """Also with evaluations at other times, which may not change training; the last one sees the last parameters."""
    script, folder, _ = trained
    again = train(script, tmp_path, settings_of(script, **{"eval-frequency": 200}), how=run, **OWN_CHOICES)
    expected = [row for row in scalars(folder) if row[0] == 200 or not row[2].startswith("eval/")]
    assert scalars(again) == expected and 18 < len(expected) < len(scalars(folder))
    assert tags_of(script) - {"charts/SPS"} <= {tag for *_, tag, _ in expected}  # which no two runs have alike


@pytest.mark.slow  # every script makes its keys from the seed in the same lines of harness/run.py
def test_another_seed_gives_other_scalars(trained, tmp_path):
    script, folder, _ = trained
    other = train(script, tmp_path, settings_of(script, seed=2), how=run, **OWN_CHOICES)
    for name in ("qf_loss", "actor_loss", "policy_loss", "value_loss", "entropy", "entropy_bound"):
        tag = f"losses/{name}"
        numbers = [[value for _, value in values(x, tag)] for x in (folder, other)]
        assert len(numbers[0]) == len(numbers[1]) and not set(numbers[0]) & set(numbers[1]), tag
