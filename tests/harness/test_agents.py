"""Acting with the agents of a run folder."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppo_jax
from common import normalization
from envs import UserError
from envs.gymnasium_env import GymnasiumEnv
from harness import RunFolder, load_agent
from harness import agents as harness_agents
from harness.checkpoint import complete
from tests.running import agents

OBS = np.array([[1.0, 0.0, 0.1], [0.0, 1.0, -2.0], [0.6, 0.8, 0.5]])
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def acts(trained):
    """What `load_agent` returns, by script, for (seed, deterministic)."""
    return {
        "tiny_jax": {
            (seed, deterministic): load_agent(trained["tiny_jax"], seed, deterministic)
            for seed, deterministic in ((None, False), (None, True), (3, False), (4, False), (4, True))
        },
        "ppo_jax": {
            (None, deterministic): load_agent(str(trained["ppo_jax"]), deterministic=deterministic)
            for deterministic in (False, True)
        },
    }


@pytest.mark.parametrize("script", ["tiny_jax", "ppo_jax"])
def test_units_and_shapes(acts, script):
    """Pendulum's own units, -2 to 2, for one observation and for a batch."""
    for act in acts[script].values():
        actions = act(OBS, KEY)
        assert actions.shape == (3, 1) and actions.dtype == np.float32
        assert np.all(np.abs(actions) <= 2.0) and np.abs(actions).max() > 0
        assert act(OBS[0], KEY).shape == (1,)
        assert act(OBS.tolist(), KEY).shape == (3, 1)


@pytest.mark.parametrize("script", ["tiny_jax", "ppo_jax"])
def test_the_stochastic_policy_follows_from_the_key(acts, script):
    sample, mean = acts[script][None, False], acts[script][None, True]
    np.testing.assert_array_equal(sample(OBS, KEY), sample(OBS, KEY))
    assert np.any(sample(OBS, KEY) != sample(OBS, jax.random.key(1)))
    np.testing.assert_array_equal(mean(OBS, KEY), mean(OBS, jax.random.key(1)))


def test_each_seed_is_its_own_agent(trained, acts):
    """By default the first one acts."""
    weights = np.asarray(agents(trained["tiny_jax"]).params["weights"])
    assert weights.shape == (2, 3, 1) and np.all(weights[0] != weights[1])
    mean = {seed: acts["tiny_jax"][seed, True](OBS, KEY) for seed in (None, 4)}
    np.testing.assert_allclose(mean[None], 2.0 * np.tanh(OBS @ weights[0]), rtol=1e-4)
    np.testing.assert_allclose(mean[4], 2.0 * np.tanh(OBS @ weights[1]), rtol=1e-4)
    sample = {seed: acts["tiny_jax"][seed, False](OBS, KEY) for seed in (None, 3, 4)}
    np.testing.assert_array_equal(sample[None], sample[3])
    assert np.any(sample[3] != sample[4])


def test_saved_statistics_normalise_the_observations(trained, acts):
    folder = trained["ppo_jax"]
    agent = jax.tree.map(lambda x: x[0], agents(folder))
    assert np.abs(agent.obs_stats.mean).min() > 0
    args, obs = RunFolder(folder).arguments(ppo_jax.Args), jnp.asarray(OBS, jnp.float32)
    fresh = agent.replace(obs_stats=normalization.init((3,)))
    action, expected, other = (
        acts["ppo_jax"][None, True](OBS, KEY) / 2.0,
        *(ppo_jax.deterministic_action(args, x, obs) for x in (agent, fresh)),
    )
    np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(action - other).max() > 1e-4


# ------------------------------------------------------------------------------------------------------ what is refused


def assert_refused(folder, words, **more):
    with pytest.raises(UserError, match=words) as error:
        load_agent(folder, **more)
    assert "\n" not in str(error.value)


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of tiny_jax's folder."""
    shutil.copytree(trained["tiny_jax"], tmp_path / "run")
    return tmp_path / "run"


def change_args(folder, **more):
    stored = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps({**stored, **more}))


def test_a_seed_that_was_stopped_does_not_act(trained, monkeypatch):
    monkeypatch.setattr(harness_agents, "finite", lambda agents: np.array([False, True]))
    with pytest.raises(UserError, match=r"seed 3 of .* was stopped: its parameters are not finite"):
        load_agent(trained["tiny_jax"])
    load_agent(trained["tiny_jax"], 4)


def test_its_environment_is_closed(trained, monkeypatch):
    closed = []
    monkeypatch.setattr(GymnasiumEnv, "close", lambda self: closed.append(self))
    load_agent(trained["tiny_jax"])
    assert len(closed) == 1


def test_a_seed_that_the_run_has_not(trained):
    for seed in (2, 5):
        assert_refused(trained["tiny_jax"], f"has the seeds 3 to 4, not {seed}", seed=seed)


def test_a_run_of_a_script_that_is_elsewhere(copy):
    change_args(copy, script="elsewhere")
    assert_refused(copy, r"needs its script: no script 'elsewhere' in the current folder or in PYTHONPATH$")


def test_no_run(tmp_path):
    assert_refused(tmp_path / "nowhere", "is not a run folder")


@pytest.mark.parametrize("item", ["agent", "rest"])
def test_a_damaged_checkpoint(copy, item):
    """Also where it is not the agents that are damaged: what else would have to be believed?"""
    files = [path for path in complete(copy / "checkpoints")[0].glob(f"{item}/**/*") if path.is_file()]
    for path in files:
        path.write_bytes(path.read_bytes() + b"x")
    assert_refused(copy, rf"no checkpoint in {copy / 'checkpoints'} is intact")


def test_no_checkpoint(copy):
    shutil.rmtree(copy / "checkpoints")
    assert_refused(copy, f"there is no checkpoint in {copy / 'checkpoints'}")


def test_agents_of_other_sizes(copy):
    change_args(copy, env_id="MountainCarContinuous-v0")
    assert_refused(copy, r"does not fit this script: agent\.params\.weights is .*\[2, 3, 1\] there, .*\[2, 2, 1\] here")


def test_an_environment_that_is_unknown_here(copy):
    change_args(copy, env_id="Qqqq-v9")
    assert_refused(copy, "unknown environment 'Qqqq-v9'")


def test_the_last_intact_checkpoint_acts(copy, acts):
    """Where the newest is damaged, the one before it. Who only reads deletes nothing."""
    newest = complete(copy / "checkpoints")[0]
    shutil.copytree(newest, newest.with_name("000000000001"))
    (newest / "seal.json").write_text("{}")
    expected = acts["tiny_jax"][None, True](OBS, KEY)
    np.testing.assert_array_equal(load_agent(copy, deterministic=True)(OBS, KEY), expected)
    assert newest.is_dir()
