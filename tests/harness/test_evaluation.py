"""Evaluation: first episodes from the same start states, keys from seed and step, nothing carried from call to call."""

import json
import random
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness import Evaluator, Experiment, evaluation


@dataclass(frozen=True)
class Args(Experiment):
    log_frequency: int = 1000
    env_id: str = "tests.environments:Countdown-v0"  # the first observation says how long the episode is


def sample_action(args, agent, key, obs):
    """Around the agent's number."""
    return agent + 0.1 * jax.random.uniform(key, (obs.shape[0], 1)), None


def deterministic_action(args, agent, obs):
    return jnp.full((obs.shape[0], 1), agent)


def entropy_terms(args, agent, key, obs):
    """What is left of the episode, and a draw."""
    return {"left": obs[:, 0], "draw": jax.random.uniform(key, obs.shape[:1])}


def make(terms=entropy_terms, kwargs=None, **more):
    args = Args(**{"seed": 5, "num_seeds": 2, "eval_episodes": 4, "env_kwargs": json.dumps(kwargs or {}), **more})
    return Evaluator(args, sample_action, deterministic_action, terms)


AGENTS = jnp.array([0.25, -0.5])


@pytest.fixture(scope="module")
def evaluator():
    made = make()
    yield made
    made.close()


@pytest.fixture(scope="module")
def results(evaluator):
    """At step 1000 and, after an evaluation of other agents, at 2000 and 1000 again."""
    first = evaluator(AGENTS, 1000)
    evaluator(AGENTS / 2, 500)
    return first, evaluator(AGENTS, 2000), evaluator(AGENTS, 1000)


def test_returns_and_lengths_are_those_of_first_episodes(results):
    """The reward is the action, so the return follows from the length; the environments restart by themselves."""
    for result in results:
        assert list(result) == ["stochastic", "deterministic"]
        for policy, episodes in result.items():
            assert episodes["return"].shape == episodes["length"].shape == (2, 4)
            least = episodes["length"] * np.asarray(AGENTS)[:, None]
            if policy == "deterministic":
                np.testing.assert_allclose(episodes["return"], least, rtol=1e-5)
            else:
                extra = (episodes["return"] - least) / (0.1 * episodes["length"])
                assert np.all((extra > 0) & (extra < 1)) and len(np.unique(extra)) == 8
    lengths = results[0]["stochastic"]["length"]
    assert len(np.unique(lengths)) > 4 and lengths.max() > evaluation.CHUNK


def test_start_states_are_the_same_at_every_call_and_for_both_policies(results):
    for result in results:
        for policy in result:
            np.testing.assert_array_equal(result[policy]["length"], results[0]["stochastic"]["length"])
    assert not np.array_equal(*results[0]["stochastic"]["length"])  # each agent has its own


def test_equal_steps_give_equal_numbers_and_other_steps_others(results):
    first, other, again = results
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not set(first["stochastic"]["return"].ravel()) & set(other["stochastic"]["return"].ravel())
    assert first["stochastic"]["metrics"]["draw"][0] != other["stochastic"]["metrics"]["draw"][0]
    np.testing.assert_array_equal(first["deterministic"]["return"], other["deterministic"]["return"])


def test_entropies_are_averaged_over_the_episodes_that_still_run(results):
    """At the start of every compiled call."""
    lengths = np.asarray(results[0]["stochastic"]["length"], np.float64)
    starts = np.arange(0, lengths.max(), evaluation.CHUNK)
    left = np.maximum(lengths[..., None] - starts, 0)
    expected = left.sum(axis=(1, 2)) / (left > 0).sum(axis=(1, 2))
    np.testing.assert_allclose(results[0]["stochastic"]["metrics"]["left"], expected, rtol=1e-6)
    draws = results[0]["stochastic"]["metrics"]["draw"]
    assert draws.shape == (2,) and np.all((draws > 0) & (draws < 1)) and draws[0] != draws[1]
    assert results[0]["deterministic"]["metrics"] == {}


def test_an_agent_side_by_side_is_the_agent_alone(results):
    alone = make(seed=6, num_seeds=1)
    result = alone(AGENTS[1:], 1000)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[1:], rtol=1e-6), result, results[0])
    alone.close()


def test_training_does_not_notice(evaluator):
    """Agents are neither changed nor donated."""
    agents = jnp.array([0.1, 0.2])
    evaluator(agents, 3000)
    np.testing.assert_array_equal(agents, np.float32([0.1, 0.2]))


def test_global_generators_are_as_they_were():
    """Environments that draw from them go on in training as if there had been no evaluation."""
    evaluator = make(kwargs={"max_episode_steps": 5}, env_id="tests.environments:Dice-v0")
    random.seed(7)
    expected = random.Random(7).random()
    evaluator(AGENTS, 1000)
    assert random.random() == expected
    evaluator.close()


@pytest.mark.parametrize("limit, length", [({}, 200), ({"max_episode_steps": 130}, 130)])
def test_episodes_end_at_the_time_limit_or_are_cut(limit, length, monkeypatch):
    """Without a limit of the environment at MAX_EPISODE_STEPS."""
    monkeypatch.setattr(evaluation, "MAX_EPISODE_STEPS", 200)
    endless = make(terms=None, kwargs={"most": 0, **limit})
    result = endless.episodes("deterministic", AGENTS, 0)
    assert np.all(result["length"] == length) and result["metrics"] == {}
    np.testing.assert_allclose(result["return"], np.full((2, 4), length) * np.asarray(AGENTS)[:, None], rtol=1e-5)
    endless.close()


def test_an_error_of_the_environment_is_raised():
    faulty = make(terms=None, kwargs={"most": 0, "fails": 30})
    with pytest.raises(ArithmeticError, match="the environment failed"):
        faulty(AGENTS, 0)
    faulty.close()


def test_its_environments_are_closed():
    with make() as evaluate:
        assert not evaluate.env.envs.closed
    assert evaluate.env.envs.closed
