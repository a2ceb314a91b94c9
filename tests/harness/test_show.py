"""Episodes of a saved run: the last evaluation again, other ones, and what cannot be shown."""

import contextlib
import importlib.util
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import jax
import numpy as np
import pytest
import tyro

from envs import UserError, stage
from harness import RunFolder, show, video
from tests.running import ROOT, TIMEOUT, environment


def shown(capsys, folder, **settings):
    """What is printed: (seed, policy, mean, std, min, max, episodes) of each line."""
    show.show(show.Settings(folder, **settings))
    number = r"(-?[\d.]+)"
    line = rf"Pendulum-v1 seed (\d+) (\w+) +return +{number} \+- +{number} \(min {number}, max {number}, (\d+) episodes"
    lines = capsys.readouterr().out.splitlines()
    found = [re.fullmatch(rf"{line}, mean length 200\.0\)", text) for text in lines]
    assert all(found), lines
    return [(int(x[1]), x[2], *map(float, x.groups()[2:])) for x in found]


def test_a_seed_that_was_stopped_shows_no_return(trained, capsys, monkeypatch):
    monkeypatch.setattr(show, "finite", lambda agents: np.array([False, True]))
    show.show(show.Settings(trained["tiny_jax"], episodes=1, policy="deterministic"))
    first, second = capsys.readouterr().out.splitlines()
    assert first == "Pendulum-v1 seed 3 was stopped: its parameters are not finite"
    assert second.startswith("Pendulum-v1 seed 4 deterministic return")


def test_a_video_is_of_an_agent_that_was_not_stopped(trained, monkeypatch):
    filmed = []
    monkeypatch.setattr(video, "installed", lambda: True)
    monkeypatch.setattr(RunFolder, "summary", lambda self: {"stopped": {"3": {}}})
    monkeypatch.setattr(video, "load_agent", lambda run, seed, deterministic: filmed.append(seed))
    monkeypatch.setattr(video, "make_stage", lambda *_: None)  # no film
    assert video.record_video(trained["tiny_jax"]) is None and filmed == [4]


def test_the_last_evaluation_again(trained, capsys):
    """With the same number of episodes: the same agents, start states and keys. The folder is left as it was."""
    for folder in (trained["tiny_jax"], trained["ppo_jax"]):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        lines = shown(capsys, folder, episodes=2)
        returns = RunFolder(folder).summary()["episodic_return"]
        assert [line[:2] for line in lines] == [
            (int(seed), policy) for policy in ("stochastic", "deterministic") for seed in returns
        ]
        for seed, policy, mean, std, least, most, episodes in lines:
            assert mean == pytest.approx(returns[str(seed)][f"{policy}_last"], abs=0.0051) and episodes == 2
            assert mean == pytest.approx((least + most) / 2, abs=0.011)
            assert std == pytest.approx((most - least) / 2, abs=0.011)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_other_episodes(trained, capsys):
    """One policy; from other start states with another seed. It is still the run's seeds that act."""
    folder = trained["tiny_jax"]
    lines = shown(capsys, folder, episodes=3, policy="deterministic")
    assert [line[:2] for line in lines] == [(3, "deterministic"), (4, "deterministic")]
    assert all(line[-1] == 3 for line in lines)
    other = shown(capsys, folder, episodes=3, policy="deterministic", seed=100)
    assert [line[:2] for line in other] == [line[:2] for line in lines]
    assert not set(np.ravel([line[2:6] for line in lines])) & set(np.ravel([line[2:6] for line in other]))


def test_number_of_episodes(trained):
    for episodes in (0, -1):
        with pytest.raises(UserError, match=rf"^--episodes must be positive, not {episodes}$"):
            show.show(show.Settings(trained["tiny_jax"], episodes=episodes))


def test_as_a_command(tmp_path):
    """What is no run is one line, exit status 2."""
    done = subprocess.run(
        [sys.executable, "-m", "harness.show", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        cwd=ROOT,
        env=environment(),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {str(tmp_path)!r} is not a run folder: it has no args.json\n"


# --------------------------------------------------------------------------------------------------------------- video


def test_a_video_that_cannot_be_rendered_is_one_line(trained, monkeypatch, capsys):
    make = stage.make_gymnasium

    def no_rendering(*args, **more):
        if "render_mode" in more:
            raise OSError("no\ndisplay")
        return make(*args, **more)

    monkeypatch.setattr(stage, "make_gymnasium", no_rendering)
    assert video.record_video(trained["tiny_jax"]) is None
    assert capsys.readouterr().err == "no video: Pendulum-v1 cannot be rendered here (OSError: no display)\n"


def test_a_video_without_moviepy_is_one_line(trained, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "moviepy" else find(name))
    assert video.record_video(trained["tiny_jax"]) is None
    assert capsys.readouterr().err == "no video: it needs moviepy: pip install '.[video]'\n"
    # The episodes are shown all the same.
    with pytest.raises(SystemExit) as leaving:
        show.show(show.Settings(trained["tiny_jax"], episodes=1, policy="deterministic", video=True))
    assert leaving.value.code == 1
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 2 and printed.err == "no video: it needs moviepy: pip install '.[video]'\n"


@pytest.mark.parametrize("more, flag", [({"size": (0, 0)}, "--size"), ({"seconds": 0.0}, "--seconds")])
def test_a_video_without_an_extent_is_refused(trained, more, flag):
    with pytest.raises(UserError, match=f"^{flag} must be positive, not 0"):
        show.show(show.Settings(trained["tiny_jax"], video=True, **more))


class Blank(gym.Wrapper):
    """Draws blank frames of odd height at 125 frames per second of the environment, and notes the actions."""

    last: "Blank"

    def __init__(self, env):
        super().__init__(env)
        self.metadata = {"render_fps": 125}
        self.seen = []
        Blank.last = self

    def reset(self, **more):
        self.seen.append(self.env.reset(**more)[0])
        return self.seen[-1], {}

    def step(self, action):
        self.seen.append(action)
        return self.env.step(action)

    def render(self):
        return np.zeros((33, 48, 3), np.uint8)


def test_a_video_shows_an_episode_of_the_first_agent(trained, monkeypatch, capsys, tmp_path):
    """A whole episode, from the start state of the seed asked for, by the policy asked for."""
    folder = tmp_path / "run"
    shutil.copytree(trained["tiny_jax"], folder)
    make = stage.make_gymnasium
    monkeypatch.setattr(stage, "make_gymnasium", lambda env_id, kwargs, render_mode: Blank(make(env_id, kwargs)))
    starts, episodes = {}, {}
    for name, deterministic, start in (("a", True, None), ("b", True, 3), ("c", False, 3), ("d", True, 9)):
        path = video.record_video(folder, deterministic=deterministic, start=start)
        assert path == folder / "videos" / f"{'deterministic' if deterministic else 'stochastic'}.mp4"
        assert capsys.readouterr().out == f"video: {path}\n"
        starts[name], episodes[name] = Blank.last.seen[0], np.array(Blank.last.seen[1:])
        assert episodes[name].shape == (200, 1) and 1 < np.abs(episodes[name]).max() <= 2  # in units of Pendulum
    np.testing.assert_array_equal(episodes["a"], episodes["b"])  # without a seed: the run's first
    np.testing.assert_array_equal(starts["b"], starts["c"])
    assert np.any(episodes["b"] != episodes["c"]) and np.any(starts["b"] != starts["d"])
    # Every fifth of 200 steps at 125 per second, and the start: 41 frames at 25 per second.
    clip = pytest.importorskip("moviepy").VideoFileClip(str(path))
    assert (clip.size, clip.fps, round(clip.duration * clip.fps)) == ([48, 32], 25.0, 41)
    clip.close()
    video.record_video(folder, seconds=0.4)
    assert len(Blank.last.seen) == 1 + 50


def test_a_video_draws_anew_at_every_step(tmp_path, monkeypatch):
    keys = []
    stage = SimpleNamespace(
        pace=30, max_episode_steps=4, reset=lambda seed: 0, step=lambda action: (0, False), picture=lambda: 0
    )
    stage.frames = lambda pictures: (np.zeros((2, 2, 3), np.uint8) for _ in pictures)
    monkeypatch.setattr(video, "open_writer", lambda *_: contextlib.nullcontext(lambda frame: None))
    video.film(stage, lambda obs, key: keys.append(tuple(jax.random.key_data(key).tolist())), 0, tmp_path, np.inf)
    assert len(set(keys)) == len(keys) == 4


def test_help_shows_each_command_on_its_line(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(show.Settings, description=show.__doc__, args=["--help"])
    commands = [line for line in show.__doc__.splitlines() if "python -m" in line]
    assert len(commands) == 2 and {*commands} <= {*capsys.readouterr().out.splitlines()}
