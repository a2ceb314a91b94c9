"""Runs that several modules look at, and `tiny_jax` by its name, as the scripts are: a run folder names its script."""

import sys
from pathlib import Path

import pytest

from tests.running import small, train

sys.path.append(str(Path(__file__).parent))

TRAINED = {"tests/harness/tiny_jax.py": {"seed": 3, "num-seeds": 2}, "ppo_jax.py": {"total-timesteps": 200}}
_folders: dict[str, Path] = {}


@pytest.fixture(scope="module")
def trained(quick_compilation, tmp_path_factory):
    """Folders of finished runs on Pendulum by script, tiny_jax with the seeds 3 and 4. Not to be changed."""
    if not _folders:  # once in this process
        runs = tmp_path_factory.mktemp("trained")
        for script, settings in TRAINED.items():
            _folders[Path(script).stem] = train(script, runs, {**small(script), **settings})
    return _folders
