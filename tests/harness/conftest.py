"""Runs that several modules look at, and `tiny_jax` by its name, as the scripts are: a run folder names its script."""

import sys
from pathlib import Path
from typing import ClassVar

import pytest

from tests.running import TINY, small, train

sys.path.append(str(Path(__file__).parent))


class Trained(dict):
    """Folders of finished runs on Pendulum by script, tiny_jax with the seeds 3 and 4. Not to be changed.

    Trained once in this process, when the first test asks for one.
    """

    settings: ClassVar = {
        TINY: {"seed": 3, "num-seeds": 2},
        "ppo_jax.py": {"total-timesteps": 200},
    }
    runs: Path

    def __missing__(self, name: str) -> Path:
        (script,) = (script for script in self.settings if Path(script).stem == name)
        self[name] = train(script, self.runs, {**small(script), **self.settings[script]})
        return self[name]


_trained = Trained()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    if not _trained:
        _trained.runs = tmp_path_factory.mktemp("trained")
    return _trained
