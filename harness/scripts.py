"""Scripts by name: the harness knows none of them."""

import importlib
import sys
from pathlib import Path
from typing import Any

from envs import UserError, one_line
from harness.experiment import Experiment


def import_script(name: str) -> Any:
    """The module of a script, as in `import_script("sac_jax")`. Raises UserError."""
    try:
        module = importlib.import_module(name)
        assert issubclass(module.Args, Experiment)
    except (ImportError, TypeError, ValueError, AttributeError, AssertionError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        where = "in the current folder or in PYTHONPATH" if missing else f"({one_line(error)})"
        raise UserError(f"no script {name!r} {where}") from None
    return module


def script_of(Args: type[Experiment]) -> str:
    """The name of the script that a class of arguments belongs to."""
    return Path(sys.modules[Args.__module__].__file__).stem
