"""The committed results (benchmarks/results/*.csv): reading them, scores, statistics.

The score of a run. `deterministic` and `stochastic`: the mean of its last evaluations (`harness.record.run_score`).
`training`: the mean return of the last 100 training episodes at the last evaluation. `entropy`: that of the stochastic
policy in nats, the mean of the same last evaluations; NaN for runs that did not record it. Algorithms are compared at
equal steps: the largest step that all of the runs that are compared have reached on an environment.
Nothing is extrapolated.
"""

import contextlib
import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import cycle, groupby
from pathlib import Path

import numpy as np
from scipy import stats

from envs import UserError, one_line
from harness.record import run_score

POLICIES = ("deterministic", "stochastic", "training")
CONSTANTS = (
    *("env_id", "exp_name", "script", "arguments", "steps_per_second"),
    *("commit", "dirty", "jax", "mujoco", "gymnasium", "device", "threads"),
)
RESAMPLES = 20_000  # of pairs, whose probabilities take few values: 2000 move the ends of their intervals
FEWEST_SEEDS = 3  # of both, for a comparison: a percentile interval of two seeds holds the mean one time in two


@dataclass(frozen=True)
class Algorithm:
    """How a name of suites.toml is shown. Told apart without colour: by line, marker and lightness."""

    label: str
    colour: str
    line: str
    marker: str


ALGORITHMS = {
    "sac_jax": Algorithm("SAC", "#9a9a9a", "--", "s"),
    "diffsac_jax": Algorithm("DiffSAC", "#2171b5", "-", "o"),
    "diffwpo_jax": Algorithm("DiffWPO", "#d95f0e", "-.", "^"),
    "crossq_jax": Algorithm("CrossQ", "#41ab5d", ":", "D"),
    "diffcrossq_jax": Algorithm("DiffCrossQ", "#00441b", "-", "v"),
    "ppo_jax": Algorithm("PPO", "#9a9a9a", "--", "s"),
    "ppo_std0.5": Algorithm("PPO (std 0.5)", "#d95f0e", ":", "D"),
    "diffppo_jax": Algorithm("DiffPPO", "#2171b5", "-", "o"),
    "diffppo_no_entropy": Algorithm("DiffPPO (alpha 0)", "#1b7837", "-.", "^"),
    "ppo_playground": Algorithm("PPO", "#9a9a9a", "--", "s"),
    "diffppo_playground": Algorithm("DiffPPO", "#2171b5", "-", "o"),
}
# The first of a family is the base that the others are compared with.
FAMILIES = {
    "off-policy": ("sac_jax", "diffsac_jax", "diffwpo_jax", "crossq_jax", "diffcrossq_jax"),
    "on-policy": ("ppo_jax", "ppo_std0.5", "diffppo_jax", "diffppo_no_entropy"),
    "playground": ("ppo_playground", "diffppo_playground"),
}
# Who is compared with whom beyond its family's base: the same critics, the same chain, or the same noise at the start.
NEAREST = {"diffwpo_jax": "diffsac_jax", "diffcrossq_jax": "crossq_jax", "diffppo_jax": "ppo_std0.5"}
# Which policies a family is shown by: the on-policy literature reports training returns.
FAMILY_POLICIES = {
    "off-policy": ("deterministic", "stochastic"),
    "on-policy": ("training", "deterministic"),
    "playground": ("deterministic", "stochastic"),
}
ENV_ORDER = ("Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid")


def label(name: str) -> str:
    return ALGORITHMS[name].label if name in ALGORITHMS else name


# -------------------------------------------------------------------------------------------------------------- curves


@dataclass(frozen=True)
class Curve:
    """One seed's evaluations: `steps` `[T]`, `measured`: returns by policy and `entropy`, `[T]` (NaN where there is
    none), `wall_time` `[T]` in seconds, and the other columns (of a resumed run every commit and version, with a space
    between)."""

    seed: int
    steps: np.ndarray
    measured: dict[str, np.ndarray]
    wall_time: np.ndarray
    columns: dict[str, str]

    def until(self, limit: int) -> "Curve":
        keep = self.steps <= limit
        measured = {metric: values[keep] for metric, values in self.measured.items()}
        return Curve(self.seed, self.steps[keep], measured, self.wall_time[keep], self.columns)

    def score(self, metric: str) -> float:
        """See the module's docstring."""
        values = self.measured[metric]
        if metric == "training":
            return float(values[-1])
        return run_score(values)

    def maximum(self, policy: str) -> float:
        return float(np.nanmax(self.measured[policy]))


Results = dict[str, dict[str, list[Curve]]]  # by exp_name and env_id, seeds in order


def read_rows(path: Path) -> list[dict]:
    """The rows of a CSV file, none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def load(folder: Path) -> Results:
    """All results of a folder: its files that export.py wrote. Raises UserError: one of them is damaged."""
    results: Results = {}
    for path in sorted(folder.glob("*.csv")):
        try:
            rows = read_rows(path)
            if not rows or not {"seed", "global_step", *CONSTANTS} <= rows[0].keys():
                continue
            rows.sort(key=lambda row: (int(row["seed"]), int(row["global_step"])))
            curves = [curve_of(seed, list(of)) for seed, of in groupby(rows, key=lambda row: int(row["seed"]))]
        except (OSError, TypeError, ValueError, csv.Error) as error:  # one that was cut off has rows without their end
            raise UserError(f"{path} is damaged: {one_line(error)}") from None
        for curve in curves:
            results.setdefault(curve.columns["exp_name"], {}).setdefault(curve.columns["env_id"], []).append(curve)
    return results


# How algorithms of one's own are drawn.
OWN = (("#7b3294", "-", "P"), ("#e7298a", "--", "X"), ("#8c6d31", "-.", "*"), ("#17becf", ":", "h"))


@contextlib.contextmanager
def with_own_algorithms(results: Results) -> Iterator[None]:
    """Meanwhile the names of other scripts than ours are in a family: that whose runs theirs are most like."""
    before = dict(ALGORITHMS), dict(FAMILIES)
    own = [name for name, by_env in results.items() if not scripts_of(by_env) & ALGORITHMS.keys()]
    try:
        for name, (colour, line, marker) in zip(own, cycle(OWN), strict=False):
            family = min(before[1], key=lambda family: unlike(results, name, before[1][family]))
            ALGORITHMS[name] = Algorithm(name, colour, line, marker)
            FAMILIES[family] += (name,)
        yield
    finally:
        for table, was in zip((ALGORITHMS, FAMILIES), before, strict=True):
            table.clear()
            table.update(was)


def scripts_of(by_env: dict[str, list[Curve]]) -> set[str]:
    return {curve.columns["script"] for curves in by_env.values() for curve in curves}


def unlike(results: Results, name: str, family: tuple[str, ...]) -> float:
    """How far a name's runs are, in length and in steps between evaluations, from the nearest of a family.

    Infinite where they share no environment.
    """
    pairs = [
        (curve, other)
        for env_id, curves in results[name].items()
        for curve in curves
        for known in family
        for other in results.get(known, {}).get(env_id, [])
    ]
    return min((float(np.abs(np.log(a.steps[[0, -1]] / b.steps[[0, -1]])).sum()) for a, b in pairs), default=np.inf)


def curve_of(seed: int, rows: list[dict]) -> Curve:
    steps = np.array([int(row["global_step"]) for row in rows])
    columns = {policy: f"{policy}_return" for policy in POLICIES} | {"entropy": "entropy"}
    measured = {metric: np.array([float(row[name] or "nan") for row in rows]) for metric, name in columns.items()}
    wall_time = np.array([float(row["wall_time"]) for row in rows])
    constants = {name: " ".join(dict.fromkeys(row[name] for row in rows)) for name in CONSTANTS}
    return Curve(seed, steps, measured, wall_time, constants)


def at_equal_steps(results: Results, names: tuple[str, ...], env_id: str) -> tuple[int, dict[str, list[Curve]]]:
    """The curves of those of `names` that ran on the environment, cut where the shortest of them ends.

    Those whose first evaluation is later are left out.
    """
    present = {name: results[name][env_id] for name in names if env_id in results.get(name, {})}
    ends = [int(curve.steps[-1]) for curves in present.values() for curve in curves]
    limit = min(ends, default=0)
    begun = {name: [curve for curve in curves if curve.steps[0] <= limit] for name, curves in present.items()}
    return limit, {name: [curve.until(limit) for curve in curves] for name, curves in begun.items() if curves}


def beyond(results: Results, names: tuple[str, ...]) -> Results:
    """Of `names` the curves that go on after their equal steps on an environment, for a table at more steps."""
    found: Results = {}
    for env_id in environments(results, names):
        limit, curves = at_equal_steps(results, names, env_id)
        for name in curves:
            if longer := [curve for curve in results[name][env_id] if curve.steps[-1] > limit]:
                found.setdefault(name, {})[env_id] = longer
    return found


def at_both_lengths(results: Results, names: tuple[str, ...]) -> Iterator[tuple[str, int, dict[str, list[Curve]]]]:
    """By environment the curves at equal steps and the steps; then once more those that go on, at equal steps again."""
    for of_length in (results, beyond(results, names)):
        for env_id in environments(of_length, names):
            yield env_id, *at_equal_steps(of_length, names, env_id)


def as_many(limit: int, steps: int) -> bool:
    """Whether published steps are ours, up to a twentieth."""
    return 0.95 * limit <= steps <= limit / 0.95


def ablations(results: Results, prefix: str) -> dict[str, tuple[int, dict[int, list[Curve]]]]:
    """By environment the equal steps and the curves by K of the runs `{prefix}_k{K}`, cut there.

    Without `{prefix}_k8` the default runs serve where they are of the same commits.
    """
    by_k = {int(match[1]): name for name in results if (match := re.fullmatch(rf"{prefix}_k(\d+)", name))}
    found = {}
    for env_id in environments(results, tuple(by_k.values())):
        names = {k: name for k, name in by_k.items() if env_id in results[name]}
        default = results.get(f"{prefix}_jax", {}).get(env_id, [])
        commits = {curve.columns["commit"] for name in names.values() for curve in results[name][env_id]}
        if default and {curve.columns["commit"] for curve in default} <= commits:
            names.setdefault(8, f"{prefix}_jax")
        limit, curves = at_equal_steps(results, tuple(names.values()), env_id)
        found[env_id] = limit, {k: curves[names[k]] for k in sorted(names) if names[k] in curves}
    return found


def stem(env_id: str) -> str:
    """The environment without its version."""
    return env_id.split("-v")[0]


def environments(results: Results, names: tuple[str, ...]) -> list[str]:
    """The environments on which any of `names` ran: MuJoCo's in their usual order, then the others."""
    found = {env_id for name in names for env_id in results.get(name, {})}
    place = {name: i for i, name in enumerate(ENV_ORDER)}
    return sorted(found, key=lambda env_id: (place.get(stem(env_id), len(place)), env_id))


def scores(curves: list[Curve], metric: str) -> np.ndarray:
    """One score per seed, `[S]`. metric: a policy, or `entropy`."""
    return np.array([curve.score(metric) for curve in curves])


def speed(curves: list[Curve]) -> float:
    """Steps/s while learning, median over seeds."""
    return float(np.median([float(curve.columns["steps_per_second"] or "nan") for curve in curves]))


# ---------------------------------------------------------------------------------------------------------- statistics

# A sample is a list with an array of scores per environment, `[..., S]`; statistics keep the leading axes.
Sample = list[np.ndarray]
Estimate = tuple[float, float, float]  # value, and the ends of its 95 % interval


def iqm(sample: Sample) -> np.ndarray:
    """Interquartile mean of all scores: a quarter, rounded down, is cut at each end."""
    return stats.trim_mean(np.concatenate(sample, axis=-1), 0.25, axis=-1)


def normalised_iqm(sample: Sample, base: Sample) -> np.ndarray:
    """IQM of scores that are divided by the base's mean score on their environment."""
    return iqm([x / y.mean(axis=-1, keepdims=True) for x, y in zip(sample, base, strict=True)])


def iqm_ratio(sample: Sample, base: Sample) -> np.ndarray:
    """The normalised IQM over the base's own, which need not be 1: an IQM is no mean."""
    return normalised_iqm(sample, base) / normalised_iqm(base, base)


def mean_ratio(sample: Sample, base: Sample) -> np.ndarray:
    """Geometric mean over environments of the ratios of the mean scores; NaN where one is not positive."""
    ratios = np.stack([x.mean(axis=-1) / y.mean(axis=-1) for x, y in zip(sample, base, strict=True)])
    return np.exp(np.log(np.where(ratios > 0, ratios, np.nan)).mean(axis=0))


def probability_of_improvement(sample: Sample, base: Sample) -> np.ndarray:
    """Mean over environments of P(X > Y) + P(X = Y) / 2 for a random seed of each (Agarwal et al., 2108.13264)."""
    means = []
    for x, y in zip(sample, base, strict=True):
        u = stats.mannwhitneyu(x, y, axis=-1, method="asymptotic").statistic  # the method of the p-value, unused
        means.append(u / (x.shape[-1] * y.shape[-1]))
    return np.mean(means, axis=0)


@cache
def null_of_u(m: int, n: int) -> np.ndarray:
    """P(U = 0), .., P(U = m n) of Mann and Whitney's U, of m scores over n, if all orders are equally likely."""
    if m == 0 or n == 0:
        return np.ones(1)
    p = np.zeros(m * n + 1)
    p[n:] += m / (m + n) * null_of_u(m - 1, n)  # the largest is one of the m, and lies above all n
    p[:-m] += n / (m + n) * null_of_u(m, n - 1)
    return p


def rank_sum_test(sample: Sample, base: Sample) -> tuple[float, bool]:
    """The stratified rank-sum test, exact without ties: of U's sum over environments, all orders within each alike.

    Returns its two-sided p, and whether the sample's scores are the higher ones by it.
    """
    null, total = np.ones(1), 0.0
    for x, y in zip(sample, base, strict=True):
        null = np.convolve(null, null_of_u(len(x), len(y)))
        total += stats.mannwhitneyu(x, y, method="asymptotic").statistic
    middle = (len(null) - 1) / 2
    as_far = np.abs(np.arange(len(null)) - middle) >= abs(total - middle) - 1e-9
    return float(min(null[as_far].sum(), 1.0)), bool(total > middle)


def interval(statistic: Callable[..., np.ndarray], *samples: Sample) -> tuple[float, float]:
    """95 % percentile interval of statistic(*samples): seeds are resampled within each environment and sample."""
    return _interval(statistic, *(tuple(map(tuple, sample)) for sample in samples))


@cache  # a page asks for the same pairs in several tables
def _interval(statistic: Callable[..., np.ndarray], *samples: tuple[tuple[float, ...], ...]) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    drawn = [[rng.choice(values, (RESAMPLES, len(values))) for values in sample] for sample in samples]
    low, high = np.percentile(statistic(*drawn), [2.5, 97.5])
    return float(low), float(high)


def band(returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % band of the mean over seeds of curves `[S, T]`, S > 1: lower and upper, each `[T]`.

    Student's t: a percentile bootstrap of five seeds would hold the mean in 83 % of all cases.
    """
    half = stats.t.ppf(0.975, len(returns) - 1) * stats.sem(returns, axis=0)
    return returns.mean(axis=0) - half, returns.mean(axis=0) + half


@dataclass(frozen=True)
class Pair:
    """An algorithm against its base over the environments of `steps`, cut there."""

    name: str
    base: str
    policy: str
    steps: dict[str, int]
    seeds: list[int]  # how many, each number once
    iqm: Estimate  # over the base's
    mean_ratio: Estimate
    improvement: Estimate
    p: float
    higher: bool  # by the test that p is of


def pairs(results: Results) -> list[Pair]:
    """Each algorithm of a family against its base (and NEAREST) by policy, where both ran, at equal steps.

    Intervals resample the seeds of both. Environments where either has fewer than FEWEST_SEEDS are left out, and so are
    those whose base has no positive score in some seed: a ratio of negative returns says nothing.
    """
    found = []
    for family, names in FAMILIES.items():
        for name, base in against_bases(names):
            found += [compare(results, name, base, policy) for policy in FAMILY_POLICIES[family]]
    return [pair for pair in found if pair]


def against_bases(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each of a family's names but the first with whom it is compared: the first, and NEAREST."""
    return [(name, base) for name in names[1:] for base in dict.fromkeys((names[0], NEAREST.get(name, names[0])))]


def comparable(own: np.ndarray, of_base: np.ndarray) -> bool:
    """Whether scores have a ratio: there are some of both, none is NaN, and the base's are positive."""
    return bool(len(own) and len(of_base) and np.isfinite(own).all() and of_base.min() > 0)


def compare(results: Results, name: str, base: str, policy: str) -> Pair | None:
    ours, theirs, steps = [], [], {}
    for env_id in environments(results, (name,)):
        limit, curves = at_equal_steps(results, (base, name), env_id)
        own, of_base = (scores(curves.get(one, []), policy) for one in (name, base))
        if min(len(own), len(of_base)) >= FEWEST_SEEDS and comparable(own, of_base):
            ours.append(own)
            theirs.append(of_base)
            steps[env_id] = limit
    if not steps:
        return None
    estimates = (
        (float(statistic(ours, theirs)), *interval(statistic, ours, theirs))
        for statistic in (iqm_ratio, mean_ratio, probability_of_improvement)
    )
    seeds = sorted({len(values) for values in ours + theirs})
    return Pair(name, base, policy, steps, seeds, *estimates, *rank_sum_test(ours, theirs))
