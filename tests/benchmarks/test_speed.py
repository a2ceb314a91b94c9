"""Measuring in rounds, and the table of what was measured. Nothing is timed here."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

import crossq_jax
import diffcrossq_jax
import diffsac_jax
import diffwpo_jax
import sac_jax
from benchmarks import rounds, speed
from benchmarks.tables import speed_table


def test_rows_are_replaced_and_shown(tmp_path):
    """--save replaces the quantities it measured and keeps the others."""
    path = tmp_path / "speed.csv"
    row = dict.fromkeys(speed.COLUMNS, "x")
    speed.save(path, [row | {"quantity": "a", "value": "1"}, row | {"quantity": "b", "value": "2"}])
    speed.save(path, [row | {"quantity": "c", "value": "4"}, row | {"quantity": "a", "value": "3"}])
    lines = speed_table(path).splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [["| a", "3"], ["| b", "2"], ["| c", "4"]]


def test_comparison_within_a_round():
    """Measures take turns; a ratio is formed within a round and reported as the median with its range."""
    order = []
    measures = {name: lambda i, name=name: order.append(f"{name}{i}") or float(i + 1) for name in ("a", "b")}
    values = rounds.in_turns(3, measures)
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert rounds.median(rounds.ratios([2.0, 9.0, 8.0], values["b"]), 1, " x") == "2.7 x (2.0 to 4.5)"


def test_what_cannot_be_measured_is_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NPROC", "1")  # the command sets it
    monkeypatch.setattr("sys.argv", ["speed", "--rows", "sbx", "ppo", "--peers-python", str(tmp_path / "none")])
    assert speed.main() == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("Commit ")
    assert printed.err.splitlines() == [f"{row}: skipped, there is no {tmp_path / 'none'}" for row in ("sbx", "ppo")]


@pytest.mark.parametrize("script", [sac_jax, diffsac_jax, diffwpo_jax, crossq_jax, diffcrossq_jax])
def test_updates_that_are_measured(script):
    """One program makes them all; it is traced here, not compiled."""
    env = SimpleNamespace(observation_size=3, action_size=2)
    init, many = speed.updates_of(script, script.Args(), env, 7)
    agent = jax.eval_shape(init, jax.random.key(0))
    after, losses = jax.eval_shape(many, agent, jax.random.key(0))
    assert losses.shape == (7,) and jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, agent)
