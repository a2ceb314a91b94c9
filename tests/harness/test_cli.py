"""Bad input is one clear line on stderr and exit status 2, never a traceback."""

import importlib
import runpy
import sys

import gymnasium as gym
import numpy as np
import pytest

from common import UserError, evaluation
from tests import scripts

SCRIPTS = sorted(path.name for path in scripts.ROOT.glob("*_jax.py"))


class Spaces(gym.Env):
    """An environment that is only its spaces."""

    def __init__(self, observations, actions):
        box = gym.spaces.Box
        self.observation_space = {"vector": box(-1, 1, (3,)), "image": box(0, 255, (8, 8, 3), np.uint8)}[observations]
        self.action_space = {"box": box(-1, 1, (2,)), "unbounded": box(-np.inf, np.inf, (2,))}[actions]


gym.register("Image-v0", entry_point=Spaces, kwargs={"observations": "image", "actions": "box"})
gym.register("Unbounded-v0", entry_point=Spaces, kwargs={"observations": "vector", "actions": "unbounded"})


def enter(script, settings, monkeypatch, capsys):
    """Runs the script's command in this process; returns its exit status and what it wrote to stderr."""
    importlib.import_module(script.removesuffix(".py"))  # so that the copy that runs here does not stay as the module
    monkeypatch.setattr(sys, "argv", [script, *scripts.flags(settings)])
    try:
        runpy.run_path(str(scripts.ROOT / script), run_name="__main__")
        status = 0
    except SystemExit as leaving:
        status = leaving.code
    return status, capsys.readouterr().err


# What is wrong, the settings, and what the line must say. The first column names the test.
CASES = [
    ("unknown environment", {"env-id": "Hoper-v4"}, ["Hoper-v4", "did you mean", "Hopper-v4"]),
    ("unlike any environment", {"env-id": "Qqqq-v9"}, ["Qqqq-v9", "unknown environment"]),
    ("unknown module", {"env-id": "no_such_module:Env-v0"}, ["no_such_module"]),
    ("environment arguments", {"env-kwargs": "{1}"}, ["--env-kwargs", "JSON"]),
    ("discrete actions", {"env-id": "CartPole-v1"}, ["CartPole-v1", "Discrete(2)", "Box"]),
    ("unbounded actions", {"env-id": "Unbounded-v0"}, ["Unbounded-v0", "unbounded"]),
    ("image observations", {"env-id": "Image-v0"}, ["Image-v0", "image"]),
    ("zero steps", {"total-timesteps": 0}, ["--total-timesteps", "positive"]),
    ("negative environments", {"num-envs": -1}, ["--num-envs", "positive"]),
    ("no seeds", {"num-seeds": 0}, ["--num-seeds", "positive"]),
    ("negative seed", {"seed": -1}, ["--seed", "negative"]),
    ("no evaluation episodes", {"eval-episodes": 0}, ["--eval-episodes", "positive"]),
    ("negative evaluation frequency", {"eval-frequency": -100}, ["--eval-frequency", "positive"]),
    ("zero chunk", {"log-frequency": 0}, ["--log-frequency", "positive"]),
    ("steps between chunks", {"total-timesteps": 450}, ["--total-timesteps", "450", "multiple"]),
    ("discount above one", {"gamma": 1.5}, ["--gamma", "1"]),
    ("not a number", {"gamma": "nan"}, ["--gamma", "finite"]),
    ("no run", {"evaluate": "no/such/run"}, ["no/such/run", "not a run folder"]),
]
REPLAY_CASES = [
    ("late start", {"learning-starts": 500}, ["--learning-starts", "--total-timesteps"]),
    ("negative start", {"learning-starts": -1}, ["--learning-starts", "negative"]),
    ("empty buffer", {"buffer-size": 0}, ["--buffer-size", "positive"]),
    ("empty batch", {"batch-size": 0}, ["--batch-size", "positive"]),
    ("part of an update", {"updates-per-step": 0.3}, ["--updates-per-step", "whole number"]),
]
DIFFUSION_CASES = [
    ("no denoising steps", {"num-denoising-steps": 0}, ["--num-denoising-steps", "positive"]),
    ("negative denoising steps", {"num-denoising-steps": -3}, ["--num-denoising-steps", "positive"]),
    ("noise level of one", {"initial-beta-last": 1.0}, ["noise level", "below 1"]),
    ("no noise", {"initial-beta-first": 0.0}, ["--initial-beta-first", "positive"]),
    ("no prior", {"prior-std": 0.0}, ["--prior-std", "positive"]),
]


def cases():
    for script in SCRIPTS:
        fields = importlib.import_module(script.removesuffix(".py")).Args.__dataclass_fields__
        for name, settings, words in CASES + REPLAY_CASES + DIFFUSION_CASES:
            if all(flag.replace("-", "_") in fields for flag in settings):
                yield pytest.param(script, settings, words, id=f"{script}-{name}")


@pytest.mark.parametrize("script, settings, words", cases())
def test_one_line_and_status_2(script, settings, words, tmp_path, monkeypatch, capsys):
    settings = {**scripts.small(script), "runs-folder": tmp_path, **settings}
    status, stderr = enter(script, settings, monkeypatch, capsys)
    assert status == 2
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    for word in words:
        assert word in stderr
    assert not list(tmp_path.iterdir())  # no folder of a run that never was


@pytest.mark.parametrize("script", SCRIPTS)
def test_unwritable_runs_folder(script, tmp_path, monkeypatch, capsys):
    """A file in the folder's place: the permissions of a folder mean nothing to root."""
    (tmp_path / "file").write_text("")
    status, stderr = enter(script, {"env-id": "Pendulum-v1", "runs-folder": tmp_path / "file"}, monkeypatch, capsys)
    assert status == 2
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and str(tmp_path / "file") in stderr


@pytest.mark.parametrize("content", ["{", "[]", '{"script": "os"}', '{"script": "no_such_script"}', '{"seed": 1}'])
def test_evaluate_refuses_what_is_no_run(content, tmp_path, monkeypatch, capsys):
    (tmp_path / "args.json").write_text(content)
    status, stderr = enter(SCRIPTS[0], {"evaluate": tmp_path}, monkeypatch, capsys)
    assert status == 2
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and "args.json" in stderr


def test_a_damaged_agent_is_refused(tmp_path):
    (tmp_path / "args.json").write_text('{"script": "sac_jax", "env_id": "Pendulum-v1", "hidden_dim": 8}')
    (tmp_path / "agent.msgpack").write_bytes(b"\x00 no agent")
    with pytest.raises(UserError, match=r"agent\.msgpack"):
        evaluation.load_agent(tmp_path)


@pytest.mark.parametrize("script, settings", [("sac_jax.py", {"env-id": "Hoper-v4"}), ("diffsac_jax.py", {"gamma": 2})])
def test_as_a_command(script, settings, tmp_path):
    """The same through a process of its own."""
    done = scripts.run(script, {**scripts.small(script), **settings, "runs-folder": tmp_path}, status=2)
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
