"""Every table, by hand from made-up results."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import export, tables
from benchmarks.pages import ROOT
from benchmarks.results import Pair, load, read_rows
from envs import UserError
from tests.benchmarks.conftest import made_up_rows
from tests.benchmarks.untrained import evaluated_run


def test_off_policy_table(results):
    # Equal steps on Hopper: DiffWPO's 12 evaluations. The last three stochastic ones of SAC are 10 * 11 + seed.
    _, _, hopper, walker, *_ = tables.family_table(results, "off-policy").splitlines()
    assert hopper == (
        "| Hopper-v4 | 120k | 1-3 | 224 ± 2.0 / 112 ± 1.0 (-2.0) | 444 ± 2.0 / 222 ± 1.0 (-2.0)"
        " | 334 ± 2.0 / 167 ± 1.0 |"
    )
    assert walker == ("| Walker2d-v4 | 150k | 1-3 | 284 ± 2.0 / 142 ± 1.0 (-2.0) | 564 ± 2.0 / 282 ± 1.0 (-2.0) | - |")
    assert "entropy" in tables.family_table(results, "off-policy").splitlines()[-1]
    short = tables.family_table(results, "off-policy", short=True).splitlines()
    assert short[2] == "| Hopper-v4 | 120k | 1-3 | 224 ± 2.0 (-2.0) | 444 ± 2.0 (-2.0) | 334 ± 2.0 |"
    assert len(short) == 6 and short[-1].startswith("Deterministic policy: mean of the last ten evaluations")
    assert "entropy" not in tables.family_table({"diffwpo_jax": results["diffwpo_jax"]}, "off-policy")


def test_table_of_the_curves_that_go_on(results):
    """DiffWPO ends at 120k on Hopper, the others at 150k; on Walker2d all end at 150k and none goes on."""
    *rows, below = tables.TRAINING["off-policy-beyond"](results, None).splitlines()[2:-1]
    line = "| Hopper-v4 | 150k | 1-3 | 284 ± 2.0 / 142 ± 1.0 (-2.0) | 564 ± 2.0 / 282 ± 1.0 (-2.0) |"
    assert rows == [line] and below == ""
    (longer,) = [replace(curve.until(130_000), seed=9) for curve in results["sac_jax"]["Hopper-v4"][:1]]
    both = results | {"diffwpo_jax": {"Hopper-v4": [*results["diffwpo_jax"]["Hopper-v4"], longer]}}
    line = tables.TRAINING["off-policy-beyond"](both, None).splitlines()[2]
    assert line.startswith("| Hopper-v4 | 130k | DiffWPO: 9; others: 1-3 | ")
    assert tables.TRAINING["off-policy-beyond"]({"sac_jax": results["sac_jax"]}, None) == ""


def test_published_returns_are_beside_those_at_as_many_steps(results):
    """Of a published number at 120k and of one at 150k; with all at 150k or one that ends at 120k."""
    at_120k, at_150k = (reference_row(steps) | {"kind": "off-policy"} for steps in (120_000, 150_000))
    (line,) = tables.reference_table(results, [at_120k]).splitlines()[2:]
    assert line == ("| Hopper-v4 | 120k | training | PPO 1 | SAC 61.0 ± 0.5; DiffSAC 121 ± 0.5; DiffWPO 91.0 ± 0.5 |")
    (line,) = tables.reference_table(results, [at_150k]).splitlines()[2:]
    assert line.endswith("| SAC 76.0 ± 0.5; DiffSAC 151 ± 0.5 |")
    sac = {"algorithm": "SAC (others)", "std_over_seeds": "7", "seeds": "10", "steps": "119000", "env_id": "Hopper-v2"}
    (line,) = tables.reference_table(results, [at_120k | sac]).splitlines()[2:]
    assert line == (
        "| Hopper-v4; published: Hopper-v2 | 120k; published: 119k | training | SAC (others) 1 ± 7 (10 seeds)"
        " | SAC 61.0 ± 0.5 |"
    )
    assert tables.reference_table(results, [reference_row(130_000) | {"kind": "off-policy"}]) == ""


def test_on_policy_table(results):
    # Training return at 150k: (5 * 15 + seed) / 2 against (10 * 15 + seed) / 2.
    _, _, hopper, *_ = tables.family_table(results, "on-policy").splitlines()
    assert hopper == "| Hopper-v4 | 150k | 1-3 | 38.5 ± 0.5 (-2.0) | 76.0 ± 0.5 (-2.0) |"


def test_steps_are_said_in_thousands_or_millions():
    said = [tables.thousands(steps) for steps in (480, 90_000, 1_000_000, 1_500_000, 3_993_600)]
    assert said == ["0.48k", "90k", "1M", "1.5M", "3.994M"]


def test_playground_table(results):
    # Deterministic and stochastic: twice 10 * 3 + seed and once, against twice 20 * 3 + seed; 3: the mean of 2, 3, 4.
    *_, line, _, _ = tables.family_table(results, "playground").splitlines()
    scores = "64.0 ± 2.0 / 32.0 ± 1.0 (-2.0) | 124 ± 2.0 / 62.0 ± 1.0 (-2.0)"
    assert line == f"| playground/CheetahRun | 40k | 1-3 | {scores} |"


def cells(table):
    """Of each line of Markdown tables below their headers."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [line for line in lines if line[0] != "algorithm / base"]


def test_verdicts(results):
    off_policy, on_policy, playground, below = tables.verdicts(results).split("\n\n")
    assert off_policy.splitlines()[0] == (
        "| algorithm / base | return | seeds | verdict | p | IQM | mean ratio | P | Hopper-v4 | Walker2d-v4 |"
    )
    # At the steps of the two alone: 15 evaluations on Hopper, too. All of DiffSAC's are twice SAC's: a narrow interval,
    # and of the 20 orders of three and three seeds on either environment the first and the last: p = 2 / 400.
    iqm, ratio = "1.99 (1.97 to 2.00)", "1.99 (1.98 to 2.00)"
    twice = ["3", "**better**", "0.005", iqm, ratio, "1.00 (1.00 to 1.00)", "1.99", "1.99"]
    assert cells(off_policy)[:2] == [["DiffSAC / SAC", policy, *twice] for policy in ("deterministic", "stochastic")]
    # On one environment three seeds have p = 2 / 20 at the least.
    found = {(line[0], line[1]): line for line in cells(off_policy)}
    assert len(found) == len(cells(off_policy)) == 6
    over_sac = found["DiffWPO / SAC", "deterministic"]
    assert over_sac[2:5] == ["3", "undecided", "0.1"] and over_sac[5].startswith("1.49 (1.4") and over_sac[-1] == "-"
    over_diffsac = found["DiffWPO / DiffSAC", "deterministic"]
    assert over_diffsac[2:5] == ["3", "undecided", "0.1"] and over_diffsac[5].startswith("0.75 (0.7")
    for line, policy in zip(cells(on_policy), ("training", "deterministic", "stochastic"), strict=True):
        assert line[:5] == ["DiffPPO / PPO", policy, "3", "**better**", "0.005"] and line[5].startswith("1.9")
    for line, policy in zip(cells(playground), ("deterministic", "stochastic"), strict=True):
        assert line[:5] == ["DiffPPO / PPO", policy, "3", "undecided", "0.1"] and line[5].startswith("1.94")
    # Of 11 tests the five with 0.005 lie above 0.05 / 11 = 0.0045.
    assert below == "With p <= 0.05 by Holm's correction for all 11 tests above: none."


def test_holms_correction_by_hand():
    """0.01 is at most 0.05 / 4, 0.016 at most 0.05 / 3; 0.03 is above 0.05 / 2 and keeps 0.04 out, too."""
    assert tables.holm([(0.04, "d"), (0.016, "b"), (0.01, "a"), (0.03, "c")]) == ["a", "b"]
    assert tables.holm([(0.04, "d"), (0.016, "b"), (0.01, "a"), (0.025, "c")]) == ["a", "b", "c", "d"]


def test_a_verdict_in_words(results):
    words = tables.verdict_in_words(results, "diffsac_jax", "sac_jax", "deterministic")
    assert words == "**better**, 1.99 (1.97 to 2.00), p = 0.005"
    certain = {name: {e: results[name][e] * 2 for e in results[name]} for name in ("sac_jax", "diffsac_jax")}
    assert tables.verdict_in_words(certain, "diffsac_jax", "sac_jax", "deterministic").endswith(", p < 0.001")
    assert tables.verdict_in_words(results, "diffsac_jax", "crossq_jax", "deterministic").startswith("none: fewer than")
    for name, policy in (("diffsac", "deterministic"), ("diffsac_jax", "determined")):
        with pytest.raises(UserError, match="which nobody makes"):
            tables.verdict_in_words(results, name, "sac_jax", policy)
    # Six seeds of each: p = 4e-6, and what remains says of which family it is.
    below = tables.verdicts(certain).split("\n\n")[-1]
    assert below == (
        "With p <= 0.05 by Holm's correction for all 2 tests above:"
        " off-policy DiffSAC / SAC, deterministic; off-policy DiffSAC / SAC, stochastic."
    )


def test_an_estimate_that_has_no_number_is_a_dash():
    assert tables.estimate(2.0, np.nan, np.nan) == "-" and tables.estimate(2.0, 1.0, 3.0) == "2.00 (1.00 to 3.00)"


def test_short_verdicts_are_of_the_first_policies_without_the_probability_of_improvement(results):
    short = tables.verdicts(results, "off-policy", "on-policy", short=True)
    full = [line for line in cells(tables.verdicts(results, "off-policy", "on-policy")) if line[1] != "stochastic"]
    assert cells(short) == [[*line[:6], *line[8:]] for line in full]
    assert short.count("| IQM | Hopper-v4 |") == 2


def test_verdicts_for_an_algorithms_page(results):
    """Its own pairs only, in the order of all."""
    every = cells(tables.verdicts(results, "off-policy", "on-policy"))
    for name in ("diffsac", "diffwpo", "diffppo"):
        own = cells(tables.TABLES[f"verdicts-{name}"](results, None))
        assert own == [line for line in every if line[0].startswith(f"{tables.label(f'{name}_jax')} /")] and own


def test_verdicts_of_few_seeds(results):
    two = {name: {e: curves[:2] for e, curves in results[name].items()} for name in ("sac_jax", "diffsac_jax")}
    first = cells(tables.verdicts(two))[0]
    assert first[:7] == ["DiffSAC / SAC", "deterministic", "2", "none: fewer than 3 seeds", "-", "-", "-"]
    assert first[7:] == ["-", "1.99", "1.99"]
    two["sac_jax"]["Hopper-v4"], two["diffsac_jax"]["Hopper-v4"] = (results[n]["Hopper-v4"] for n in two)
    assert cells(tables.verdicts(two))[0][2:5] == ["2 to 3", "undecided on Hopper-v4", "0.1"]
    below_zero = {**two, "sac_jax": {e: [*results["sac_jax"][e][1:], losing(results, e)] for e in ("Hopper-v4",)}}
    assert tables.verdicts(below_zero) == ""  # no ratio, and no verdict from several seeds either


def test_the_rules_of_a_verdict():
    estimates = {"iqm": (0.97, 0.9, 1.1), "mean_ratio": (0.96, 0.8, 1.2), "improvement": (0.3, 0.1, 0.45)}
    pair = Pair("a", "b", "training", {"X": 1}, [3], **estimates, p=0.04, higher=False)
    ratios = {"X": 0.97}
    said = ["**behind**", "0.04", "0.97 (0.90 to 1.10)", "0.96 (0.80 to 1.20)", "0.30 (0.10 to 0.45)"]
    assert tables.verdict_of(pair, ratios) == said
    for word, seeds, iqm in (
        ("level", [5], (1.0, 0.8, 1.25)),
        ("level", [5, 9], (1.0, 0.9, 1.1)),
        ("undecided", [4, 9], (1.0, 0.9, 1.1)),
        ("undecided", [9], (1.0, 0.79, 1.1)),
        ("undecided", [9], (1.1, 0.9, 1.26)),
        ("undecided", [9], (2.0, 1.5, 2.5)),
    ):
        verdict = tables.verdict_of(replace(pair, p=0.051, seeds=seeds, iqm=iqm), ratios)
        assert verdict[:2] == [word, "0.051"], (seeds, iqm)
    # Half of the base's score on one environment and twice on another is not level, whatever the IQM.
    apart = replace(pair, p=0.051, seeds=[5], steps={"X": 1, "Y": 1})
    assert tables.verdict_of(apart, {"X": 0.97, "Y": 1.26})[0] == "undecided"
    assert tables.verdict_of(apart, {"X": 0.97, "Y": 1.25})[0] == "level"
    assert tables.verdict_of(replace(apart, steps={"X": 1}), {"X": 0.97, "Y": 1.26})[0] == "level on X"
    assert tables.verdict_of(replace(pair, higher=True), {"X": 0.97, "Y": 1.0})[0] == "**better** on X"


def losing(results, env_id):
    """A seed of SAC whose returns are negative."""
    curve = results["sac_jax"][env_id][0]
    return replace(curve, measured={metric: -values for metric, values in curve.measured.items()})


def test_a_run_whose_first_evaluation_is_late_is_left_out(results):
    """DiffPPO evaluated from 100k on beside PPO that ended at 40k; a run that took no time has no pace."""
    short = [curve.until(40_000) for curve in results["ppo_jax"]["Hopper-v4"]]
    late = [after(curve, 100_000) for curve in results["diffppo_jax"]["Hopper-v4"]]
    both = {"ppo_jax": {"Hopper-v4": short}, "diffppo_jax": {"Hopper-v4": late}}
    line = tables.family_table(both, "on-policy").splitlines()[2]
    assert line == "| Hopper-v4 | 40k | 1-3 | 11.0 ± 0.5 (-2.0) | - |"
    assert "DiffPPO" not in tables.seeds_table(both, "on-policy") and tables.verdicts(both) == ""
    assert tables.reference_table(both, [reference_row(90_000)]).count("DiffPPO") == 0
    assert tables.reference_table({"diffppo_jax": both["diffppo_jax"]}, [reference_row(90_000)]) == ""
    at_once = [replace(curve, wall_time=0.0 * curve.wall_time) for curve in short]
    assert "| 40k | 0.0 |" in tables.cost_table({"ppo_jax": {"Hopper-v4": at_once}})


def after(curve, step):
    keep = curve.steps >= step
    measured = {metric: values[keep] for metric, values in curve.measured.items()}
    return replace(curve, steps=curve.steps[keep], measured=measured, wall_time=curve.wall_time[keep])


def reference_row(steps):
    row = {"kind": "on-policy", "metric": "training", "algorithm": "PPO", "env_id": "Hopper-v4", "steps": str(steps)}
    return row | {"mean": "1", "std_over_seeds": "", "seeds": ""}


def test_seeds_table(results):
    header, _, first, *_ = tables.seeds_table(results, "off-policy").splitlines()
    assert header == "| Environment | Algorithm | steps | policy | score by seed | score | entropy | maximum |"
    # Deterministic, SAC, 12 evaluations: twice 10 * 11 + seed, and at most twice 10 * 12 + seed.
    assert (
        first
        == "| Hopper-v4 | SAC | 120k | deterministic | 1: 222, 2: 224, 3: 226 | 224 ± 2.0 | -2.0 ± 1.0 | 244 ± 2.0 |"
    )


def test_entropy_that_was_not_recorded_is_a_dash(results):
    lines = tables.seeds_table(results, "off-policy").splitlines()
    line = next(x for x in lines if x.startswith("| Hopper-v4 | DiffWPO"))
    assert line.endswith(" | 334 ± 2.0 | - | 364 ± 2.0 |"), line


def test_seeds_are_named_where_they_differ(results):
    curves = results["sac_jax"]["Hopper-v4"]
    assert tables.common_seeds({"sac_jax": curves, "diffsac_jax": curves}) == "1-3"
    assert tables.common_seeds({"sac_jax": curves, "diffsac_jax": curves[:1]}) == "SAC: 1-3; DiffSAC: 1"
    three = {"sac_jax": curves, "diffsac_jax": curves[:1], "diffwpo_jax": curves[:1]}
    assert tables.common_seeds(three) == "SAC: 1-3; others: 1"
    assert tables.common_seeds(three | {"diffwpo_jax": curves[:2]}) == "SAC: 1-3; DiffSAC: 1; DiffWPO: 1-2"
    five = {"sac_jax": curves, "diffsac_jax": curves} | {name: curves[:1] for name in ("diffwpo_jax", "a", "b")}
    assert tables.common_seeds(five) == "SAC, DiffSAC: 1-3; others: 1"


def test_seeds_in_a_row_are_a_range(results):
    (curve,) = results["sac_jax"]["Hopper-v4"][:1]
    for seeds, said in (
        ([7], "7"),
        ([1, 2, 3], "1-3"),
        (range(1, 11), "1-10"),
        ([1, 2, *range(7, 11), 12], "1-2, 7-10, 12"),
    ):
        assert tables.seeds_of([replace(curve, seed=seed) for seed in seeds]) == said


def test_cost_table(results):
    # What the runs took: 15 evaluations of 100 s.
    line = next(x for x in tables.cost_table(results).splitlines() if x.startswith("| SAC | Hopper-v4"))
    assert line == "| SAC | Hopper-v4 | 150k | 25.0 | 200 | cpu cpu, 1 thread |"


def test_minutes_of_an_algorithm_are_from_its_quickest_environment_to_its_slowest(results):
    """SAC's on Walker2d took three times as long as on Hopper; DiffWPO's 12 evaluations 20 minutes."""
    longer = [replace(curve, wall_time=3 * curve.wall_time) for curve in results["sac_jax"]["Walker2d-v4"]]
    own = results | {"sac_jax": results["sac_jax"] | {"Walker2d-v4": longer}}
    lines = tables.minutes_table(own, "off-policy").splitlines()[2:]
    assert lines == ["| SAC | 150k | 25 to 75 |", "| DiffSAC | 150k | 25 |", "| DiffWPO | 120k | 20 |"]


def test_ablation_table(results):
    # K = 8 has no runs of its own: the default runs serve, cut at 90k like the others.
    lines = tables.ablation_table(results, "diffsac", "deterministic", "stochastic").splitlines()
    assert lines[-1] == "| Hopper-v4 | 90k | 8 | 1-3 | 324 ± 2.0 | 162 ± 1.0 | -2.0 ± 1.0 | 200 | diffsac_jax |"
    assert [line.split(" | ")[:3] for line in lines[2:]] == [["| Hopper-v4", "90k", k] for k in "148"]
    assert tables.ablation_table({"diffsac_jax": results["diffsac_jax"]}, "diffsac", "stochastic") == ""


def test_ablations_of_several_environments(results, tmp_path):
    """Each with its own K; the default runs serve for K = 8 only where they are of the same commit."""
    for row in (rows := made_up_rows("diffsac_k2", "Walker2d-v4", 1, 5, 3)):
        row["commit"] = "9876543210"
    export.merge(rows, tmp_path)
    export.merge(made_up_rows("diffsac_k16", "Walker2d-v4", 1, 4, 3), tmp_path / "same")
    both = {**results, **load(tmp_path)}
    lines = tables.ablation_table(both, "diffsac", "stochastic").splitlines()[2:]
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| Hopper-v4", "90k", "1"],
        ["| Hopper-v4", "90k", "4"],
        ["| Hopper-v4", "90k", "8"],
        ["| Walker2d-v4", "50k", "2"],
    ]
    lines = tables.ablation_table({**both, **load(tmp_path / "same")}, "diffsac", "stochastic").splitlines()[5:]
    assert [line.split(" | ")[2] for line in lines] == ["2", "8", "16"]


def test_search_table(results):
    lines = tables.search_table(results).splitlines()
    assert lines[0] == "| Algorithm | arguments | steps | Hopper-v4, seed 2 |"
    # Training: half of 9 + 2. Deterministic: twice the mean of 7, 8, 9 plus 2.
    assert lines[2:] == ["| PPO | `--ent-coef 0.01` | 90k | 5.5 (20.0) |"]


def test_runs_table(results):
    line = next(x for x in tables.runs_table(results).splitlines() if "ppo_ent" in x)
    assert line == (
        "| ppo_ent0.01 | Hopper-v4 | 2 | 90k | `--total-timesteps 90000 --ent-coef 0.01` | 0123456"
        " | jax 1, mujoco 1, gymnasium 1 |"
    )


def test_bandit_table(checkout):
    lines = tables.bandit_table(checkout / "benchmarks" / "bandit.csv").splitlines()
    assert lines[2] == "| four | SAC | - | 1.400 | 0.300 | 0.200 | 0.000 | 1.300 |"
    assert lines[3] == "| four | DiffSAC | 8 | 0.500 | 0.000 | 0.400 | **0.900** | **0.200** |"
    assert lines[-1].startswith("60 updates; mean over seeds 1, of the worst region the least; bold: the best of a")
    assert lines[-1].endswith("; commit 0000000; cpu; jax 1.")


def test_turning_table(checkout):
    lines = tables.turning_table(checkout / "benchmarks" / "turning.csv").splitlines()
    assert lines[2:] == [
        "| SAC | `--gamma 0.9` | 30k | 1 | 99.5 | 0.03 | 0.80 | 1 of 2 | 0123456 |",
        "| DiffSAC | `--gamma 0.9` | 30k | 2 | 97.0 | 0.45 | 0.10 | 0 of 1 | 0123456 |",
    ]


def test_hidden_table(checkout):
    lines = tables.TABLES["hidden"]({}, checkout / "benchmarks").splitlines()
    assert lines[2:4] == [
        "| SAC | `--gamma 0.9` | 4k | 1: 1.30, 2: 2.30, 3: 3.30 | 2.30 | -2.0 | 0123456 |",
        "| DiffSAC | `--gamma 0.9` | 4k | 1: 1.60, 2: 2.60, 3: 3.60 | 2.60 | -2.0 | 0123456 |",
    ]
    assert lines[-1].startswith("Stochastic policy, mean of its last evaluations.") and "nats" in lines[-1]


def test_hidden_table_keeps_other_arguments_apart(tmp_path):
    """Which `merge` keeps out of one file."""
    for seed, alpha in ((1, "0.02"), (2, "0.02"), (101, "0.01")):
        arguments = f"--total-timesteps 4000 --alpha {alpha}"
        rows = made_up_rows("sac_jax", "m:HiddenTarget-v0", seed, 4, 0.1, arguments, every=1000)
        export.write_csv(tmp_path / f"{seed}.csv", export.COLUMNS, rows)
    lines = tables.hidden_table(load(tmp_path)).splitlines()
    assert [line.split(" | ")[1:4] for line in lines[2:4]] == [
        ["`--alpha 0.01`", "4k", "101: 101.30"],
        ["`--alpha 0.02`", "4k", "1: 1.30, 2: 2.30"],
    ]


def test_scripts_of_ones_own_stand_after_ours(tmp_path):
    """In the tables of the turning agent and of the hidden target, too."""
    columns = ("exp_name", "script", "arguments", "seed", "global_step", "commit", "return", "left", "middle", "right")
    for script in ("my_sac", "diffsac_jax"):
        rows = [
            *read_rows(tmp_path / "turning.csv"),
            dict(zip(columns, [script, script, "", 1, 30000, "0", 9, 1, 0, 1], strict=True)),
        ]
        export.write_csv(tmp_path / "turning.csv", columns, rows)
        own = [{**row, "script": script} for row in made_up_rows(script, "m:HiddenTarget-v0", 1, 4, 0.1)]
        export.write_csv(tmp_path / f"{script}.csv", export.COLUMNS, own)
    for table in (tables.turning_table(tmp_path / "turning.csv"), tables.hidden_table(load(tmp_path))):
        assert [line.split(" | ")[0] for line in table.splitlines()[2:4]] == ["| DiffSAC", "| my_sac"]


def test_the_main_quantities_are_measured():
    rows = read_rows(ROOT / "benchmarks" / "speed.csv")
    for quantity in tables.MAIN_QUANTITIES:
        assert any(re.fullmatch(quantity, row["quantity"]) for row in rows), quantity


def test_agents_table(results, checkout, tmp_path):
    """A copy's own score, and beside it all seeds' at its steps: DiffSAC's rows go on to 150k."""
    _, _, row, _, below = tables.agents_table(results, checkout / "benchmarks" / "agents").splitlines()
    # 8: the mean of 7, 8, 9, of an older run than that of the results, whose scores are twice 20 * 11 + seed.
    assert row == "| `hopper` | DiffSAC | Hopper-v4 | 120k | 2 | 8.0 | fedcba9 | 1: 442, 2: 444, 3: 446 |"
    assert below.startswith("Deterministic policy: ") and below.endswith(" twenty).")
    evaluated_run(tmp_path / "own", {2: [1.0]}, exp_name="own")
    (tmp_path / ".cache").mkdir()  # no copy
    assert "| `own` | DiffSAC | Hopper-v4 | 120k | 2 | 1.0 | fedcba9 | - |" in tables.agents_table(results, tmp_path)
    ran = {"git_commit": None, "git_dirty": None, "resumed": [{"git_commit": "f" * 40, "git_dirty": True}]}
    (tmp_path / "own" / "versions.json").write_text(json.dumps(ran))
    assert "| 1.0 | fffffff* unknown | - |" in tables.agents_table(results, tmp_path)


def test_settings_are_the_defaults_of_the_scripts():
    off, on = (tables.TABLES[name]({}, None).splitlines() for name in ("settings-off-policy", "settings-on-policy"))
    assert off[0] == "| argument | SAC | DiffSAC | DiffWPO | CrossQ | DiffCrossQ |"
    assert "| `--policy-lr` | 0.0003 | 0.0003 | 0.0003 | 0.001 | 0.0003 |" in off
    assert "| `--tau` | 0.005 | 0.005 | 0.005 | - | - |" in off
    assert "| `--kl-bound` | - | - | 0.2 | - | - |" in off
    assert on[0] == "| argument | PPO | DiffPPO |" and "| `--ent-coef` | 0.0 | - |" in on
    assert {"| `--num-envs` | 8 | 8 |", "| `--alpha` | - | 0.001 |"} <= {*on}
    assert not any("env-id" in line for line in off + on)  # of the arguments that all have


def test_numbers_of_seeds():
    assert [tables.span(counts) for counts in ({3}, [3, 3], {10, 3, 5})] == ["3", "3", "3 to 10"]


def test_runs_of_changed_code_have_a_star(tmp_path):
    for seed, dirty in ((1, "false"), (2, "true"), (3, "")):
        rows = made_up_rows("sac_jax", "Hopper-v4", seed, 2, 1)
        export.merge([row | {"commit": str(seed) * 10, "dirty": dirty} for row in rows], tmp_path)
    assert " | 1111111 2222222* 3333333* | " in tables.runs_table(load(tmp_path))
