"""The environment layer against Gymnasium environments stepped by hand."""

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from envs import UserError, make_env
from envs.gymnasium_make import as_vectors, make_gymnasium
from tests.envs.stepping import in_a_scan


class Grid(gym.Env):
    """Observations `[2, 3]` that count the steps; ends when the action is above 0.9; raises on request."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2, 3))
    action_space = gym.spaces.Box(np.float32([-1.0, 2.0]), np.float32([1.0, 6.0]))

    def __init__(self, raise_at=None):
        self.raise_at = raise_at

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros((2, 3), np.float32), {}

    def step(self, action):
        self.count += 1
        if self.count == self.raise_at:
            raise ValueError("a joint is out of range")
        self.last_action = np.array(action)
        return np.full((2, 3), self.count, np.float32), float(action[1]), bool(action[0] > 0.9), False, {}


gym.register("Grid-v0", entry_point=Grid, max_episode_steps=50)


def by_hand(env_id, seeds, actions, **kwargs):
    """Steps one Gymnasium environment per seed with `actions` `[T, N, A]` in [-1, 1]; resets where an episode ends.

    Returns arrays `[T, N, ..]` by name and the episodes (t, n, return, length) as RecordEpisodeStatistics counts them.
    """
    names = ("obs", "final_obs", "reward", "terminated", "truncated")
    rows, episodes, first = {name: np.zeros(actions.shape[:2], object) for name in names}, [], []
    for n, seed in enumerate(seeds):
        env = gym.wrappers.RecordEpisodeStatistics(gym.make(env_id, **kwargs))
        low, high = env.action_space.low, env.action_space.high
        first.append(env.reset(seed=int(seed))[0])
        for t, action in enumerate(actions[:, n]):
            obs, reward, terminated, truncated, info = env.step(low + (action + 1.0) / 2.0 * (high - low))
            rows["final_obs"][t, n] = obs
            if terminated or truncated:
                episodes.append((t, n, info["episode"]["r"], info["episode"]["l"]))
                obs, _ = env.reset()
            rows["obs"][t, n] = obs
            rows["reward"][t, n], rows["terminated"][t, n], rows["truncated"][t, n] = reward, terminated, truncated
    return {k: np.array(v.tolist(), np.float32) for k, v in rows.items()}, episodes, np.array(first, np.float32)


@pytest.mark.parametrize(
    "env_id, limit, ends",
    [
        ("Hopper-v4", 20, {"terminated", "truncated"}),  # falls within a few steps, or is cut
        ("Pendulum-v1", 7, {"truncated"}),  # actions in [-2, 2]
        ("HalfCheetah-v5", 5, {"truncated"}),
    ],
)
def test_equals_gymnasium_stepped_by_hand(env_id, limit, ends):
    env = make_env(env_id, 3, env_kwargs=f'{{"max_episode_steps": {limit}}}')
    key = jax.random.key(7)
    # Multiples of 1/256: scaling them to the bounds is exact, so that the comparison can be.
    actions = np.float32(np.random.default_rng(0).integers(-256, 257, (100, 3, env.action_size)) / 256)
    first, time_step = in_a_scan(env, key, actions)
    seeds = jax.random.bits(key, (3,), jnp.uint32) & 0x7FFFFFFF
    expected, episodes, expected_first = by_hand(env_id, seeds, actions, max_episode_steps=limit)

    np.testing.assert_array_equal(first, expected_first)
    for name in ("obs", "final_obs", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(time_step, name), expected[name], err_msg=name)
    np.testing.assert_allclose(time_step.reward, expected["reward"], rtol=1e-6)
    for name in ("terminated", "truncated"):
        assert getattr(time_step, name).any() == (name in ends)
    # Where an episode ended, the next observation is the reset's and the final one is not.
    done = time_step.terminated | time_step.truncated
    np.testing.assert_array_equal(time_step.episode.done, done)
    assert time_step.episode.finite.all()
    assert np.all(np.any(time_step.obs != time_step.final_obs, axis=-1) == done)

    assert [(t, n) for t, n, _, _ in sorted(episodes)] == [tuple(x) for x in np.argwhere(done)]
    for t, n, episode_return, length in episodes:
        np.testing.assert_allclose(
            time_step.episode.return_[t, n], episode_return, rtol=1e-5, atol=1e-6
        )  # of sums that may cancel
        assert time_step.episode.length[t, n] == length
    env.close()


def test_agents_side_by_side_are_one_call_and_equal_single_ones():
    keys = jax.random.split(jax.random.key(1), 2)
    actions = np.random.default_rng(1).uniform(-1, 1, (15, 2, 3, 1)).astype(np.float32)
    both = make_env("Pendulum-v1", 3, 2, '{"max_episode_steps": 6}')
    calls = []
    step = both.envs.step
    both.envs.step = lambda action: calls.append(action.shape) or step(action)

    @jax.jit
    def rollout(keys, actions):
        env_state = jax.vmap(both.reset)(keys)
        return env_state.obs, jax.lax.scan(jax.vmap(both.step), env_state, actions)[1]

    obs, time_step = jax.tree.map(np.asarray, rollout(keys, actions))
    assert calls == [(6, 1)] * 15
    for s in range(2):
        single = make_env("Pendulum-v1", 3, 1, '{"max_episode_steps": 6}')
        single_obs, single_step = in_a_scan(single, keys[s], actions[:, s])
        np.testing.assert_array_equal(obs[s], single_obs)
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:, s], y), time_step, single_step)


def test_flattens_observations_and_rescales_each_action_dimension():
    env = make_env("Grid-v0", 1)
    assert (env.observation_size, env.action_size) == (6, 2)
    np.testing.assert_array_equal(env.action_low, [-1.0, 2.0])
    np.testing.assert_array_equal(env.action_high, [1.0, 6.0])
    actions = np.float32([[[0.5, -1.0]], [[-0.5, 0.5]], [[1.0, 1.0]]])
    _, time_step = in_a_scan(env, jax.random.key(0), actions)
    np.testing.assert_allclose(env.envs.envs[0].unwrapped.last_action, [1.0, 6.0])
    np.testing.assert_allclose(time_step.reward[:, 0], [2.0, 5.0, 6.0])
    np.testing.assert_array_equal(time_step.final_obs[:, 0], np.repeat([[1.0], [2.0], [3.0]], 6, axis=1))
    np.testing.assert_array_equal(time_step.obs[2, 0], np.zeros(6))
    np.testing.assert_array_equal(time_step.terminated[:, 0], [False, False, True])


class Rude(gym.Env):
    """Does what Gymnasium allows: writes to its action and to the observation it returned, infos of any length."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, low=-1.0, high=1.0):
        self.action_space = gym.spaces.Box(np.float32([low]), np.float32([high]))
        self.obs = np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs[0] = 0.0
        return self.obs, {"visited": np.zeros(1)}

    def step(self, action):
        assert self.action_space.contains(action), action
        action += 1.0
        self.obs[0] += 1.0
        return self.obs, float(action[0]), False, bool(self.obs[0] == 3.0), {"visited": np.zeros(int(self.obs[0]))}


gym.register("Rude-v0", Rude)


def test_an_environment_may_write_to_its_arrays_and_have_any_info():
    env = make_env("Rude-v0", 2)
    _, time_step = in_a_scan(env, jax.random.key(0), np.full((4, 2, 1), 0.5, np.float32))
    assert env.error is None
    np.testing.assert_array_equal(time_step.final_obs[:, 0, 0], [1.0, 2.0, 3.0, 1.0])
    np.testing.assert_array_equal(time_step.obs[:, 0, 0], [1.0, 2.0, 0.0, 1.0])
    np.testing.assert_array_equal(time_step.reward[:, 0], np.full(4, 1.5))


def test_rescaled_actions_stay_within_the_bounds():
    bounds = np.sort(np.random.default_rng(0).uniform(-3.0, 3.0, (300, 2)).astype(np.float32), axis=1)
    beyond = 0
    for low, high in bounds:
        env = as_vectors(make_gymnasium("Rude-v0", f'{{"low": {low}, "high": {high}}}'))
        env.reset()
        for action in (-1.0, 1.0):
            env.step(np.float32([action]))  # asserts that its action space contains it
            beyond += not env.env.env.action_space.contains(
                gym.wrappers.RescaleAction.action(env, np.float32([action]))
            )
    assert beyond > 10  # without the clipping some do not


def test_bounds_are_those_of_what_the_id_makes():
    """Also where its entry point or a wrapper of its own has other bounds than the innermost environment."""
    gym.register("Wide-v0", lambda: gym.wrappers.RescaleAction(Rude(), np.float32(-2.0), np.float32(2.0)))
    gym.register("Narrow-v0", lambda: gym.wrappers.RescaleAction(Rude(-5.0, 5.0), np.float32(-1.0), np.float32(1.0)))
    for env_id, bound in (("Wide-v0", 2.0), ("Narrow-v0", 1.0), ("Rude-v0", 1.0)):
        env = make_env(env_id, 1)
        np.testing.assert_array_equal([env.action_low, env.action_high], [[-bound], [bound]])


def test_module_prefix_imports_the_environment():
    env = make_env("tests.envs.test_gymnasium_env:Grid-v0", 1)
    assert env.observation_size == 6


@pytest.mark.parametrize(
    "content", ["def", "1 / 0", "undefined", "import no_such", "exit(3)", "raise OSError('a\\nb')"]
)
def test_a_module_that_cannot_be_imported_is_one_line(tmp_path, monkeypatch, content):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "half_written_env.py").write_text(content)
    message = r"^cannot import 'half_written_env' for environment 'half_written_env:Foo-v0' \(\w+: .*\)$"
    with pytest.raises(UserError, match=message) as error:
        make_env("half_written_env:Foo-v0", 1)
    assert "\n" not in str(error.value)


def test_a_name_that_a_module_has_not(tmp_path, monkeypatch):
    """Neither as a class in JAX nor registered with Gymnasium: what is near of both is named."""
    monkeypatch.syspath_prepend(tmp_path)
    text = "import gymnasium\nfrom types import SimpleNamespace as Xylophons\n\n\nclass Xylophon:\n    pass\n\n\n"
    (tmp_path / "bells.py").write_text(text + "class Xylophonnn(gymnasium.Env):\n    pass\n")
    with pytest.raises(UserError, match=r"^bells neither registers nor has 'Xylophonn'; did you mean Xylophon\?$"):
        make_env("bells:Xylophonn", 1)
    with pytest.raises(UserError, match=r"^tests.envs.test_gymnasium_env neither .* has 'Gird-v0'; .*Grid-v0"):
        make_env("tests.envs.test_gymnasium_env:Gird-v0", 1)


def test_an_exception_in_the_environment_is_kept_for_the_training_loop():
    env = make_env("Grid-v0", 2, env_kwargs='{"raise_at": 3}')
    _, time_step = in_a_scan(env, jax.random.key(0), np.zeros((5, 2, 2), np.float32))
    assert isinstance(env.error, ValueError) and "joint" in str(env.error)
    assert np.isfinite(time_step.reward[:2]).all() and np.isnan(time_step.reward[2]).all()
    np.testing.assert_array_equal(time_step.episode.finite[:3], [[True] * 2, [True] * 2, [False] * 2])


@pytest.mark.parametrize("kwargs", ["[1]", "{", '"x"'])
def test_environment_keyword_arguments_must_be_a_json_object(kwargs):
    with pytest.raises(UserError, match="JSON object"):
        make_env("Pendulum-v1", 1, env_kwargs=kwargs)


def test_unknown_keyword_arguments_are_one_line():
    with pytest.raises(UserError, match="colour") as error:
        make_env("Pendulum-v1", 1, env_kwargs='{"colour": 1}')
    assert "\n" not in str(error.value)


def test_non_finite_actions_do_not_reach_the_environment():
    env = make_env("Pendulum-v1", 2)
    _, time_step = env.step(env.reset(jax.random.key(0)), np.array([[np.nan], [np.inf]], np.float32))
    assert np.isfinite(time_step.obs).all() and np.isfinite(time_step.reward).all()


class Failing(PendulumEnv):
    """Fails at every step from the third on, each time for another reason."""

    count = 0

    def step(self, action):
        self.count += 1
        if self.count >= 3:
            raise ValueError(f"step {self.count}")
        return super().step(action)


gym.register("Failing-v0", Failing)


def test_the_first_exception_is_kept():
    """What follows it may be of its making."""
    env = make_env("Failing-v0", 1)
    in_a_scan(env, jax.random.key(0), np.zeros((5, 1, 1), np.float32))
    assert str(env.error) == "step 3"
