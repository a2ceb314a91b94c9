"""The policies on a Q whose optimum is known."""

import jax
import numpy as np
import pytest

from benchmarks import precision


def test_errors_by_hand(monkeypatch, capsys):
    """A policy that stands still at 0: the error is that of 0.6 tanh(W s) itself, and changes with W."""
    monkeypatch.setattr(precision, "STRETCH", 1)
    monkeypatch.setattr(precision, "STRETCHES", 2)
    still = lambda args, agent, key, obs: (jax.numpy.zeros((len(obs), 3)), jax.numpy.zeros(len(obs)))  # noqa: E731
    monkeypatch.setattr(precision.ALGORITHMS["sac"], "sample_action", still)
    monkeypatch.setattr(precision.ALGORITHMS["sac"], "update", lambda args, agent, *_: (agent, {}))
    fixed, changing = (precision.errors("sac", changing, hidden_dim=8) for changing in (False, True))
    assert fixed[0] == changing[0] == pytest.approx(fixed[1], rel=0.05)
    assert abs(changing[1] / changing[0] - 1) > 1e-4
    rng = np.random.default_rng(0)
    expected = [np.mean((0.6 * np.tanh(rng.normal(size=8000) * 0.5 * np.sqrt(rng.chisquare(8, 8000)))) ** 2)]
    assert fixed[0] == pytest.approx(np.sqrt(np.mean(expected)), rel=0.2)  # one W of 24 numbers
    monkeypatch.setattr("sys.argv", ["precision", "--algorithms", "sac", "--set", "hidden_dim=8"])
    precision.main()
    assert f"| SAC | {fixed[0]:.3f} | {fixed[1]:.3f} | {changing[1]:.3f} |" in capsys.readouterr().out
