"""What a run has come to."""

import json
import math
from dataclasses import dataclass

import jax
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from harness import Experiment
from harness.record import Record, num_parameters, run_score, train_states


@dataclass(frozen=True)
class Args(Experiment):
    log_frequency: int = 100


ARGS = Args(seed=4, num_seeds=3, total_timesteps=1000, eval_frequency=500)


def results(value):
    """An evaluation of two episodes by three agents, with the means `value`, `value` + 1, .. of each policy."""
    means = value + np.arange(3.0)[:, None]
    return {
        policy: {
            "return": sign * np.concatenate([means - 1, means + 1], axis=1),
            "length": np.full((3, 2), 10.0),
            "metrics": {"eval/entropy": np.ones(3)} if policy == "stochastic" else {},
        }
        for policy, sign in (("stochastic", 1), ("deterministic", -1))
    }


def test_it_comes_back_from_json():
    record = Record(stopped={2: {"step": 30, "cause": "learning", "what": "x"}}, learning_seconds=1.5, learning_steps=7)
    values = record.add_evaluation(results(0.0))
    assert values["eval/episodic_return_deterministic"].tolist() == [0.0, -1.0, -2.0]
    assert values["eval/episodic_length_stochastic"].tolist() == [10.0] * 3 and "eval/entropy" in values
    again = Record.from_json(json.loads(json.dumps(record.to_json())))
    assert math.isnan(again.last_return)
    again.last_return = record.last_return = 0.0
    assert again == record and again.running(ARGS) == [0, 1]


def test_an_evaluation_is_the_mean_of_its_episodes():
    one = {"return": np.array([[0.0, 1.0, 5.0]]), "length": np.array([[1, 1, 4]]), "metrics": {}}
    values = Record().add_evaluation({"stochastic": one, "deterministic": one})
    policies = ("stochastic", "deterministic")
    assert values == {f"eval/episodic_{what}_{policy}": [2.0] for what in ("return", "length") for policy in policies}


def test_an_evaluation_that_is_not_finite_does_not_count():
    assert run_score([9.0, 1.0, 2.0, math.nan, 3.0, math.inf]) == 2.0
    assert run_score([*range(19), math.nan]) == 17.0  # nineteen remain: the last three
    assert run_score([*range(20), -math.inf]) == 14.5
    assert math.isnan(run_score([math.nan, math.inf]))


def test_a_stopped_seed_keeps_the_evaluations_before_it():
    record = Record()
    assert record.returns(0) == {
        f"{policy}_{what}": None for policy in ("stochastic", "deterministic") for what in ("last", "score")
    }
    for i in range(12):
        if i == 5:
            record.stopped[1] = {"step": 30}
        record.add_evaluation(results(float(i)))
    assert record.returns(0)["stochastic_last"] == 11.0 and record.returns(2)["deterministic_last"] == -13.0
    assert record.returns(0)["stochastic_score"] == 10.0  # of 9, 10 and 11
    assert record.returns(1)["stochastic_last"] == 5.0
    assert record.returns(1)["deterministic_score"] == -4.0  # of values one lower, 3, 4 and 5
    assert record.running(ARGS) == [0, 2]


def network(size, steps):
    """Of three agents."""

    def one(key):
        return TrainState.create(apply_fn=None, params={"w": jax.random.normal(key, (size,))}, tx=optax.adam(0.1))

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 3)).replace(step=np.full(3, steps))


def test_the_summary_counts_networks():
    """Updates are those of the network that has most; targets and statistics are not trained."""
    agents = {"actor": network(5, 7), "critics": [network(3, 9), network(4, 9)], "target": np.zeros((3, 100))}
    assert len(train_states(agents)) == 3 and num_parameters(agents) == 12
    record = Record(learning_seconds=2.0, learning_steps=300, stopped={1: {"step": 30}})
    record.add_evaluation(results(1.0))
    summary = record.summary(ARGS, agents)
    assert (summary["updates"], summary["parameters"], summary["steps_per_second"]) == (9, 12, 150.0)
    assert summary["stopped"] == {"5": {"step": 30}} and list(summary["episodic_return"]) == ["4", "5", "6"]
    assert summary["episodic_return"]["5"]["stochastic_last"] is None
    assert summary["total_timesteps"] == 1000 and summary["evaluations"] == 1 and summary["peak_memory_bytes"] > 1e6
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("agents", [{}, {"table": np.zeros((3, 2))}])
def test_a_run_that_learned_nothing(agents):
    summary = Record().summary(ARGS, agents)
    assert (summary["updates"], summary["parameters"], summary["steps_per_second"]) == (0, 0, None)


def test_a_speed_is_without_checkpoints():
    assert Record(learning_seconds=2.0, learning_steps=300, checkpoint_seconds=5.0).steps_per_second == 150.0
