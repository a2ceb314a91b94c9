"""Measuring in rounds, and the table of what was measured. Nothing is timed here."""

import dataclasses
import json
import sys
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

import crossq_jax
import diffcrossq_jax
import diffsac_jax
import diffwpo_jax
import sac_jax
from benchmarks import device, export, peers, rounds, speed, suites, turning
from benchmarks.results import read_rows
from benchmarks.tables import speed_table
from harness.folder import LAYOUT


def test_rows_are_replaced_and_shown(tmp_path):
    """--save replaces the quantities it measured and keeps the others."""
    path = tmp_path / "speed.csv"
    row = dict.fromkeys(speed.COLUMNS, "x")
    speed.save(path, [row | {"quantity": "a", "value": "1"}, row | {"quantity": "b", "value": "2"}])
    speed.save(path, [row | {"quantity": "c", "value": "4"}, row | {"quantity": "a", "value": "3"}])
    lines = speed_table(path).splitlines()[2:-2]
    assert [line.split(" | ")[:2] for line in lines] == [["| a", "3"], ["| b", "2"], ["| c", "4"]]


@pytest.mark.parametrize("small", [True, False])
def test_runs_of_a_device_are_runs_of_the_scripts(small):
    for script, *words in device.commands(small):
        args = suites.parse(script, words)
        assert args.total_timesteps <= (1000 if small else 400_000) and args.num_seeds in (1, 2, 4, 8, 32)


def test_a_device_row_says_what_a_run_came_to():
    args = SimpleNamespace(exp_name="sac_jax", env_id="Hopper-v4", num_envs=2, num_seeds=8)
    summary = {"steps_per_second": 101.4, "compile_seconds": 9.6, "peak_memory_bytes": 2.5e9, "step": 4000}
    folder = SimpleNamespace(
        arguments=lambda Args: args, script=lambda: SimpleNamespace(Args=None), summary=lambda: summary
    )
    assert device.row(folder) == (
        "sac_jax.py, Hopper-v4, 2 environments, 8 seeds",
        "811 steps/s of all seeds, compiled in 10 s, 2.50 GB",
        "one run of 4,000 steps",
    )


def test_runs_without_a_speed_leave_the_others_theirs(tmp_path, monkeypatch, capsys):
    (tmp_path / "unfinished").mkdir()
    args = {"script": "sac_jax", "layout": LAYOUT, **dataclasses.asdict(sac_jax.Args())}
    (tmp_path / "unfinished" / "args.json").write_text(json.dumps(args))
    monkeypatch.setattr("sys.argv", ["device", "--of", str(tmp_path / "unfinished"), str(tmp_path / "none")])
    assert device.main() == 1
    printed = capsys.readouterr()
    assert "unfinished' has no speed: it has not ended, or never learned" in printed.err
    assert "none' is not a run folder" in printed.err and printed.err.count("\n") == 2 and printed.out == ""


def test_a_row_names_the_device_that_it_was_measured_on(monkeypatch):
    monkeypatch.setattr(speed.provenance, "device", lambda: "gpu NVIDIA H100")
    assert speed.facts()["device"] == "gpu NVIDIA H100"
    monkeypatch.setattr(speed.provenance, "device", lambda: "cpu AMD EPYC")
    assert speed.facts(2)["device"] == "AMD EPYC, 2 threads"


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


def test_a_process_that_takes_too_long_is_skipped_and_what_was_measured_before_is_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NPROC", "1")
    monkeypatch.setattr(rounds, "TIMEOUT", 0.2)
    monkeypatch.setattr(speed, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()

    def slow(options):
        saved = read_rows(tmp_path / "benchmarks" / "speed.csv")
        assert [row["quantity"] for row in saved] == ["a"]
        rounds.run_process([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path)

    monkeypatch.setattr(speed, "ROWS", {"quick": lambda options: [("a", "1", "by hand")], "slow": slow})
    monkeypatch.setattr("sys.argv", ["speed", "--rows", "quick", "slow", "--save"])
    assert speed.main() == 0
    assert "slow: skipped, " in (err := capsys.readouterr().err) and "not finished after 0.2 s" in err


@pytest.mark.parametrize("script", [sac_jax, diffsac_jax, diffwpo_jax, crossq_jax, diffcrossq_jax])
def test_updates_that_are_measured(script):
    """One program makes them all; it is traced here, not compiled."""
    env = SimpleNamespace(observation_size=3, action_size=2)
    init, many = speed.updates_of(script, script.Args(), env, 7)
    agent = jax.eval_shape(init, jax.random.key(0))
    after, losses = jax.eval_shape(many, agent, jax.random.key(0))
    assert losses.shape == (7,) and jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, agent)


def test_actions_that_are_measured():
    """Every call is a whole action of its own observation: as many as are asked for, after one round that compiles."""
    env, asked = SimpleNamespace(observation_size=3, action_size=2), []

    def sample_action(args, agent, key, obs):
        jax.debug.callback(lambda obs: asked.append(obs.shape), obs)
        return jnp.tanh(obs[:, :2]) + agent, None

    script = SimpleNamespace(init_agent=lambda args, env, key: jnp.zeros(()), sample_action=sample_action)
    measure = speed.one_action(script, None, env, 7)
    jax.effects_barrier()
    assert asked == 7 * [(1, 3)]
    assert measure(1) > 0
    jax.effects_barrier()
    assert len(asked) == 14


def test_times_beside_sacs():
    rows = speed.beside_sac({"SAC": [0.002, 0.002], "X": [0.006, 0.004]}, "{} update", "SAC update", 2, "how")
    assert rows == [
        ("SAC update", "2.00 ms (2.00 to 2.00)", "how"),
        ("X update / SAC update", "2.50 (2.00 to 3.00)", "how"),
    ]


def test_ratios_are_over_the_nearest_kin(monkeypatch):
    seconds = {"sac_jax": 1, "diffsac_jax": 2, "diffwpo_jax": 6, "crossq_jax": 3, "diffcrossq_jax": 12}
    monkeypatch.setattr(speed, "one_update", lambda script, *_: lambda number: seconds[script.__name__])
    monkeypatch.setattr(speed, "make_env", lambda *_: SimpleNamespace(close=lambda: None))
    rows = {row[0]: row[1] for row in speed.updates(SimpleNamespace(env_id="x", rounds=1, updates=1))}
    assert rows["DiffSAC, K = 8 update / SAC update"].startswith("2.00 ")
    assert rows["DiffWPO, K = 8 update / SAC update"].startswith("6.00 ")
    assert rows["DiffWPO, K = 8 update / DiffSAC update"].startswith("3.00 ")
    assert rows["DiffCrossQ, K = 8 update / CrossQ update"].startswith("4.00 ")


def test_steps_of_all_seeds_against_those_of_one(monkeypatch):
    """Four seeds with 10 steps/s each do five times the work of one with 8."""
    monkeypatch.setattr(speed, "steps_per_second", lambda options, *words: 10.0 if "--num-seeds" in words else 8.0)
    for _, value, _ in speed.seeds(SimpleNamespace(env_id="x", steps=1, rounds=1)):
        assert value == "5.00 (5.00 to 5.00)"


def test_diffppo_over_ppo(monkeypatch):
    speeds = {"ppo_jax.py": 100.0, "diffppo_jax.py": 25.0}
    monkeypatch.setattr(speed, "steps_per_second", lambda options, script, *words: speeds[script])
    rows = speed.diffppo(SimpleNamespace(env_id="x", rounds=1))
    assert [row[1] for row in rows] == ["25 steps/s (25 to 25)", "0.25 (0.25 to 0.25)"]


def test_scripts_over_their_peers(monkeypatch):
    """100 steps/s against 50."""
    monkeypatch.setattr(peers, "steps_per_second", lambda *_: 100.0)
    monkeypatch.setattr(peers, "run_process", lambda command, *_, **__: "1.0 SPS: 7\nSPS: 50\nsteps_per_second 50.0\n")
    options = SimpleNamespace(env_id="x", steps=1, rounds=1, threads=1, peers_python=sys.executable, cleanrl=__file__)
    for rows in (peers.sbx(options), peers.ppo(options)):
        of_ratios = [value for quantity, value, _ in rows if " / " in quantity]
        assert of_ratios == ["2.00 (2.00 to 2.00)"] * 2


def waits(function, *arguments):
    """Whether a call of `function`, which changes the file, waits for who is alone in its folder."""
    path = arguments[0]
    before, thread = path.read_text(), threading.Thread(target=function, args=arguments)
    with export.alone(path.parent):
        thread.start()
        thread.join(0.3)
        waited = thread.is_alive() and path.read_text() == before
    thread.join()
    assert path.read_text() != before
    return waited


def test_two_measurements_at_once_lose_no_row(tmp_path, monkeypatch):
    """Each reads the file, adds its rows and writes it."""
    row = dict.fromkeys(speed.COLUMNS, "x")
    speed.save(tmp_path / "speed.csv", [row])
    assert waits(speed.save, tmp_path / "speed.csv", [row | {"quantity": "y"}])
    names = ("script", "exp_name", "seed", "global_step", "arguments", "heading", "left", "middle", "right", "return")
    row = dict.fromkeys(names, "1")
    export.write_csv(tmp_path / "turning.csv", names, [row])
    monkeypatch.setattr(turning, "measure", lambda *_: [row | {"seed": "2"}])
    monkeypatch.setattr("sys.argv", ["turning", "run", "--results", str(tmp_path / "turning.csv")])
    assert waits(lambda path: turning.main(), tmp_path / "turning.csv")


def test_seconds_are_of_one_action(monkeypatch):
    looks = iter([0.0, 1.0, 10.0, 24.0])
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(looks)))
    script = SimpleNamespace(
        init_agent=lambda args, env, key: jnp.zeros(()),
        sample_action=lambda args, agent, key, obs: (obs[:, :2] + agent, None),
    )
    assert speed.one_action(script, None, SimpleNamespace(observation_size=3, action_size=2), 7)(1) == 2.0
