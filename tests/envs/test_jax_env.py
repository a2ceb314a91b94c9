"""Environments written in JAX against a loop by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import UserError, make_env
from envs.interface import new_episode, with_episode
from tests import jax_environments
from tests.envs.stepping import in_a_scan

WALK = "tests.jax_environments:Walk"


def by_hand(reset, step, key, actions, limit, repeat=1):
    """One copy, its compiled `reset` and `step`, with `actions` `[T, A]` in a Python loop.

    Returns rows by name `[T, ..]` and the first observation.

    The episodes' keys follow from `key` as the layer says: each is split into the reset's and the next episode's.
    """
    reset_key, key = jax.random.split(key)
    state, rows = reset(reset_key), []
    first, total, length = state.obs, 0.0, 0
    for action in actions:
        reward, terminated = 0.0, False
        for _ in range(repeat):
            state = step(state, action)
            reward, terminated = reward + np.float32(state.reward), bool(state.done)
            if terminated:
                break
        total, length = total + reward, length + 1
        row = {"final_obs": state.obs, "reward": reward, "terminated": terminated, "truncated": length == limit}
        row |= {"return_": total, "length": length}
        if terminated or length == limit:
            reset_key, key = jax.random.split(key)
            state, total, length = reset(reset_key), 0.0, 0
        rows.append({**row, "obs": state.obs})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}, np.asarray(first)


@pytest.mark.parametrize("num_envs", [1, 40])
@pytest.mark.parametrize("repeat", [1, 3])
def test_equals_a_loop_by_hand(num_envs, repeat):
    """Terminations, truncations, both at once, new episodes, final observations, statistics: element by element."""
    env = make_env(WALK, num_envs, env_kwargs=f'{{"action_repeat": {repeat}}}')
    limit = -(-20 // repeat)
    assert env.max_episode_steps == limit and env.observation_size == 2 and env.on_device
    key = jax.random.key(3)
    actions = np.random.default_rng(0).uniform(-1, 1, (90, num_envs, 1)).astype(np.float32)
    first, time_step = in_a_scan(env, key, actions)
    task = jax_environments.Walk()
    reset, step, keys = jax.jit(task.reset), jax.jit(task.step), jax.random.split(key, num_envs)
    for n in range(0, num_envs, 9):
        expected, expected_first = by_hand(reset, step, keys[n], actions[:, n], limit, repeat)
        np.testing.assert_array_equal(first[n], expected_first)
        for name in ("terminated", "truncated"):
            np.testing.assert_array_equal(getattr(time_step, name)[:, n], expected[name], err_msg=name)
        for name in ("obs", "final_obs", "reward"):
            np.testing.assert_allclose(getattr(time_step, name)[:, n], expected[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(time_step.episode.return_[:, n], expected["return_"], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(time_step.episode.length[:, n], expected["length"])
    done = time_step.terminated | time_step.truncated
    np.testing.assert_array_equal(time_step.episode.done, done)
    assert np.all(np.any(time_step.obs != time_step.final_obs, axis=-1) == done)
    assert time_step.terminated.any() and (num_envs == 1 or time_step.truncated.any())
    # No two episodes begin alike: none is a remembered start.
    starts = time_step.obs[done][:, 0]
    assert len(set(starts)) == len(starts) > 3


def test_agents_side_by_side_equal_single_ones():
    keys = jax.random.split(jax.random.key(1), 2)
    actions = np.random.default_rng(1).uniform(-1, 1, (60, 2, 3, 1)).astype(np.float32)
    both = make_env(WALK, 3, 2)

    @jax.jit
    def rollout(keys, actions):
        env_state = jax.vmap(both.reset)(keys)
        return env_state.obs, jax.lax.scan(jax.vmap(both.step), env_state, actions)[1]

    obs, time_step = jax.tree.map(np.asarray, rollout(keys, actions))
    for s in range(2):
        single_obs, single = in_a_scan(make_env(WALK, 3), keys[s], actions[:, s])
        np.testing.assert_array_equal(obs[s], single_obs)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), jax.tree.map(lambda x: x[:, s], time_step), single)


def test_agents_make_the_batch_of_an_environment_longer_and_not_deeper():
    """XLA on a CPU fails on some programs of MJX in a batch of batches."""
    env, sizes = make_env(WALK, 32, 5), []

    @jax.custom_batching.custom_vmap
    def seen(x):
        return x

    @seen.def_vmap
    def batch(size, in_batched, x):
        sizes.append(size)
        return seen(x), True

    class Watched(type(env.task.env)):
        def observe(self, place):
            return super().observe(seen(place))

    env.task.env.__class__ = Watched
    env_state = jax.eval_shape(jax.vmap(env.reset), jax.random.split(jax.random.key(0), 5))
    assert set(sizes) == {32, 5 * 32}  # of one agent, which is traced as well, and of all; nowhere 5
    jax.eval_shape(jax.vmap(env.step), env_state, np.zeros((5, 32, 1), np.float32))
    assert set(sizes) == {32, 5 * 32, 2, 5 * 2}  # new episodes begin in blocks of two


def test_agents_from_one_state_take_their_own_actions():
    env = make_env(WALK, 3, 2)
    start, step = jax.jit(env.reset)(jax.random.key(0)), jax.jit(env.step)
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 3, 1)).astype(np.float32)
    both = jax.jit(jax.vmap(env.step, in_axes=(None, 0)))(start, actions)
    for s in range(2):
        single = step(start, actions[s])
        np.testing.assert_allclose(both[1].final_obs[s], single[1].final_obs, rtol=1e-6)
        np.testing.assert_array_equal(jax.random.key_data(both[0].keys[s]), jax.random.key_data(single[0].keys))


def test_without_a_time_limit_no_episode_is_cut():
    env = make_env("tests.jax_environments:Endless", 2)
    _, time_step = in_a_scan(env, jax.random.key(0), np.zeros((50, 2, 1), np.float32))
    assert env.max_episode_steps is None and not time_step.episode.done.any() and time_step.episode.length[-1, 0] == 50
    env = make_env("tests.jax_environments:Endless", 2, env_kwargs='{"episode_length": 7}')
    _, time_step = in_a_scan(env, jax.random.key(0), np.zeros((50, 2, 1), np.float32))
    assert [*np.flatnonzero(time_step.truncated[:, 1]) + 1] == [7, 14, 21, 28, 35, 42, 49]


def test_dictionaries_give_their_state_and_agents_read_them():
    plain, dictionary = (make_env(WALK, 2, env_kwargs=f'{{"dictionary": {x}}}') for x in ("false", "true"))
    actions = np.random.default_rng(1).uniform(-1, 1, (30, 2, 1)).astype(np.float32)
    np.testing.assert_array_equal(*[in_a_scan(env, jax.random.key(0), actions)[1].obs for env in (plain, dictionary)])
    obs = jax.jit(jax_environments.Walk(dictionary=True).reset)(jax.random.key(0)).obs
    np.testing.assert_array_equal(dictionary.flatten(obs), obs["state"])
    np.testing.assert_array_equal(dictionary.to_env_units(np.float32([-1.0, 0.25])), [-1.0, 0.25])
    with pytest.raises(UserError, match="'state', not \\['place'\\]"):
        dictionary.flatten({"place": np.zeros(2)})


def test_numbers_that_are_not_finite():
    """An agent's NaN does not become the environment's; the environment's is reported at its step and copy."""
    _, time_step = in_a_scan(make_env(WALK, 2), jax.random.key(0), np.full((30, 2, 1), np.nan, np.float32))
    assert time_step.episode.finite.all() and np.isfinite(time_step.reward).all()
    actions = np.zeros((5, 2, 1), np.float32)
    actions[0, 1] = 0.6
    _, time_step = in_a_scan(make_env(WALK, 2, env_kwargs='{"nan_at": 3}'), jax.random.key(0), actions)
    assert [*np.argwhere(~time_step.episode.finite)[0]] == [2, 1]


@pytest.mark.parametrize(
    "env_id, kwargs, message",
    [
        ("Images", "{}", "image observations"),
        ("Untold", "{}", "has the observations position; of a dictionary 'state' is taken"),
        ("Grows", "{}", "another structure"),
        ("Fails", "{}", "ValueError: a joint is out of range"),
        ("NoReset", "{}", "has no reset, step"),
        ("Walk", '{"speed": 1}', "unexpected keyword argument 'speed'"),
        ("Walk", '{"episode_length": 0}', "episode_length must be a positive whole number, not 0"),
        ("Walk", '{"action_repeat": null}', "action_repeat must be a positive whole number, not None"),
        ("Walk", '{"action_repeat": 1.5}', "action_repeat must be a positive whole number"),
        ("Idle", "{}", "action_size must be a positive whole number, not 0"),
        ("jax", "{}", "module"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(env_id, kwargs, message):
    with pytest.raises(UserError, match=message) as caught:
        make_env(f"tests.jax_environments:{env_id}", 1, env_kwargs=kwargs)
    assert "\n" not in str(caught.value) and f"tests.jax_environments:{env_id}" in str(caught.value)


def test_a_gymnasium_class_and_a_missing_library_are_said():
    with pytest.raises(UserError, match="by the id that it is registered with"):
        make_env("tests.environments:Counting", 1)
    for library in ("playground", "brax"):
        with pytest.raises(UserError, match=r"pip install '\.\[playground\]'|no such environment"):
            make_env(f"{library}/NoSuchThing", 1)


def test_whole_numbers_of_numpy_are_whole_numbers(monkeypatch):
    monkeypatch.setattr(jax_environments.Walk, "episode_length", np.int64(30))
    monkeypatch.setattr(jax_environments.Walk, "action_size", np.int32(1))
    assert make_env(WALK, 1).max_episode_steps == 30


def test_an_observation_that_was_acted_on_counts():
    """The very first one of a run has no step before it."""
    state = new_episode(jnp.array([[0.0, 1.0], [jnp.nan, 1.0]]))
    obs, zeros, no = jnp.ones((2, 2)), jnp.zeros(2), jnp.zeros(2, bool)
    _, time_step = with_episode(state, obs, obs, zeros, no, no)
    assert time_step.episode.finite.tolist() == [True, False]


def test_ids_of_gymnasium_stay_gymnasiums():
    from envs.jax_make import is_jax

    assert [is_jax(x) for x in ("Hopper-v4", "tests.environments:Counting-v0", "no_module:X", WALK, "brax/ant")] == [
        False, False, False, True, True,
    ]  # fmt: skip


def test_an_observation_that_an_episode_ended_in_counts():
    """And so does that of the reset after it."""
    bad = jnp.full((1, 2), jnp.nan)
    fine, zeros, done = jnp.ones((1, 2)), jnp.zeros(1), jnp.ones(1, bool)
    for obs, final_obs, finite in ((fine, fine, True), (fine, bad, False), (bad, fine, False)):
        _, time_step = with_episode(new_episode(fine), obs, final_obs, zeros, done, done)
        assert time_step.episode.finite.tolist() == [finite]
