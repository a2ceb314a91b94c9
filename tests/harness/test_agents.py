"""Acting with the agents of a run folder."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppo_jax
import sac_jax
from common import normalization
from envs import UserError
from harness import RunFolder, load_agent
from harness.checkpoint import complete
from tests.running import agents

pytestmark = pytest.mark.usefixtures("quick_compilation")

OBS = np.array([[1.0, 0.0, 0.1], [0.0, 1.0, -2.0], [0.6, 0.8, 3.0]])
KEY = jax.random.key(0)


def one(folder, index):
    """Agent number `index`."""
    return jax.tree.map(lambda x: x[index], agents(folder))


def test_units_and_shapes(trained):
    """Pendulum's own units, -2 to 2, for one observation and for a batch."""
    for folder in trained.values():
        act = load_agent(folder)
        actions = act(OBS, KEY)
        assert actions.shape == (3, 1) and actions.dtype == np.float32
        assert np.all(np.abs(actions) <= 2.0) and np.abs(actions).max() > 0
        assert act(OBS[0], KEY).shape == (1,)
        assert act(OBS.tolist(), KEY).shape == (3, 1)


def test_the_stochastic_policy_follows_from_the_key(trained):
    for folder in trained.values():
        act, mean = load_agent(str(folder)), load_agent(folder, deterministic=True)
        np.testing.assert_array_equal(act(OBS, KEY), act(OBS, KEY))
        assert np.all(act(OBS, KEY) != act(OBS, jax.random.key(1)))
        np.testing.assert_array_equal(mean(OBS, KEY), mean(OBS, jax.random.key(1)))


def test_each_seed_is_its_own_agent(trained):
    """What acts is what the script's own functions make of the saved agent."""
    folder = trained["sac_jax"]
    args = RunFolder(folder).arguments(sac_jax.Args)
    for deterministic in (False, True):
        actions = []
        for index, seed in enumerate((3, 4)):
            agent, obs = one(folder, index), jnp.asarray(OBS, jnp.float32)
            if deterministic:
                expected = sac_jax.deterministic_action(args, agent, obs)
            else:
                expected, _ = sac_jax.sample_action(args, agent, KEY, obs)
            actions.append(load_agent(folder, seed=seed, deterministic=deterministic)(OBS, KEY))
            np.testing.assert_allclose(actions[-1], 2.0 * expected, rtol=1e-4, atol=1e-6)
        assert np.all(actions[0] != actions[1])
        np.testing.assert_array_equal(load_agent(folder, deterministic=deterministic)(OBS, KEY), actions[0])


def test_saved_statistics_normalise_the_observations(trained):
    folder = trained["ppo_jax"]
    agent = one(folder, 0)
    assert np.abs(agent.obs_stats.mean).min() > 0
    args = RunFolder(folder).arguments(ppo_jax.Args)
    fresh = agent.replace(obs_stats=normalization.init((3,)))
    acts, expected, other = (
        np.asarray(x) for x in (
            load_agent(folder, deterministic=True)(OBS, KEY) / 2.0,
            ppo_jax.deterministic_action(args, agent, jnp.asarray(OBS, jnp.float32)),
            ppo_jax.deterministic_action(args, fresh, jnp.asarray(OBS, jnp.float32)),
        )
    )  # fmt: skip
    np.testing.assert_allclose(acts, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(acts - other).max() > 1e-4


def test_what_is_no_run_with_such_an_agent_is_one_line(trained, tmp_path):
    def refused(folder, words, **more):
        with pytest.raises(UserError, match=words) as error:
            load_agent(folder, **more)
        assert "\n" not in str(error.value)

    whole = trained["sac_jax"]
    for seed in (2, 5, 0, -1):
        refused(whole, f"has the seeds 3 to 4, not {seed}", seed=seed)
    refused(tmp_path / "nowhere", "is not a run folder")
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    newest = complete(folder / "checkpoints")[0]
    for path in newest.glob("agent/**/*"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(b"\0" + path.read_bytes()[1:])
    refused(folder, rf"no checkpoint in {folder / 'checkpoints'} is intact")
    stored = json.loads((folder / "args.json").read_text())
    shutil.rmtree(newest)
    refused(folder, f"there is no checkpoint in {folder / 'checkpoints'}")
    shutil.copytree(complete(whole / "checkpoints")[0], newest)
    (folder / "args.json").write_text(json.dumps({**stored, "hidden_dim": 8}))
    refused(folder, r"does not fit this script: agent\.actor\..* is float32\[.*16.*\] there, float32\[.*8.*\] here")
    (folder / "args.json").write_text(json.dumps({**stored, "env_id": "Qqqq-v9"}))
    refused(folder, "unknown environment 'Qqqq-v9'")


def test_the_last_intact_checkpoint_acts(trained, tmp_path):
    """Where the newest is damaged, the one before it."""
    folder = tmp_path / "run"
    shutil.copytree(trained["ppo_jax"], folder)
    newest = complete(folder / "checkpoints")[0]
    before = newest.with_name("000000000001")
    shutil.copytree(newest, before)
    (newest / "seal.json").write_text("{}")
    expected = load_agent(trained["ppo_jax"])(OBS, KEY)
    np.testing.assert_array_equal(load_agent(folder)(OBS, KEY), expected)
    assert newest.is_dir()  # who only reads deletes nothing
