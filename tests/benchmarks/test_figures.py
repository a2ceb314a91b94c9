"""Every figure is drawn and shows something; the committed pages show figures that exist."""

import dataclasses
import re

import numpy as np
import pytest
from matplotlib.image import imread

from benchmarks import figures
from benchmarks.export import write_csv
from benchmarks.figures import draw_figures
from benchmarks.pages import ROOT, main, pages
from benchmarks.results import Curve, load, read_rows


def test_every_figure_shows_something(checkout, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pages", "--root", str(checkout)])
    assert main() == 0
    images = sorted((checkout / "benchmarks" / "figures").glob("*.png"))
    assert [image.stem for image in images] == [
        "ablation_k",
        "aggregate",
        "curves_off_policy",
        "curves_on_policy",
        "curves_playground",
        "wall_clock_off_policy",
        "wall_clock_on_policy",
    ]
    for image in images:
        pixels = imread(image)
        assert min(pixels.shape[:2]) > 200 and pixels[..., :3].std() > 0.02, f"{image} shows nothing"


@pytest.mark.parametrize("present", ["sac_jax__Hopper-v4", "diffsac_jax__Walker2d-v4", "diffppo_jax__Hopper-v4"])
def test_one_algorithm_alone(checkout, tmp_path, present):
    """Figures without data are left out, one algorithm alone is enough for the others."""
    source = checkout / "benchmarks" / "results" / f"{present}.csv"
    (tmp_path / source.name).write_bytes(source.read_bytes())
    assert len(draw_figures(load(tmp_path), tmp_path / "figures")) == 2


def test_an_ablation_that_never_learned_has_no_speed(checkout, tmp_path):
    """As with fewer steps than random ones: its speed is an empty field."""
    for path in (checkout / "benchmarks" / "results").glob("*_k?__*.csv"):
        rows = [{**row, "steps_per_second": ""} for row in read_rows(path)]
        write_csv(tmp_path / path.name, rows[0].keys(), rows)
    assert draw_figures(load(tmp_path), tmp_path / "figures") == [tmp_path / "figures" / "ablation_k.png"]


def test_nothing_to_draw(tmp_path):
    assert draw_figures({}, tmp_path) == []


def test_committed_figures_exist():
    """Every figure that a page shows exists and is not empty."""
    for page in pages(ROOT):
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", page.read_text()):
            assert (page.parent / name).stat().st_size > 5000, f"{page} shows {name}"


def line_of(axis, name):
    """The points of the line with this label."""
    (line,) = (line for line in axis.lines if line.get_label() == name)
    return np.array(line.get_data())


def test_curves_are_of_the_policy_that_the_axis_names(results):
    """SAC's on Hopper: 10 i + seed for the stochastic policy, twice that for the deterministic one, every 10k steps."""
    i = np.arange(1, 13)
    axes = figures.curves_figure(results, "off-policy").axes
    for axis, factor, policy in ((axes[0], 2, "deterministic"), (axes[2], 1, "stochastic")):
        assert axis.get_ylabel() == f"{policy} return"
        np.testing.assert_allclose(line_of(axis, "SAC"), [10 * i, factor * (10 * i + 2)])
        np.testing.assert_allclose(line_of(axis, "DiffSAC"), [10 * i, factor * (20 * i + 2)])
    over_time = figures.curves_figure(results, "off-policy", over_time=True).axes[0]
    np.testing.assert_allclose(line_of(over_time, "SAC"), [100 * i / 60, 2 * (10 * i + 2)])


def curve(seed, steps, returns):
    steps = np.array(steps)
    return Curve(seed, steps, {"training": np.array(returns, float)}, steps / 10.0, {})


def test_a_mean_is_over_the_steps_that_all_seeds_were_evaluated_at():
    ((axis,),) = figures.panels_of(1, 1, 3, 3)[1]
    curves = [curve(1, [1000, 2000, 3000, 4000], [1, 2, 3, 4]), curve(2, [2000, 4000, 6000], [20, 40, 60])]
    figures.draw_curve(axis, curves, "ppo_jax", "training", over_time=False)
    np.testing.assert_array_equal(line_of(axis, "PPO"), [[2, 4], [11, 22]])


def test_points_of_the_pairs(results):
    """DiffSAC over SAC is below its family's title: the deterministic policy filled, the stochastic one open."""
    left, right = figures.aggregate_figure(results).axes
    assert left.get_xlabel().startswith("IQM") and right.get_xlabel().startswith("probability")
    titles = [text.get_text() for text in left.get_yticklabels()]
    assert titles[:3] == ["Hopper, Walker2d; 120k or 150k steps", "DiffSAC / SAC", "DiffWPO / SAC\nHopper"]
    assert len(titles) == 3 + 5
    assert right.texts[0].get_text() == "deterministic: p = 0.005, 3 seeds\nstochastic: p = 0.005, 3 seeds"
    assert left.get_xscale() == "log" and {"1", "2"} <= {text.get_text() for text in left.get_xticklabels()}
    for axis, value in ((left, 1.99), (right, 1.0)):
        for line, height, filled in ((axis.lines[1], 0.88, True), (axis.lines[3], 1.12, False)):
            assert line.get_xdata()[0] == pytest.approx(value, abs=0.005)
            assert line.get_ydata()[0] == pytest.approx(height)
            assert (line.get_markerfacecolor() != "white") is filled


def test_an_ablation_shows_each_level_its_score_and_speed(results):
    """At 90k: K times the mean of 7, 8 and 9, and the seed; of the default, which is K = 8, 20 times."""
    own = {k: results[f"diffsac_k{k}"]["Hopper-v4"] for k in (1, 4)}
    faster = {
        f"diffsac_k{k}": {
            "Hopper-v4": [
                dataclasses.replace(x, columns={**x.columns, "steps_per_second": str(1000 - k)}) for x in curves
            ]
        }
        for k, curves in own.items()
    }
    top, bottom = figures.ablation_figure({"diffsac_jax": results["diffsac_jax"], **faster}).axes
    np.testing.assert_allclose(line_of(top, "stochastic"), [[1, 4, 8], [10, 34, 162]])
    np.testing.assert_allclose(line_of(top, "deterministic"), [[1, 4, 8], [20, 68, 324]])
    np.testing.assert_allclose(bottom.lines[0].get_data(), [[1, 4, 8], [999, 996, 200]])
    two = {
        name: {e: x[:2] for e, x in of_env.items()} if name == "diffsac_k4" else of_env
        for name, of_env in faster.items()
    }
    top, _ = figures.ablation_figure({"diffsac_jax": results["diffsac_jax"], **two}).axes
    np.testing.assert_allclose(line_of(top, "stochastic"), [[1, 4, 8], [10, np.nan, 162]])  # two seeds have no mean
