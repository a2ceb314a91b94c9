"""Bad input is one clear line on stderr and exit status 2, never a traceback, and leaves nothing behind."""

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys

import gymnasium as gym
import jax
import numpy as np
import pytest
import tiny_jax

from envs import UserError
from harness import Experiment, RunFolder, cli
from harness.folder import RunFolderError
from harness.lock import lock
from tests.running import ROOT, SCRIPTS, TIMEOUT, TINY, command, enter, environment, known, module_of, run, small


class Spaces(gym.Env):
    """An environment that is only its spaces."""

    def __init__(self, observations, actions):
        box = gym.spaces.Box
        self.observation_space = {"vector": box(-1, 1, (3,)), "image": box(0, 255, (8, 8, 3), np.uint8)}[observations]
        self.action_space = {"box": box(-1, 1, (2,)), "unbounded": box(-np.inf, np.inf, (2,))}[actions]


gym.register("Image-v0", entry_point=Spaces, kwargs={"observations": "image", "actions": "box"})
gym.register("Unbounded-v0", entry_point=Spaces, kwargs={"observations": "vector", "actions": "unbounded"})


def assert_one_line(stderr, *words):
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    for word in words:
        assert word in stderr


# What is wrong, the settings, and what the line must say. The first column names the test.
CASES = [
    ("unknown environment", {"env-id": "Hoper-v4"}, ["Hoper-v4", "did you mean", "Hopper-v4"]),
    ("unlike any environment", {"env-id": "Qqqq-v9"}, ["Qqqq-v9", "unknown environment"]),
    ("unknown module", {"env-id": "no_such_module:Env-v0"}, ["no_such_module"]),
    ("environment arguments", {"env-kwargs": "{1}"}, ["--env-kwargs", "JSON"]),
    ("discrete actions", {"env-id": "CartPole-v1"}, ["CartPole-v1", "Discrete(2)", "Box"]),
    ("unbounded actions", {"env-id": "Unbounded-v0"}, ["Unbounded-v0", "unbounded"]),
    ("image observations", {"env-id": "Image-v0"}, ["Image-v0", "image"]),
    ("zero steps", {"total-timesteps": 0}, ["--total-timesteps must be positive, not 0"]),
    ("negative environments", {"num-envs": -1}, ["--num-envs must be positive, not -1"]),
    ("no seeds", {"num-seeds": 0}, ["--num-seeds must be positive, not 0"]),
    ("negative seed", {"seed": -1}, ["--seed must not be negative, not -1"]),
    ("seed of too many bits", {"seed": 2**31 - 1}, ["--seed must be below 2^31"]),
    ("no evaluation episodes", {"eval-episodes": 0}, ["--eval-episodes must be positive, not 0"]),
    ("negative evaluation frequency", {"eval-frequency": -100}, ["--eval-frequency must be positive, not -100"]),
    ("negative checkpoint frequency", {"checkpoint-frequency": -1}, ["--checkpoint-frequency must not be negative"]),
    ("zero chunk", {"log-frequency": 0}, ["--log-frequency must be positive, not 0"]),
    ("part of a step", {"log-frequency": 25}, ["--log-frequency 25 must be a multiple of --num-envs 2"]),
    ("discount above one", {"gamma": 1.5}, ["--gamma must not be above 1, not 1.5"]),
    ("not a number", {"gamma": "nan"}, ["--gamma must be finite, not nan"]),
    ("infinite", {"max-grad-norm": "inf"}, ["--max-grad-norm must be finite, not inf"]),
    ("no run", {"resume": "no/such/run"}, ["'no/such/run' is not a run folder: it has no args.json"]),
    # a replay buffer
    ("late start", {"learning-starts": 500}, ["--learning-starts", "--total-timesteps"]),
    ("negative start", {"learning-starts": -1}, ["--learning-starts must not be negative, not -1"]),
    ("empty buffer", {"buffer-size": 0}, ["--buffer-size must be positive, not 0"]),
    ("empty batch", {"batch-size": 0}, ["--batch-size must be positive, not 0"]),
    ("part of an update", {"updates-per-step": 0.3}, ["--updates-per-step", "whole number"]),
    ("a temperature that cannot move", {"alpha": 0, "autotune": True}, ["--alpha 0 needs --no-autotune"]),
    ("no decay of a mean of gradients", {"q-b1": 1}, ["--q-b1 must be below 1"]),
    # rollouts
    ("uneven minibatches", {"num-minibatches": 7}, ["--num-minibatches 7 must divide the", "rows of a rollout"]),
    ("no rollout", {"num-steps": 0}, ["--num-steps must be positive, not 0"]),
    ("lambda above one", {"gae-lambda": 1.5}, ["--gae-lambda must not be above 1, not 1.5"]),
    ("negative clipping", {"clip-coef": -0.1}, ["--clip-coef must be positive, not -0.1"]),
    # diffusion policies
    ("no denoising steps", {"num-denoising-steps": 0}, ["--num-denoising-steps must be positive, not 0"]),
    ("negative denoising steps", {"num-denoising-steps": -3}, ["--num-denoising-steps must be positive, not -3"]),
    ("a level of one", {"initial-beta-last": 1.0}, ["--initial-beta", "below 1"]),
    ("no noise", {"initial-beta-first": 0.0}, ["--initial-beta-first must be positive, not 0.0"]),
    ("no prior", {"prior-std": 0.0}, ["--prior-std must be positive, not 0.0"]),
]


def cases():
    for script in SCRIPTS:
        for name, settings, words in CASES:
            if known(script, settings) == settings:
                yield pytest.param(script, settings, words, id=f"{script}-{name}")


@pytest.mark.parametrize("script, settings, words", cases())
def test_one_line_and_status_2(script, settings, words, tmp_path):
    done = enter(script, {**small(script), "runs-folder": tmp_path, **settings}, status=2)
    assert_one_line(done.stderr, *words)
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())  # no folder of a run that never was


def test_every_case_is_some_scripts():
    for name, settings, _ in CASES:
        assert any(known(script, settings) == settings for script in SCRIPTS), name


@pytest.mark.parametrize("script", SCRIPTS)
def test_unwritable_runs_folder(script, tmp_path):
    """A file in the folder's place: the permissions of a folder mean nothing to root."""
    (tmp_path / "file").write_text("")
    done = enter(script, {**small(script), "runs-folder": tmp_path / "file"}, status=2)
    assert_one_line(done.stderr, str(tmp_path / "file"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_every_argument(script, capsys):
    """What follows --help is not read."""
    module = module_of(script)
    with pytest.raises(SystemExit) as leaving:
        cli.parse(module.Args, ["--help", "--resume", "no/such/run"])
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    lines = module.__doc__.splitlines()
    assert lines[0][:60] in shown
    own = [line for line in lines if line.startswith(("  Run: ", "  Docs: ", "  Diff: "))]
    assert len(own) == 3 and {*own} <= {*shown.splitlines()}
    for name in module.Args.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in shown


def test_unknown_arguments_have_status_2(tmp_path):
    done = enter("sac_jax.py", {"runs-folder": tmp_path, "gama": 0.5}, status=2)
    assert "--gama" in done.stderr and not list(tmp_path.iterdir())


def test_as_a_command(tmp_path):
    """The same through a process of its own."""
    done = run("sac_jax.py", {**small("sac_jax.py"), "env-id": "Hoper-v4", "runs-folder": tmp_path}, status=2)
    assert done.stdout == ""
    assert_one_line(done.stderr, "Hopper-v4")


# ------------------------------------------------------------------------------------------- --resume of what is no run


@pytest.fixture
def folder(tmp_path):
    """What a run of sac_jax.py leaves when it is killed before its first checkpoint."""
    run_folder = RunFolder(tmp_path)
    run_folder.write_args(module_of("sac_jax.py").Args(env_id="Pendulum-v1"))
    (tmp_path / "scalars.csv").write_text("global_step,wall_time,seed,tag,value\n")
    return tmp_path


def assert_refused(script, folder, *words, **more):
    """In one line, and without a change to the folder."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = enter(script, {"resume": folder, **more}, status=2)
    assert_one_line(done.stderr, *words)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"x"', "null", '{"seed": 1}', b"\xff\xfe"])
def test_resume_refuses_broken_arguments(folder, content):
    (folder / "args.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused("sac_jax.py", folder, "args.json", "is not the args.json of a run")


def test_resume_refuses_another_scripts_run(folder):
    assert_refused("ppo_jax.py", folder, "was made by sac_jax.py, not by ppo_jax.py: use that script")


@pytest.mark.parametrize("layout", [1, 3, "x", None])
def test_resume_refuses_another_layout(folder, layout):
    """Folders of the first layout do not say which it is."""
    stored = json.loads((folder / "args.json").read_text())
    stored |= {"layout": layout}
    if layout == 1:
        del stored["layout"]
    (folder / "args.json").write_text(json.dumps(stored))
    assert_refused("sac_jax.py", folder, f"has the layout {layout} of another version of sac_jax.py", "versions.json")


def test_resume_refuses_other_arguments_than_the_script_has(folder):
    stored = json.loads((folder / "args.json").read_text())
    del stored["tau"]
    (folder / "args.json").write_text(json.dumps({**stored, "zeta": 1}))
    assert_refused("sac_jax.py", folder, "was made by another version of sac_jax.py, which differs in tau, zeta")


def test_resume_refuses_a_folder_that_is_gone(folder):
    shutil.rmtree(folder)
    done = enter("sac_jax.py", {"resume": folder}, status=2)
    assert_one_line(done.stderr, "is not a run folder")
    assert not folder.exists()


def test_resume_refuses_arguments_out_of_range(folder):
    assert_refused("sac_jax.py", folder, "--eval-frequency must be positive, not -1", **{"eval-frequency": -1})
    assert_refused("sac_jax.py", folder, "--tau 0.5 conflicts with", "begun with 0.005", tau=0.5)


# --------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], None),
        (["--seed", "3"], None),
        (["--resume", "a b"], "a b"),
        (["--seed", "3", "--resume=a=b"], "a=b"),
        (["--resume", "x", "--seed", "3"], "x"),
        (["--resume"], None),
        (["--help", "--resume", "x"], None),
    ],
)
def test_what_follows_resume(words, expected):
    assert cli.resumed(words) == expected


@pytest.mark.parametrize(
    "error, status", [(UserError("what"), 2), (RunFolderError("what"), 1), (KeyboardInterrupt(), 130)]
)
def test_exit_status_of_an_error(error, status, capsys):
    with pytest.raises(SystemExit) as leaving, cli.one_line_errors():
        raise error
    assert leaving.value.code == status
    assert capsys.readouterr().err == ("" if status == 130 else "error: what\n")


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), cli.one_line_errors():
        raise ZeroDivisionError


def test_arguments_are_those_of_the_command_line(monkeypatch):
    seen = []
    monkeypatch.setattr(cli.sys, "argv", ["x_jax.py", "--seed", "3", "--log-frequency", "200"])
    cli.run(module_of("sac_jax.py").Args, seen.append)
    assert isinstance(seen[0], Experiment) and (seen[0].seed, seen[0].log_frequency) == (3, 200)


def test_a_finished_run_of_a_name_is_extended(tmp_path):
    folder, args = RunFolder(tmp_path), tiny_jax.Args(total_timesteps=100)
    folder.write_args(args)
    folder.write_json("summary.json", {"total_timesteps": 100})
    with pytest.raises(SystemExit, match="0"):
        cli.leave_if_over(folder, args)
    cli.leave_if_over(folder, dataclasses.replace(args, total_timesteps=200))


# ----------------------------------------------------------------------------------------------- how values are given


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--autotune=True", "--total-timesteps", "1e6"], {"autotune": True, "total_timesteps": 1_000_000}),
        (["--autotune", "False", "--total-timesteps=2.55e4"], {"autotune": False, "total_timesteps": 26000}),
        (["--autotune=0", "--capture-video=1", "--seed", "7"], {"autotune": False, "capture_video": True, "seed": 7}),
        (["--no-autotune", "--gamma", "1e-1"], {"autotune": False, "gamma": 0.1}),
        (["--total_timesteps", "2e4", "--no_autotune", "--q_lr=1e-2"], {"total_timesteps": 20_000, "q_lr": 0.01}),
        (["--run_name=a_b", "--num-envs=100", "--updates_per_step=0.07"], {"run_name": "a_b", "num_updates": 7}),
        (['--env-kwargs={"a": "b=True"}', "--exp-name", "1e3"], {"exp_name": "1e3", "env_kwargs": '{"a": "b=True"}'}),
    ],
)
def test_values_as_sweep_tools_write_them(words, expected):
    args = cli.parse(module_of("sac_jax.py").Args, words)
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize("word", ["1.2.3e4", "1e6e2", "1.5e0"])
def test_numbers_that_are_none_are_refused_not_raised(word, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.parse(module_of("sac_jax.py").Args, ["--total-timesteps", word])
    assert leaving.value.code == 2 and word in capsys.readouterr().err


def test_a_rounded_number_of_steps_is_said(capsys):
    args = cli.parse(module_of("ppo_jax.py").Args, ["--total-timesteps", "300000", "--eval-frequency", "10000"])
    assert args.total_timesteps % args.log_frequency == args.eval_frequency % args.log_frequency == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[0].startswith("--total-timesteps 300,000 becomes 300,")
    assert said[1].startswith("--eval-frequency 10,000 becomes 1") and "--num-envs times --num-steps" in said[1]
    cli.parse(module_of("sac_jax.py").Args, ["--total_timesteps", "20000"])
    assert capsys.readouterr().out == ""  # nothing was rounded


def test_a_rounded_number_of_steps_is_said_on_resume_too(folder, capsys):
    args = cli.parse(module_of("sac_jax.py").Args, ["--resume", str(folder), "--total-timesteps", "1500200"])
    assert args.total_timesteps == 1_501_000
    assert capsys.readouterr().out.startswith("--total-timesteps 1,500,200 becomes 1,501,000: whole chunks of 1000 ")


def test_the_same_environment_arguments_in_other_words(folder, monkeypatch):
    RunFolder(folder).write_args(module_of("sac_jax.py").Args(env_id="Pendulum-v1", env_kwargs='{"g": 1}'))
    words = ["--resume", str(folder), "--env-kwargs"]
    assert cli.parse(module_of("sac_jax.py").Args, [*words, '{"g":1.0}']).env_kwargs == '{"g": 1}'
    with pytest.raises(UserError, match="--env-kwargs"):
        cli.parse(module_of("sac_jax.py").Args, [*words, '{"g": 2}'])


def test_a_name_that_is_too_long(tmp_path):
    settings = {**small("sac_jax.py"), "runs-folder": tmp_path, "run-name": "a" * 300}
    assert_one_line(enter("sac_jax.py", settings, status=2).stderr, "File name too long")


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"JAX_PLATFORMS": "nowhere"}, "JAX finds no device"),
        ({"NPROC": "two"}, "NPROC, the number of threads, is 'two'"),
    ],
)
def test_jax_set_up_otherwise(tmp_path, variables, message):
    done = run("sac_jax.py", {**small("sac_jax.py"), "runs-folder": tmp_path}, status=2, **variables)
    assert_one_line(done.stderr, message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, value", [("jax_disable_jit", True), ("jax_enable_x64", True)])
def test_settings_of_jax_that_no_script_can_use(tmp_path, name, value):
    with getattr(jax, name.removeprefix("jax_"))(value):
        done = enter("sac_jax.py", {**small("sac_jax.py"), "runs-folder": tmp_path}, status=2)
    assert_one_line(done.stderr, f"{name.upper()} is set")
    assert not list(tmp_path.iterdir())


def test_a_buffer_larger_than_memory(tmp_path):
    settings = {**small("sac_jax.py"), "runs-folder": tmp_path, "buffer-size": 10**14}  # no address space holds it
    assert_one_line(enter("sac_jax.py", settings, status=1).stderr, "out of memory")
    assert not list(tmp_path.iterdir())


def test_an_output_that_nobody_reads(tmp_path):
    """As in `| head -1`: the run goes on to its end."""
    settings = {"env-id": "Pendulum-v1", "total-timesteps": 1000, "log-frequency": 50, "eval-frequency": 1000}
    words = command(TINY, {**settings, "eval-episodes": 1, "runs-folder": tmp_path})
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=TIMEOUT) == 0 and error == ""
    (folder,) = tmp_path.iterdir()
    assert RunFolder(folder).status() == "finished"


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("words", [["sac_jax.py"], ["-m", "harness.show"], ["-m", "benchmarks.pages"]])
def test_a_help_that_nobody_reads(words, buffered):
    """By tyro, which raises at once, and by argparse, which leaves it to Python's end, or ignores it."""
    variables = {name: value for name, value in environment().items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    interpreter = [sys.executable] if buffered else [sys.executable, "-u"]
    process = subprocess.Popen([*interpreter, *words, "--help"], cwd=ROOT, env=variables, **pipes)
    process.stdout.close()
    assert process.communicate(timeout=TIMEOUT)[1] == ""
    assert process.returncode == (0 if "benchmarks.pages" in words and not buffered else 128 + signal.SIGPIPE)


def test_a_broken_pipe_of_somebody_else():
    """As of a simulator that has died, while the output is read."""
    with pytest.raises(BrokenPipeError), cli.one_line_errors():
        raise BrokenPipeError


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    os.close(lock(tmp_path))
    assert "cannot be locked (Function not implemented)" in capsys.readouterr().out


def test_the_resume_command_is_one_for_the_folder_that_it_is_printed_in(folder, monkeypatch):
    args = module_of("sac_jax.py").Args(env_id="Pendulum-v1")
    monkeypatch.setattr("sys.argv", ["../my code/sac_jax.py"])
    assert RunFolder(folder).resume_command(args).startswith("python '../my code/sac_jax.py' --resume ")
    monkeypatch.setattr("sys.argv", ["/usr/bin/pytest"])
    assert RunFolder(folder).resume_command(args).startswith("python sac_jax.py --resume ")
