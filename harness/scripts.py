"""Scripts by name: the harness knows none of them."""

import importlib
from typing import Any

from envs import UserError, one_line
from harness.experiment import Experiment


def import_script(name: str) -> Any:
    """The module of a script, as in `import_script("sac_jax")`. Raises UserError."""
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever somebody's own code does
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise UserError(f"no script {name!r} in the current folder or in PYTHONPATH") from None
        raise UserError(f"cannot import the script {name!r} ({one_line(error)})") from None
    if not (isinstance(Args := getattr(module, "Args", None), type) and issubclass(Args, Experiment)):
        raise UserError(f"no script {name!r}: {module.__name__} has no Args of harness.Experiment")
    return module
