"""Figures and tables from the committed results (benchmarks/results/*.csv) alone, offline.

    python benchmarks/plot.py             figures into benchmarks/figures, tables into README.md and the other pages
    python benchmarks/plot.py --tables    tables only (needs no matplotlib)
    python benchmarks/plot.py --results FOLDER    of your own CSV files, into FOLDER/figures and FOLDER/results.md

A table is whatever stands between `<!-- table NAME -->` and `<!-- end -->` in README.md, benchmarks/README.md or a page
of docs/; `<!-- figure NAME: CAPTION -->` holds the figure's link in the same way, once the figure exists.

The score of a run. `deterministic` and `stochastic`: the mean of its last ten evaluations (the last three where there
are fewer than twenty), with the largest evaluation beside it in the long tables. `training`: the mean return of the
last 100 training episodes at the last evaluation. Algorithms are compared at equal steps: the largest step that all
runs of a family on an environment have reached. Nothing is extrapolated.
"""

import argparse
import csv
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
POLICIES = ("deterministic", "stochastic", "training")
CONSTANTS = (
    *("env_id", "exp_name", "script", "arguments", "steps_per_second"),
    *("commit", "dirty", "jax", "mujoco", "gymnasium", "device", "threads"),
)
BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Algorithm:
    """How a name of the list (run_all.sh) is shown. Told apart without colour: by line, marker and lightness."""

    label: str
    colour: str
    line: str
    marker: str


ALGORITHMS = {
    "sac_jax": Algorithm("SAC", "#9a9a9a", "--", "s"),
    "diffsac_jax": Algorithm("DiffSAC", "#08306b", "-", "o"),
    "diffwpo_jax": Algorithm("DiffWPO", "#d95f0e", "-.", "^"),
    "ppo_jax": Algorithm("PPO", "#9a9a9a", "--", "s"),
    "ppo_std0.5": Algorithm("PPO, initial std 0.5", "#d95f0e", ":", "D"),
    "diffppo_jax": Algorithm("DiffPPO", "#08306b", "-", "o"),
    "diffppo_no_entropy": Algorithm("DiffPPO, alpha 0", "#1b7837", "-.", "^"),
}
# The first of a family is the base that the others are compared with.
FAMILIES = {
    "off-policy": ("sac_jax", "diffsac_jax", "diffwpo_jax"),
    "on-policy": ("ppo_jax", "ppo_std0.5", "diffppo_jax", "diffppo_no_entropy"),
}
# Who is compared with whom beyond its family's base: DiffWPO is DiffSAC with another actor loss.
NEAREST = {"diffwpo_jax": "diffsac_jax"}
# Which policies a family is shown by: the on-policy literature reports training returns.
FAMILY_POLICIES = {"off-policy": ("deterministic", "stochastic"), "on-policy": ("training", "deterministic")}
ENV_ORDER = ("Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid")


# --------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Curve:
    """One seed's evaluations: `steps` `[T]`, `returns` by policy `[T]` (NaN where there is none), `wall_time` `[T]` in
    seconds, and the other columns (of a resumed run every commit and version, with a space between)."""

    seed: int
    steps: np.ndarray
    returns: dict[str, np.ndarray]
    wall_time: np.ndarray
    columns: dict[str, str]

    def until(self, limit: int) -> "Curve":
        keep = self.steps <= limit
        returns = {policy: values[keep] for policy, values in self.returns.items()}
        return Curve(self.seed, self.steps[keep], returns, self.wall_time[keep], self.columns)

    def score(self, policy: str) -> float:
        """See the module's docstring."""
        values = self.returns[policy]
        if policy == "training":
            return float(values[-1])
        return float(values[-(10 if len(values) >= 20 else 3) :].mean())

    def maximum(self, policy: str) -> float:
        return float(np.nanmax(self.returns[policy]))

    @property
    def steps_per_second(self) -> float:
        return float(self.columns["steps_per_second"] or "nan")


Results = dict[str, dict[str, list[Curve]]]  # by exp_name and env_id, seeds in order


def read_rows(path: Path) -> list[dict]:
    """The rows of a CSV file, none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def load(folder: Path) -> Results:
    """All results of a folder: its files that export.py wrote."""
    results: Results = {}
    for path in sorted(folder.glob("*.csv")):
        by_seed: dict[int, list[dict]] = {}
        rows = read_rows(path)
        if not rows or not {"seed", "global_step", *CONSTANTS} <= rows[0].keys():
            continue
        for row in rows:
            by_seed.setdefault(int(row["seed"]), []).append(row)
        for seed, rows_of_seed in sorted(by_seed.items()):
            rows_of_seed.sort(key=lambda row: int(row["global_step"]))
            returns = {
                policy: np.array([float(row[f"{policy}_return"] or "nan") for row in rows_of_seed])
                for policy in POLICIES
            }
            steps = np.array([int(row["global_step"]) for row in rows_of_seed])
            wall_time = np.array([float(row["wall_time"]) for row in rows_of_seed])
            columns = {name: " ".join(dict.fromkeys(row[name] for row in rows_of_seed)) for name in CONSTANTS}
            curve = Curve(seed, steps, returns, wall_time, columns)
            results.setdefault(columns["exp_name"], {}).setdefault(columns["env_id"], []).append(curve)
    return results


def at_equal_steps(results: Results, names: tuple[str, ...], env_id: str) -> tuple[int, dict[str, list[Curve]]]:
    """The curves of those of `names` that ran on the environment, cut where the shortest of them ends."""
    present = {name: results[name][env_id] for name in names if env_id in results.get(name, {})}
    limit = min((int(curve.steps[-1]) for curves in present.values() for curve in curves), default=0)
    return limit, {name: [curve.until(limit) for curve in curves] for name, curves in present.items()}


def environments(results: Results, names: tuple[str, ...]) -> list[str]:
    """The environments on which any of `names` ran: MuJoCo's in their usual order, then the others."""
    found = {env_id for name in names for env_id in results.get(name, {})}

    def order(env_id):
        stem = env_id.split("-v")[0]
        return (ENV_ORDER.index(stem) if stem in ENV_ORDER else len(ENV_ORDER), env_id)

    return sorted(found, key=order)


# --------------------------------------------------------------------------------------------------------- statistics


def iqm(scores: list[np.ndarray]) -> float:
    """Interquartile mean of all scores (one array per environment): a quarter, rounded down, is cut at each end."""
    values = np.sort(np.concatenate(scores))
    cut = len(values) // 4
    return float(values[cut : len(values) - cut].mean())


def probability_of_improvement(x: list[np.ndarray], y: list[np.ndarray]) -> float:
    """Mean over environments of P(X > Y) + P(X = Y) / 2 for a random seed of each (Agarwal et al., 2108.13264)."""
    means = []
    for a, b in zip(x, y, strict=True):
        difference = a[:, None] - b[None, :]
        means.append(np.mean((difference > 0) + 0.5 * (difference == 0)))
    return float(np.mean(means))


def stratified_bootstrap(
    statistic: Callable[..., float], *samples: list[np.ndarray], number: int = BOOTSTRAPS, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of statistic(*samples): seeds are resampled within each environment and sample."""
    rng = np.random.default_rng(seed)
    draws = [
        statistic(*[[rng.choice(values, len(values)) for values in sample] for sample in samples])
        for _ in range(number)
    ]
    return tuple(float(x) for x in np.percentile(draws, [2.5, 97.5]))


def bootstrap_band(values: np.ndarray, number: int = BOOTSTRAPS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile band of the mean over seeds of curves `[S, T]`: lower and upper, each `[T]`."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(values), size=(number, len(values)))
    low, high = np.percentile(values[rows].mean(axis=1), [2.5, 97.5], axis=0)
    return low, high


def normalised_iqm(scores: list[np.ndarray], base: list[np.ndarray]) -> float:
    """IQM of scores that are divided by the base's mean score on their environment."""
    return iqm([theirs / of_base.mean() for theirs, of_base in zip(scores, base, strict=True)])


def pairs(results: Results, policy: str) -> list[dict]:
    """Each algorithm of a family against its base (and NEAREST), over the environments where both ran, at equal steps.

    Intervals resample the seeds of both. Environments whose base has no positive score in some seed are left out: a
    ratio of negative returns says nothing.
    """
    found = []
    for family, names in FAMILIES.items():
        compared = [(name, names[0]) for name in names[1:]] + [(n, NEAREST[n]) for n in names if n in NEAREST]
        for name, base in compared:
            scores, base_scores, env_ids, steps = [], [], [], []
            for env_id in environments(results, (name,)):
                limit, curves = at_equal_steps(results, (base, name), env_id)
                theirs = np.array([curve.score(policy) for curve in curves.get(base, [])])
                if not len(theirs) or not theirs.min() > 0:  # also where there is no training return yet: NaN
                    continue
                scores.append(np.array([curve.score(policy) for curve in curves[name]]))
                base_scores.append(theirs)
                env_ids.append(env_id)
                steps.append(limit)
            if scores:
                found.append(
                    {
                        "family": family,
                        "name": name,
                        "base": base,
                        "policy": policy,
                        "env_ids": env_ids,
                        "steps": steps,
                        "seeds": sorted({len(values) for values in scores + base_scores}),
                        "iqm": normalised_iqm(scores, base_scores),
                        "iqm_interval": stratified_bootstrap(normalised_iqm, scores, base_scores),
                        "base_iqm": normalised_iqm(base_scores, base_scores),
                        "improvement": probability_of_improvement(scores, base_scores),
                        "improvement_interval": stratified_bootstrap(probability_of_improvement, scores, base_scores),
                    }
                )
    return found


# ------------------------------------------------------------------------------------------------------------- tables


def number(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation over seeds."""
    if len(values) < 2:
        return number(float(np.mean(values)))
    return f"{number(float(np.mean(values)))} ± {number(float(np.std(values, ddof=1)))}"


def thousands(steps: int) -> str:
    if steps % 1_000_000 == 0:
        return f"{steps // 1_000_000}M"
    return f"{steps / 1000:g}k"


def seeds_of(curves: list[Curve]) -> str:
    return " ".join(str(curve.seed) for curve in curves)


def label(name: str) -> str:
    return ALGORITHMS[name].label if name in ALGORITHMS else name


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def common_seeds(curves: dict[str, list[Curve]]) -> str:
    """'1 2 3', or each algorithm's where they differ."""
    each = {name: seeds_of(of_name) for name, of_name in curves.items()}
    if len(set(each.values())) == 1:
        return next(iter(each.values()))
    return ", ".join(f"{label(name)} {seeds}" for name, seeds in each.items())


# What the main table of a family divides by what.
RATIOS = {
    "off-policy": (("diffsac_jax", "sac_jax"), ("diffwpo_jax", "diffsac_jax")),
    "on-policy": (("diffppo_jax", "ppo_jax"),),
}
MEANING = {
    "off-policy": "Deterministic / stochastic policy: mean of the last ten evaluations of a run (last three where it"
    " has fewer than twenty), mean ± standard deviation over seeds",
    "on-policy": "Training return: mean of the last 100 training episodes of a run, mean ± standard deviation over"
    " seeds",
}


def family_table(results: Results, family: str) -> str:
    """The scores of a family's algorithms by environment, at equal steps, and the ratios of their means."""
    names = FAMILIES[family]
    policies = POLICIES[:2] if family == "off-policy" else ("training",)
    rows, found = [], {pair: [] for pair in RATIOS[family]}
    for env_id in environments(results, names):
        limit, curves = at_equal_steps(results, names, env_id)
        scores = {name: [[curve.score(x) for curve in of_name] for x in policies] for name, of_name in curves.items()}
        cells = [" / ".join(map(spread, scores[name])) if name in scores else "-" for name in names]
        for (name, base), ratios in found.items():
            # A ratio of negative returns says nothing.
            if name in scores and base in scores and (np.mean(scores[base], axis=1) > 0).all():
                ratios.append(np.mean(scores[name], axis=1) / np.mean(scores[base], axis=1))
                cells.append(ratio_text(ratios[-1]))
            else:
                cells.append("-")
        rows.append([env_id, thousands(limit), common_seeds(curves), *cells])
    if not rows:
        return ""
    if any(len(ratios) > 1 for ratios in found.values()):
        means = [
            f"{ratio_text(np.mean(ratios, axis=0))} ({len(ratios)} environments)" if len(ratios) > 1 else ""
            for ratios in found.values()
        ]
        rows.append(["mean of the ratios", "", "", *("" for _ in names), *means])
    header = ["Environment", "steps", "seeds", *map(label, names)]
    header += [f"{label(name)} / {label(base)}" for name, base in found]
    return f"{markdown(header, rows)}\n\n{MEANING[family]}; ratios of these means."


def ratio_text(ratios: np.ndarray) -> str:
    return " / ".join(f"{x:.2f}" for x in ratios)


def seeds_table(results: Results, family: str) -> str:
    """Every seed's score, and the largest evaluation beside the mean of the last ones."""
    names, rows = FAMILIES[family], []
    policies = FAMILY_POLICIES[family] if family == "off-policy" else ("training", "deterministic", "stochastic")
    for env_id in environments(results, names):
        limit, curves = at_equal_steps(results, names, env_id)
        for name, of_name in curves.items():
            for policy in policies:
                scores = [curve.score(policy) for curve in of_name]
                best = spread([curve.maximum(policy) for curve in of_name])
                each = ", ".join(f"{curve.seed}: {number(x)}" for curve, x in zip(of_name, scores, strict=True))
                rows.append([env_id, label(name), thousands(limit), policy, each, spread(scores), best])
    if not rows:
        return ""
    return markdown(["Environment", "Algorithm", "steps", "policy", "score by seed", "score", "maximum"], rows)


def aggregate_table(results: Results) -> str:
    rows = []
    for policy in POLICIES:
        for pair in pairs(results, policy):
            if policy not in FAMILY_POLICIES[pair["family"]]:
                continue
            low, high = pair["iqm_interval"]
            worse, better = pair["improvement_interval"]
            rows.append(
                [
                    f"{label(pair['name'])} against {label(pair['base'])}",
                    policy,
                    ", ".join(f"{e} {thousands(s)}" for e, s in zip(pair["env_ids"], pair["steps"], strict=True)),
                    " or ".join(str(n) for n in pair["seeds"]),
                    f"{pair['iqm']:.2f} ({low:.2f} to {high:.2f})",
                    f"{pair['base_iqm']:.2f}",
                    f"{pair['improvement']:.2f} ({worse:.2f} to {better:.2f})",
                ]
            )
    if not rows:
        return ""
    header = ["Pair", "policy", "environments", "seeds", "IQM", "IQM of the base", "probability of improvement"]
    return (
        markdown(header, rows)
        + "\n\nScores divided by the base's mean on the environment, at equal steps. IQM: interquartile mean over seeds"
        " and environments. In brackets 95 % stratified bootstrap intervals, the seeds of both resampled; where all"
        " seeds of one lie above all of the other, no draw changes the order, and the probability has no width."
    )


def ablation(
    results: Results, prefix: str, default: str, env_id: str = "Hopper-v4"
) -> tuple[int, dict[int, list[Curve]]]:
    """The curves by K of the runs `{prefix}_k{K}`, cut at equal steps. Without `{prefix}_k8` the default runs serve."""
    names = {
        int(match.group(1)): name
        for name in results
        if (match := re.fullmatch(rf"{prefix}_k(\d+)", name)) and env_id in results[name]
    }
    if names and 8 not in names and env_id in results.get(default, {}):
        names[8] = default
    limit, curves = at_equal_steps(results, tuple(names.values()), env_id)
    return limit, {k: curves[names[k]] for k in sorted(names)}


def ablation_table(results: Results, prefix: str, default: str, policies: tuple[str, ...]) -> str:
    limit, curves = ablation(results, prefix, default)
    if not curves:
        return ""
    rows = [
        [
            str(k),
            seeds_of(of_k),
            *(spread([curve.score(policy) for curve in of_k]) for policy in policies),
            number(float(np.median([curve.steps_per_second for curve in of_k]))),
            of_k[0].columns["exp_name"],
        ]
        for k, of_k in curves.items()
    ]
    header = ["K", "seeds", *policies, "steps/s", "name"]
    return f"Hopper-v4, {thousands(limit)} steps.\n\n" + markdown(header, rows)


def settings_of(arguments: str) -> str:
    """A run's arguments without its length and its evaluations, which have columns of their own or none."""
    flags = re.sub(r"--(total-timesteps|eval-frequency) [0-9]+ ?", "", arguments).strip()
    return f"`{flags}`" if flags else "defaults"


def search_table(results: Results) -> str:
    """The settings that were tried for the on-policy pair: training (deterministic) score of every single run."""
    names = [
        name
        for name in results
        if re.match(r"(diffppo_alpha|ppo_ent|ppo_std)[0-9.]+(_480k)?$", name) and name not in ALGORITHMS
    ]
    runs = sorted(
        {(env_id, curve.seed) for name in names for env_id in results[name] for curve in results[name][env_id]}
    )
    rows = []
    for name in names:
        curves = {(env_id, curve.seed): curve for env_id in results[name] for curve in results[name][env_id]}
        columns = next(iter(curves.values())).columns
        cells = [
            f"{number(curves[run].score('training'))} ({number(curves[run].score('deterministic'))})"
            if run in curves
            else "-"
            for run in runs
        ]
        steps = thousands(max(int(curve.steps[-1]) for curve in curves.values()))
        rows.append([label(columns["script"]), settings_of(columns["arguments"]), steps, *cells])
    header = ["Algorithm", "arguments", "steps", *(f"{env_id}, seed {seed}" for env_id, seed in runs)]
    return markdown(header, rows) if rows else ""


def bound_table(results: Results) -> str:
    """DiffWPO with other trust regions (`diffwpo_bound{--kl-bound}`) beside its default and DiffSAC, at equal steps."""
    tried = sorted(name for name in results if re.match(r"diffwpo_bound[0-9.]+$", name))
    names = ("diffsac_jax", "diffwpo_jax", *tried)
    columns = {env_id: at_equal_steps(results, names, env_id) for env_id in environments(results, tuple(tried))}
    rows = []
    for name in names:
        cells = []
        for _, curves in columns.values():
            of_name = curves.get(name, [])
            scores = [[curve.score(policy) for curve in of_name] for policy in POLICIES[:2]]
            seeds = f"seed{'s' if len(of_name) > 1 else ''} {seeds_of(of_name)}"
            cells.append(f"{' / '.join(map(spread, scores))} ({seeds})" if of_name else "-")
        if any(cell != "-" for cell in cells):
            script, flags = (next(iter(results[name].values()))[0].columns[x] for x in ("script", "arguments"))
            rows.append([label(script), settings_of(flags), *cells])
    header = ["Algorithm", "arguments", *(f"{env_id}, {thousands(limit)}" for env_id, (limit, _) in columns.items())]
    return f"{markdown(header, rows)}\n\n{MEANING['off-policy']}." if tried else ""


REFERENCE_METRICS = {
    "training": "training return",
    "deterministic": "evaluation return of the deterministic policy",
    "maximum": "largest evaluation",
}


def ours(curves: list[Curve], metric: str) -> list[float]:
    """Our scores in a published metric."""
    if metric == "maximum":
        return [curve.maximum("deterministic") for curve in curves]
    return [curve.score(metric) for curve in curves]


def reference_table(results: Results, reference: list[dict]) -> str:
    rows = []
    for row in reference:
        stem, names = row["env_id"].split("-v")[0], FAMILIES[row["kind"]]
        for env_id in environments(results, names):
            if env_id.split("-v")[0] != stem:
                continue
            limit, curves = at_equal_steps(results, names, env_id)
            mine = "; ".join(
                f"{label(name)} {spread(ours(of_name, row['metric']))}" for name, of_name in curves.items()
            )
            published = row["mean"] + (f" ± {row['std_over_seeds']}" if row["std_over_seeds"] else "")
            seeds = f", {row['seeds']} seeds" if row["seeds"] else ""
            rows.append(
                [
                    REFERENCE_METRICS[row["metric"]],
                    f"{row['algorithm']}, {row['env_id']}",
                    f"{published} ({thousands(int(row['steps']))} steps{seeds})",
                    f"{mine} ({env_id}, {thousands(limit)} steps)",
                ]
            )
    return markdown(["metric", "published", "value", "here"], rows) if rows else ""


def cost_table(results: Results) -> str:
    """What the committed runs took as they ran, medians over seeds."""
    rows = []
    for name in ALGORITHMS:
        for env_id in environments(results, (name,)):
            curves = results[name][env_id]
            rate = float(np.median([curve.steps_per_second for curve in curves]))
            if not np.isfinite(rate):
                continue
            limit = min(int(curve.steps[-1]) for curve in curves)
            hours = float(np.median([curve.until(limit).wall_time[-1] for curve in curves])) / 3600
            places = {f"{curve.columns['device']}, {curve.columns['threads']} threads" for curve in curves}
            rows.append(
                [
                    label(name),
                    env_id,
                    thousands(limit),
                    f"{hours:.2f}" if hours >= 0.1 else f"{hours:.3f}",
                    f"{2 / hours:.1f}",
                    number(rate),
                    "; ".join(sorted(places)).replace("1 threads", "1 thread"),
                ]
            )
    header = ["Algorithm", "Environment", "steps", "hours", "such runs/hour, two at a time"]
    return markdown([*header, "steps/s while learning", "device"], rows) if rows else ""


def runs_table(results: Results) -> str:
    """Where the committed numbers come from."""
    rows = []
    for name, by_env in results.items():
        for env_id, curves in by_env.items():
            columns = [curve.columns for curve in curves]

            def all_of(column, columns=columns):
                return " ".join(sorted({row[column] for row in columns}))

            commits = " ".join(
                sorted(
                    {
                        commit[:7] + ("*" if row["dirty"] != "false" else "")
                        for row in columns
                        for commit in row["commit"].split(" ")
                    }
                )
            )
            versions = f"jax {all_of('jax')}, mujoco {all_of('mujoco')}, gymnasium {all_of('gymnasium')}"
            steps = max(int(curve.steps[-1]) for curve in curves)
            flags = all_of("arguments")
            rows.append(
                [name, env_id, seeds_of(curves), thousands(steps), f"`{flags}`" if flags else "", commits, versions]
            )
    header = ["name", "environment", "seeds", "steps", "arguments besides the defaults", "commit", "versions"]
    return markdown(header, rows) if rows else ""


# The few that the README shows.
MAIN_QUANTITIES = (
    "SAC update",
    "DiffSAC, K = 8 update / SAC update",
    "DiffSAC --backprop-through-chain, K = 8 update / SAC update",
    "DiffWPO, K = 8 update / DiffSAC update",
    "sac_jax.py / SBX 0.28.0 SAC, steps/s",
    "diffppo_jax.py / ppo_jax.py, K = 8, steps/s",
    "ppo_jax.py / CleanRL PPO, one environment",
)


def speed_table(path: Path, main: bool = False) -> str:
    """The rows that `speed.py --save` measured, or the main ones of them."""
    rows = [row for row in read_rows(path) if not main or row["quantity"] in MAIN_QUANTITIES]
    cells = [[row["quantity"], row["value"], row["how"], row["device"], row["commit"][:7]] for row in rows]
    return markdown(["Quantity", "Value", "Measured", "device", "commit"], cells) if rows else ""


BANDIT_ALGORITHMS = {
    "sac": "SAC",
    "diffsac": "DiffSAC",
    "diffsac_chain": "DiffSAC `--backprop-through-chain`",
    "diffwpo": "DiffWPO",
}
BANDIT_COLUMNS = ("elbo_gap", "log_z_error", "ess", "worst_region", "grid_kl")


def bandit_table(path: Path) -> str:
    """What bandit.py measured, the best of each bandit's column in bold; commit and versions below."""
    rows = read_rows(path)
    cells = []
    for row in rows:
        peers = [other for other in rows if other["bandit"] == row["bandit"]]
        values = []
        for column in BANDIT_COLUMNS:
            text = [f"{float(peer[column]):.3f}" for peer in peers]
            best = max(text, key=float) if column == "worst_region" else min(text, key=float)
            value = f"{float(row[column]):.3f}"
            # A policy within one mode has a large effective sample size: no merit by itself.
            values.append(f"**{value}**" if value == best and column != "ess" else value)
        cells.append([row["bandit"], BANDIT_ALGORITHMS[row["algorithm"]], row["K"] or "-", *values])
    header = ["bandit", "algorithm", "K", "ELBO gap", "log Z error", "ESS", "worst region", "KL on the grid"]
    return f"{markdown(header, cells)}\n\n{measured_by(rows)}" if rows else ""


def measured_by(rows: list[dict]) -> str:
    """Updates, seeds, commit, device and versions of rows that bandit.py measured."""
    columns = ("updates", "seed", "commit", "device", "versions")
    short = [{**row, "commit": row["commit"][:7] + row["commit"][40:]} for row in rows]
    updates, seeds, commits, devices, versions = (", ".join(sorted({row[x] for row in short})) for x in columns)
    return f"{updates} updates, seed {seeds}; commit {commits}; {devices}; {versions}."


def turning_table(path: Path) -> str:
    """Per run and seed the extremes over the headings of what turning.py measured."""

    def algorithms_first(item):
        script, *others = item[0]
        return (list(ALGORITHMS).index(script), *others)

    by_seed: dict[tuple, list[dict]] = {}
    for row in read_rows(path):
        by_seed.setdefault((row["script"], row["exp_name"], row["arguments"], int(row["seed"])), []).append(row)
    cells = []
    for (script, _, flags, seed), rows in sorted(by_seed.items(), key=algorithms_first):
        left, middle, right = (np.array([float(row[name]) for row in rows]) for name in ("left", "middle", "right"))
        with np.errstate(invalid="ignore"):  # without any side, no share of it
            larger = np.maximum(left, right) / (left + right)
        cells.append(
            [
                ALGORITHMS[script].label,
                settings_of(flags),
                thousands(int(rows[0]["global_step"])),
                str(seed),
                f"{float(rows[0]['return']):.1f}",
                f"{np.nanmin([left, right]):.2f}",
                f"{np.nanmax(middle):.2f}",
                f"{int(np.sum(larger >= 0.95))} of {len(rows)}",
                " ".join(sorted({row["commit"][:7] for row in rows})),
            ]
        )
    header = ["Algorithm", "arguments", "steps", "seed", "return", "smallest side", "largest middle"]
    return markdown([*header, "one-sided headings", "commit"], cells) if cells else ""


TABLES: dict[str, Callable[[Results, Path], str]] = {
    "off-policy": lambda results, folder: family_table(results, "off-policy"),
    "on-policy": lambda results, folder: family_table(results, "on-policy"),
    "off-policy-seeds": lambda results, folder: seeds_table(results, "off-policy"),
    "on-policy-seeds": lambda results, folder: seeds_table(results, "on-policy"),
    "aggregate": lambda results, folder: aggregate_table(results),
    "diffsac-k": lambda results, folder: ablation_table(results, "diffsac", "diffsac_jax", POLICIES[:2]),
    "diffppo-k": lambda results, folder: ablation_table(results, "diffppo", "", ("training", "stochastic")),
    "diffwpo-bound": lambda results, folder: bound_table(results),
    "search": lambda results, folder: search_table(results),
    "reference": lambda results, folder: reference_table(results, read_rows(folder / "reference.csv")),
    "cost": lambda results, folder: cost_table(results),
    "runs": lambda results, folder: runs_table(results),
    "speed": lambda results, folder: speed_table(folder / "speed.csv"),
    "speed-main": lambda results, folder: speed_table(folder / "speed.csv", main=True),
    "bandit": lambda results, folder: bandit_table(folder / "bandit.csv"),
    "turning": lambda results, folder: turning_table(folder / "turning.csv"),
}
MARKERS = re.compile(
    r"(?P<begin><!-- (?:table (?P<table>[a-z-]+)|figure (?P<figure>\w+): (?P<caption>.*?)) -->\n).*?<!-- end -->",
    re.DOTALL,
)


def with_tables(text: str, results: Results, folder: Path, figures: Path, link: str) -> str:
    """The page with its tables and links to figures made anew. Raises KeyError for a table that nobody makes.

    Args:
      folder: the benchmarks folder. figures: where the figures are. link: that folder as the page's links name it.
    """

    def replace(match):
        if name := match["table"]:
            content = TABLES[name](results, folder) or f"No results for the table '{name}' yet."
        elif (figures / f"{match['figure']}.png").exists():
            content = f"![{match['caption']}]({link}/{match['figure']}.png)"
        else:
            content = f"No results for the figure '{match['figure']}' yet."
        return f"{match['begin']}\n{content}\n\n<!-- end -->"

    return MARKERS.sub(replace, text)


def updated(page: Path, results: Results, folder: Path) -> str:
    """What the page should say."""
    figures = folder / "figures"
    link = Path(os.path.relpath(figures, page.parent)).as_posix()
    return with_tables(page.read_text(), results, folder, figures, link)


def own_page(results: Results, folder: Path, figures: Path) -> str:
    """A page with every figure and every table of training results. folder: the benchmarks folder."""
    tables = (name for name in TABLES if name not in ("speed", "speed-main", "bandit", "turning"))
    text = "".join(
        f"<!-- figure {path.stem}: {path.stem} -->\n<!-- end -->\n\n" for path in sorted(figures.glob("*.png"))
    )
    text += "".join(f"<!-- table {name} -->\n<!-- end -->\n\n" for name in tables)
    return "# Results\n\n" + with_tables(text, results, folder, figures, "figures")


def pages(root: Path) -> list[Path]:
    """The pages that may hold tables."""
    candidates = [root / "README.md", root / "benchmarks" / "README.md", *sorted((root / "docs").glob("*.md"))]
    return [path for path in candidates if path.exists()]


# ------------------------------------------------------------------------------------------------------------ figures


def common_curve(curves: list[Curve], policy: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps that all seeds were evaluated at `[T]`, their returns `[S, T]` and wall times `[S, T]` in hours."""
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    rows = [np.searchsorted(curve.steps, steps) for curve in curves]
    returns = np.stack([curve.returns[policy][row] for curve, row in zip(curves, rows, strict=True)])
    hours = np.stack([curve.wall_time[row] / 3600 for curve, row in zip(curves, rows, strict=True)])
    has = np.isfinite(returns).all(axis=0)
    return steps[has], returns[:, has], hours[:, has]


def draw_curve(axis, x: np.ndarray, returns: np.ndarray, style: Algorithm) -> None:
    if not len(x):
        return
    axis.plot(
        x,
        returns.mean(axis=0),
        style.line,
        color=style.colour,
        marker=style.marker,
        markevery=max(len(x) // 8, 1),
        markersize=4,
        label=style.label,
    )
    if len(returns) > 1:
        axis.fill_between(x, *bootstrap_band(returns), color=style.colour, alpha=0.2, linewidth=0)


def note(limit: int, curves: dict[str, list[Curve]]) -> str:
    """What a panel rests on."""
    seeds = {label(name): seeds_of(of_name) for name, of_name in curves.items()}
    if len(set(seeds.values())) == 1:
        return f"{thousands(limit)} steps, seeds {next(iter(seeds.values()))}"
    return f"{thousands(limit)} steps, seeds: " + "; ".join(f"{name} {value}" for name, value in seeds.items())


def curves_figure(pyplot, results: Results, family: str, over_time: bool = False):
    """Learning curves: one column per environment, one row per policy; over wall-clock time one row."""
    names = FAMILIES[family]
    env_ids = environments(results, names)
    policies = FAMILY_POLICIES[family][:1] if over_time else FAMILY_POLICIES[family]
    if not env_ids:
        return None
    figure, axes = pyplot.subplots(
        len(policies), len(env_ids), figsize=(3.4 * len(env_ids) + 0.4, 2.6 * len(policies) + 0.6), squeeze=False
    )
    handles = {}
    for column, env_id in enumerate(env_ids):
        limit, curves = at_equal_steps(results, names, env_id)
        for row, policy in enumerate(policies):
            axis = axes[row][column]
            for name, of_name in curves.items():
                steps, returns, hours = common_curve(of_name, policy)
                draw_curve(axis, hours.mean(axis=0) if over_time else steps / 1000, returns, ALGORITHMS[name])
            handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
            axis.grid(alpha=0.3)
            if row == 0:
                axis.set_title(f"{env_id}\n{note(limit, curves)}", fontsize=8)
            if column == 0:
                axis.set_ylabel(f"{policy} return")
            if row == len(policies) - 1:
                axis.set_xlabel("hours, mean over seeds" if over_time else "steps / 1000")
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.03 + 0.05 / len(policies), 1, 1))
    return figure


def aggregate_figure(pyplot, results: Results):
    """Points with 95 % intervals: IQM and probability of improvement of each pair."""
    found = [
        pair for policy in POLICIES for pair in pairs(results, policy) if policy in FAMILY_POLICIES[pair["family"]]
    ]
    if not found:
        return None
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 1.2 + 0.55 * len(found)), sharey=True)
    for axis, key, middle, title in (
        (axes[0], "iqm", 1.0, "IQM of the score / the base's mean score"),
        (axes[1], "improvement", 0.5, "probability of improvement over the base"),
    ):
        for row, pair in enumerate(found):
            style = ALGORITHMS[pair["name"]]
            axis.plot(pair[f"{key}_interval"], [row, row], color=style.colour, linewidth=2)
            axis.plot(pair[key], row, style.marker, color=style.colour)
        axis.axvline(middle, color="black", linestyle=":", linewidth=1)
        axis.set_xlabel(title, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(
        range(len(found)),
        [
            f"{label(pair['name'])} vs {label(pair['base'])}, {pair['policy']}\n"
            + ", ".join(
                f"{e.split('-v')[0]} {thousands(s)}" for e, s in zip(pair["env_ids"], pair["steps"], strict=True)
            )
            + f"; {' or '.join(map(str, pair['seeds']))} seeds"
            for pair in found
        ],
        fontsize=7,
    )
    axes[0].set_ylim(len(found) - 0.5, -0.5)
    figure.tight_layout()
    return figure


def ablation_figure(pyplot, results: Results):
    """Score and speed against K."""
    found = [
        (title, policy, *ablation(results, prefix, default))
        for title, policy, prefix, default in (
            ("DiffSAC", "deterministic", "diffsac", "diffsac_jax"),
            ("DiffPPO", "training", "diffppo", ""),
        )
    ]
    found = [entry for entry in found if entry[-1]]
    if not found:
        return None
    figure, axes = pyplot.subplots(2, len(found), figsize=(4.5 * len(found), 5), squeeze=False)
    for column, (title, policy, limit, curves) in enumerate(found):
        levels = list(curves)
        scores = [np.array([curve.score(policy) for curve in of_k]) for of_k in curves.values()]
        rates = [float(np.median([curve.steps_per_second for curve in of_k])) for of_k in curves.values()]
        top, bottom = axes[0][column], axes[1][column]
        for k, values in zip(levels, scores, strict=True):
            top.plot([k] * len(values), values, "o", markerfacecolor="none", color="#9a9a9a")
        top.plot(levels, [values.mean() for values in scores], "-o", color="#08306b")
        bottom.plot(levels, rates, "-s", color="#08306b")
        counts = " or ".join(map(str, sorted({len(of_k) for of_k in curves.values()})))
        top.set_title(f"{title}, Hopper-v4\n{thousands(limit)} steps, {counts} seeds (open: single seeds)", fontsize=9)
        top.set_ylabel(f"{policy} return")
        bottom.set_ylabel("steps/s")
        bottom.set_ylim(bottom=0)
        for axis in (top, bottom):
            axis.set_xscale("log", base=2)
            axis.set_xticks(levels, [str(k) for k in levels])
            axis.grid(alpha=0.3)
        bottom.set_xlabel("denoising steps K")
    figure.tight_layout()
    return figure


def reference_figure(pyplot, results: Results, reference: list[dict]):
    """Published returns (open) beside ours (filled), each with its metric and steps."""
    panels = []
    for kind, names in FAMILIES.items():
        for env_id in environments(results, names):
            stem = env_id.split("-v")[0]
            published = [row for row in reference if row["kind"] == kind and row["env_id"].split("-v")[0] == stem]
            if published:
                panels.append((env_id, published, names))
    if not panels:
        return None
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5.6 * columns, 3.2 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (env_id, published, names) in zip(axes.flat, panels, strict=False):
        limit, curves = at_equal_steps(results, names, env_id)
        lines = [
            (
                float(row["mean"]),
                float(row["std_over_seeds"] or "nan"),
                f"{row['algorithm']}, {row['metric']}, {thousands(int(row['steps']))}",
                "s",
                "#777777",
                "none",
            )
            for row in published
        ]
        for metric in dict.fromkeys(row["metric"] for row in published):
            for name, of_name in curves.items():
                values = ours(of_name, metric)
                error = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
                text = f"here: {label(name)}, {metric}, {thousands(limit)}"
                style = ALGORITHMS[name]
                lines.append((float(np.mean(values)), error, text, style.marker, style.colour, style.colour))
        for y, (mean, error, _, marker, colour, face) in enumerate(lines):
            xerr = error if np.isfinite(error) else None  # published without a spread
            axis.errorbar(mean, y, xerr=xerr, fmt=marker, color=colour, markerfacecolor=face, capsize=2)
        axis.set_yticks(range(len(lines)), [line[2] for line in lines], fontsize=7)
        axis.set_ylim(len(lines) - 0.5, -0.5)
        axis.set_title(f"{env_id}: {note(limit, curves)}", fontsize=8)
        axis.set_xlabel("return, ± standard deviation over seeds", fontsize=8)
        axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    return figure


def draw_figures(results: Results, reference: list[dict], folder: Path) -> list[Path]:
    """Writes every figure that has data; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "curves_off_policy": lambda: curves_figure(pyplot, results, "off-policy"),
        "curves_on_policy": lambda: curves_figure(pyplot, results, "on-policy"),
        "wall_clock_off_policy": lambda: curves_figure(pyplot, results, "off-policy", over_time=True),
        "wall_clock_on_policy": lambda: curves_figure(pyplot, results, "on-policy", over_time=True),
        "aggregate": lambda: aggregate_figure(pyplot, results),
        "ablation_k": lambda: ablation_figure(pyplot, results),
        "reference": lambda: reference_figure(pyplot, results, reference),
    }
    written = []
    for name, draw in figures.items():
        figure = draw()
        if figure is None:
            continue
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
        pyplot.close(figure)
        written.append(path)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout that holds the results and the pages")
    parser.add_argument("--results", type=Path, help="a folder of your own results, as export.py --results wrote it")
    parser.add_argument("--tables", action="store_true", help="write the tables only")
    options = parser.parse_args()
    folder = options.root / "benchmarks"
    figures = (options.results or folder) / "figures"
    results = load(options.results or folder / "results")
    if options.results and not results:
        print(f"error: no CSV files of export.py in {options.results}", file=sys.stderr)
        return 2
    if not options.tables:
        try:
            written = draw_figures(results, read_rows(folder / "reference.csv"), figures)
        except ImportError:
            print("error: figures need matplotlib: pip install '.[plot]'", file=sys.stderr)
            return 2
        for path in written:
            print(f"figure: {path}")
        if not written:
            print("no results to draw")
    if options.results:
        page = options.results / "results.md"
        page.write_text(own_page(results, folder, figures))
        print(f"tables: {page}")
        return 0
    for page in pages(options.root):
        try:
            new = updated(page, results, folder)
        except KeyError as error:
            print(f"error: {page} asks for the table {error}; there are {', '.join(TABLES)}", file=sys.stderr)
            return 2
        if new != page.read_text():
            page.write_text(new)
            print(f"tables: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
