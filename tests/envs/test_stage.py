"""What is drawn when an environment is looked at."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from envs.stage import make_stage


@pytest.mark.parametrize(
    "env_id, env_kwargs, camera",
    [
        ("HalfCheetah-v4", "{}", "track"),
        ("Hopper-v5", "{}", "track"),
        ("Ant-v4", "{}", "track"),
        ("Humanoid-v4", "{}", "track"),
        ("Reacher-v4", "{}", None),  # its model has no camera, and stays where it is
        ("Hopper-v4", '{"camera_id": -1}', None),
        ("Hopper-v4", '{"camera_name": "track"}', "track"),
    ],
)
def test_the_camera_follows_an_agent_that_moves_unless_another_was_asked_for(env_id, env_kwargs, camera):
    with make_stage(env_id, env_kwargs) as stage:
        env = stage.env.unwrapped
        chosen = env.mujoco_renderer.camera_id
        assert (env.model.camera(chosen).name if chosen >= 0 else None) == camera


@pytest.mark.parametrize("cameras, chosen", [(2, 0), (0, None)])
def test_playground_draws_by_the_models_first_camera(cameras, chosen):
    """Without one it draws from a place at rest, and the cheetah runs out of the picture."""
    with make_stage("tests.jax_environments:Drawn", "{}") as stage:
        stage.task.env.mj_model = SimpleNamespace(ncam=cameras)
        stage.reset(seed=0)
        assert list(stage.frames([stage.picture()])) == [(480, 640, chosen)]


def test_a_class_of_ones_own_may_have_cameras_and_take_none():
    with make_stage("tests.jax_environments:DrawnFromOnePlace", "{}") as stage:
        stage.reset(seed=0)
        assert list(stage.frames([stage.picture()])) == [(480, 640)]


def test_the_last_picture_is_of_the_episode_that_ended():
    """An environment on the device begins the next one at once."""
    with make_stage("tests.jax_environments:DrawnSteps", "{}") as stage:
        pictures, done = [], False
        stage.reset(seed=0)
        while not done:
            _, done = stage.step(np.zeros(1))
            pictures.append(stage.picture())
        assert list(stage.frames(pictures)) == [1, 2, 3, 3]
        stage.reset(seed=1)
        stage.step(np.zeros(1))
        assert list(stage.frames([stage.picture()])) == [1]


class Uneven(PendulumEnv):
    """Notes its action, of an uneven range."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.action_space = gym.spaces.Box(np.float32([-0.7]), np.float32([0.1]))

    def step(self, action):
        self.last_action = np.array(action)
        return super().step(action)


gym.register("Uneven-v0", Uneven)


def test_a_stage_takes_actions_in_the_environments_units():
    with make_stage("Uneven-v0", "{}") as stage:
        stage.reset(seed=0)
        for action in (-0.7, -0.5, -0.3, 0.1):
            stage.step(np.float32([action]))
            np.testing.assert_allclose(stage.env.unwrapped.last_action, [action], rtol=1e-5)


def test_a_stage_on_the_device_keeps_its_environments_time():
    """Of 30 steps per second where it does not say; an action may take several."""
    for repeat, pace in ((1, 30.0), (3, 10.0)):
        with make_stage("tests.jax_environments:Drawn", f'{{"action_repeat": {repeat}}}') as stage:
            assert stage.pace == pytest.approx(pace)
