"""The Markdown tables of the pages."""

import dataclasses
import importlib
import itertools
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks import keep
from benchmarks.export import settings_of
from benchmarks.results import (
    ALGORITHMS,
    FAMILIES,
    FAMILY_POLICIES,
    FEWEST_SEEDS,
    POLICIES,
    Curve,
    Pair,
    Results,
    ablations,
    against_bases,
    as_many,
    at_both_lengths,
    at_equal_steps,
    beyond,
    comparable,
    compare,
    environments,
    label,
    load,
    read_rows,
    scores,
    speed,
    stem,
)
from envs import UserError
from harness import RunFolder
from harness.experiment import flag

# --------------------------------------------------------------------------------------------------------------- cells


def markdown(header: list[str], rows: list[list[str]], below: str = "") -> str:
    """A table with a line below it. Nothing without rows."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n\n".join(part for part in ("\n".join(lines), below) if part)


def number(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"


def spread(values: np.ndarray) -> str:
    """Mean and sample standard deviation over seeds."""
    mean = number(np.mean(values))
    return mean if len(values) < 2 or mean == "-" else f"{mean} ± {number(np.std(values, ddof=1))}"


def score(curves: list[Curve], *metrics: str) -> str:
    """The spread of the seeds' scores in each metric, with a slash between."""
    return " / ".join(spread(scores(curves, metric)) for metric in metrics) if curves else "-"


def entropy_of(curves: list[Curve]) -> str:
    """' (-5.9)': the mean over the seeds that recorded it, which all, or those of old runs none, have."""
    values = scores(curves, "entropy")
    return f" ({values.mean():.1f})" if len(values) and np.isfinite(values).all() else ""


def thousands(steps: int) -> str:
    return f"{steps / 1_000_000:.4g}M" if steps >= 1_000_000 else f"{steps / 1000:g}k"


def seeds_of(curves: list[Curve]) -> str:
    """'7', '1-10', '1-3, 5'."""
    found: list[list[int]] = []
    for curve in curves:
        if found and curve.seed == found[-1][-1] + 1:
            found[-1].append(curve.seed)
        else:
            found.append([curve.seed])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in found)


def common_seeds(curves: dict[str, list[Curve]]) -> str:
    """'1-3', or where they differ 'SAC, DiffSAC: 1-4; others: 1-3': most algorithms' last."""
    by_seeds: dict[str, list[str]] = {}
    for name, of_name in curves.items():
        by_seeds.setdefault(seeds_of(of_name), []).append(label(name))
    most = max(by_seeds, key=lambda seeds: len(by_seeds[seeds]))
    if len(by_seeds) == 1:
        return most
    count = len(by_seeds[most])
    parts = [f"{', '.join(names)}: {seeds}" for seeds, names in by_seeds.items() if seeds != most or count == 1]
    return "; ".join(parts + [f"others: {most}"] * (count > 1))


def span(counts: Iterable[int]) -> str:
    """'3', or '3 to 5'."""
    few, most = min(counts), max(counts)
    return f"{most}" if few == most else f"{few} to {most}"


def settings_text(arguments: str) -> str:
    """A run's arguments without its length and its evaluations, which have columns of their own or none."""
    return f"`{settings}`" if (settings := settings_of(arguments)) else "defaults"


def estimate(value: float, low: float, high: float) -> str:
    return f"{value:.2f} ({low:.2f} to {high:.2f})" if np.isfinite((value, low, high)).all() else "-"


# -------------------------------------------------------------------------------------------------------------- scores

# What the main table of a family shows.
MAIN_POLICIES = FAMILY_POLICIES | {"on-policy": ("training",)}
VARIANTS = ("ppo_std0.5", "diffppo_no_entropy")  # of which no sentence of their own is said
ENTROPY = "of the stochastic policy in nats, an estimate where it is a diffusion policy"
PPO_ENTROPY = "; of PPO that of its Gaussian before actions are clipped, of DiffPPO that of the executed action"
SCORE = "{policy} policy: mean of the last ten evaluations of a run (last three where it has fewer than twenty)"
EVALUATIONS = SCORE + ", mean ± standard deviation over seeds"
MEANING = {
    "off-policy": EVALUATIONS,
    "playground": EVALUATIONS,
    "on-policy": "Training return: mean of the last 100 training episodes of a run, mean ± standard deviation over"
    " seeds",
}


def family_table(results: Results, family: str, short: bool = False) -> str:
    """The scores of a family's algorithms by environment, at equal steps.

    `short`: by the first of MAIN_POLICIES only.
    """
    names = [name for name in FAMILIES[family] if name in results]
    policies, rows = MAIN_POLICIES[family][: 1 if short else None], []
    for env_id in environments(results, names):
        limit, curves = at_equal_steps(results, names, env_id)
        row = [env_id, thousands(limit), common_seeds(curves)]
        row += [score(curves.get(name, []), *policies) + entropy_of(curves.get(name, [])) for name in names]
        rows.append(row)
    header = ["Environment", "steps", "seeds", *map(label, names)]
    below = MEANING[family].format(policy=" / ".join(policies).capitalize()) + "."
    if any("(" in cell for row in rows for cell in row[3:]):
        whose = ENTROPY if family == "off-policy" else ENTROPY + PPO_ENTROPY
        below += f" In brackets the entropy {whose}; without: not recorded."
    return markdown(header, rows, below=below)


def every_policy(family: str) -> list[str]:
    """What a family is shown by, and the stochastic policy, which on-policy stands in the long tables only."""
    return [*dict.fromkeys((*FAMILY_POLICIES[family], "stochastic"))]


def verdicts(results: Results, *families: str, of: tuple[str, ...] = (), short: bool = False) -> str:
    """A table per family: what the test over all tasks says of each pair, and the ratios of the mean scores by task.

    Args:
      families: all, if none is named.
      of: algorithms whose pairs are shown, if not all.
      short: without the stochastic policy, the mean ratio and the probability of improvement.
    """
    parts, tests = [], []
    for family in families or FAMILIES:
        names, policies = FAMILIES[family], every_policy(family)
        env_ids, rows = environments(results, names), []
        shown = {*(of or names)} - {*VARIANTS}
        compared = [(name, base) for name, base in against_bases(names) if name in shown]
        for (name, base), policy in itertools.product(compared, policies):
            ratios, counts = ratios_of_means(results, name, base, policy)
            if not ratios or (short and policy == "stochastic"):
                continue
            pair = compare(results, name, base, policy)
            verdict = verdict_of(pair, ratios)
            each = [f"{ratios[env_id]:.2f}" if env_id in ratios else "-" for env_id in env_ids]
            rows.append([f"{label(name)} / {label(base)}", policy, span(counts), *verdict[: 3 if short else 5], *each])
            tests += [(pair.p, f"{family} {rows[-1][0]}, {policy}")] if pair else []
        wide = [] if short else ["mean ratio", "P"]
        parts.append(markdown(["algorithm / base", "return", "seeds", "verdict", "p", "IQM", *wide, *env_ids], rows))
    if len(tests) > 1 and not families:
        remain = "; ".join(holm(tests)) or "none"
        parts.append(f"With p <= 0.05 by Holm's correction for all {len(tests)} tests above: {remain}.")
    return "\n\n".join(part for part in parts if part)


def holm(tests: list[tuple[float, str]], level: float = 0.05) -> list[str]:
    """The names of the tests, p and name each, that remain where the level is that of all of them together."""
    remain = []
    for i, (p, name) in enumerate(sorted(tests)):
        if p > level / (len(tests) - i):
            break
        remain.append(name)
    return remain


def verdict_in_words(results: Results, name: str, base: str, policy: str) -> str:
    """'undecided, 1.20 (0.93 to 1.56), p = 0.34': verdict, IQM and p of a pair, for a sentence. Raises UserError."""
    if not {name, base} <= {*ALGORITHMS} or policy not in POLICIES:
        raise UserError(f"a page asks for the verdict {name} / {base} {policy}, which nobody makes")
    pair = compare(results, name, base, policy)
    word, p, iqm_of, *_ = verdict_of(pair, ratios_of_means(results, name, base, policy)[0])
    if pair is None:
        return word
    return f"{word}, {iqm_of}, p {'< 0.001' if pair.p < 0.001 else f'= {p}'}"


def ratios_of_means(results: Results, name: str, base: str, policy: str) -> tuple[dict[str, float], set[int]]:
    """By environment the mean score over the base's, where they have a ratio, and the numbers of seeds behind them."""
    ratios, counts = {}, set()
    for env_id in environments(results, (name,)):
        _, curves = at_equal_steps(results, (base, name), env_id)
        own, of_base = (scores(curves.get(one, []), policy) for one in (name, base))
        if comparable(own, of_base):
            ratios[env_id] = own.mean() / of_base.mean()
            counts |= {len(own), len(of_base)}
    return ratios, counts


LEVEL, FEWEST_LEVEL = (0.8, 1.25), 5


def verdict_of(pair: Pair | None, ratios: dict[str, float]) -> list[str]:
    """Verdict, p, IQM, mean ratio and probability of improvement.

    Better or behind where the exact stratified rank-sum test has p <= 0.05 on both sides together. No difference found
    is no equality shown: level only with FEWEST_LEVEL seeds of both, the whole interval of the IQM within LEVEL, and
    the ratio of the means on every environment within LEVEL, which the IQM may have cut off; else undecided. `ratios`:
    of the means, by environment, also where there are too few seeds for a verdict.
    """
    if pair is None:
        return [f"none: fewer than {FEWEST_SEEDS} seeds", "-", "-", "-", "-"]
    if pair.p <= 0.05:
        word = "**better**" if pair.higher else "**behind**"
    else:
        equal = min(pair.seeds) >= FEWEST_LEVEL
        equal &= all(LEVEL[0] <= x <= LEVEL[1] for x in (*pair.iqm[1:], *(ratios[env_id] for env_id in pair.steps)))
        word = "level" if equal else "undecided"
    where = "" if [*pair.steps] == [*ratios] else f" on {', '.join(pair.steps)}"
    estimates = (estimate(*of) for of in (pair.iqm, pair.mean_ratio, pair.improvement))
    return [f"{word}{where}", f"{pair.p:.2g}", *estimates]


def seeds_table(results: Results, family: str) -> str:
    """Every seed's score by the family's policies and the stochastic one, and beside it the largest evaluation."""
    rows = []
    for env_id in environments(results, FAMILIES[family]):
        limit, curves = at_equal_steps(results, FAMILIES[family], env_id)
        for name, of_name in curves.items():
            for policy in every_policy(family):
                each = ", ".join(f"{curve.seed}: {number(curve.score(policy))}" for curve in of_name)
                largest = spread(np.array([curve.maximum(policy) for curve in of_name]))
                means = score(of_name, policy), score(of_name, "entropy")
                rows.append([env_id, label(name), thousands(limit), policy, each, *means, largest])
    header = ["Environment", "Algorithm", "steps", "policy", "score by seed", "score", "entropy", "maximum"]
    return markdown(header, rows, below=f"Entropy: {ENTROPY}.")


def scores_table(results: Results) -> str:
    """Every run by name, whatever it is called."""
    rows = []
    for name in results:
        for env_id in environments(results, (name,)):
            limit, curves = at_equal_steps(results, (name,), env_id)
            means = [score(curves[name], metric) for metric in (*POLICIES, "entropy")]
            rows.append([name, env_id, thousands(limit), seeds_of(curves[name]), *means])
    return markdown(["name", "environment", "steps", "seeds", *POLICIES, "entropy"], rows, below=f"Entropy: {ENTROPY}.")


def ablation_table(results: Results, prefix: str, *policies: str) -> str:
    """The scores, the entropy where it was recorded, and the speed by the number of denoising steps."""
    found, rows = ablations(results, prefix), []
    known = any(np.isfinite(scores(of_k, "entropy")).any() for _, curves in found.values() for of_k in curves.values())
    metrics = (*policies, "entropy") if known else policies
    for env_id, (limit, curves) in found.items():
        for k, of_k in curves.items():
            means = [score(of_k, metric) for metric in metrics]
            name = of_k[0].columns["exp_name"]
            rows.append([env_id, thousands(limit), str(k), seeds_of(of_k), *means, number(speed(of_k)), name])
    return markdown(["Environment", "steps", "K", "seeds", *metrics, "steps/s", "name"], rows)


def search_table(results: Results) -> str:
    """The settings that were tried for the on-policy pair: training (deterministic) score of every single run."""
    pattern = r"(diffppo_alpha|ppo_ent|ppo_std)[0-9.]+(_480k)?"
    names = [name for name in results if re.fullmatch(pattern, name) and name not in ALGORITHMS]
    curves = {name: [curve for of_env in results[name].values() for curve in of_env] for name in names}
    runs = sorted({(curve.columns["env_id"], curve.seed) for name in names for curve in curves[name]})
    rows = []
    for name in names:
        first = curves[name][0].columns
        steps = thousands(max(int(curve.steps[-1]) for curve in curves[name]))
        cells = {
            (curve.columns["env_id"], curve.seed): f"{score([curve], 'training')} ({score([curve], 'deterministic')})"
            for curve in curves[name]
        }
        arguments = settings_text(first["arguments"])
        rows.append([label(first["script"]), arguments, steps, *(cells.get(run, "-") for run in runs)])
    header = ["Algorithm", "arguments", "steps", *(f"{env_id}, seed {seed}" for env_id, seed in runs)]
    return markdown(header, rows)


def reference_table(results: Results, reference: list[dict]) -> str:
    """Published returns beside ours in the same metric and at as many steps: of the algorithm if it is here, or all."""
    rows = []
    for row in reference:
        for env_id, limit, curves in at_both_lengths(results, FAMILIES[row["kind"]]):
            if stem(env_id) != stem(row["env_id"]) or not as_many(limit, int(row["steps"])):
                continue
            same = [name for name in curves if label(name) in row["algorithm"].split()]
            ours = "; ".join(f"{label(name)} {score(curves[name], row['metric'])}" for name in same or curves)
            value = row["mean"] + (f" ± {row['std_over_seeds']}" if row["std_over_seeds"] else "")
            published = f"{row['algorithm']} {value}" + (f" ({row['seeds']} seeds)" if row["seeds"] else "")
            where = env_id if env_id == row["env_id"] else f"{env_id}; published: {row['env_id']}"
            steps = dict.fromkeys(thousands(n) for n in (limit, int(row["steps"])))
            rows.append([where, "; published: ".join(steps), row["metric"], published, ours])
    return markdown(["Environment", "steps", "return", "published", "here"], rows)


# ---------------------------------------------------------------------------------------------------------------- runs


def settings_table(*names: str) -> str:
    """The defaults of scripts side by side: the arguments that each defines itself."""
    args = [importlib.import_module(name).Args for name in names]
    defaults = [{field.name: field.default for field in dataclasses.fields(of_script)} for of_script in args]
    own = dict.fromkeys(name for of_script in args for name in of_script.__annotations__)
    rows = []
    for name in own:
        # what a script does not define may be one of the arguments that all have, with a default all the same
        values = [str(of_script[name]) if name in of_script else "-" for of_script in defaults]
        rows.append([f"`{flag(name)}`", *values])
    return markdown(["argument", *map(label, names)], rows)


def cost_table(results: Results) -> str:
    """What the committed runs took as they ran, medians over seeds."""
    rows = []
    for name in ALGORITHMS:
        for env_id in environments(results, (name,)):
            limit, curves = at_equal_steps(results, (name,), env_id)
            pace = [number(minutes(curves[name])), number(speed(curves[name]))]
            places = {f"{x.columns['device']}, {x.columns['threads']} threads" for x in curves[name]}
            device = "; ".join(sorted(places)).replace("1 threads", "1 thread")
            rows.append([label(name), env_id, thousands(limit), *pace, device])
    header = ["Algorithm", "Environment", "steps", "minutes", "steps/s while learning", "device"]
    return markdown(header, rows)


def minutes(curves: list[Curve]) -> float:
    """Training and evaluation, median over seeds."""
    return float(np.median([curve.wall_time[-1] for curve in curves])) / 60


def minutes_table(results: Results, *families: str) -> str:
    """The minutes of cost_table by algorithm: from the quickest environment to the slowest."""
    rows = []
    for name in (name for family in families for name in FAMILIES[family] if name in results and name not in VARIANTS):
        of_steps: dict[int, list[float]] = {}
        for env_id in environments(results, (name,)):
            limit, curves = at_equal_steps(results, (name,), env_id)
            of_steps.setdefault(limit, []).append(minutes(curves[name]))
        rows += [
            [label(name), thousands(limit), " to ".join(dict.fromkeys(f"{fold(each):.0f}" for fold in (min, max)))]
            for limit, each in of_steps.items()
        ]
    return markdown(["Algorithm", "steps", "minutes"], rows)


def runs_table(results: Results) -> str:
    """Where the committed numbers come from."""
    rows = []
    for name, by_env in results.items():
        for env_id, curves in by_env.items():
            columns = [curve.columns for curve in curves]
            each = {key: " ".join(sorted({row[key] for row in columns})) for key in columns[0]}
            steps = max(int(curve.steps[-1]) for curve in curves)
            arguments = f"`{each['arguments']}`" if each["arguments"] else ""
            star = {curve.seed: "" if curve.columns["dirty"] == "false" else "*" for curve in curves}
            commits = {x[:7] + star[curve.seed] for curve in curves for x in curve.columns["commit"].split()}
            commit = " ".join(sorted(commits))
            versions = ", ".join(f"{package} {each[package]}" for package in ("jax", "mujoco", "gymnasium"))
            rows.append([name, env_id, seeds_of(curves), thousands(steps), arguments, commit, versions])
    header = ["name", "environment", "seeds", "steps", "arguments besides the defaults", "commit", "versions"]
    return markdown(header, rows)


# ------------------------------------------------------------------------------------------------- other measurements

# The few that the README shows, as regular expressions. Those on a GPU are put together by hand, of single runs.
MAIN_QUANTITIES = (
    "SAC update",
    "DiffSAC, K = 8 update / SAC update",
    "DiffWPO, K = 8 update / DiffSAC update",
    "DiffCrossQ, K = 8 update / CrossQ update",
    "SAC, one action",
    "DiffSAC, K = 8, one action / SAC's",
    "sac_jax.py / SBX .* SAC, steps/s",
    "diffppo_jax.py / ppo_jax.py, K = 8, steps/s",
    "ppo_jax.py / CleanRL PPO, one environment, steps/s",
    "sac_jax.py on a GPU, 1 / 8 / 32 seeds side by side, all seeds together",
    "diffsac_jax.py on a GPU, K = 8, 1 / 8 / 32 seeds side by side, all seeds together",
)


def speed_table(path: Path, main: bool = False) -> str:
    """The rows that `speed.py --save` and `device.py --save` measured, or the main ones of them."""
    shown = re.compile("|".join(MAIN_QUANTITIES) if main else ".*")
    rows = [row for row in read_rows(path) if shown.fullmatch(row["quantity"])]
    cells = [[row["quantity"], row["value"], row["how"], row["device"], row["commit"][:7]] for row in rows]
    below = (
        "Median over the rounds, in brackets the smallest and the largest. Ratios of updates and of"
        " actions are of times: above 1 is slower. Ratios of steps/s: above 1 is faster."
    )
    return markdown(["Quantity", "Value", "Measured", "device", "commit"], cells, below=below)


BANDIT_COLUMNS = ("elbo_gap", "log_z_error", "ess", "worst_region", "grid_kl")


def bandit_table(path: Path) -> str:
    """What bandit.py measured: means over the seeds, of `worst_region` the least.

    Bold: the best of a bandit in the two columns that compare all policies alike. The ELBO gap and the error of log Z
    are exact for a Gaussian and bounds for a chain, and a policy within one mode has a large effective sample size.
    """
    rows, by_agent = read_rows(path), {}
    for row in rows:
        by_agent.setdefault((row["bandit"], row["algorithm"], row["K"]), []).append(row)
    over_seeds = {column: min if column == "worst_region" else np.mean for column in BANDIT_COLUMNS}
    scores = {
        agent: {column: fold([float(row[column]) for row in own]) for column, fold in over_seeds.items()}
        for agent, own in by_agent.items()
    }
    cells = []
    for (bandit, algorithm, k), score in scores.items():
        peers = [other for (name, *_), other in scores.items() if name == bandit]
        values = []
        for column in BANDIT_COLUMNS:
            best = (max if column == "worst_region" else min)(peer[column] for peer in peers)
            value = f"{score[column]:.3f}"
            bold = value == f"{best:.3f}" and column in ("worst_region", "grid_kl")
            values.append(f"**{value}**" if bold else value)
        cells.append([bandit, label(f"{algorithm}_jax"), k or "-", *values])
    header = ["bandit", "algorithm", "K", "ELBO gap", "log Z error", "ESS", "worst region", "KL on the grid"]
    short = [{**row, "commit": row["commit"][:7] + row["commit"][40:]} for row in rows]  # [40:]: " with changes"
    columns = ("updates", "seed", "commit", "device", "versions")
    each = {column: ", ".join(sorted({row[column] for row in short})) for column in columns}
    below = (
        "{updates} updates; mean over seeds {seed}, of the worst region the least; bold: the best of a bandit, in the"
        " two columns that compare all alike; ESS: effective sample size; commit {commit}; {device}; {versions}."
    )
    return markdown(header, cells, below=below.format(**each))


def place(script: str) -> tuple[int, str]:
    """Where a script's rows stand: ours in the order of ALGORITHMS, then others by name."""
    return [*ALGORITHMS, script].index(script), script


def turning_table(path: Path) -> str:
    """Per run and seed the extremes over the headings of what turning.py measured."""
    by_seed: dict[tuple, list[dict]] = {}
    for row in read_rows(path):
        by_seed.setdefault((place(row["script"]), row["exp_name"], row["arguments"], int(row["seed"])), []).append(row)
    cells = []
    for (*_, arguments, seed), rows in sorted(by_seed.items()):
        left, middle, right = (np.array([float(row[side]) for row in rows]) for side in ("left", "middle", "right"))
        with np.errstate(invalid="ignore"):  # without any side, no share of it
            one_sided = np.sum(np.maximum(left, right) / (left + right) >= 0.95)
        run = [label(rows[0]["script"]), settings_text(arguments), thousands(int(rows[0]["global_step"])), str(seed)]
        shares = [f"{np.nanmin([left, right]):.2f}", f"{np.nanmax(middle):.2f}", f"{one_sided} of {len(rows)}"]
        commits = " ".join(sorted({row["commit"][:7] for row in rows}))
        cells.append([*run, f"{float(rows[0]['return']):.1f}", *shares, commits])
    header = ["Algorithm", "arguments", "steps", "seed", "return", "smallest side", "largest middle"]
    return markdown([*header, "one-sided headings", "commit"], cells)


def hidden_table(results: Results) -> str:
    """Share of the episodes in which the stochastic policy found the hidden target, by seed."""
    groups: dict[tuple, list[Curve]] = {}
    for curve in (curve for by_env in results.values() for curves in by_env.values() for curve in curves):
        columns = curve.columns
        run = place(columns["script"]), columns["exp_name"], columns["arguments"], int(curve.steps[-1])
        groups.setdefault(run, []).append(curve)
    rows = []
    for (*_, arguments, steps), curves in sorted(groups.items()):
        shares = scores(curves, "stochastic")
        run = [label(curves[0].columns["script"]), settings_text(arguments), thousands(steps)]
        each = ", ".join(f"{curve.seed}: {share:.2f}" for curve, share in zip(curves, shares, strict=True))
        commits = " ".join(sorted({curve.columns["commit"][:7] for curve in curves}))
        rows.append([*run, each, f"{shares.mean():.2f}", number(scores(curves, "entropy").mean()), commits])
    header = ["Algorithm", "arguments", "steps", "share found by seed", "mean", "entropy", "commit"]
    return markdown(header, rows, below=f"Stochastic policy, mean of its last evaluations. Entropy: {ENTROPY}.")


def agents_table(results: Results, folder: Path) -> str:
    """Of the small copies of runs (keep.py): the score of each, and beside it those of all seeds at as many steps."""
    rows = []
    for place in sorted(path.parent for path in folder.glob("*/args.json")):
        copy = RunFolder(place)
        args = copy.stored_args()
        commits = {f"{(ran['git_commit'] or 'unknown')[:7]}{'*' * bool(ran['git_dirty'])}" for ran in copy.versions()}
        curves = results.get(args["exp_name"], {}).get(args["env_id"], [])
        at_its_steps = [curve.until(args["total_timesteps"]) for curve in curves]
        every = ", ".join(f"{curve.seed}: {number(curve.score('deterministic'))}" for curve in at_its_steps)
        name = label(args["exp_name"] if args["exp_name"] in ALGORITHMS else args["script"])
        run = [name, args["env_id"], thousands(args["total_timesteps"]), str(args["seed"])]
        score_of_seed, ran_at = number(keep.scores(place)[args["seed"]]), " ".join(sorted(commits)) or "-"
        rows.append([f"`{place.name}`", *run, score_of_seed, ran_at, every or "-"])
    header = ["agent", "Algorithm", "Environment", "steps", "seed", "score", "commit", "results by seed"]
    return markdown(header, rows, below=SCORE.format(policy="Deterministic") + ".")


# By their names on the pages: functions of the results and of the benchmarks folder. Of training runs:
TRAINING = {
    "off-policy": lambda results, folder: family_table(results, "off-policy"),
    "off-policy-beyond": lambda results, folder: family_table(beyond(results, FAMILIES["off-policy"]), "off-policy"),
    "off-policy-main": lambda results, folder: family_table(results, "off-policy", short=True),
    "on-policy": lambda results, folder: family_table(results, "on-policy"),
    "on-policy-main": lambda results, folder: family_table(results, "on-policy", short=True),
    "playground": lambda results, folder: family_table(results, "playground"),
    "verdicts": lambda results, folder: verdicts(results),
    "verdicts-main": lambda results, folder: verdicts(results, "off-policy", "on-policy", short=True),
    "off-policy-seeds": lambda results, folder: seeds_table(results, "off-policy"),
    "on-policy-seeds": lambda results, folder: seeds_table(results, "on-policy"),
    "playground-seeds": lambda results, folder: seeds_table(results, "playground"),
    "scores": lambda results, folder: scores_table(results),
    "diffsac-k": lambda results, folder: ablation_table(results, "diffsac", "deterministic", "stochastic"),
    "diffppo-k": lambda results, folder: ablation_table(results, "diffppo", "training", "deterministic", "stochastic"),
    "search": lambda results, folder: search_table(results),
    "reference": lambda results, folder: reference_table(results, read_rows(folder / "reference.csv")),
    "cost": lambda results, folder: cost_table(results),
    "cost-main": lambda results, folder: minutes_table(results, "off-policy", "on-policy"),
    "runs": lambda results, folder: runs_table(results),
}
# Of single algorithms, for their pages:
OF_ALGORITHMS = {
    "verdicts-diffsac": lambda results, folder: verdicts(results, "off-policy", of=("diffsac_jax",)),
    "verdicts-diffwpo": lambda results, folder: verdicts(results, "off-policy", of=("diffwpo_jax",)),
    "verdicts-crossq": lambda results, folder: verdicts(results, "off-policy", of=("crossq_jax", "diffcrossq_jax")),
    "verdicts-diffppo": lambda results, folder: verdicts(results, "on-policy", of=("diffppo_jax",)),
}
# Of the scripts:
SETTINGS = {
    "settings-off-policy": lambda results, folder: settings_table(*FAMILIES["off-policy"]),
    "settings-on-policy": lambda results, folder: settings_table("ppo_jax", "diffppo_jax"),
}
# And of other measurements:
MEASURED = {
    "speed": lambda results, folder: speed_table(folder / "speed.csv"),
    "speed-main": lambda results, folder: speed_table(folder / "speed.csv", main=True),
    "bandit": lambda results, folder: bandit_table(folder / "bandit.csv"),
    "bandit-k": lambda results, folder: bandit_table(folder / "bandit_k.csv"),
    "turning": lambda results, folder: turning_table(folder / "turning.csv"),
    "hidden": lambda results, folder: hidden_table(load(folder / "hidden_target")),
    "agents": lambda results, folder: agents_table(results, folder / "agents"),
}
TABLES = TRAINING | OF_ALGORITHMS | SETTINGS | MEASURED
