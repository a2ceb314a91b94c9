"""The arguments that every script has, each with what --resume may do to it at the field itself, and their ranges."""

import dataclasses
import math
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs import UserError


def option(default: Any, *, may_change: bool = False, computes: bool = True) -> Any:
    """A field of `Experiment`.

    Args:
      may_change: whether --resume may be given another value.
      computes: whether results depend on it; where not, it names a run, or says where and how it is logged.
    """
    return dataclasses.field(default=default, metadata={"may_change": may_change, "computes": computes})


WHOLE_CHUNKS = ("total_timesteps", "eval_frequency")


@dataclass(frozen=True)
class Experiment:
    """Base class of a script's `Args`. A script provides `log_frequency` too, as a field or a property: the environment
    steps of a compiled chunk. `total_timesteps` and `eval_frequency` are rounded up to whole chunks."""

    env_id: str = option("Hopper-v4", computes=False)
    """any Gymnasium id, playground/NAME, brax/NAME, or module:NAME for your own"""
    env_kwargs: str = "{}"
    """keyword arguments of the environment, a JSON object"""
    seed: int = option(1, computes=False)
    """first seed"""
    num_seeds: int = option(1, computes=False)
    """agents trained side by side, with seeds `seed`, `seed + 1`, .."""
    total_timesteps: int = option(1_000_000, may_change=True)
    """environment steps per agent"""
    num_envs: int = 1
    """environments per agent"""
    eval_frequency: int = option(10_000, may_change=True)
    """environment steps between evaluations"""
    eval_episodes: int = 10
    """episodes per evaluation, for each of the stochastic and the deterministic policy"""
    capture_video: bool = option(False, may_change=True, computes=False)
    """record an episode at the end"""
    track: bool = option(False, may_change=True, computes=False)
    """mirror TensorBoard to Weights & Biases"""
    wandb_project_name: str = option("diffusion-maxent-rl", may_change=True, computes=False)
    """Weights & Biases project"""
    wandb_entity: str | None = option(None, may_change=True, computes=False)
    """Weights & Biases entity"""
    runs_folder: str = option("runs", computes=False)
    """where the run's folder is made"""
    exp_name: str | None = option(None, computes=False)
    """name of this experiment, part of the folder's name; by default the script's"""
    run_name: str | None = option(None, computes=False)
    """fixed name of the run's folder, instead of one with the time; an existing run is continued"""
    checkpoint_frequency: int = option(50_000, may_change=True, computes=False)
    """environment steps between checkpoints; 0: only at the end and after a signal"""
    resume: str | None = option(None, may_change=True, computes=False)
    """folder of a run: continue it there, with the arguments stored in it"""

    def __post_init__(self):
        if self.exp_name is None:  # so the runs of a copied script have a name of their own
            object.__setattr__(self, "exp_name", script_of(type(self)))
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if hints[field.name] in (int, float) and not isinstance(value, int | float):
                raise UserError(f"{flag(field.name)} must be a number, not {value!r}")
            if hints[field.name] in (int, float) and not -math.inf < value < math.inf:
                raise UserError(f"{flag(field.name)} must be finite, not {value}")
        self.positive("num_seeds", "total_timesteps", "num_envs", "eval_frequency", "eval_episodes", "log_frequency")
        self.not_negative("seed", "checkpoint_frequency")
        name = self.run_name
        self.check(
            name is None or (name not in ("", "..") and Path(name).name == name),
            f"--run-name {name!r} is not the name of a folder",
        )
        both = "--seed plus --num-seeds" if self.num_seeds > 1 and self.seed < 2**31 else "--seed"
        self.check(self.seed + self.num_seeds < 2**31, f"{both} must be below 2^31")
        self.check(
            self.log_frequency % self.num_envs == 0,
            f"--log-frequency {self.log_frequency} must be a multiple of --num-envs {self.num_envs}",
        )
        for name in WHOLE_CHUNKS:
            object.__setattr__(self, name, -(-getattr(self, name) // self.log_frequency) * self.log_frequency)
        self.check(
            self.total_timesteps < 2**31, "--total-timesteps must be below 2^31: the device counts them in int32"
        )

    @staticmethod
    def changeable(default: Any) -> Any:
        """A field that --resume may change."""
        return option(default, may_change=True)

    @staticmethod
    def check(condition: bool, message: str) -> None:
        """Raises UserError with `message` unless `condition` holds."""
        if not condition:
            raise UserError(message)

    def positive(self, *names: str) -> None:
        """Raises UserError unless all these arguments are above 0, or None."""
        for name, value in self._given(names):
            self.check(value > 0, f"{flag(name)} must be positive, not {value}")

    def not_negative(self, *names: str) -> None:
        """Raises UserError unless all these arguments are at least 0, or None."""
        for name, value in self._given(names):
            self.check(value >= 0, f"{flag(name)} must not be negative, not {value}")

    def fraction(self, *names: str) -> None:
        """Raises UserError unless all these arguments are in [0, 1], or None."""
        self.not_negative(*names)
        for name, value in self._given(names):
            self.check(value <= 1, f"{flag(name)} must not be above 1, not {value}")

    def _given(self, names: tuple[str, ...]) -> list[tuple[str, float]]:
        return [(name, getattr(self, name)) for name in names if getattr(self, name) is not None]

    def fixed_on_resume(self) -> dict[str, str]:
        """Arguments that --resume may not change in this run though their field allows it, with the reason."""
        return {}

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.num_seeds)

    @property
    def seed_range(self) -> str:
        """`1`, or `1-8`"""
        return f"{self.seed}" if self.num_seeds == 1 else f"{self.seed}-{self.seeds[-1]}"

    @property
    def prefix(self) -> str:
        """How the name of a run's folder begins: all but the time."""
        return f"{self.env_id}__{self.exp_name}__{self.seed_range}__".replace("/", "-").replace(":", "-")


def script_of(Args: type[Experiment]) -> str:
    """The name of the script that a class of arguments belongs to; "experiment" in a notebook, which is no file."""
    file = getattr(sys.modules.get(Args.__module__), "__file__", None)
    return Path(file).stem if file else "experiment" if Args.__module__ == "__main__" else Args.__module__


def flag(name: str) -> str:
    """`q_lr` -> `--q-lr`"""
    return "--" + name.replace("_", "-")


def rules(field: dataclasses.Field) -> Mapping[str, Any]:
    """What `option` says of a field. A script that gives an inherited field another default keeps its rules."""
    return Experiment.__dataclass_fields__.get(field.name, field).metadata
