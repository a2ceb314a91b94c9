"""The figures of the pages."""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.results import (
    ALGORITHMS,
    FAMILIES,
    FAMILY_POLICIES,
    FEWEST_SEEDS,
    Curve,
    Results,
    ablations,
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


def draw_curve(axis, curves: list[Curve], name: str, policy: str, over_time: bool) -> None:
    """The mean over seeds, at the steps that all were evaluated at, and its band or, of few seeds, these (thin)."""
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    rows = [np.searchsorted(curve.steps, steps) for curve in curves]
    returns = np.stack([curve.measured[policy][row] for curve, row in zip(curves, rows, strict=True)])
    minutes = np.stack([curve.wall_time[row] / 60 for curve, row in zip(curves, rows, strict=True)])
    has = np.isfinite(returns).all(axis=0)
    if not has.any():
        return
    x, returns = (minutes.mean(axis=0) if over_time else steps / 1000)[has], returns[:, has]
    style = ALGORITHMS[name]
    marks = {"marker": style.marker, "markevery": max(len(x) // 8, 1), "markersize": 4}
    axis.plot(x, returns.mean(axis=0), style.line, color=style.colour, label=style.label, **marks)
    if len(returns) >= 5:
        axis.fill_between(x, *band(returns), color=style.colour, alpha=0.2, linewidth=0)
    elif len(returns) > 1:
        axis.plot(x, returns.T, style.line, color=style.colour, linewidth=0.6, alpha=0.5)


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
        _, curves = at_equal_steps(results, FAMILIES[family], env_id)
        axes[0][column].set_title(f"{env_id}\nseeds {common_seeds(curves)}", fontsize=8)
        axes[-1][column].set_xlabel("minutes (mean over seeds)" if over_time else "environment steps (thousands)")
        for axis, policy in zip(axes[:, column], policies, strict=True):
            for name, of_name in curves.items():
                draw_curve(axis, of_name, name, policy, over_time)
            handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
            axis.grid(alpha=0.3)
    for axis, policy in zip(axes[:, 0], policies, strict=True):
        axis.set_ylabel(f"{policy} return")
    shown = {"ncols": len(handles), "handlelength": 3.5, "frameon": False, "fontsize": 9}
    figure.legend(handles.values(), handles.keys(), loc="lower center", **shown)
    figure.tight_layout(rect=(0, 0.03 + 0.05 / len(policies), 1, 1))
    return figure


def tasks(env_ids: Iterable[str]) -> str:
    return ", ".join(stem(env_id).removeprefix("playground/") for env_id in env_ids)


def aggregate_figure(results: Results) -> Figure | None:
    """Points with 95 % intervals: IQM and probability of improvement of each pair, a line per pair, families apart.

    Filled: the deterministic policy; open: the stochastic policy or the training return. On the right both p-values.
    """
    found, lines = pairs(results), []
    for names in FAMILIES.values():
        of_family = [pair for pair in found if pair.name in names]
        if not of_family:
            continue
        every = dict.fromkeys(env_id for pair in of_family for env_id in pair.steps)
        lengths = sorted({steps for pair in of_family for steps in pair.steps.values()})
        lines.append((f"{tasks(every)}; {' or '.join(map(thousands, lengths))} steps", []))
        for title, group in groupby(of_family, key=lambda pair: f"{label(pair.name)} / {label(pair.base)}"):
            of_pair = [*group]
            fewer = "" if [*of_pair[0].steps] == [*every] else f"\n{tasks(of_pair[0].steps)}"
            lines.append((title + fewer, of_pair))
    if not lines:
        return None
    figure, ((left, right),) = panels_of(1, 2, 10, 1.2 + 0.3 * len(lines), sharey=True)
    for row, (_, of_pair) in enumerate(lines):
        for pair in of_pair:
            style, filled = ALGORITHMS[pair.name], pair.policy == "deterministic"
            y = row - 0.12 if filled else row + 0.12
            for axis, (value, *ends) in ((left, pair.iqm), (right, pair.improvement)):
                axis.plot(ends, [y, y], color=style.colour, linewidth=2 if filled else 1)
                fill = {} if filled else {"markerfacecolor": "white"}
                axis.plot(value, y, style.marker, color=style.colour, markersize=5, **fill)
        if of_pair:
            in_order = sorted(of_pair, key=lambda pair: pair.policy != "deterministic")
            said = "\n".join(f"{pair.policy}: p = {pair.p:.2g}, {span(pair.seeds)} seeds" for pair in in_order)
            right.annotate(said, (1.02, row), xycoords=("axes fraction", "data"), fontsize=6, va="center")
    for axis, equal, title in (
        (left, 1.0, "IQM, over the base's"),
        (right, 0.5, "probability of improvement"),
    ):
        axis.axvline(equal, color="black", linestyle=":", linewidth=1)
        axis.set_xlabel(title, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    if all(pair.iqm[1] > 0 for pair in found):  # ratios; of returns below zero there may be others
        left.set_xscale("log")
        low, high = left.get_xlim()
        ticks = [x for x in (0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100) if low <= x <= high]
        left.set_xticks(ticks, [f"{x:g}" for x in ticks])
        left.xaxis.set_minor_locator(NullLocator())
    left.set_yticks(range(len(lines)), [title for title, _ in lines], fontsize=8)
    for text, (_, of_pair) in zip(left.get_yticklabels(), lines, strict=True):
        text.set_fontstyle("normal" if of_pair else "italic")
    left.set_ylim(len(lines) - 0.5, -0.5)
    figure.tight_layout()
    return figure


POLICY_STYLES = {"deterministic": ("#2171b5", "-o"), "stochastic": ("#d95f0e", "--^"), "training": ("#1b7837", ":s")}


def ablation_figure(results: Results) -> Figure | None:
    """Score by each policy and speed against K: one column per algorithm and environment. Open: single seeds.

    Filled and joined: means, of FEWEST_SEEDS or more.
    """
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
        for policy in policies:
            colour, line = POLICY_STYLES[policy]
            of_level = [scores(of_k, policy) for of_k in curves.values()]
            for k, values in zip(levels, of_level, strict=True):
                top.plot([k] * len(values), values, line[-1], markerfacecolor="none", color=colour, alpha=0.5)
            means = [values.mean() if len(values) >= FEWEST_SEEDS else np.nan for values in of_level]
            top.plot(levels, means, line, color=colour, label=policy)
            largest = max(largest, *(values.max() for values in of_level))
        speeds = [speed(of_k) for of_k in curves.values()]
        bottom.plot(levels, speeds, "-s", color="#525252")
        counts = span({len(of_k) for of_k in curves.values()})
        top.set_title(f"{title}\n{thousands(limit)} steps, {counts} seeds of each K", fontsize=9)
        top.set_ylabel("return")
        bottom.set_ylabel("steps/s")
        if largest > 0:  # returns that are costs have no natural zero
            top.set_ylim(0, 1.1 * largest)
        bottom.set_ylim(0, 1.1 * np.nanmax([*speeds, 0.01]))  # none of a run that never learned
        top.legend(fontsize=8, frameon=False, loc="lower center", ncols=2, handlelength=3)
        for axis in (top, bottom):
            axis.set_xscale("log", base=2)
            axis.set_xticks(levels, [str(k) for k in levels])
            axis.set_xlim(levels[0] / 1.2, levels[-1] * 1.2)
            axis.grid(alpha=0.3)
        bottom.set_xlabel("denoising steps K")
    figure.tight_layout()
    return figure


def draw_figures(results: Results, folder: Path) -> list[Path]:
    """Writes every figure that has data; returns their paths."""
    figures = {
        "curves_off_policy": curves_figure(results, "off-policy"),
        "curves_on_policy": curves_figure(results, "on-policy"),
        "curves_playground": curves_figure(results, "playground"),
        "wall_clock_off_policy": curves_figure(results, "off-policy", over_time=True),
        "wall_clock_on_policy": curves_figure(results, "on-policy", over_time=True),
        "aggregate": aggregate_figure(results),
        "ablation_k": ablation_figure(results),
    }
    folder.mkdir(parents=True, exist_ok=True)
    figures = {folder / f"{name}.png": figure for name, figure in figures.items() if figure}
    for path, figure in figures.items():
        figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    return list(figures)
