"""Numbers that are not finite: which seed has them, since when, and who made them."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from envs import Episode
from harness.guard import finite, not_finite, say_evaluation

S, T, N = 3, 4, 2


def episodes(*faults):
    """Of a chunk; `faults`: (seed, step, environment) whose observation or reward is not finite."""
    ok = np.ones((S, T, N), bool)
    for fault in faults:
        ok[fault] = False
    return Episode(~ok, np.zeros(ok.shape), np.zeros(ok.shape), ok)


def agents(**faults):
    return {"weights": jnp.zeros((S, 5)).at[faults.get("at", slice(0)), 2].set(faults.get("value", 0.0))}


METRICS = {"losses/a": np.zeros(S), "losses/b": np.zeros(S), "charts/c": np.full(S, np.inf)}


def test_finite_numbers_are_no_matter():
    assert not_finite(episodes(), METRICS, agents(), N) == {}
    assert not_finite(episodes(), {}, agents(), N) == {}


def test_an_environment_is_named_with_its_first_step():
    """Before learning, which it makes not finite too."""
    metrics = {**METRICS, "losses/a": np.array([0.0, np.inf, 0.0])}
    found = not_finite(episodes((1, 2, 0), (1, 1, 1), (1, 3, 1)), metrics, agents(at=1, value=np.nan), N)
    what = "an observation or reward of environment 1 is not finite"
    assert found == {1: {"steps": 4, "cause": "environment", "what": what}}


def test_learning_is_named_with_its_losses():
    metrics = {**METRICS, "losses/a": np.array([0.0, 0.0, np.inf]), "losses/b": np.array([0.0, 0.0, -np.inf])}
    assert not_finite(episodes(), metrics, agents(), N) == {
        2: {"steps": 8, "cause": "learning", "what": "losses/a, losses/b is not finite"}
    }
    for value in (np.nan, np.inf, -np.inf):
        assert not_finite(episodes(), METRICS, agents(at=0, value=value), N) == {
            0: {"steps": 8, "cause": "learning", "what": "a parameter is not finite"}
        }


def test_a_loss_that_was_not_computed_is_no_accident():
    """NaN stands for no value: a loss that is NaN makes parameters NaN."""
    metrics = {**METRICS, "losses/b": np.array([np.nan, 0.0, 0.0])}
    assert not_finite(episodes(), metrics, agents(), N) == {}
    found = not_finite(episodes(), metrics, agents(at=0, value=np.nan), N)
    assert found[0]["cause"] == "learning" and "is not finite" in found[0]["what"]


def test_each_seed_has_its_own():
    found = not_finite(episodes((0, 0, 0)), METRICS, agents(at=2, value=np.nan), N)
    assert {s: x["cause"] for s, x in found.items()} == {0: "environment", 2: "learning"}


def test_what_counts_as_finite():
    """The log of a temperature or multiplier of 0 is -inf and no accident; a weight of -inf is. Integers always are."""
    tree = {
        "weights": np.zeros((4, 3), np.float32),
        "log_alpha": np.float32([0.0, -np.inf, 1.0, np.nan]),
        "step": np.arange(4),
    }
    tree["weights"][2, 1] = -np.inf
    assert finite(tree).tolist() == [True, True, False, False]


def test_an_evaluation_that_is_not_finite_is_said(capsys):
    args = SimpleNamespace(seeds=range(4, 7))
    values = {"a": np.array([1.0, np.nan, np.inf]), "b": np.array([0.0, np.nan, 0.0])}
    say_evaluation(values, args, 2000, [0, 2])  # the second seed was stopped
    assert capsys.readouterr().out == "a of seed 6 at step 2,000 is not finite\n"
