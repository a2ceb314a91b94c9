"""What a number was measured with: commit, versions, device, threads, memory."""

import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnasium", "mujoco", "numpy")
# Named where the run has imported them: package, module.
SIMULATORS = (("playground", "mujoco_playground"), ("brax", "brax"), ("mujoco-mjx", "mujoco.mjx"))


def versions() -> dict[str, Any]:
    """Commit, versions, device and threads of this process."""
    commit, dirty = commit_and_changes()
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        **{name: importlib.metadata.version(name) for name, module in SIMULATORS if module in sys.modules},
        "platform": platform.platform(),
        "device": device(),
        "threads": int(os.environ.get("NPROC") or num_cpus()),
    }


def own_code() -> set[Path]:
    """The files of this process's modules that are neither Python's own nor those of installed packages nor tests."""
    places = sysconfig.get_paths()
    elsewhere = [*(Path(places[name]) for name in ("stdlib", "platstdlib", "scripts")), ROOT / "tests"]
    loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    files = [Path(os.path.abspath(name)) for name in loaded if name and os.path.exists(name)]
    installed = {"site-packages", "dist-packages"}
    own = (x for x in files if installed.isdisjoint(x.parts) and not any(map(x.is_relative_to, elsewhere)))
    return {x.resolve() for x in own}


def commit_and_changes() -> tuple[str | None, bool | None]:
    """The checkout's commit, and whether the code that runs differs from it. None where git cannot say."""

    def git(*command):
        try:
            done = subprocess.run(
                ["git", "--no-optional-locks", "-C", str(ROOT), *command], capture_output=True, text=True, timeout=10
            )
            return done.stdout.strip() if done.returncode == 0 else None
        except (OSError, subprocess.TimeoutExpired):
            return None

    # What makes a run another one is the code: the tables that its results become do not. A copied script, or an
    # environment of one's own, is no part of the commit as long as git does not know it.
    status = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", ":!tests")
    known = git("ls-files", "--", "*.py")
    if status is None or known is None:
        return git("rev-parse", "HEAD"), None
    return git("rev-parse", "HEAD"), bool(status) or not own_code() <= {ROOT / name for name in known.splitlines()}


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two results of `versions`, in words."""
    return [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v and k != "platform"]


def device() -> str:
    """Platform and model of the first device: "gpu NVIDIA H100 80GB HBM3", "cpu AMD EPYC 7B13"."""
    first = jax.devices()[0]
    return f"{first.platform} {cpu_model() if first.platform == 'cpu' else first.device_kind}"


def cpu_model() -> str:
    """The CPU as the system names it."""
    try:
        return re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()).group(1)
    except (OSError, AttributeError):  # not Linux, or a CPU without a name
        return platform.processor() or platform.machine()


def num_cpus() -> int:
    """The CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def peak_memory() -> int:
    """Peak bytes in use: the accelerator's where there is one, else the process's."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
