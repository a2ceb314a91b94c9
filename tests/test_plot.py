"""Figures and tables: the statistics by hand, pages and images from made-up results, the committed pages."""

import csv

import numpy as np
import pytest

from benchmarks import export, plot


def made_up_rows(name, env_id, seed, evaluations, scale, arguments="", every=10_000, script=None):
    """Returns grow linearly: evaluation i (from 1) is scale * i + seed, deterministic twice and training half of it."""
    return [
        dict.fromkeys(export.COLUMNS, "1")
        | {
            "env_id": env_id,
            "exp_name": name,
            "script": script or name,
            "seed": str(seed),
            "global_step": str(every * i),
            "stochastic_return": str(scale * i + seed),
            "deterministic_return": str(2 * (scale * i + seed)),
            "training_return": str((scale * i + seed) / 2) if i > 1 else "",
            "commit": "0123456789",
            "dirty": "false",
            "device": "cpu cpu",
            "wall_time": str(100.0 * i),
            "steps_per_second": str(100 * seed),
            "arguments": arguments,
        }
        for i in range(1, evaluations + 1)
    ]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with results of every kind and pages with every table."""
    root = tmp_path_factory.mktemp("checkout")
    folder = root / "benchmarks"
    for seed in (1, 2, 3):
        for env_id in ("Hopper-v4", "Walker2d-v4"):
            for name, scale in (("sac_jax", 10), ("diffsac_jax", 20), ("ppo_jax", 5), ("diffppo_jax", 10)):
                export.merge(made_up_rows(name, env_id, seed, 15, scale), folder / "results")
        export.merge(made_up_rows("diffwpo_jax", "Hopper-v4", seed, 12, 15), folder / "results")
        for k in (1, 4):
            export.merge(made_up_rows(f"diffsac_k{k}", "Hopper-v4", seed, 9, k), folder / "results")
            export.merge(made_up_rows(f"diffppo_k{k}", "Hopper-v4", seed, 9, k), folder / "results")
    export.merge(
        made_up_rows("diffwpo_bound0.1", "Hopper-v4", 1, 9, 1, "--kl-bound 0.1", script="diffwpo_jax"),
        folder / "results",
    )
    export.merge(
        made_up_rows("ppo_ent0.01", "Hopper-v4", 2, 9, 1, "--total-timesteps 90000 --ent-coef 0.01", script="ppo_jax"),
        folder / "results",
    )
    (folder / "reference.csv").write_bytes((plot.ROOT / "benchmarks" / "reference.csv").read_bytes())
    (folder / "speed.csv").write_text(
        "quantity,value,how,commit,device,versions\nSAC update,1.8 ms,rows,0123456789,cpu,jax 0.10.2\n"
    )
    columns = "bandit,algorithm,K,updates,seed,elbo_gap,log_z_error,ess,worst_region,grid_kl,commit,device,versions\n"
    (folder / "bandit.csv").write_text(
        f"{columns}four,sac,,60,1,1.4,0.3,0.2,0.0,1.3,{'0' * 40},cpu,jax 1\n"
        f"four,diffsac,8,60,1,0.5,0.0,0.4,0.9,0.2,{'0' * 40},cpu,jax 1\n"
        f"two,sac,,60,1,0.4,0.1,0.9,0.0,0.3,{'0' * 40},cpu,jax 1\n"
    )
    columns = "script,exp_name,seed,global_step,arguments,commit,return,heading,left,middle,right\n"
    (folder / "turning.csv").write_text(
        f"{columns}sac_jax,s,1,30000,--gamma 0.9,0123456789,99.5,0,0.97,0.0,0.03\n"
        "sac_jax,s,1,30000,--gamma 0.9,0123456789,99.5,45,0.1,0.8,0.1\n"
        "diffsac_jax,d,2,30000,--total-timesteps 30000 --gamma 0.9,0123456789,97.0,0,0.45,0.1,0.45\n"
    )
    (folder / "README.md").write_text("<!-- figure aggregate: A caption -->\n<!-- end -->\n")
    (root / "README.md").write_text(
        "Top\n" + "".join(f"<!-- table {n} -->\n<!-- end -->\n" for n in plot.TABLES) + "End\n"
    )
    return root


# --------------------------------------------------------------------------------------------------------- statistics


def test_iqm_by_hand():
    # 8 values: two are cut at each end.
    assert (
        plot.iqm([np.array([0.0, 10.0, 20.0, 30.0]), np.array([40.0, 50.0, 60.0, 1000.0])]) == (20 + 30 + 40 + 50) / 4
    )
    # 9 values: two are cut at each end (a quarter rounded down), five remain.
    assert plot.iqm([np.arange(9.0)]) == 4.0
    # 3 values: nothing is cut.
    assert plot.iqm([np.array([1.0, 2.0, 6.0])]) == 3.0


def test_probability_of_improvement_by_hand():
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0])
    # 1 > 0; 2 > 0 and 2 = 2; 3 > both: (1 + 1.5 + 2) / 6.
    assert plot.probability_of_improvement([x], [y]) == pytest.approx(4.5 / 6)
    # Environments weigh the same.
    assert plot.probability_of_improvement([x, np.array([5.0])], [y, np.array([9.0])]) == pytest.approx(4.5 / 12)


def test_bootstrap_band_by_hand():
    # Two seeds, 0 and 1: the resampled mean is 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4, so the 2.5 % and 97.5 %
    # points are 0 and 1. A curve on which the seeds agree has a band of no width.
    low, high = plot.bootstrap_band(np.array([[0.0, 3.0], [1.0, 3.0]]))
    assert low.tolist() == [0.0, 3.0] and high.tolist() == [1.0, 3.0]


def test_bootstrap_is_stratified():
    # The sum of the environments' means: with one seed each nothing can vary, whatever lies between environments.
    fixed = [np.array([1.0]), np.array([100.0])]
    assert plot.stratified_bootstrap(plot.iqm, fixed) == (50.5, 50.5)
    # The mean of n normal scores: the interval's half-width is 1.96 std / sqrt(n), within the noise of 2000 draws.
    scores = np.random.default_rng(1).normal(size=200)
    low, high = plot.stratified_bootstrap(lambda sample: float(sample[0].mean()), [scores])
    assert (high - low) / 2 == pytest.approx(1.96 * scores.std() / np.sqrt(200), rel=0.1)


def test_intervals_resample_the_base_too():
    # One score of 2 against a base of 1 and 3, whose resampled mean is 1, 2 or 3 with probabilities 1/4, 1/2, 1/4.
    scores, base = [np.array([2.0])], [np.array([1.0, 3.0])]
    assert plot.normalised_iqm(scores, base) == 1.0
    assert plot.stratified_bootstrap(plot.normalised_iqm, scores, base) == pytest.approx((2 / 3, 2.0))


def test_score_rule():
    steps = np.arange(1, 31)
    curve = plot.Curve(1, steps, dict.fromkeys(plot.POLICIES, steps.astype(float)), steps * 1.0, {})
    assert curve.score("deterministic") == 25.5  # the last ten of thirty: 21 .. 30
    assert curve.maximum("deterministic") == 30.0
    assert curve.until(19).score("stochastic") == 18.0  # the last three of nineteen
    assert curve.until(20).score("stochastic") == 15.5
    assert curve.score("training") == 30.0  # an average of 100 episodes already


# -------------------------------------------------------------------------------------------------- tables and figures


def test_tables_by_hand(checkout):
    results = plot.load(checkout / "benchmarks" / "results")
    # Equal steps on Hopper: DiffWPO's 12 evaluations. The last three stochastic ones of SAC are 10 * 11 + seed.
    _, _, hopper, walker, means, *_ = plot.family_table(results, "off-policy").splitlines()
    assert hopper == (
        "| Hopper-v4 | 120k | 1 2 3 | 224 ± 2.0 / 112 ± 1.0 | 444 ± 2.0 / 222 ± 1.0 | 334 ± 2.0 / 167 ± 1.0"
        " | 1.98 / 1.98 | 0.75 / 0.75 |"
    )
    assert (
        walker == "| Walker2d-v4 | 150k | 1 2 3 | 284 ± 2.0 / 142 ± 1.0 | 564 ± 2.0 / 282 ± 1.0 | - | 1.99 / 1.99 | - |"
    )
    assert means == "| mean of the ratios |  |  |  |  |  | 1.98 / 1.98 (2 environments) |  |"
    # Training return at 150k: (5 * 15 + seed) / 2 against (10 * 15 + seed) / 2.
    _, _, hopper, _, means, *_ = plot.family_table(results, "on-policy").splitlines()
    assert hopper == "| Hopper-v4 | 150k | 1 2 3 | 38.5 ± 0.5 | - | 76.0 ± 0.5 | - | 1.97 |"
    assert means == "| mean of the ratios |  |  |  |  |  |  | 1.97 (2 environments) |"
    # Nine evaluations: the last three stochastic ones of DiffSAC are 20 * 8 + seed.
    header, _, *rows, _, _ = plot.bound_table(results).splitlines()
    assert header == "| Algorithm | arguments | Hopper-v4, 90k |"
    assert rows == [
        "| DiffSAC | defaults | 324 ± 2.0 / 162 ± 1.0 (seeds 1 2 3) |",
        "| DiffWPO | defaults | 244 ± 2.0 / 122 ± 1.0 (seeds 1 2 3) |",
        "| DiffWPO | `--kl-bound 0.1` | 18.0 / 9.0 (seed 1) |",
    ]
    # All DiffSAC scores are above all SAC scores.
    line = next(x for x in plot.aggregate_table(results).splitlines() if "DiffSAC against SAC | deterministic" in x)
    assert line.startswith("| DiffSAC against SAC | deterministic | Hopper-v4 150k, Walker2d-v4 150k | 3 | 1.99 (1.9")
    assert line.endswith(" | 1.00 | 1.00 (1.00 to 1.00) |"), line
    # DiffWPO has two bases: SAC as all of its family, and DiffSAC, of which it is a variant.
    found = {(pair["name"], pair["base"]): pair for pair in plot.pairs(results, "stochastic")}
    assert found["diffwpo_jax", "sac_jax"]["iqm"] == pytest.approx(167 / 112, abs=1e-2)
    assert found["diffwpo_jax", "diffsac_jax"]["iqm"] == pytest.approx(167 / 222, abs=1e-2)
    assert found["diffwpo_jax", "diffsac_jax"]["improvement"] == 0.0
    # Without a training episode there is no training return and no comparison of it.
    for curves in (results["ppo_jax"][env_id] for env_id in ("Hopper-v4", "Walker2d-v4")):
        curves[0].returns["training"][:] = np.nan
    assert [pair for pair in plot.pairs(results, "training") if pair["base"] == "ppo_jax"] == []
    # What the runs took: 15 evaluations of 100 s.
    line = next(x for x in plot.cost_table(results).splitlines() if x.startswith("| SAC | Hopper-v4"))
    assert line == "| SAC | Hopper-v4 | 150k | 0.42 | 4.8 | 200 | cpu cpu, 1 thread |"
    # K = 8 has no runs of its own: the default runs serve, cut at 90k like the others.
    lines = plot.ablation_table(results, "diffsac", "diffsac_jax", plot.POLICIES[:2]).splitlines()
    assert lines[0] == "Hopper-v4, 90k steps."
    assert lines[-1] == "| 8 | 1 2 3 | 324 ± 2.0 | 162 ± 1.0 | 200 | diffsac_jax |"
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| 1", "| 4", "| 8"]


def test_search_table_by_hand(checkout):
    lines = plot.search_table(plot.load(checkout / "benchmarks" / "results")).splitlines()
    assert lines[0] == "| Algorithm | arguments | steps | Hopper-v4, seed 2 |"
    # Training: half of 9 + 2. Deterministic: twice the mean of 7, 8, 9 plus 2.
    assert lines[2:] == ["| PPO | `--ent-coef 0.01` | 90k | 5.5 (20.0) |"]


def test_multimodality_tables_by_hand(checkout):
    lines = plot.bandit_table(checkout / "benchmarks" / "bandit.csv").splitlines()
    assert lines[2] == "| four | SAC | - | 1.400 | 0.300 | 0.200 | 0.000 | 1.300 |"
    assert lines[3] == "| four | DiffSAC | 8 | **0.500** | **0.000** | 0.400 | **0.900** | **0.200** |"
    assert lines[-1] == "60 updates, seed 1; commit 0000000; cpu; jax 1."
    lines = plot.turning_table(checkout / "benchmarks" / "turning.csv").splitlines()
    assert lines[2:] == [
        "| SAC | `--gamma 0.9` | 30k | 1 | 99.5 | 0.03 | 0.80 | 1 of 2 | 0123456 |",
        "| DiffSAC | `--gamma 0.9` | 30k | 2 | 97.0 | 0.45 | 0.10 | 0 of 1 | 0123456 |",
    ]


def test_pages_and_images(checkout, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["plot.py", "--root", str(checkout)])
    assert plot.main() == 0
    page = (checkout / "README.md").read_text()
    assert page.startswith("Top\n") and page.endswith("End\n")
    assert "No results" not in page and page.count("|---|") >= len(plot.TABLES)
    images = sorted((checkout / "benchmarks" / "figures").glob("*.png"))
    assert [image.stem for image in images] == [
        "ablation_k",
        "aggregate",
        "curves_off_policy",
        "curves_on_policy",
        "reference",
        "wall_clock_off_policy",
        "wall_clock_on_policy",
    ]
    from matplotlib import pyplot

    for image in images:
        pixels = pyplot.imread(image)
        assert min(pixels.shape[:2]) > 200 and pixels[..., :3].std() > 0.02, f"{image} shows nothing"
    linked = (checkout / "benchmarks" / "README.md").read_text()
    assert linked == "<!-- figure aggregate: A caption -->\n\n![A caption](figures/aggregate.png)\n\n<!-- end -->\n"
    # Results elsewhere get a page and figures of their own, and leave those of the checkout alone.
    monkeypatch.setattr("sys.argv", ["plot.py", "--results", str(checkout / "benchmarks" / "results")])
    assert plot.main() == 0
    own = (checkout / "benchmarks" / "results" / "results.md").read_text()
    assert "![aggregate](figures/aggregate.png)" in own and "| Hopper-v4 | 120k | 1 2 3 |" in own
    assert "bandit" not in own and (checkout / "benchmarks" / "results" / "figures" / "aggregate.png").exists()
    for folder in (checkout / "none", checkout / "benchmarks"):  # which has other CSV files
        monkeypatch.setattr("sys.argv", ["plot.py", "--results", str(folder)])
        assert plot.main() == 2 and "no CSV files of export.py" in capsys.readouterr().err
    assert (checkout / "README.md").read_text() == page
    # A second call changes nothing.
    monkeypatch.setattr("sys.argv", ["plot.py", "--tables", "--root", str(checkout)])
    capsys.readouterr()
    assert plot.main() == 0 and capsys.readouterr().out == ""


def test_any_subset_of_results(checkout, tmp_path, monkeypatch, capsys):
    """Tables and figures without data say so or are left out, one algorithm alone is enough for the others."""
    for present in ([], ["sac_jax__Hopper-v4"], ["diffsac_jax__Walker2d-v4"], ["diffppo_jax__Hopper-v4"]):
        root = tmp_path / (present[0] if present else "none")
        (root / "benchmarks" / "results").mkdir(parents=True)
        for name in present:
            source = checkout / "benchmarks" / "results" / f"{name}.csv"
            (root / "benchmarks" / "results" / f"{name}.csv").write_bytes(source.read_bytes())
        (root / "benchmarks" / "reference.csv").write_bytes((checkout / "benchmarks" / "reference.csv").read_bytes())
        (root / "README.md").write_text("".join(f"<!-- table {n} -->\n<!-- end -->\n" for n in plot.TABLES))
        monkeypatch.setattr("sys.argv", ["plot.py", "--root", str(root)])
        assert plot.main() == 0
        page = (root / "README.md").read_text()
        assert page.count("No results for the table") >= (len(plot.TABLES) if not present else 4)
        assert len(list((root / "benchmarks" / "figures").glob("*.png"))) == (3 if present else 0)


def test_unknown_table_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "README.md").write_text("<!-- table no-such -->\n<!-- end -->\n")
    monkeypatch.setattr("sys.argv", ["plot.py", "--tables", "--root", str(tmp_path)])
    assert plot.main() == 2
    assert "no-such" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- committed pages


def test_committed_tables_match_the_results():
    """What `python benchmarks/plot.py --tables` would write is what the pages say."""
    folder = plot.ROOT / "benchmarks"
    results = plot.load(folder / "results")
    found = plot.pages(plot.ROOT)
    assert found and "README.md" in {page.name for page in found}
    for page in found:
        assert plot.updated(page, results, folder) == page.read_text(), f"{page}: run plot.py --tables"


def test_committed_figures_exist():
    """Every figure that a page shows exists and is not empty."""
    for page in plot.pages(plot.ROOT):
        for name in plot.re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", page.read_text()):
            assert (page.parent / name).stat().st_size > 5000, f"{page} shows {name}"


def test_the_main_quantities_are_measured():
    rows = plot.read_rows(plot.ROOT / "benchmarks" / "speed.csv")
    assert {row["quantity"] for row in rows} >= set(plot.MAIN_QUANTITIES)


def test_reference_rows_are_complete():
    with (plot.ROOT / "benchmarks" / "reference.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 20
    for row in rows:
        assert row["source"] and row["metric"] in plot.REFERENCE_METRICS and row["kind"] in plot.FAMILIES
        assert float(row["mean"]) > 0 and int(row["steps"]) > 0
