"""Soft actor-critic (SAC, arXiv 1812.05905, with automatic temperature), in one file.

Run:   python sac_jax.py --env-id Hopper-v4 --seed 1
Docs:  docs/sac.md
Diff:  diff -u sac_jax.py diffsac_jax.py shows what a diffusion policy changes.

Shapes in the comments: B batch, N environments, O observation, A action, S seeds.
"""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from common import distributions, envs, evaluation, replay, runs

# ---------------------------------------------------------------------------------------------------------- arguments


@dataclass(frozen=True)
class Args:
    env_id: str = "Hopper-v4"
    """any Gymnasium id with a Box action space, or module:id"""
    env_kwargs: str = "{}"
    """keyword arguments of the environment, a JSON object"""
    seed: int = 1
    """first seed"""
    num_seeds: int = 1
    """agents trained side by side with seeds seed, seed + 1, .."""
    total_timesteps: int = 1_000_000
    """environment steps per agent"""
    num_envs: int = 1
    """environments per agent"""
    log_frequency: int = 1000
    """environment steps per compiled chunk: logs, evaluations and signals wait for its end"""
    eval_frequency: int = 10_000
    """environment steps between evaluations"""
    eval_episodes: int = 10
    """episodes per evaluation, for each of the stochastic and the deterministic policy"""
    capture_video: bool = False
    """record an episode at the end, or with --evaluate"""
    track: bool = False
    """mirror TensorBoard to Weights & Biases"""
    wandb_project_name: str = "diffusion-maxent-rl"
    """Weights & Biases project"""
    wandb_entity: str | None = None
    """Weights & Biases entity"""
    runs_folder: str = "runs"
    """where the run's folder is made"""
    exp_name: str = "sac_jax"
    """name of this experiment, part of the folder's name"""
    checkpoint_frequency: int = 10_000
    """environment steps between checkpoints; 0: only at the end"""
    resume: str | None = None
    """folder of a run: continue it there, with the arguments stored in it"""
    evaluate: str | None = None
    """folder of a run: evaluate the agents it saved last instead of training"""

    buffer_size: int = 1_000_000
    """transitions in the replay buffer"""
    learning_starts: int = 5000
    """environment steps with random actions before learning starts"""
    batch_size: int = 256
    """transitions per update"""
    updates_per_step: float = 1.0
    """updates per environment step; times num_envs it must be a whole number"""
    gamma: float = 0.99
    """discount"""
    tau: float = 0.005
    """Polyak coefficient of the target critics"""
    policy_lr: float = 3e-4
    """learning rate of the actor (Adam)"""
    q_lr: float = 1e-3
    """learning rate of the critics and of the temperature (Adam)"""
    hidden_dim: int = 256
    """units in each of the two hidden layers"""
    alpha: float = 1.0
    """temperature at the start, and throughout with --no-autotune"""
    autotune: bool = True
    """tune the temperature towards the target entropy"""
    target_entropy_scale: float = 1.0
    """target entropy = -scale * A nats"""

    def __post_init__(self):
        runs.check_arguments(self)
        runs.check(self.learning_starts <= self.total_timesteps, "--learning-starts is above --total-timesteps")
        runs.check(
            self.num_updates >= 1 and self.num_updates % 1 == 0,
            "--num-envs times --updates-per-step must be a whole number of at least 1",
        )

    @property
    def num_updates(self) -> float:
        return self.num_envs * self.updates_per_step

    def target_entropy(self, action_size: int) -> float:
        return -self.target_entropy_scale * action_size


# ----------------------------------------------------------------------------------------------------------- networks


class Actor(nn.Module):
    """Mean and log standard deviation of the Gaussian before the tanh: obs `[B, O]` -> two `[B, A]`."""

    action_size: int
    hidden_dim: int

    @nn.compact
    def __call__(self, obs):
        x = nn.relu(nn.Dense(self.hidden_dim)(obs))
        x = nn.relu(nn.Dense(self.hidden_dim)(x))
        mean = nn.Dense(self.action_size)(x)
        log_std = nn.tanh(nn.Dense(self.action_size)(x))
        return mean, -5.0 + 0.5 * (2.0 + 5.0) * (log_std + 1.0)  # in [-5, 2]


class Critic(nn.Module):
    """Q(s, a): obs `[B, O]`, action `[B, A]` -> `[B]`."""

    hidden_dim: int

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        x = nn.relu(nn.Dense(self.hidden_dim)(x))
        x = nn.relu(nn.Dense(self.hidden_dim)(x))
        return nn.Dense(1)(x).squeeze(-1)


# Two critics with their own parameters on the same inputs: -> [2, B].
TwinCritic = nn.vmap(Critic, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2)


# -------------------------------------------------------------------------------------------------------- agent state


@struct.dataclass
class Agent:
    """All that is learned by one agent."""

    actor: nn.Module = struct.field(pytree_node=False)
    critic: nn.Module = struct.field(pytree_node=False)
    actor_params: dict
    critic_params: dict
    target_params: dict
    log_alpha: jax.Array
    actor_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    alpha_opt_state: optax.OptState


@struct.dataclass
class TrainState:
    """The whole state of one agent's training: obs `[N, O]` is what it acts on next."""

    agent: Agent
    buffer: replay.Transition
    env_state: envs.EnvState
    obs: jax.Array
    key: jax.Array


def init_agent(args, env, key):
    """A new agent for the environment's sizes (the key is consumed)."""
    actor_key, critic_key = jax.random.split(key)
    obs, action = jnp.zeros((1, env.observation_size)), jnp.zeros((1, env.action_size))
    actor = Actor(env.action_size, args.hidden_dim)
    critic = TwinCritic(args.hidden_dim)
    actor_params = actor.init(actor_key, obs)
    critic_params = critic.init(critic_key, obs, action)
    log_alpha = jnp.log(jnp.float32(args.alpha))
    return Agent(
        actor=actor,
        critic=critic,
        actor_params=actor_params,
        critic_params=critic_params,
        target_params=jax.tree.map(jnp.copy, critic_params),
        log_alpha=log_alpha,
        actor_opt_state=optax.adam(args.policy_lr).init(actor_params),
        critic_opt_state=optax.adam(args.q_lr).init(critic_params),
        alpha_opt_state=optax.adam(args.q_lr).init(log_alpha),
    )


def init_state(args, env, key):
    """The state before the first step (the key is consumed)."""
    agent_key, env_key, key = jax.random.split(key, 3)
    env_state, obs = env.reset(env_key)
    return TrainState(
        agent=init_agent(args, env, agent_key),
        buffer=replay.init(replay.capacity(args.buffer_size, args.num_envs), transition_row(env)),
        env_state=env_state,
        obs=obs,
        key=key,
    )


def transition_row(env):
    """Shapes of one row of the replay buffer."""
    obs = jax.ShapeDtypeStruct((env.observation_size,), jnp.float32)
    action = jax.ShapeDtypeStruct((env.action_size,), jnp.float32)
    scalar, flag = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_)
    return replay.Transition(obs=obs, action=action, reward=scalar, next_obs=obs, terminated=flag)


# ------------------------------------------------------------------------------------------------------------- policy


def sample_action(args, agent, key, obs):
    """Action u = tanh(x), x ~ N(mean, std), `[B, A]`, and log pi(u | s) `[B]` in nats (the key is consumed)."""
    mean, log_std = agent.actor.apply(agent.actor_params, obs)
    x = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    log_prob = distributions.gaussian_log_prob(x, mean, jnp.exp(log_std)) - distributions.tanh_log_det(x)
    return jnp.tanh(x), log_prob


def deterministic_action(args, agent, obs):
    """tanh of the mean, `[B, A]`."""
    mean, _ = agent.actor.apply(agent.actor_params, obs)
    return jnp.tanh(mean)


def entropy(args, agent, key, obs):
    """One sample of the policy's entropy, or of bounds of it, by tag, `[B]` in nats (the key is consumed)."""
    return {"eval/entropy": -sample_action(args, agent, key, obs)[1]}


# ----------------------------------------------------------------------------------------------------------- learning


def critic_loss(critic_params, args, agent, key, batch):
    """Mean squared soft Bellman error, summed over the two critics (1812.05905, equations 5 and 6)."""
    next_action, next_log_prob = sample_action(args, agent, key, batch.next_obs)
    next_q = agent.critic.apply(agent.target_params, batch.next_obs, next_action).min(axis=0)
    next_value = next_q - jnp.exp(agent.log_alpha) * next_log_prob
    target = batch.reward + args.gamma * (1.0 - batch.terminated) * next_value
    q = agent.critic.apply(critic_params, batch.obs, batch.action)
    error = (q - jax.lax.stop_gradient(target)) ** 2
    loss = jnp.mean(error, axis=1).sum()
    return loss, {"losses/qf_loss": loss / 2, "losses/qf1_values": q[0].mean(), "losses/qf2_values": q[1].mean()}


def actor_loss(actor_params, args, agent, key, batch):
    """alpha log pi - min Q at reparameterised actions (1812.05905, equation 9)."""
    agent = agent.replace(actor_params=actor_params)
    action, log_prob = sample_action(args, agent, key, batch.obs)
    q = agent.critic.apply(agent.critic_params, batch.obs, action).min(axis=0)
    loss = jnp.mean(jnp.exp(agent.log_alpha) * log_prob - q)
    return loss, (log_prob, {"losses/actor_loss": loss})


def update(args, agent, key, batch):
    """One update of critics, actor, temperature and targets on one batch (the key is consumed)."""
    critic_key, actor_key = jax.random.split(key)

    grads, qf_metrics = jax.grad(critic_loss, has_aux=True)(agent.critic_params, args, agent, critic_key, batch)
    updates, critic_opt_state = optax.adam(args.q_lr).update(grads, agent.critic_opt_state)
    agent = agent.replace(
        critic_params=optax.apply_updates(agent.critic_params, updates), critic_opt_state=critic_opt_state
    )

    grads, (log_prob, actor_metrics) = jax.grad(actor_loss, has_aux=True)(
        agent.actor_params, args, agent, actor_key, batch
    )
    updates, actor_opt_state = optax.adam(args.policy_lr).update(grads, agent.actor_opt_state)
    agent = agent.replace(
        actor_params=optax.apply_updates(agent.actor_params, updates), actor_opt_state=actor_opt_state
    )

    # Loss of log alpha: -exp(log alpha) stopgrad(log pi + target entropy); its gradient by hand.
    if args.autotune:
        error = log_prob + args.target_entropy(agent.actor.action_size)
        grad = -jnp.exp(agent.log_alpha) * error.mean()
        updates, alpha_opt_state = optax.adam(args.q_lr).update(grad, agent.alpha_opt_state)
        agent = agent.replace(log_alpha=agent.log_alpha + updates, alpha_opt_state=alpha_opt_state)

    target_params = optax.incremental_update(agent.critic_params, agent.target_params, args.tau)
    metrics = {"losses/alpha": jnp.exp(agent.log_alpha), "losses/entropy": -log_prob.mean()}
    return agent.replace(target_params=target_params), {**qf_metrics, **actor_metrics, **metrics}


# ----------------------------------------------------------------------------------------------------------- training


def train_step(args, env, state, step):
    """One step of the N environments and the updates that belong to it. `step`: environment steps taken before."""
    key, action_key, learn_key = jax.random.split(state.key, 3)
    random_key, policy_key = jax.random.split(action_key)
    random_action = jax.random.uniform(random_key, (args.num_envs, env.action_size), minval=-1.0, maxval=1.0)
    policy_action, _ = sample_action(args, state.agent, policy_key, state.obs)
    action = jnp.where(step < args.learning_starts, random_action, policy_action)

    env_state, time_step = env.step(state.env_state, action)
    buffer = replay.insert(
        state.buffer,
        step,
        replay.Transition(state.obs, action, time_step.reward, time_step.final_obs, time_step.terminated),
    )

    def learn(agent):
        def one_update(agent, key):
            sample_key, update_key = jax.random.split(key)
            batch = replay.sample(sample_key, buffer, step + args.num_envs, args.batch_size)
            return update(args, agent, update_key, batch)

        agent, metrics = jax.lax.scan(one_update, agent, jax.random.split(learn_key, int(args.num_updates)))
        return agent, jax.tree.map(lambda x: x.mean(axis=0), metrics)

    def wait(agent):
        return agent, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(learn, agent)[1])

    agent, metrics = jax.lax.cond(step >= args.learning_starts, learn, wait, state.agent)
    return TrainState(agent, buffer, env_state, time_step.obs, key), runs.StepLog.of(time_step, metrics)


@partial(jax.jit, static_argnames=("args", "env"), donate_argnames="state")
def train_chunk(args, env, state, step):
    """`log_frequency` environment steps of all S agents in one XLA program; leaves of `state` are `[S, ..]`."""
    steps = step + args.num_envs * jnp.arange(args.log_frequency // args.num_envs)
    return runs.scan_agents(partial(train_step, args, env), state, steps)


# --------------------------------------------------------------------------------------------------------------- main


def main(args):
    env = envs.make_env(args.env_id, args.num_envs, args.num_seeds, args.env_kwargs)
    evaluator = evaluation.Evaluator(args, sample_action, deterministic_action, entropy)
    with runs.Run(args, env, learning_starts=args.learning_starts) as run:
        state = run.restore(jax.jit(jax.vmap(partial(init_state, args, env)))(run.keys))
        run.header(
            parameters=state.agent.actor_params,
            buffer=replay.num_bytes(replay.capacity(args.buffer_size, args.num_envs), transition_row(env)),
        )
        chunk = run.compile(train_chunk, args, env, state, jnp.int32(0))
        for step in run.chunks():
            state, log = chunk(state, jnp.int32(step))
            step = run.log(step, log, state)
            if step % args.eval_frequency == 0:
                run.log_evaluation(step, evaluator(state.agent, step))
            run.checkpoint(step, state)
        run.finish(state, evaluator)


if __name__ == "__main__":
    runs.start(Args, main, evaluate=partial(evaluation.evaluate_run, init_agent, sample_action, deterministic_action))
