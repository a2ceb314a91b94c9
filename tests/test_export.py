"""Run folders to CSV: the rows by hand, replacement, refusals, the list of results."""

import csv
import json

import pytest

from benchmarks import export

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
    args = {"script": "sac_jax", **export.defaults("sac_jax"), "exp_name": "sac_jax", "seed": seed} | args
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
    with pytest.raises(export.ExportError, match="does not say from which step"):
        exported(later)
    with pytest.raises(export.ExportError, match="its tree had changes"):
        exported({"step": 200, **later, "git_dirty": True})


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
    # A torn last line, as kill -9 leaves it.
    with (runs / "unfinished" / "scalars.csv").open("a") as file:
        file.write("450,123")
    names = sorted(path.name for path in runs.iterdir())
    monkeypatch.setattr("sys.argv", ["export.py", "--results", str(results), *(str(runs / name) for name in names)])
    assert export.main() == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[1].split("/")[-1] for line in errors] == [
        "dirty",
        "extended",
        "interrupted",
        "no_run",
        "stopped",
        "unfinished",
        "unknown",
    ]
    assert all(line.startswith("error: ") for line in errors)
    assert {row["seed"] for row in rows_of(results / "sac_jax__Hopper-v4.csv")} == {"4"}

    allow = ["--allow-dirty", "--allow-unfinished"]
    chosen = [str(runs / name) for name in names if name != "no_run"]
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


def test_defaults_are_the_scripts_own():
    """Read from the source, they equal those of the imported class."""
    import sac_jax

    assert export.defaults("sac_jax") == vars(sac_jax.Args())


def test_list_of_results(tmp_path):
    results = tmp_path / "results"
    for seed in (1, 2):
        export.merge(export.read_run(make_run(tmp_path / "runs" / f"a{seed}", seed=seed)), results)
        hopper = make_run(tmp_path / "runs" / f"b{seed}", seed=seed, exp_name="slow", q_lr=0.0001)
        export.merge(export.read_run(hopper), results)
    export.merge(export.read_run(make_run(tmp_path / "runs" / "c", seed=1, env_id="Walker2d-v4")), results)
    assert export.list_lines(results) == [
        "sac_jax | sac_jax.py | --learning-starts 100 | Hopper-v4 | 1 2 | 400",
        "sac_jax | sac_jax.py | --learning-starts 100 | Walker2d-v4 | 1 | 400",
        "slow | sac_jax.py | --learning-starts 100 --q-lr 0.0001 | Hopper-v4 | 1 2 | 400",
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
