"""Bandits with a known optimal policy: what the return does not show about a policy.

    python -m benchmarks.bandit                        # everything, tens of minutes on two cores
    python -m benchmarks.bandit --steps 8 --updates 2000 --results /tmp/bandit.csv --figure /tmp/bandit.png

Each bandit is a density p on the square [-4, 4]^A, and its reward is log p. At temperature 1 the optimal
maximum-entropy policy is p itself, with log Z = 0. Every algorithm is trained by the `update` of its own script, on
batches of one-step episodes (gamma = 0), with the exact Q in the place of its critics.

The samples are then held against p (`measure` says how). One row per bandit, algorithm, K and seed goes to
benchmarks/bandit.csv; the table is printed as Markdown; the picture shows density and samples.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import diffcrossq_jax
import diffsac_jax
import diffwpo_jax
import sac_jax
from benchmarks.export import write_csv
from benchmarks.results import label
from benchmarks.speed import facts
from benchmarks.tables import bandit_table
from common import replay
from common.distributions import gaussian_log_prob
from harness.cli import one_line_errors

BOUND = 4.0  # actions lie in [-4, 4]^A; u = x / 4 is what the policies act with

# ------------------------------------------------------------------------------------------------------------ bandits


def mixture(x: jax.Array, means: list, weights: list, std: float) -> jax.Array:
    means, weights = jnp.array(means), jnp.array(weights)
    log_prob = gaussian_log_prob(x[..., None, :], means, jnp.full(means.shape[-1], std))
    return jax.nn.logsumexp(log_prob + jnp.log(weights), axis=-1)


def two(x):
    """Two modes on a line, with weights 0.3 and 0.7."""
    return mixture(x, [[-2.0], [2.0]], [0.3, 0.7], 0.4)


def four(x):
    """Four equal modes."""
    return mixture(x, [[2.0, 0.0], [-2.0, 0.0], [0.0, 2.5], [0.0, -2.5]], [0.25] * 4, 0.4)


def ring(x):
    """A ring of radius 2.5."""
    radius = jnp.sqrt((x**2).sum(-1) + 1e-12)
    return -0.5 * ((radius - 2.5) / 0.3) ** 2


def ridge(x):
    """A narrow Gaussian along the diagonal: standard deviations 1 and 0.2."""
    along, across = (x[..., 0] + x[..., 1]) / np.sqrt(2), (x[..., 0] - x[..., 1]) / np.sqrt(2)
    return -0.5 * (along**2 + (across / 0.2) ** 2)


def nearest(points: list) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.argmin(((x[:, None] - np.array(points)) ** 2).sum(-1), axis=1)


@dataclass(frozen=True)
class Bandit:
    """log_density `[.., A]` -> `[..]`, up to a constant; region `[n, A]` -> index of the part of the density, `[n]`."""

    name: str
    size: int
    log_density: Callable
    region: Callable

    def grid(self, cells: int) -> np.ndarray:
        """Centres of the cells, `[cells^A, A]`."""
        centres = (np.arange(cells) + 0.5) / cells * 2 * BOUND - BOUND
        return np.stack(np.meshgrid(*[centres] * self.size, indexing="ij"), axis=-1).reshape(-1, self.size)

    def cell_probabilities(self, cells: int, finer: int = 10) -> np.ndarray:
        """Probability of each cell under p, `[cells] * A`, by the midpoint rule on a finer grid."""
        log_prob = np.asarray(self.log_density(self.grid(cells * finer)), np.float64)
        p = np.exp(log_prob - log_prob.max()).reshape([cells, finer] * self.size)
        p = p.sum(axis=tuple(range(1, 2 * self.size, 2)))
        return p / p.sum()


BANDITS = [
    Bandit("two", 1, two, lambda x: (x[:, 0] > 0).astype(int)),
    Bandit("four", 2, four, nearest([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.5], [0.0, -2.5]])),
    Bandit("ring", 2, ring, lambda x: np.floor(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)).astype(int) % 8),
    Bandit("ridge", 2, ridge, lambda x: np.searchsorted([-0.6745, 0.0, 0.6745], x.sum(axis=1) / np.sqrt(2))),
]


@cache
def log_normaliser(bandit: Bandit) -> float:
    """log of the integral of exp(log_density) over u in [-1, 1]^A, by the midpoint rule."""
    cells = 4000 if bandit.size == 1 else 800
    log_density = jax.jit(bandit.log_density)(bandit.grid(cells))
    return float(jax.nn.logsumexp(log_density)) + bandit.size * float(np.log(2.0 / cells))


def exact_q(bandits: tuple[Bandit, ...]) -> Callable:
    """Q(s, u): obs `[B, 1]`, the number of the bandit, so that several can be trained side by side; u `[B, A]`."""
    log_normalisers = [log_normaliser(bandit) for bandit in bandits]

    def q(obs: jax.Array, action: jax.Array) -> jax.Array:
        values = [b.log_density(BOUND * action) - z for b, z in zip(bandits, log_normalisers, strict=True)]
        return jnp.stack(values, axis=-1)[jnp.arange(len(obs)), obs[:, 0].astype(int)]

    return q


def with_exact_critic(agent: Any, q: Callable) -> Any:
    """A script's agent with the exact Q in the place of both critics, whatever their parameters."""

    def critics(params: dict, obs: jax.Array, action: jax.Array, train: bool = False, mutable: Any = False) -> Any:
        values = jnp.broadcast_to(q(obs, action), (2, len(obs)))
        return (values, {name: params[name] for name in mutable}) if mutable else values  # CrossQ's running statistics

    return agent.replace(critic=agent.critic.replace(apply_fn=critics))


# --------------------------------------------------------------------------------------------------- train and measure


ALGORITHMS = {"sac": sac_jax, "diffsac": diffsac_jax, "diffwpo": diffwpo_jax, "diffcrossq": diffcrossq_jax}


def make_args(name: str, num_steps: int, hidden_dim: int) -> Any:
    own = {} if name == "sac" else {"num_denoising_steps": num_steps}
    settings = {"gamma": 0.0, "alpha": 1.0, "autotune": False, "policy_lr": 1e-3, "hidden_dim": hidden_dim}
    return ALGORITHMS[name].Args(**settings, **own)


def learn(module: Any, args: Any, agent: Any, key: jax.Array, updates: int, draw_batch: Callable) -> Any:
    """The agent after so many of the script's updates, each on a batch draw_batch(key)."""

    def step(agent, key_and_index):
        batch_key, update_key = jax.random.split(key_and_index[0])
        return module.update(args, agent, update_key, draw_batch(batch_key), key_and_index[1])[0], None

    return jax.lax.scan(step, agent, (jax.random.split(key, updates), jnp.arange(updates)))[0]


def learner(name: str, args: Any, bandits: tuple[Bandit, ...], updates: int) -> Callable:
    """(number of the bandit, key) -> its agent, trained."""
    module, size, q = ALGORITHMS[name], bandits[0].size, exact_q(bandits)
    env = SimpleNamespace(observation_size=1, action_size=size)

    def train(number, key):
        init_key, key = jax.random.split(key)
        agent = with_exact_critic(module.init_agent(args, env, init_key), q)
        obs = jnp.full((args.batch_size, 1), number, jnp.float32)

        def draw_batch(key):
            action = jax.random.uniform(key, (args.batch_size, size), minval=-1.0, maxval=1.0)
            return replay.Transition(obs, action, q(obs, action), obs, jnp.zeros(args.batch_size, bool))

        return learn(module, args, agent, key, updates, draw_batch)

    return train


def train_agents(name: str, args: Any, bandits: tuple[Bandit, ...], seeds: tuple[int, ...], updates: int) -> Any:
    """One agent per seed and bandit (all of one action size), side by side: leaves `[len(seeds), len(bandits), ..]`."""
    keys = jnp.concatenate([jax.random.split(jax.random.key(seed), len(bandits)) for seed in seeds])
    numbers = jnp.tile(jnp.arange(len(bandits)), len(seeds))
    # One vmapped axis: with two XLA compiled for seven minutes on a CPU.
    agents = jax.jit(jax.vmap(learner(name, args, bandits, updates)))(numbers, keys)
    return jax.tree.map(lambda leaf: leaf.reshape(len(seeds), len(bandits), *leaf.shape[1:]), agents)


def sampler(name: str, args: Any, bandits: tuple[Bandit, ...], samples: int) -> Callable:
    """(agents of one seed, seed) -> actions x `[len(bandits), n, A]`, log-weights Q - l `[len(bandits), n]`."""
    module, q = ALGORITHMS[name], exact_q(bandits)

    def one(agent, number, key):
        obs = jnp.full((samples, 1), number, jnp.float32)
        action, log_prob = module.sample_action(args, agent, key, obs)
        return BOUND * action, q(obs, action) - log_prob

    draw = jax.jit(jax.vmap(one))

    def sample(agents, seed):
        keys = jax.random.split(jax.random.key(seed + 1), len(bandits))
        x, log_weight = draw(agents, jnp.arange(len(bandits)), keys)
        return np.asarray(x), np.asarray(log_weight, np.float64)

    return sample


def measure(bandit: Bandit, x: np.ndarray, log_weight: np.ndarray) -> dict[str, float | str]:
    """Samples x `[n, A]` of a policy and their w = Q - l `[n]` against the density.

    elbo_gap: -E[w], the KL between the paths (nats); log_z_error: |log E[exp w]|; ess: effective sample size / n of
    the weights exp w; occupancy: share of each region (modes; eighths of the ring; quarters of the ridge);
    worst_region: the smallest ratio of a region's share to its share under p, 1 at best, 0 for a missed mode;
    grid_kl: KL(policy || p) on cells, of the samples' histogram (nats).
    """
    top = log_weight.max()
    weight = np.exp(log_weight - top)
    cells = 80 if bandit.size == 1 else 40
    p = bandit.cell_probabilities(cells)
    histogram, _ = np.histogramdd(x, bins=cells, range=[(-BOUND, BOUND)] * bandit.size)
    share = histogram / histogram.sum()
    visited = share > 0
    fine = bandit.grid(400)
    density = np.exp(np.asarray(bandit.log_density(fine), np.float64))
    expected = np.bincount(bandit.region(fine), weights=density) / density.sum()
    occupancy = np.bincount(bandit.region(x), minlength=len(expected)) / len(x)
    return {
        "elbo_gap": -float(log_weight.mean()),
        "log_z_error": abs(float(np.log(weight.mean()) + top)),
        "ess": float(weight.sum() ** 2 / (weight**2).sum() / len(x)),
        "worst_region": float((occupancy / expected).min()),
        "grid_kl": float((share[visited] * np.log(share[visited] / np.maximum(p[visited], 1e-300))).sum()),
        "occupancy": " ".join(f"{s:.3f}" for s in occupancy),
    }


# ------------------------------------------------------------------------------------------------------------ results


def picture(path: Path, samples: dict[str, dict[str, np.ndarray]]) -> None:
    """Density (left) beside samples, one row per bandit. `samples`: by label, by bandit, x `[n, A]`."""
    from benchmarks.figures import panels_of

    rows, columns = len(BANDITS), len(samples) + 1
    figure, axes = panels_of(rows, columns, 1.9 * columns, 1.75 * rows, sharex=True)
    for row, bandit in zip(axes, BANDITS, strict=True):
        cells = 160
        p = bandit.cell_probabilities(cells, finer=1)
        centres = bandit.grid(cells)
        if bandit.size == 1:
            row[0].plot(centres[:, 0], p * cells / (2 * BOUND), color="black")
        else:
            row[0].imshow(p.T, origin="lower", extent=[-BOUND, BOUND] * 2, cmap="Greys")
        row[0].set_ylabel(f"{bandit.name}\n{'density' if bandit.size == 1 else 'second dimension'}", fontsize=8)
        for axis, by_bandit in zip(row[1:], samples.values(), strict=True):
            x = by_bandit[bandit.name]
            if bandit.size == 1:
                axis.hist(x[:, 0], bins=80, range=(-BOUND, BOUND), density=True, color="0.55")
                axis.plot(centres[:, 0], p * cells / (2 * BOUND), color="black", linewidth=0.8)
                axis.sharey(row[0])
            else:
                axis.plot(*x[:2000].T, ".", color="black", markersize=2.5, markeredgewidth=0, alpha=0.6)
        for axis in row:
            axis.set(xlim=(-BOUND, BOUND), xticks=(-4, 0, 4))
            axis.tick_params(labelsize=7, labelleft=axis is row[0])
            axis.set_box_aspect(1)
            if bandit.size == 2:
                axis.set(ylim=(-BOUND, BOUND), yticks=(-4, 0, 4))
    for axis, words in zip(axes[0], ("optimal policy", *samples), strict=True):
        axis.set_title(words, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("action (first dimension)", fontsize=8)
    figure.tight_layout(h_pad=0.4, w_pad=0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def title(name: str, num_steps: int) -> str:
    """A column of the picture."""
    words = label(f"{name}_jax")
    return words if name == "sac" else f"{words}, K = {num_steps}"


@dataclass(frozen=True)
class Settings:
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    """which of sac, diffsac, diffwpo, diffcrossq"""
    steps: tuple[int, ...] = (8, 4, 16, 2, 1)
    """values of K, in the order in which they are trained; the first is the picture's"""
    updates: int = 6000
    """updates per agent"""
    hidden_dim: int = 64
    """units in each hidden layer"""
    samples: int = 100_000
    """actions drawn from each trained policy"""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """of everything; the first is the picture's"""
    results: Path = field(default=Path(__file__).parent / "bandit.csv")
    """the CSV, written anew after every training"""
    figure: Path | None = None
    """the picture; by default in the folder `figures` beside the CSV, under its name"""


def position(row: dict[str, Any]) -> tuple[int, int, int, int]:
    """Bandits and algorithms in the order above, K and seeds rising."""
    names = [bandit.name for bandit in BANDITS]
    return names.index(row["bandit"]), list(ALGORITHMS).index(row["algorithm"]), int(row["K"] or 0), row["seed"]


def main(settings: Settings) -> list[dict[str, Any]]:
    """Trains, measures and writes all that `settings` asks for. Returns the rows of the CSV."""
    rows, samples, here = [], {}, facts()
    figure = settings.figure or settings.results.parent / "figures" / f"{settings.results.stem}.png"
    jobs = [("sac", 0)] * ("sac" in settings.algorithms)
    jobs += [(name, k) for k in settings.steps for name in settings.algorithms if name != "sac"]
    for name, num_steps in jobs:
        args = make_args(name, num_steps, settings.hidden_dim)
        begin = time.monotonic()
        shown = samples.setdefault(name, {}) if num_steps in (0, settings.steps[0]) else {}
        for size in sorted({bandit.size for bandit in BANDITS}):
            bandits = tuple(bandit for bandit in BANDITS if bandit.size == size)
            agents = train_agents(name, args, bandits, settings.seeds, settings.updates)
            sample = sampler(name, args, bandits, settings.samples)
            for i, seed in enumerate(settings.seeds):
                drawn = sample(jax.tree.map(lambda leaf: leaf[i], agents), seed)
                for bandit, x, log_weight in zip(bandits, *drawn, strict=True):
                    shown.setdefault(bandit.name, x)
                    row = {"bandit": bandit.name, "algorithm": name, "K": num_steps or "", "updates": settings.updates}
                    rows.append(row | {"seed": seed} | measure(bandit, x, log_weight) | here)
        print(f"{name} K = {num_steps or '-'}: {time.monotonic() - begin:.0f} s", flush=True)
        rows.sort(key=position)
        settings.results.parent.mkdir(parents=True, exist_ok=True)
        write_csv(settings.results, rows[0], rows)
        picture(figure, {title(name, settings.steps[0]): samples[name] for name in samples})
    print(bandit_table(settings.results))
    return rows


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Settings, description=__doc__))
