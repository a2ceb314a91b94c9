"""What must hold before a run goes on, and its environments brought to where they were."""

from typing import Any

import jax

from envs import Environment, UserError
from harness import provenance
from harness.checkpoint import Checkpoints
from harness.clock import jit_for_few_calls
from harness.experiment import Experiment
from harness.folder import RunFolder
from harness.progress import say


def say_changes(folder: RunFolder, versions: dict[str, Any]) -> None:
    """Says what is no longer what the run began with."""
    for began in folder.versions()[:1]:
        if changed := provenance.changes(began, versions):
            say(f"not the versions that this run began with, so its numbers may differ: {', '.join(changed)}")


def say_unless_replayable(env: Environment, saved: Any) -> None:
    """Says beforehand that a run resumed from `saved`, of `env.save_host`, would not go on in its episode."""
    if why := env.try_replay(saved):
        say(f"the running episode of {env.env_id} cannot be replayed here ({why}): a resumed run would begin a new one")


def restored(
    args: Experiment,
    env: Environment,
    folder: RunFolder,
    checkpoints: Checkpoints,
    versions: dict[str, Any],
    state: Any,
    keys: jax.Array,
) -> tuple[Any, dict[str, Any]]:
    """The training state of the last intact checkpoint and what else it holds; `state` and nothing where there is none.

    Args:
      versions: of this process.
      state, keys: of a new run; the state is consumed.

    Raises:
      UserError: there was a checkpoint, and to begin anew would destroy results; or it does not fit the arguments.
    """
    say_changes(folder, versions)
    if not checkpoints.exist():
        last = max((row[0] for row in folder.scalars()), default=0)
        frequency = folder.stored_args()["checkpoint_frequency"]
        if summary := folder.summary():  # it ended: with a checkpoint, unless every seed was stopped before one was due
            missing = len(summary.get("stopped", ())) < args.num_seeds or last >= frequency > 0
        else:  # a checkpoint that was begun is complete before the next one begins
            missing = last > 2 * frequency > 0
        if missing:
            raise UserError(f"the checkpoints of {str(folder.path)!r} are missing: it cannot go on")
        say("no checkpoint yet: starts from the beginning")
        return state, {}
    state, facts = checkpoints.restore(state, say)
    step = facts["step"]
    if step % args.log_frequency:
        raise UserError(f"--log-frequency {args.log_frequency} must divide the checkpoint's step {step}")
    if step > args.total_timesteps:
        raise UserError(f"--total-timesteps {args.total_timesteps} is below the checkpoint's step {step}")
    if why := env.restore_host(facts["env"]):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
        state = state.replace(env_state=jit_for_few_calls(jax.vmap(env.reset))(keys))
        say(f"the episode of {args.env_id} cannot be replayed ({why}): it begins a new one")
    say(f"resumed at step {step:,}")
    return state, facts
