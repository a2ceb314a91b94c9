"""Arguments: ranges and resume rules at the field itself; a plain field of a subclass needs nothing."""

import dataclasses
from dataclasses import dataclass

import pytest

from envs import UserError
from harness import Experiment, RunFolder, cli
from harness.experiment import flag, rules
from tests.running import SCRIPTS, module_of


@dataclass(frozen=True)
class Args(Experiment):
    """Of a script that is this file: plain fields beside one that --resume may change."""

    exp_name: str = "plain"
    log_frequency: int = 100
    weight_decay: float = 0.0
    log_std_min: float = -5.0
    bound: float | None = None
    temperature: float = Experiment.changeable(0.1)


def make(**more):
    return Args(**{"total_timesteps": 1000, "eval_frequency": 500, **more})


@pytest.mark.parametrize(
    "values, message",
    [
        ({"seed": -1}, "--seed must not be negative, not -1"),
        ({"seed": 2**31}, "--seed must be below 2^31"),
        ({"seed": 2**31 - 2, "num_seeds": 2}, "--seed plus --num-seeds must be below 2^31"),
        ({"num_seeds": 2**31 - 1}, "--seed plus --num-seeds must be below 2^31"),
        ({"seed": 10**400}, "--seed must be below 2^31"),
        ({"seed": "1"}, "--seed must be a number, not '1'"),
        ({"weight_decay": None}, "--weight-decay must be a number, not None"),
        ({"num_seeds": 0}, "--num-seeds must be positive, not 0"),
        ({"num_envs": 0}, "--num-envs must be positive, not 0"),
        ({"total_timesteps": -100}, "--total-timesteps must be positive, not -100"),
        ({"total_timesteps": 2**31}, "--total-timesteps must be below 2^31: the device counts them in int32"),
        ({"eval_frequency": 0}, "--eval-frequency must be positive, not 0"),
        ({"eval_episodes": 0}, "--eval-episodes must be positive, not 0"),
        ({"checkpoint_frequency": -1}, "--checkpoint-frequency must not be negative, not -1"),
        ({"log_frequency": 0}, "--log-frequency must be positive, not 0"),
        ({"num_envs": 3}, "--log-frequency 100 must be a multiple of --num-envs 3"),
        ({"weight_decay": float("nan")}, "--weight-decay must be finite, not nan"),
        ({"log_std_min": float("-inf")}, "--log-std-min must be finite, not -inf"),
    ],
)
def test_ranges(values, message):
    with pytest.raises(UserError) as error:
        make(**values)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_steps_are_rounded_up_to_whole_chunks():
    args = make(total_timesteps=1050, eval_frequency=150)
    assert (args.total_timesteps, args.eval_frequency) == (1100, 200)
    assert args == make(total_timesteps=1100, eval_frequency=200)


def test_plain_fields_need_nothing():
    args = make(weight_decay=-3.5, log_std_min=1e9, bound=None)
    assert (args.weight_decay, args.log_std_min, args.bound) == (-3.5, 1e9, None)
    assert make(seed=2**31 - 2).seeds == range(2**31 - 2, 2**31 - 1)
    assert make(seed=3, num_seeds=2, checkpoint_frequency=0).seeds == range(3, 5)
    assert hash(make()) == hash(make()) and make() == make()  # a static argument of compiled functions


def test_checks_for_the_fields_of_a_script():
    args = make(weight_decay=0.0, log_std_min=-5.0, bound=None)
    args.positive("total_timesteps", "temperature", "bound")
    args.not_negative("weight_decay", "temperature", "bound")
    args.fraction("weight_decay", "temperature", "bound", "num_envs")
    for check, name, message in (
        (args.positive, "weight_decay", "--weight-decay must be positive, not 0.0"),
        (args.not_negative, "log_std_min", "--log-std-min must not be negative, not -5.0"),
        (args.fraction, "log_std_min", "--log-std-min must not be negative, not -5.0"),
        (args.fraction, "total_timesteps", "--total-timesteps must not be above 1, not 1000"),
    ):
        with pytest.raises(UserError) as error:
            check("temperature", name)
        assert str(error.value) == message
    with pytest.raises(UserError, match=r"^because$"):
        args.check(False, "because")


def test_flag():
    assert flag("policy_lr") == "--policy-lr" and flag("seed") == "--seed"


# ------------------------------------------------------------------------------------------------------------- --resume


@pytest.fixture
def folder(tmp_path):
    RunFolder(tmp_path).write_args(make(weight_decay=0.5, runs_folder="elsewhere"))
    return str(tmp_path)


def resume(folder, *words):
    return cli.parse(Args, ["--resume", folder, *words])


def test_a_resumed_run_has_the_stored_arguments(folder):
    assert resume(folder) == make(weight_decay=0.5, runs_folder="elsewhere", resume=folder)
    assert cli.parse(Args, [f"--resume={folder}"]) == resume(folder)


@pytest.mark.parametrize(
    "name, value",
    [
        ("total_timesteps", 2000),
        ("eval_frequency", 100),
        ("checkpoint_frequency", 7),
        ("wandb_project_name", "x"),
        ("wandb_entity", "x"),
        ("temperature", 0.7),
    ],
)
def test_what_resume_may_change(folder, name, value):
    assert resume(folder, flag(name), str(value)) == dataclasses.replace(resume(folder), **{name: value})


def test_flags_that_resume_may_change(folder):
    args = resume(folder, "--track", "--capture-video")
    assert args.track and args.capture_video


@pytest.mark.parametrize(
    "name, value, stored",
    [
        ("env_id", "Pendulum-v1", "Hopper-v4"),
        ("env_kwargs", '{"g": 2}', "{}"),
        ("seed", 2, 1),
        ("num_seeds", 2, 1),
        ("num_envs", 2, 1),
        ("eval_episodes", 3, 10),
        ("runs_folder", "here", "elsewhere"),
        ("exp_name", "other", "plain"),
        ("log_frequency", 50, 100),  # of this script
        ("weight_decay", 0.0, 0.5),
        ("bound", 1.0, None),
        ("log_std_min", -4.0, -5.0),
    ],
)
def test_what_resume_may_not_change(folder, name, value, stored):
    with pytest.raises(UserError) as error:
        resume(folder, flag(name), str(value))
    assert str(error.value) == f"{flag(name)} {value} conflicts with {folder!r}, which was begun with {stored}"
    if stored is not None:
        assert resume(folder, f"{flag(name)}={stored}") == resume(folder)  # to say what is so is no conflict


def test_a_script_may_fix_more_in_some_of_its_runs(folder, monkeypatch):
    monkeypatch.setattr(Args, "fixed_on_resume", lambda self: {"total_timesteps": "annealed over it"})
    with pytest.raises(UserError, match=r"--total-timesteps 2000 conflicts with .* with 1000 \(annealed over it\)$"):
        resume(folder, "--total-timesteps", "2000")
    assert resume(folder, "--eval-frequency", "100").eval_frequency == 100


def test_arguments_out_of_range_are_refused_on_resume_too(folder):
    with pytest.raises(UserError, match="--eval-frequency must be positive, not 0"):
        resume(folder, "--eval-frequency", "0")


# ---------------------------------------------------------------------------------------------------------- the scripts

CHANGEABLE = {field.name for field in dataclasses.fields(Experiment) if rules(field).get("may_change")}


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_the_scripts_let_resume_change(script):
    """A script that gives a field of Experiment another default must not lose its rules."""
    Args = module_of(script).Args
    may_change = {field.name for field in dataclasses.fields(Args) if rules(field).get("may_change")}
    assert may_change - {"log_frequency"} == CHANGEABLE
    assert ("log_frequency" in may_change) == ("log_frequency" in Args.__dataclass_fields__)
    positive = ("num_seeds", "total_timesteps", "num_envs", "eval_frequency", "eval_episodes")
    for name, least in {**dict.fromkeys(positive, 1), "seed": 0, "checkpoint_frequency": 0}.items():
        with pytest.raises(UserError, match=f"{flag(name)} must"):
            Args(**{name: least - 1})
