"""The figures of the pages."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.results import (
    ALGORITHMS,
    FAMILIES,
    FAMILY_POLICIES,
    Curve,
    Results,
    ablations,
    as_many,
    at_both_lengths,
    at_equal_steps,
    band,
    environments,
    label,
    pairs,
    scores,
    speed,
    stem,
)
from benchmarks.tables import common_seeds, span, thousands


def panels_of(rows: int, columns: int, width: float, height: float, **options) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches and its axes `[rows, columns]`."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def grid_of(number: int, most: int, width: float, height: float):
    """A figure of panels in lines of at most `most`, each panel so many inches; and their axes in order."""
    columns = min(number, most)
    rows = -(-number // columns)
    figure, axes = panels_of(rows, columns, width * columns, height * rows)
    for axis in axes.flat[number:]:
        axis.set_axis_off()
    return figure, axes.flat[:number]


def note(limit: int, curves: dict[str, list[Curve]]) -> str:
    """What a panel rests on."""
    return f"{thousands(limit)} steps\nseeds {common_seeds(curves)}"


def draw_curve(axis, curves: list[Curve], name: str, policy: str, over_time: bool) -> None:
    """The mean over seeds, at the steps that all were evaluated at, and its band or, of few seeds, these (thin)."""
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    rows = [np.searchsorted(curve.steps, steps) for curve in curves]
    returns = np.stack([curve.measured[policy][row] for curve, row in zip(curves, rows, strict=True)])
    hours = np.stack([curve.wall_time[row] / 3600 for curve, row in zip(curves, rows, strict=True)])
    has = np.isfinite(returns).all(axis=0)
    if not has.any():
        return
    x, returns = (hours.mean(axis=0) if over_time else steps / 1000)[has], returns[:, has]
    style = ALGORITHMS[name]
    marks = {"marker": style.marker, "markevery": max(len(x) // 8, 1), "markersize": 4}
    axis.plot(x, returns.mean(axis=0), style.line, color=style.colour, label=style.label, **marks)
    if len(returns) >= 5:
        axis.fill_between(x, *band(returns), color=style.colour, alpha=0.2, linewidth=0)
    elif len(returns) > 1:
        axis.plot(x, returns.T, style.line, color=style.colour, linewidth=0.8, alpha=0.7)


def curves_figure(results: Results, family: str, over_time: bool = False) -> Figure | None:
    """Learning curves: one column per environment, one row per policy; over wall-clock time one row."""
    env_ids = environments(results, FAMILIES[family])
    policies = FAMILY_POLICIES[family][:1] if over_time else FAMILY_POLICIES[family]
    if not env_ids:
        return None
    width, height = 3.4 * len(env_ids) + 0.4, 2.6 * len(policies) + 0.6
    figure, axes = panels_of(len(policies), len(env_ids), width, height)
    handles = {}
    for column, env_id in enumerate(env_ids):
        limit, curves = at_equal_steps(results, FAMILIES[family], env_id)
        axes[0][column].set_title(f"{env_id}\n{note(limit, curves)}", fontsize=8)
        axes[-1][column].set_xlabel("hours, mean over seeds" if over_time else "steps / 1000")
        for axis, policy in zip(axes[:, column], policies, strict=True):
            for name, of_name in curves.items():
                draw_curve(axis, of_name, name, policy, over_time)
            handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
            axis.grid(alpha=0.3)
    for axis, policy in zip(axes[:, 0], policies, strict=True):
        axis.set_ylabel(f"{policy} return")
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.03 + 0.05 / len(policies), 1, 1))
    return figure


def aggregate_figure(results: Results) -> Figure | None:
    """Points with 95 % intervals: IQM and probability of improvement of each pair."""
    found = pairs(results)
    if not found:
        return None
    figure, ((left, right),) = panels_of(1, 2, 10, 1.2 + 0.55 * len(found), sharey=True)
    names = []
    for row, pair in enumerate(found):
        style = ALGORITHMS[pair.name]
        for axis, (value, *ends) in ((left, pair.iqm), (right, pair.improvement)):
            axis.plot(ends, [row, row], color=style.colour, linewidth=2)
            axis.plot(value, row, style.marker, color=style.colour)
        env_ids = ", ".join(stem(env_id).removeprefix("playground/") for env_id in pair.steps)
        steps = " or ".join(thousands(steps) for steps in sorted(set(pair.steps.values())))
        seeds = span(pair.seeds)
        title = f"{label(pair.name)} vs {label(pair.base)}, {pair.policy}"
        names.append(f"{title}, p = {pair.p:.2g}\n{env_ids}; {steps}; {seeds} seeds")
    for axis, equal, title in (
        (left, 1.0, "IQM of the score / the base's mean score"),
        (right, 0.5, "probability of improvement over the base"),
    ):
        axis.axvline(equal, color="black", linestyle=":", linewidth=1)
        axis.set_xlabel(title, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    left.set_yticks(range(len(found)), names, fontsize=7)
    left.set_ylim(len(found) - 0.5, -0.5)
    figure.tight_layout()
    return figure


def ablation_figure(results: Results) -> Figure | None:
    """Score by each policy and speed against K: one column per algorithm and environment."""
    panels = [
        (f"{label(f'{prefix}_jax')}, {env_id}", policies, *found)
        for prefix, policies in (
            ("diffsac", ("deterministic", "stochastic")),
            ("diffppo", ("deterministic", "training")),
        )
        for env_id, found in ablations(results, prefix).items()
    ]
    if not panels:
        return None
    figure, axes = panels_of(2, len(panels), 4.5 * len(panels), 5)
    for (top, bottom), (title, policies, limit, curves) in zip(axes.T, panels, strict=True):
        levels, largest = list(curves), 0.0
        for policy, colour, line in zip(policies, ("#08306b", "#d95f0e"), ("-o", "--^"), strict=True):
            of_level = [scores(of_k, policy) for of_k in curves.values()]
            for k, values in zip(levels, of_level, strict=True):
                top.plot([k] * len(values), values, line[-1], markerfacecolor="none", color=colour, alpha=0.5)
            top.plot(levels, [values.mean() for values in of_level], line, color=colour, label=policy)
            largest = max(largest, *(values.max() for values in of_level))
        speeds = [speed(of_k) for of_k in curves.values()]
        bottom.plot(levels, speeds, "-s", color="#08306b")
        counts = span({len(of_k) for of_k in curves.values()})
        top.set_title(f"{title}\n{thousands(limit)} steps, {counts} seeds (open: single seeds)", fontsize=9)
        top.set_ylabel("return")
        bottom.set_ylabel("steps/s")
        if largest > 0:  # returns that are costs have no natural zero
            top.set_ylim(0, 1.1 * largest)
        bottom.set_ylim(0, 1.1 * np.nanmax([*speeds, 0.01]))  # none of a run that never learned
        top.legend(fontsize=8, frameon=False, loc="lower right")
        for axis in (top, bottom):
            axis.set_xscale("log", base=2)
            axis.set_xticks(levels, [str(k) for k in levels])
            axis.set_xlim(levels[0] / 1.2, levels[-1] * 1.2)
            axis.grid(alpha=0.3)
        bottom.set_xlabel("denoising steps K")
    figure.tight_layout()
    return figure


def reference_figure(results: Results, reference: list[dict]) -> Figure | None:
    """Published returns (open) beside ours (filled) at as many steps, each with its metric."""
    panels = []
    for kind, names in FAMILIES.items():
        for env_id, limit, curves in at_both_lengths(results, names):
            rows = [row for row in reference if row["kind"] == kind and stem(row["env_id"]) == stem(env_id)]
            rows = [row for row in rows if as_many(limit, int(row["steps"]))]
            if rows:
                panels.append((env_id, rows, limit, curves))
    if not panels:
        return None
    figure, axes = grid_of(len(panels), 3, 5.6, 3.2)
    for axis, panel in zip(axes, panels, strict=True):
        draw_reference(axis, *panel)
    figure.tight_layout()
    return figure


def draw_reference(axis, env_id: str, published: list[dict], limit: int, curves: dict[str, list[Curve]]) -> None:
    names = []

    def point(text, mean, deviation, **style):
        # Some were published without a spread, and a single seed has none.
        xerr = deviation if np.isfinite(deviation) else None
        axis.errorbar(mean, len(names), xerr=xerr, capsize=2, **style)
        names.append(text)

    for row in published:
        text = f"{row['algorithm']}, {row['metric']}, {thousands(int(row['steps']))}"
        deviation = float(row["std_over_seeds"] or "nan")
        point(text, float(row["mean"]), deviation, fmt="s", color="#777777", markerfacecolor="none")
    for metric in dict.fromkeys(row["metric"] for row in published):
        for name, of_name in curves.items():
            values, style = scores(of_name, metric), ALGORITHMS[name]
            deviation = np.std(values, ddof=1) if len(values) > 1 else np.nan
            text = f"here: {style.label}, {metric}, {thousands(limit)}"
            point(text, values.mean(), deviation, fmt=style.marker, color=style.colour)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_title(f"{env_id}: {note(limit, curves)}", fontsize=8)
    axis.set_xlabel("return, ± standard deviation over seeds", fontsize=8)
    axis.grid(axis="x", alpha=0.3)


def draw_figures(results: Results, reference: list[dict], folder: Path) -> list[Path]:
    """Writes every figure that has data; returns their paths."""
    figures = {
        "curves_off_policy": curves_figure(results, "off-policy"),
        "curves_on_policy": curves_figure(results, "on-policy"),
        "curves_playground": curves_figure(results, "playground"),
        "wall_clock_off_policy": curves_figure(results, "off-policy", over_time=True),
        "wall_clock_on_policy": curves_figure(results, "on-policy", over_time=True),
        "aggregate": aggregate_figure(results),
        "ablation_k": ablation_figure(results),
        "reference": reference_figure(results, reference),
    }
    folder.mkdir(parents=True, exist_ok=True)
    figures = {folder / f"{name}.png": figure for name, figure in figures.items() if figure}
    for path, figure in figures.items():
        figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    return list(figures)
