"""What a number was measured with: commit, versions, device, threads, memory."""

import hashlib
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
    commit, changed = commit_and_changes()
    return {
        "git_commit": commit,
        "git_dirty": None if changed is None else bool(changed),
        **({"git_changes": changed} if changed else {}),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        **{name: importlib.metadata.version(name) for name, module in SIMULATORS if module in sys.modules},
        "platform": platform.platform(),
        "device": device(),
        "threads": int(os.environ.get("NPROC") or num_cpus()),
    }


def own_code() -> set[Path]:
    """The files of the modules loaded so far that are neither Python's own nor of installed packages nor tests."""
    places = sysconfig.get_paths()
    elsewhere = [*(Path(places[name]) for name in ("stdlib", "platstdlib", "scripts")), ROOT / "tests"]
    # Of their own dictionary: asking a lazy module for a name would import it.
    loaded = {
        name: vars(module).get("__file__") for name, module in list(sys.modules.items()) if hasattr(module, "__dict__")
    }
    start = {"sitecustomize", "usercustomize"}  # of the machine, for all that it runs
    files = [Path(os.path.abspath(x)) for name, x in loaded.items() if name not in start and isinstance(x, str)]
    installed = {"site-packages", "dist-packages"}
    own = (x for x in files if installed.isdisjoint(x.parts) and not any(map(x.is_relative_to, elsewhere)))
    return {x.resolve() for x in own if x.exists()}


def commit_and_changes() -> tuple[str | None, dict[str, str | None] | None]:
    """The checkout's commit, and the files of code that are not as there by name, with their `digest`.

    None where git cannot say.

    These are the tracked *.py outside tests/ that were changed, and what runs (`own_code`) and is not tracked here: a
    copied script, an environment of one's own. What numbers become, tables and pages, makes no run another one.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as in its hooks

    def git(*command):
        whole = ["git", "--no-optional-locks", "-C", str(ROOT), *command]
        try:
            done = subprocess.run(whole, capture_output=True, text=True, timeout=10, env=environment)
            return done.stdout if done.returncode == 0 else None
        except (OSError, subprocess.TimeoutExpired, UnicodeError):
            return None

    commit = git("rev-parse", "HEAD")
    changed = git("diff", "HEAD", "--name-only", "--relative", "-z", "--", "*.py", ":!tests")
    tracked = git("ls-files", "-z")
    if commit is None or changed is None or tracked is None:
        return commit and commit.strip(), None
    unknown = own_code() - {ROOT / name for name in tracked.split("\0")}
    names = sorted([*filter(None, changed.split("\0")), *map(str, unknown)])
    return commit.strip(), {name: digest(name) for name in names}


def digest(name: str) -> str | None:
    """Of the content of a file that `commit_and_changes` names; None where it is gone."""
    try:
        return hashlib.sha256((ROOT / name).read_bytes()).hexdigest()[:12]
    except OSError:
        return None


def digests(versions: dict[str, Any]) -> dict[str, str | None]:
    """The files of `commit_and_changes` in a result of `versions`, each with its digest.

    None where it was gone, and in a run from before there were digests.
    """
    found = versions.get("git_changes", {})
    return found if isinstance(found, dict) else dict.fromkeys(found)


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two results of `versions`, in words."""
    left_out = ("platform", "git_changes")
    words = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if k not in left_out and before.get(k) != v]
    if files := changed_files(before, now):
        words.append(f"the code of {', '.join(files)}")
    return words


def changed_files(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The files whose code differs between two results of `versions`, beyond what their commits say."""
    old, new = digests(before), digests(now)
    # What is no longer among them is as committed: as it was, if that was committed since.
    gone = [name for name in old if name not in new and old[name] != digest(name)]
    return sorted([name for name in new if old.get(name, "as committed") != new[name]] + gone)


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
