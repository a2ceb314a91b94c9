"""Every figure is drawn and shows something; the committed pages show figures that exist."""

import re

import pytest
from matplotlib.image import imread

from benchmarks.export import write_csv
from benchmarks.figures import draw_figures
from benchmarks.pages import ROOT, main, pages
from benchmarks.results import load, read_rows


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
        "reference",
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
    reference = read_rows(checkout / "benchmarks" / "reference.csv")
    assert len(draw_figures(load(tmp_path), reference, tmp_path / "figures")) == 3


def test_an_ablation_that_never_learned_has_no_speed(checkout, tmp_path):
    """As with fewer steps than random ones: its speed is an empty field."""
    for path in (checkout / "benchmarks" / "results").glob("*_k?__*.csv"):
        rows = [{**row, "steps_per_second": ""} for row in read_rows(path)]
        write_csv(tmp_path / path.name, rows[0].keys(), rows)
    assert draw_figures(load(tmp_path), [], tmp_path / "figures") == [tmp_path / "figures" / "ablation_k.png"]


def test_nothing_to_draw(tmp_path):
    assert draw_figures({}, read_rows(ROOT / "benchmarks" / "reference.csv"), tmp_path) == []


def test_committed_figures_exist():
    """Every figure that a page shows exists and is not empty."""
    for page in pages(ROOT):
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", page.read_text()):
            assert (page.parent / name).stat().st_size > 5000, f"{page} shows {name}"
