"""Run folders to CSV: the rows by hand, replacement, refusals, the list of results."""

import csv
import dataclasses
import json
import shlex
import threading

import numpy as np
import pytest

import sac_jax
from benchmarks import export, suites
from benchmarks.results import load
from envs import UserError
from harness.experiment import option
from harness.folder import LAYOUT
from tests.running import Killed, half

VERSIONS = {
    "git_commit": "0123456789abcdef",
    "git_dirty": False,
    "python": "3.11.7",
    "jax": "0.10.2",
    "flax": "0.12.8",
    "gymnasium": "1.4.0",
    "mujoco": "3.4.0",
    "device": "cpu cpu",
    "threads": 1,
}


def make_run(folder, seed=1, num_seeds=1, finished=True, dirty=False, offset=0.0, **args):
    """A run of 400 steps in chunks of 100 that take 2 s, evaluated every 200 in 3 s. After the first half it was
    stopped for 1000 s. Episodes of 50 steps return their number (from 1) plus `offset`."""
    folder.mkdir(parents=True)
    defaults = {"layout": LAYOUT, "script": "sac_jax", **export.defaults("sac_jax"), "seed": seed}
    args = defaults | {"exp_name": "sac_jax"} | args
    args |= {"num_seeds": num_seeds, "total_timesteps": 400, "learning_starts": 100}
    (folder / "args.json").write_text(json.dumps(args))
    (folder / "versions.json").write_text(json.dumps(VERSIONS | {"git_dirty": dirty}))
    clock, rows = 5000.0, []
    for end in (100, 200, 300, 400):
        clock += 2.0
        for s in range(seed, seed + num_seeds):
            for episode in (end // 50 - 1, end // 50):
                rows.append((episode * 50, clock, s, "charts/episodic_return", episode + offset))
            rows.append((end, clock, s, "charts/SPS", 50.0))
        if end % 200 == 0:
            clock += 3.0
            for s in range(seed, seed + num_seeds):
                for policy, value in (("stochastic", end + s), ("deterministic", 2 * end + s)):
                    rows.append((end, clock, s, f"eval/episodic_return_{policy}", value))
                    rows.append((end, clock, s, f"eval/episodic_length_{policy}", 10.0))
                rows.append((end, clock, s, "eval/entropy", -end / 1000))
        if end == 200:
            clock += 1000.0
    text = "global_step,wall_time,seed,tag,value\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    (folder / "scalars.csv").write_text(text)
    if finished:
        (folder / "summary.json").write_text(json.dumps({"total_timesteps": 400}))
    return folder


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_by_hand(tmp_path):
    run = make_run(tmp_path / "runs" / "a", q_lr=0.002, autotune=False, target_entropy_scale=1)
    path = export.merge(export.read_run(run), tmp_path / "results")
    assert path.name == "sac_jax__Hopper-v4.csv"
    first, last = rows_of(path)
    assert tuple(first) == export.COLUMNS
    assert (first["global_step"], last["global_step"]) == ("200", "400")
    assert (first["stochastic_return"], first["deterministic_return"]) == ("201.000", "401.000")
    # Episodes 1 .. 4 by step 200, 1 .. 8 by step 400.
    assert (first["training_return"], last["training_return"]) == ("2.500", "4.500")
    assert (first["entropy"], last["entropy"]) == ("-0.200", "-0.400")
    # Two chunks and one evaluation; then twice that, without the 1000 s in between.
    assert (first["wall_time"], last["wall_time"]) == ("7.0", "14.0")
    assert last["steps_per_second"] == "50.0"
    assert (last["commit"], last["dirty"], last["mujoco"], last["threads"]) == (
        "0123456789abcdef",
        "false",
        "3.4.0",
        "1",
    )
    # In the order of the script's arguments, without those equal to the default (1 is 1.0) and the bookkeeping.
    assert last["arguments"] == "--total-timesteps 400 --learning-starts 100 --q-lr 0.002 --no-autotune"


def test_training_return_is_of_the_last_100_episodes(tmp_path):
    run = make_run(tmp_path / "runs" / "a")
    episodes = "".join(f"10,1.0,1,charts/episodic_return,{value}\n" for value in [1000.0] * 50 + [0.0] * 96)
    lines = (run / "scalars.csv").read_text().splitlines(keepends=True)
    (run / "scalars.csv").write_text(lines[0] + episodes + "".join(lines[1:]))
    # 150 episodes by step 200: the last hundred are 96 zeros and 1 .. 4.
    assert export.read_run(run)[0]["training_return"] == "0.100"


@pytest.mark.parametrize("value", [None, "inf"])
@pytest.mark.parametrize("missing", ["stochastic", "deterministic"])
def test_an_evaluation_that_was_not_finite_is_an_empty_field(tmp_path, missing, value):
    """NaN has no row in scalars.csv: the other policy's return stays."""
    run = make_run(tmp_path / "runs" / "a")
    lines = (run / "scalars.csv").read_text().splitlines(keepends=True)
    tag = f"eval/episodic_return_{missing}"
    of_it = [x for x in lines if x.startswith("200,") and tag in x]
    put = {x: x.rpartition(",")[0] + f",{value}\n" if value else "" for x in of_it}
    (run / "scalars.csv").write_text("".join(put.get(x, x) for x in lines))
    first, last = rows_of(export.merge(export.read_run(run), tmp_path / "results"))
    returns = {policy: first[f"{policy}_return"] for policy in ("stochastic", "deterministic")}
    assert returns == {"stochastic": "201.000", "deterministic": "401.000", missing: ""}
    assert (first["wall_time"], last["wall_time"], last[f"{missing}_return"] != "") == ("7.0", "14.0", True)
    (curve,) = load(tmp_path / "results")["sac_jax"]["Hopper-v4"]
    assert np.isnan(curve.measured[missing][0]) and np.isfinite(curve.measured[missing][1])


def test_a_seed_replaces_its_rows(tmp_path):
    results = tmp_path / "results"
    export.merge(export.read_run(make_run(tmp_path / "runs" / "a", seed=2)), results)
    export.merge(export.read_run(make_run(tmp_path / "runs" / "b", seed=1)), results)
    path = export.merge(export.read_run(make_run(tmp_path / "runs" / "c", seed=2, offset=10.0)), results)
    rows = rows_of(path)
    assert [(row["seed"], row["global_step"]) for row in rows] == [
        ("1", "200"),
        ("1", "400"),
        ("2", "200"),
        ("2", "400"),
    ]
    assert [row["training_return"] for row in rows] == ["2.500", "4.500", "12.500", "14.500"]


def test_runs_with_other_settings_take_nobodys_place(tmp_path):
    """Nor do they stand beside runs of the same name. Lengths and evaluations may differ."""
    results = tmp_path / "results"
    rows = export.read_run(make_run(tmp_path / "runs" / "a", seed=1))
    with_gamma = [row | {"arguments": "--gamma 0.9 --eval-episodes 2"} for row in rows]
    export.merge(with_gamma, results)
    export.merge([row | {"seed": "2", "arguments": "--total-timesteps 900 --gamma 0.9"} for row in rows], results)
    for seed in ("1", "3"):
        with pytest.raises(UserError, match=r"has runs of \S+ with --gamma 0\.9, these have the defaults: give"):
            export.merge([row | {"seed": seed, "arguments": ""} for row in rows], results)
    assert [row["seed"] for row in rows_of(results / export.file_name(rows[0]["exp_name"], rows[0]["env_id"]))] == [
        *("1" for _ in rows),
        *("2" for _ in rows),
    ]


def test_a_run_of_another_script_takes_nobodys_place(tmp_path):
    """A copy whose runs were given the original's name, or the original after the copy."""
    rows = export.read_run(make_run(tmp_path / "runs" / "a", seed=1))
    path = export.merge(rows, tmp_path / "results")
    before = path.read_text()
    for seed in ("1", "2"):
        with pytest.raises(UserError, match=r"has runs of sac_jax\.py, this is one of mine\.py: give it another"):
            export.merge([row | {"seed": seed, "script": "mine"} for row in rows], tmp_path / "results")
    assert path.read_text() == before
    other = export.merge([row | {"exp_name": "mine", "script": "mine"} for row in rows], tmp_path / "results")
    assert other.name == "mine__Hopper-v4.csv" and path.read_text() == before


def test_two_exports_at_once_lose_no_row(tmp_path):
    """Each reads the file, adds a seed and writes it: the second waits for the first."""
    results = tmp_path / "results"
    rows = [export.read_run(make_run(tmp_path / "runs" / str(seed), seed=seed)) for seed in (1, 2)]
    merging = threading.Thread(target=export.merge, args=(rows[0], results))
    with export.alone(results):
        merging.start()
        merging.join(0.2)
        assert merging.is_alive() and not list(results.iterdir())
    merging.join()
    assert [row["seed"] for row in rows_of(export.merge(rows[1], results))] == ["1", "1", "2", "2"]


def test_write_csv(tmp_path):
    export.write_csv(tmp_path / "x.csv", ["a", "b"], [{"a": 1 / 3, "b": "two"}, {"a": 4, "b": "0.123456"}])
    assert (tmp_path / "x.csv").read_bytes() == b"a,b\n0.3333,two\n4,0.123456\n"


def test_a_resumed_run_names_what_each_row_was_measured_with(tmp_path):
    run = make_run(tmp_path / "runs" / "a")

    def exported(*resumed):
        (run / "versions.json").write_text(json.dumps({**VERSIONS, "resumed": resumed}))
        return [(row["global_step"], row["commit"], row["jax"]) for row in export.read_run(run)]

    first, later, last = (
        VERSIONS,
        VERSIONS | {"git_commit": "fedcba", "jax": "0.11.0"},
        VERSIONS | {"git_commit": "f00"},
    )
    assert exported({"step": 200, **later}) == [("200", first["git_commit"], "0.10.2"), ("400", "fedcba", "0.11.0")]
    # Resumed twice from the same checkpoint: what the first attempt measured was made again.
    assert exported({"step": 150, **later}, {"step": 150, **last}) == [
        ("200", "f00", "0.10.2"),
        ("400", "f00", "0.10.2"),
    ]
    assert exported({"step": 400, **later})[-1] == ("400", first["git_commit"], "0.10.2")
    with pytest.raises(UserError, match="not committed as it ran: its code"):
        exported({"step": 200, **later, "git_dirty": True})
    with pytest.raises(UserError, match=r"not committed as it ran: /tmp/mine\.py, sac_jax\.py\)"):
        exported({"step": 200, **later, "git_dirty": True, "git_changes": ["sac_jax.py", "/tmp/mine.py"]})


def test_vmapped_seeds(tmp_path):
    """A run of several seeds gives each its rows, the same as a run of its own."""
    together = export.read_run(make_run(tmp_path / "runs" / "both", seed=1, num_seeds=2))
    alone = [row for seed in (1, 2) for row in export.read_run(make_run(tmp_path / "runs" / f"{seed}", seed=seed))]
    assert together == alone


def test_refusals(tmp_path, monkeypatch, capsys):
    runs, results = tmp_path / "runs", tmp_path / "results"
    make_run(runs / "dirty", seed=1, dirty=True)
    make_run(runs / "unknown", seed=2, dirty=None)
    make_run(runs / "unfinished", seed=3, finished=False)
    make_run(runs / "good", seed=4)
    stopped = make_run(runs / "stopped", seed=5)
    (stopped / "summary.json").write_text(json.dumps({"total_timesteps": 400, "stopped": {"5": {"step": 400}}}))
    (runs / "no_run").mkdir()
    (runs / "logs").mkdir()
    interrupted = make_run(runs / "interrupted", seed=6)
    (interrupted / "summary.json").write_text(json.dumps({"total_timesteps": 400, "interrupted_by": "SIGTERM"}))
    extended = make_run(runs / "extended", seed=7)
    (extended / "summary.json").write_text(json.dumps({"total_timesteps": 200}))
    older = make_run(runs / "older", seed=8)
    stored = json.loads((older / "args.json").read_text())
    (older / "args.json").write_text(json.dumps({name: value for name, value in stored.items() if name != "layout"}))
    make_run(runs / "no_scalars", seed=9)
    (runs / "no_scalars" / "scalars.csv").unlink()
    # A torn last line, as kill -9 leaves it.
    with (runs / "unfinished" / "scalars.csv").open("a") as file:
        file.write("450,123")
    names = sorted(path.name for path in runs.iterdir())
    monkeypatch.setattr("sys.argv", ["export.py", "--results", str(results), *(str(runs / name) for name in names)])
    assert export.main() == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[1].split("/")[-1].strip("'") for line in errors] == [
        "dirty",
        "extended",
        "interrupted",
        "no_run",
        "no_scalars",
        "older",
        "stopped",
        "unfinished",
        "unknown",
    ]
    assert all(line.startswith("error: ") for line in errors)
    assert "another version of sac_jax.py" in errors[5]
    assert {row["seed"] for row in rows_of(results / "sac_jax__Hopper-v4.csv")} == {"4"}

    allow = ["--allow-dirty", "--allow-unfinished"]
    chosen = [str(runs / name) for name in names if name not in ("no_run", "no_scalars", "older")]
    monkeypatch.setattr("sys.argv", ["export.py", "--results", str(results), *allow, *chosen])
    assert export.main() == 0
    rows = rows_of(results / "sac_jax__Hopper-v4.csv")
    assert {(row["seed"], row["dirty"]) for row in rows} == {
        ("1", "true"),
        ("2", ""),
        ("3", "false"),
        ("4", "false"),
        ("5", "false"),
        ("6", "false"),
        ("7", "false"),
    }


def test_speed_is_of_the_steps_that_learned(tmp_path):
    """Ten times as fast before; seconds of training are of both."""
    run = make_run(tmp_path / "run")
    path = run / "scalars.csv"
    lines = path.read_text().splitlines(keepends=True)
    fast = [x.replace("charts/SPS,50.0", "charts/SPS,500.0") if x.startswith("100,") else x for x in lines]
    path.write_text("".join(fast))
    first, last = export.read_run(run)
    assert first["steps_per_second"] == last["steps_per_second"] == "50.0"
    assert (first["wall_time"], last["wall_time"]) == ("5.2", "12.2")


def test_a_shorter_run_does_not_take_the_place_of_a_longer_one(tmp_path):
    rows = export.read_run(make_run(tmp_path / "run"))
    path = export.merge(rows, tmp_path / "results")
    before = path.read_bytes()
    with pytest.raises(UserError, match="has more than the 200 steps of this run of seed 1"):
        export.merge(rows[:1], tmp_path / "results")
    assert path.read_bytes() == before
    export.merge([row | {"seed": "2"} for row in rows[:1]], tmp_path / "results")


def test_seeds_are_in_the_order_of_their_numbers(tmp_path):
    rows = export.read_run(make_run(tmp_path / "run", seed=10))
    for seed in ("10", "2"):
        path = export.merge([row | {"seed": seed} for row in rows], tmp_path / "results")
    assert [row["seed"] for row in rows_of(path)] == ["2", "2", "10", "10"]


def test_killed_while_it_writes_results(tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    export.write_csv(path, ["a"], [{"a": 1}])
    monkeypatch.setattr(csv.DictWriter, "writerows", half(lambda *_: None))
    with pytest.raises(Killed):
        export.write_csv(path, ["a"], [{"a": 2}])
    assert path.read_text() == "a\n1\n"


# ---------------------------------------------------------------------------------------------------------- arguments


def test_arguments_are_what_computes():
    own = vars(sac_jax.Args(exp_name="other", env_id="Ant-v4", seed=3, num_seeds=2, track=True, runs_folder="x"))
    stored = {"layout": LAYOUT, "script": "sac_jax", **own, "checkpoint_frequency": 7, "resume": "runs/x"}
    assert export.arguments("sac_jax.py", stored) == ""
    stored |= {"eval_frequency": 5000, "total_timesteps": 10_000, "alpha": 2.0, "tau": 0.01, "autotune": False}
    # One that the script no longer has comes last.
    assert export.arguments("sac_jax", {"gone": 3, **stored}) == (
        "--total-timesteps 10000 --eval-frequency 5000 --tau 0.01 --alpha 2 --no-autotune --gone 3"
    )


def test_a_script_may_say_that_an_argument_does_not_compute(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Args(sac_jax.Args):
        shown: int = option(1, computes=False)
        used: int = option(1)

    monkeypatch.setattr(sac_jax, "Args", Args)
    assert export.arguments("sac_jax", {"shown": 2, "used": 2}) == "--used 2"


def test_an_argument_of_several_numbers(monkeypatch):
    """As tyro takes it, and none where JSON gave back the default as a list."""

    @dataclasses.dataclass(frozen=True)
    class Args(sac_jax.Args):
        layers: tuple[int, ...] = (256, 256)

    monkeypatch.setattr(sac_jax, "Args", Args)
    assert export.arguments("sac_jax", {"layers": (256, 256)}) == ""
    assert export.arguments("sac_jax", {"layers": (64, 8), "tau": 0.01}) == "--tau 0.01 --layers 64 8"


def test_arguments_with_spaces_come_back_from_the_results(tmp_path):
    run = make_run(tmp_path / "runs" / "a", env_kwargs='{"g": 9.8, "max_episode_steps": 50}')
    export.merge(export.read_run(run), tmp_path / "results")
    (job,) = suites.jobs_of({"mine": {"results": str(tmp_path / "results")}}, "mine")
    assert json.loads(job.args.env_kwargs) == {"g": 9.8, "max_episode_steps": 50}


def test_what_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "runs" / "logs")  # no name of a folder that has no run
    monkeypatch.setattr("sys.argv", ["export", "--results", str(run / "args.json"), str(run)])
    assert export.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "content", ["def", "1 / 0", "undefined", "import no_such", "exit(3)", "raise OSError('a\\nb')"]
)
def test_a_script_that_cannot_be_imported_is_one_line(tmp_path, monkeypatch, content):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "half_written.py").write_text(content)
    with pytest.raises(UserError, match=r"^cannot import the script 'half_written' \(\w+: .*\)$") as caught:
        export.defaults("half_written.py")
    assert "\n" not in str(caught.value)


def test_unknown_scripts_are_one_line():
    for script in ("no_such_script", "json.py", "benchmarks.export"):
        with pytest.raises(UserError, match="no script") as caught:
            export.defaults(script)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "args, where",
    [
        ({"env_id": "m.hidden:HiddenTarget-v0"}, "export it with --results benchmarks/hidden_target"),
        ({"env_id": "m.turning:TurningAgent-v0"}, "see python -m benchmarks.turning"),
        ({"exp_name": "quick_sac"}, "--results FOLDER exports it"),
    ],
)
def test_what_is_no_part_of_the_results_is_left_out(args, where, tmp_path, monkeypatch, capsys):
    """Whatever its folder is called, and however the results' is written."""
    run = make_run(tmp_path / "mine", **args)
    checkout = tmp_path / "quick_look"  # whose name says nothing
    results = checkout / "benchmarks" / "results"
    monkeypatch.setattr(export, "RESULTS", results)
    results.mkdir(parents=True)
    monkeypatch.chdir(checkout)
    monkeypatch.setattr("sys.argv", ["export", str(make_run(tmp_path / "quick_mine"))])
    assert export.main() == 0 and [path.name for path in results.iterdir()] == ["sac_jax__Hopper-v4.csv"]
    capsys.readouterr()
    for words in ([], ["--results", "benchmarks/results"]):
        monkeypatch.setattr("sys.argv", ["export", str(run), *words])
        assert export.main() == 0
        line = capsys.readouterr().out
        assert line.startswith("mine: left out, ") and where in line
    monkeypatch.setattr("sys.argv", ["export", str(run), "--results", str(tmp_path / "results")])
    assert export.main() == 0 and len(list((tmp_path / "results").iterdir())) == 1


def committed_arguments():
    places = export.RESULTS, export.RESULTS.parent / "hidden_target"
    rows = [row for place in places for path in place.glob("*.csv") for row in export.read_csv(path)]
    rows += rows_of(export.RESULTS.parent / "turning.csv")
    return sorted({(row["script"], row["arguments"]) for row in rows})


@pytest.mark.parametrize("script, flags", committed_arguments())
def test_committed_arguments_can_be_reproduced(script, flags):
    """A script's own parser takes them, and they come out as they were."""
    args = suites.parse(f"{script}.py", ["--exp-name", "any", *shlex.split(flags)])
    assert export.arguments(script, dataclasses.asdict(args)) == flags


# ------------------------------------------------------------------------------------------------- committed results


def test_results_as_a_suite(tmp_path):
    results = tmp_path / "results"
    for seed in (1, 2):
        export.merge(export.read_run(make_run(tmp_path / "runs" / f"a{seed}", seed=seed)), results)
        hopper = make_run(tmp_path / "runs" / f"b{seed}", seed=seed, exp_name="slow", q_lr=0.0001)
        export.merge(export.read_run(hopper), results)
    export.merge(export.read_run(make_run(tmp_path / "runs" / "c", seed=1, env_id="Walker2d-v4")), results)
    of_all = {"script": "sac_jax.py", "flags": "--learning-starts 100", "steps": 400}
    assert suites.runs_of(results) == [
        {**of_all, "name": "sac_jax", "envs": ["Hopper-v4"], "seeds": [1, 2]},
        {**of_all, "name": "sac_jax", "envs": ["Walker2d-v4"], "seeds": [1]},
        {
            **of_all,
            "name": "slow",
            "flags": "--learning-starts 100 --q-lr 0.0001",
            "envs": ["Hopper-v4"],
            "seeds": [1, 2],
        },
    ]


@pytest.mark.parametrize("path", sorted(export.RESULTS.glob("*.csv")), ids=lambda path: path.stem)
def test_committed_results(path):
    """Complete rows of a clean tree, in a file named after them, seeds and steps in order."""
    rows = export.read_csv(path)
    assert rows and {export.file_name(row["exp_name"], row["env_id"]) for row in rows} == {path.name}
    assert {row["dirty"] for row in rows} == {"false"}
    for row in rows:
        float(row["stochastic_return"]), float(row["deterministic_return"])
        assert len(row["commit"]) == 40 and row["mujoco"] and row["device"]
    order = [(int(row["seed"]), int(row["global_step"])) for row in rows]
    assert order == sorted(set(order))
