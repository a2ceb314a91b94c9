"""The examples of docs/environments.md, as they stand there."""

import re
import sys

import jax
import numpy as np
import pytest

from envs import make_env
from tests.running import ROOT

PAGE = (ROOT / "docs" / "environments.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```\n", PAGE, re.DOTALL))


@pytest.mark.parametrize("module, name", [("my_point", "Point-v0"), ("my_jax_point", "Point")])
def test_examples_run(module, name, tmp_path, monkeypatch):
    """Pushed to the origin, both give the rewards that the geometry says, and are cut after 50 steps."""
    (tmp_path / f"{module}.py").write_text(EXAMPLES[module])
    monkeypatch.syspath_prepend(tmp_path)
    env = make_env(f"{module}:{name}", 2)
    assert (env.observation_size, env.action_size, env.on_device) == (2, 2, name == "Point")
    assert f"python sac_jax.py --env-id {module}:{name}" in PAGE

    @jax.jit
    def rollout(key):
        def step(env_state, _):
            action = (-env_state.obs).clip(-1.0, 1.0)
            return env.step(env_state, action)

        env_state = env.reset(key)
        return env_state.obs, jax.lax.scan(step, env_state, None, length=60)[1]

    first, time_step = jax.tree.map(np.asarray, rollout(jax.random.key(0)))
    distance = np.linalg.norm(first, axis=-1) * 0.9 ** np.arange(1, 51)[:, None]
    np.testing.assert_allclose(time_step.reward[:50], -distance, rtol=1e-4)
    assert [*np.argwhere(time_step.truncated)] == [] or np.all(np.argwhere(time_step.truncated)[:, 0] == 49)
    assert time_step.truncated[49].all() and not time_step.terminated.any()
    env.close()
    sys.modules.pop(module)
