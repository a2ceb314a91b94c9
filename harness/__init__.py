"""What a run needs besides the algorithm: arguments, run folder, logs, checkpoints, evaluation.

A script imports

    from harness import Evaluator, Experiment, Run, cli

and provides

    class Args(Experiment)                              a frozen dataclass; `log_frequency`, a field or a property, is
                                                        the number of environment steps of a compiled chunk
    init_agent(args, env, key) -> agent                 everything that one agent learns, a pytree
    init_training(args, env, key) -> state              a struct.dataclass with `agent` and `env_state` (`EnvState`)
    sample_action(args, agent, key, obs)                -> (action [B, A] in [-1, 1], ..)
    deterministic_action(args, agent, obs)              -> action [B, A]
    entropy_terms(args, agent, key, obs)                -> samples of the policy's entropy by tag, [B]
    train_chunk(args, env, state, step)                 -> state, episodes [S, T, N], metrics by tag [S]; leaves of
                                                        `state` are [S, ..]

`train` at the end of every script shows how these meet. Networks with their optimisers are Flax's TrainState: their
parameters and updates are counted. `RunFolder` reads a run folder, `load_agent` acts with a trained agent.
"""

from harness.agents import load_agent
from harness.evaluation import Evaluator
from harness.experiment import Experiment
from harness.folder import RunFolder
from harness.run import Run

__all__ = ["Evaluator", "Experiment", "Run", "RunFolder", "load_agent"]
