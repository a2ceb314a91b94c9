"""A copied script is a first-class one: under another name, in another folder, with arguments of its own."""

import json
import subprocess
import sys

import pytest

from harness import provenance, show
from tests.running import ROOT, environment

SETTINGS = (
    "--env-id Pendulum-v1 --total-timesteps 200 --learning-starts 100 --log-frequency 100 --eval-frequency 200 "
    "--eval-episodes 1 --buffer-size 1000 --batch-size 16 --hidden-dim 16"
)
FIELDS = '''
    weight_decay: float = 0.0
    """weight decay of the actor's optimiser"""
    log_std_min: float = -5.0
    """smallest log standard deviation"""
    layers: tuple[int, ...] = (8, 8)
    """of several numbers, which args.json has as a list"""
'''


@pytest.fixture
def python(tmp_path):
    """Runs Python with these words from the folder of the copy, which sees the repository; asserts exit status 0."""

    def run(*words):
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment())
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def test_a_copy_with_more_arguments_trains_and_resumes(tmp_path, python, monkeypatch, capsys):
    """Three fields more and their use, by replacing text: no list elsewhere has to know them."""
    source = (ROOT / "sac_jax.py").read_text()
    for old, new in (
        ("\n\n    def __post_init__(self):", f"{FIELDS}\n    def __post_init__(self):"),
        ("params=actor_params, tx=optax.adam(args.policy_lr)", "params=actor_params, tx=decayed(args)"),
        (
            "def init_agent(",
            "def decayed(args):\n    return optax.adamw(args.policy_lr, weight_decay=args.weight_decay)\n\n\n"
            "def init_agent(",
        ),
    ):
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    (tmp_path / "mine.py").write_text(source)

    python("mine.py", *SETTINGS.split(), "--weight-decay", "0.1", "--runs-folder", "runs")
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("Pendulum-v1__mine__1__")  # its own name, so its results are not taken for SAC's
    args, summary = (json.loads((run / name).read_text()) for name in ("args.json", "summary.json"))
    assert (args["script"], args["weight_decay"], args["log_std_min"]) == ("mine", 0.1, -5.0)
    assert (summary["step"], summary["updates"]) == (200, 100)
    # No commit holds the copy. Where the repository is no checkout of git nothing is known.
    versions = json.loads((run / "versions.json").read_text())
    if provenance.commit_and_changes() == (None, None):
        assert versions["git_dirty"] is None
    else:
        assert versions["git_dirty"] is True and str((tmp_path / "mine.py").resolve()) in versions["git_changes"]

    (tmp_path / "mine.py").write_text(source.replace("alpha * log_prob - q)", "alpha * log_prob - 2 * q)"))
    said = python("mine.py", "--resume", run, "--total-timesteps", 300, "--eval-frequency", 100)
    if versions["git_dirty"] is not None:
        code = f"the code of {(tmp_path / 'mine.py').resolve()}\n"
        assert f"not the versions that this run began with, so its numbers may differ: {code}" in said
        assert [ran["step"] for ran in json.loads((run / "versions.json").read_text())["resumed"]] == [200]
    args, summary = (json.loads((run / name).read_text()) for name in ("args.json", "summary.json"))
    assert (args["weight_decay"], args["layers"], args["total_timesteps"]) == (0.1, [8, 8], 300)
    assert (summary["step"], summary["updates"]) == (300, 200)
    monkeypatch.syspath_prepend(tmp_path)
    show.show(show.Settings(run, episodes=1))
    assert "Pendulum-v1 seed 1" in capsys.readouterr().out
    del sys.modules["mine"]
