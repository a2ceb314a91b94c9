"""What a run has come to: kept with every checkpoint, summed up at the end."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax.training.train_state import TrainState

from harness import provenance
from harness.evaluation import POLICIES
from harness.experiment import Experiment


@dataclass
class Record:
    """Counters and evaluations of a run.

    Attributes:
      evaluations: each has by policy a mean return per seed, None once that seed was stopped.
      stopped: by index of a seed that was stopped because a number was not finite: step, cause, what.
      last_return: of the training episode that ended last.
      learning_seconds, learning_steps: of the chunks that learned, without compilation.
      checkpoint_seconds: for which training waited.
      wall_seconds: of the starts before this one.
    """

    evaluations: list[dict[str, list[float | None]]] = field(default_factory=list)
    stopped: dict[int, dict[str, Any]] = field(default_factory=dict)
    last_return: float = float("nan")
    learning_seconds: float = 0.0
    learning_steps: int = 0
    checkpoint_seconds: float = 0.0
    wall_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Record":
        """JSON has no integers as keys."""
        return cls(**{**stored, "stopped": {int(s): what for s, what in stored["stopped"].items()}})

    def running(self, args: Experiment) -> list[int]:
        """Indices of the seeds that were not stopped."""
        return [s for s in range(args.num_seeds) if s not in self.stopped]

    def add_evaluation(self, results: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
        """Keeps the mean returns of an evaluation (see `harness.evaluation.Evaluator`); its values by tag, `[S]`."""
        values: dict[str, np.ndarray] = {}
        for policy, result in results.items():
            for what in ("return", "length"):
                values[f"eval/episodic_{what}_{policy}"] = result[what].mean(axis=1)
            values |= result["metrics"]
        means = {policy: values[f"eval/episodic_return_{policy}"] for policy in results}
        self.evaluations.append(
            {policy: [None if s in self.stopped else float(x) for s, x in enumerate(m)] for policy, m in means.items()}
        )
        return values

    def returns(self, agent: int) -> dict[str, float | None]:
        """Of one seed, by policy, the last evaluation and the score."""
        returns = {}
        for policy in POLICIES:
            values = [e[policy][agent] for e in self.evaluations if e[policy][agent] is not None]
            returns[f"{policy}_last"] = values[-1] if values else None
            returns[f"{policy}_score"] = run_score(values) if values else None
        return returns

    @property
    def steps_per_second(self) -> float | None:
        return self.learning_steps / self.learning_seconds if self.learning_seconds else None

    def summary(self, args: Experiment, agents: Any) -> dict[str, Any]:
        """What summary.json says of all this. `agents`: leaves `[S, ..]`."""
        return {
            "env_id": args.env_id,
            "exp_name": args.exp_name,
            "total_timesteps": args.total_timesteps,
            "stopped": {str(args.seeds[s]): what for s, what in self.stopped.items()},
            "evaluations": len(self.evaluations),
            "episodic_return": {str(seed): self.returns(s) for s, seed in enumerate(args.seeds)},
            "steps_per_second": self.steps_per_second,
            "checkpoint_seconds": self.checkpoint_seconds,
            "wall_seconds": self.wall_seconds,
            "updates": max((int(x.step.max()) for x in train_states(agents)), default=0),
            "parameters": num_parameters(agents),
            "peak_memory_bytes": provenance.peak_memory(),
        }


def run_score(evaluations: Sequence[float]) -> float:
    """Of a run: the mean of its last ten evaluations, of the last three where there are fewer than twenty. Those that
    are not finite do not count; NaN where none is."""
    values = np.asarray(evaluations, float)
    values = values[np.isfinite(values)]
    return float(np.mean(values[-(10 if len(values) >= 20 else 3) :])) if len(values) else float("nan")


def train_states(agents: Any) -> list[TrainState]:
    """Every network with its optimiser in agents."""
    leaves = jax.tree.leaves(agents, is_leaf=lambda x: isinstance(x, TrainState))
    return [x for x in leaves if isinstance(x, TrainState)]


def num_parameters(agents: Any) -> int:
    """Trained parameters of one agent; leaves `[S, ..]`."""
    return sum(x[0].size for state in train_states(agents) for x in jax.tree.leaves(state.params))
