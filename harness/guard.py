"""Numbers that are not finite: which seed has them, and whether the environment or learning made them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs import Episode
from harness.experiment import Experiment
from harness.progress import say


def not_finite(
    episodes: Episode, metrics: dict[str, np.ndarray], agents: Any, num_envs: int
) -> dict[int, dict[str, Any]]:
    """By index of a seed with a number that is not finite: `cause`, `what`, `steps` (taken in the chunk by then).

    Args:
      episodes: of one chunk, leaves `[S, T, N]` on the host.
      metrics: of one chunk by tag, `[S]`; NaN stands for no value (a loss that is NaN makes parameters NaN).
      agents: after the chunk, leaves `[S, ..]`.
    """
    found = {}
    finite_agents = np.asarray(finite(agents))
    num_steps = episodes.finite.shape[1]
    for s in range(len(finite_agents)):
        losses = [tag for tag, x in metrics.items() if tag.startswith("losses/") and np.isinf(x[s])]
        if not episodes.finite[s].all():
            t, n = np.argwhere(~episodes.finite[s])[0]
            what = f"an observation or reward of environment {n} is not finite"
            found[s] = {"steps": (int(t) + 1) * num_envs, "cause": "environment", "what": what}
        elif losses or not finite_agents[s]:
            what = f"{', '.join(losses) or 'a parameter'} is not finite"
            found[s] = {"steps": num_steps * num_envs, "cause": "learning", "what": what}
    return found


def say_evaluation(values: dict[str, np.ndarray], args: Experiment, step: int, running: list[int]) -> None:
    """Says which evaluations `values`, by tag `[S]`, of the seeds with the indices `running` are not finite."""
    for tag, x in values.items():
        if bad := [f"{args.seeds[s]}" for s in running if not np.isfinite(x[s])]:
            say(f"{tag} of seed {', '.join(bad)} at step {step:,} is not finite")


@jax.jit
def finite(agents: Any) -> jax.Array:
    """Whether all numbers of an agent are finite, `[S]`; leaves `[S, ..]`. A scalar may be -inf: the log of a 0."""
    leaves = [x for x in jax.tree.leaves(agents) if jnp.issubdtype(x.dtype, jnp.floating)]
    ok = [jnp.isfinite(x) | ((x.ndim == 1) & (x == -jnp.inf)) for x in leaves]
    return jnp.stack([x.reshape(x.shape[0], -1).all(axis=1) for x in ok]).all(axis=0)
