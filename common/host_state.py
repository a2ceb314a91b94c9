"""Saving and restoring Gymnasium environments in the middle of an episode, bit for bit and without pickle.

An environment is a chain of wrappers around a base object. Of each layer every attribute is saved that is a number, a
string, a numeric array, a random generator, MuJoCo's data, or a list, tuple, deque or dictionary of these. Spaces,
specifications, functions, compiled models and renderers are constants: a new copy of the environment has them. Any
other attribute may hide state that cannot be seen: then the environment counts as not saveable.
"""

import collections
import functools
import sys
import types
from typing import Any

import gymnasium as gym
import numpy as np

PLAIN = (type(None), bool, int, float, str)
CONSTANT = (
    gym.Space,
    gym.envs.registration.EnvSpec,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    functools.partial,
)
SEQUENCES = {"list": list, "tuple": tuple}


class NotSaveable(Exception):
    """The environment holds something that cannot be saved; the message names it."""


class Encoder:
    """Turns values into JSON and a list of arrays. An array met twice is one array again after `Decoder`."""

    def __init__(self):
        self.arrays: list[np.ndarray] = []
        self._index: dict[int, int] = {}
        self._met: list[Any] = []  # keeps the ids in _index alive

    def environment(self, env: gym.Env) -> list[dict[str, Any]]:
        """One dictionary per layer, the outermost first. Raises NotSaveable."""
        return [self._layer(layer) for layer in _layers(env)]

    def _layer(self, layer: gym.Env) -> dict[str, Any]:
        own_data = [x for value in vars(layer).values() if _is_mujoco(value, "MjData") for x in _data_arrays(value)]
        encoded = {}
        for name, value in vars(layer).items():
            if name == "env" and isinstance(layer, gym.Wrapper):
                continue
            if isinstance(value, np.ndarray) and value.base is not None:
                # A view of MuJoCo's data follows it by itself.
                if any(np.may_share_memory(value, x) for _, x in own_data):
                    continue
            try:
                encoded[name] = self.value(value)
            except NotSaveable as error:
                raise NotSaveable(f"{type(layer).__name__}.{name} is {error}") from None
        return encoded

    def value(self, value: Any) -> Any:
        if type(value) in PLAIN:
            return value
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
            return {"array" if isinstance(value, np.ndarray) else "scalar": self._array(value)}
        for name, kind in SEQUENCES.items():
            if type(value) is kind:
                return {name: [self.value(x) for x in value]}
        if type(value) is collections.deque:
            return {"deque": [self.value(x) for x in value], "maxlen": value.maxlen}
        if type(value) is dict:
            return {"dict": [[self.value(k), self.value(v)] for k, v in value.items()]}
        if isinstance(value, np.random.Generator):
            return {"generator": self.value(value.bit_generator.state)}
        if isinstance(value, np.random.RandomState):
            return {"random_state": self.value(value.get_state(legacy=False))}
        if _is_mujoco(value, "MjData"):
            return {"mujoco": self._mujoco(value)}
        if isinstance(value, CONSTANT) or _is_mujoco(value, "MjModel") or _is_renderer(value):
            return {"constant": type(value).__name__}
        raise NotSaveable(f"a {type(value).__name__}")

    def _array(self, array: np.ndarray | np.generic) -> int:
        if id(array) not in self._index:
            self._index[id(array)] = len(self.arrays)
            self._met.append(array)
            self.arrays.append(np.array(array))
        return self._index[id(array)]

    def _mujoco(self, data: Any) -> dict[str, Any]:
        import mujoco

        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.zeros(mujoco.mj_stateSize(data.model, kind))
        mujoco.mj_getState(data.model, data, state, kind)
        return {"state": self._array(state), "data": {name: self._array(x) for name, x in _data_arrays(data)}}


class Decoder:
    """The inverse of `Encoder`, into a copy of the environment that has been reset."""

    def __init__(self, arrays: list[np.ndarray]):
        self.arrays = [np.array(x) for x in arrays]

    def environment(self, env: gym.Env, layers: list[dict[str, Any]]) -> None:
        """Raises NotSaveable: the environment is built of other layers than the saved one."""
        own = _layers(env)
        if len(own) != len(layers):
            raise NotSaveable(f"{len(own)} layers instead of {len(layers)}")
        for layer, encoded in zip(own, layers, strict=True):
            values = {name: self.value(x, vars(layer).get(name)) for name, x in encoded.items()}
            for name in set(vars(layer)) - set(values) - {"env"}:
                if type(vars(layer)[name]) in PLAIN or isinstance(vars(layer)[name], np.generic):
                    del vars(layer)[name]  # made by the reset, not there when the state was saved
            vars(layer).update(values)

    def value(self, encoded: Any, present: Any) -> Any:
        if not isinstance(encoded, dict):
            return encoded
        kind, content = next(iter(encoded.items()))
        if kind == "array":
            return self.arrays[content]
        if kind == "scalar":
            return self.arrays[content][()]
        if kind in SEQUENCES or kind == "deque":
            here = list(present) if isinstance(present, list | tuple | collections.deque) else []
            values = [self.value(x, here[i] if i < len(here) else None) for i, x in enumerate(content)]
            return collections.deque(values, encoded["maxlen"]) if kind == "deque" else SEQUENCES[kind](values)
        if kind == "dict":
            here = present if isinstance(present, dict) else {}
            pairs = [(self.value(k, None), v) for k, v in content]
            return {k: self.value(v, here.get(k)) for k, v in pairs}
        if kind == "generator" and isinstance(present, np.random.Generator):
            present.bit_generator.state = self.value(content, None)
            return present
        if kind == "random_state" and isinstance(present, np.random.RandomState):
            present.set_state(self.value(content, None))
            return present
        if kind == "mujoco" and _is_mujoco(present, "MjData"):
            self._mujoco(content, present)
            return present
        if kind == "constant" and type(present).__name__ == content:
            return present
        raise NotSaveable(f"a {kind} where the new environment has a {type(present).__name__}")

    def _mujoco(self, content: dict[str, Any], data: Any) -> None:
        # Derived arrays such as xpos lag the state by a substep after mj_step, and Ant, Humanoid and Reacher read them
        # for their reward: mj_forward builds what depends on the state, then the saved arrays replace what it made.
        import mujoco

        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = self.arrays[content["state"]]
        mujoco.mj_setState(data.model, data, state, kind)
        mujoco.mj_forward(data.model, data)
        mujoco.mj_setState(data.model, data, state, kind)
        for name, index in content["data"].items():
            target, saved = getattr(data, name), self.arrays[index]
            if target.shape == saved.shape and target.flags.writeable:  # others are scratch, sized by the contacts
                target[...] = saved


def works(make_env: Any, steps: int = 20) -> bool:
    """Whether a saved state continues bit for bit, tried out on two spare copies of the environment.

    An environment may keep its state where no attribute shows it, in a C library for example.
    """
    first, second = make_env(), make_env()
    try:
        random = np.random.default_rng(0)
        actions = random.uniform(-1.0, 1.0, (2 * steps, *first.action_space.shape)).astype(np.float32)
        first.reset(seed=1)
        second.reset(seed=2)
        for action in actions[:steps]:
            if _step(first, action)[-1]:
                first.reset()
        encoder = Encoder()
        layers = encoder.environment(first)
        Decoder(encoder.arrays).environment(second, layers)
        for action in actions[steps:]:
            a, b = _step(first, action), _step(second, action)
            if not all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True)):
                return False
            if a[-1] and not np.array_equal(first.reset()[0], second.reset()[0], equal_nan=True):
                return False
        return True
    except Exception:
        return False
    finally:
        first.close()
        second.close()


def _step(env: gym.Env, action: np.ndarray) -> tuple[Any, ...]:
    obs, reward, terminated, truncated, _ = env.step(action)
    return obs, float(reward), terminated or truncated


def _layers(env: gym.Env) -> list[gym.Env]:
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _is_mujoco(value: Any, name: str) -> bool:
    mujoco = sys.modules.get("mujoco")
    return mujoco is not None and isinstance(value, getattr(mujoco, name))


def _is_renderer(value: Any) -> bool:
    return type(value).__module__.startswith("gymnasium.envs.mujoco.mujoco_rendering")


def _data_arrays(data: Any) -> list[tuple[str, np.ndarray]]:
    """Every numeric array of MjData by name."""
    pairs = ((name, getattr(data, name)) for name in dir(data) if not name.startswith("_"))
    return [(name, x) for name, x in pairs if isinstance(x, np.ndarray) and x.dtype.kind in "biuf"]
