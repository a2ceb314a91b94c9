"""DiffWPO: Wasserstein policy optimisation of a diffusion policy (arXiv 2512.02019v1, 2505.00663), in one file.

Run:   python diffwpo_jax.py --env-id Hopper-v4 --seed 1
Docs:  docs/diffwpo.md
Diff:  diff -u diffsac_jax.py diffwpo_jax.py shows what another actor loss changes.

Shapes in the comments: B batch, N environments, O observation, A action, S seeds, K denoising steps.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from common import diffusion, distributions, envs, evaluation, replay, runs

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
    exp_name: str = "diffwpo_jax"
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
    target_entropy_scale: float | None = None
    """target entropy = -scale * A nats; default: 1 plus the gap of the bound for a Gaussian of SAC's target entropy"""

    num_denoising_steps: int = 8
    """K, denoising steps per action"""
    prior_std: float = 1.0
    """nu, standard deviation of the prior that the chain starts from"""
    initial_beta_first: float = 0.05
    """noise level of the last denoising step (k = 1) at the start"""
    initial_beta_last: float = 0.6
    """noise level of the first denoising step (k = K) at the start; levels in between are spaced linearly"""
    prediction: Literal["action", "noise"] = "action"
    """units of the network's output: a prediction of the action, or of the step's noise"""
    precondition: bool = True
    """precondition the actor's gradient with the Fisher information of a Gaussian's mean and standard deviation"""
    kl_bound: float = 0.2
    """trust region: bound, times A, on KL(Polyak copy || actor) of the kernels, summed over K steps and A dimensions"""
    kl_multiplier: float = 0.3
    """multiplier of the trust region at the start, learned at q_lr; 0: no trust region"""

    def __post_init__(self):
        runs.check_arguments(self)
        runs.check(self.learning_starts <= self.total_timesteps, "--learning-starts is above --total-timesteps")
        runs.check(
            self.num_updates >= 1 and self.num_updates % 1 == 0,
            "--num-envs times --updates-per-step must be a whole number of at least 1",
        )
        runs.check(self.initial_beta_first < 1 and self.initial_beta_last < 1, "noise levels must be below 1")

    @property
    def num_updates(self) -> float:
        return self.num_envs * self.updates_per_step

    def target_entropy(self, action_size: int) -> float:
        scale = self.target_entropy_scale
        if scale is None:
            # l overestimates log pi by the gap of the bound. 0.089: std of a Gaussian with SAC's target entropy of -1.
            scale = 1.0 + diffusion.path_kl_per_dimension(self.num_denoising_steps, self.prior_std, 0.089)
        return -scale * action_size


# ----------------------------------------------------------------------------------------------------------- networks


class Actor(nn.Module):
    """Drift f(a^k, s, k) of step k: obs `[B, O]`, latent a^k `[B, A]`, k int `[B]` or scalar -> `[B, A]`."""

    action_size: int
    hidden_dim: int
    num_steps: int

    @nn.compact
    def __call__(self, obs, latent, k):
        level = diffusion.level_embedding(jnp.broadcast_to(k, obs.shape[:-1]), self.num_steps)
        x = jnp.concatenate([obs, latent, level], axis=-1)
        x = nn.relu(nn.Dense(self.hidden_dim)(x))
        x = nn.relu(nn.Dense(self.hidden_dim)(x))
        return nn.Dense(self.action_size, kernel_init=nn.initializers.zeros)(x)


class Critic(nn.Module):
    """Q(s, a^j, j): obs `[B, O]`, latent a^j `[B, A]` (the action u at j = 0), j int `[B]` or scalar -> `[B]`."""

    hidden_dim: int
    num_steps: int

    @nn.compact
    def __call__(self, obs, latent, j=0):
        level = diffusion.level_embedding(jnp.broadcast_to(j, obs.shape[:-1]), self.num_steps)
        x = jnp.concatenate([obs, latent, level], axis=-1)
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
    target_actor_params: dict
    log_alpha: jax.Array
    log_kl_multiplier: jax.Array
    actor_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    alpha_opt_state: optax.OptState
    kl_opt_state: optax.OptState


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
    actor = Actor(env.action_size, args.hidden_dim, args.num_denoising_steps)
    critic = TwinCritic(args.hidden_dim, args.num_denoising_steps)
    noise_logits = diffusion.initial_noise_logits(
        args.num_denoising_steps, env.action_size, args.initial_beta_first, args.initial_beta_last
    )
    actor_params = {"drift": actor.init(actor_key, obs, action, 1), "noise_logits": noise_logits}
    critic_params = critic.init(critic_key, obs, action)
    log_alpha = jnp.log(jnp.float32(args.alpha))
    log_kl_multiplier = jnp.log(jnp.float32(args.kl_multiplier))
    return Agent(
        actor=actor,
        critic=critic,
        actor_params=actor_params,
        critic_params=critic_params,
        target_params=jax.tree.map(jnp.copy, critic_params),
        target_actor_params=jax.tree.map(jnp.copy, actor_params),
        log_alpha=log_alpha,
        log_kl_multiplier=log_kl_multiplier,
        actor_opt_state=optax.adam(args.policy_lr).init(actor_params),
        critic_opt_state=optax.adam(args.q_lr).init(critic_params),
        alpha_opt_state=optax.adam(args.q_lr).init(log_alpha),
        kl_opt_state=optax.adam(args.q_lr).init(log_kl_multiplier),
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


def policy_terms(args, agent, obs):
    """The drift with the observations `[B, O]` bound, and the noise schedule."""
    params = agent.actor_params
    schedule = diffusion.NoiseSchedule(params["noise_logits"], args.prior_std, args.prediction)
    return lambda latent, k: agent.actor.apply(params["drift"], obs, latent, k), schedule


def sample_chain(args, agent, key, obs):
    """A denoising chain for each observation `[B, O]` (the key is consumed)."""
    return diffusion.sample_chain(key, *policy_terms(args, agent, obs), obs.shape[:-1])


def squash(chain):
    """Action tanh(a^0) `[B, A]` and, for log pi(u | s), l = log p(a^K) + sum_k rho_k - log det tanh, `[B]` in nats."""
    log_prob = diffusion.chain_log_likelihood(chain) - distributions.tanh_log_det(chain.latents[0])
    return jnp.tanh(chain.latents[0]), log_prob


def sample_action(args, agent, key, obs):
    """Action `[B, A]` and chain log-likelihood `[B]` (the key is consumed)."""
    return squash(sample_chain(args, agent, key, obs))


def deterministic_action(args, agent, obs):
    """tanh of the chain of means, started from a^K = 0, `[B, A]`."""
    return jnp.tanh(diffusion.deterministic_chain(*policy_terms(args, agent, obs), obs.shape[:-1]))


def entropy(args, agent, key, obs):
    """One sample of the policy's entropy, or of bounds of it, by tag, `[B]` in nats (the key is consumed)."""
    return diffusion.entropy_terms(key, *policy_terms(args, agent, obs), obs.shape[:-1], distributions.tanh_log_det)


# ----------------------------------------------------------------------------------------------------------- learning


def critic_loss(critic_params, args, agent, key, batch, chain):
    """Mean squared soft Bellman error of the critics at level 0 and, at s', at one inner level per sample.

    The inner target is Monte-Carlo over the rest of the chain: y_j = min Q(s', u', 0) - alpha (sum_{k<=j} rho_k - ldj).
    """
    next_action, next_log_prob = squash(chain)
    next_q = agent.critic.apply(agent.target_params, batch.next_obs, next_action).min(axis=0)
    next_value = next_q - jnp.exp(agent.log_alpha) * next_log_prob
    target = batch.reward + args.gamma * (1.0 - batch.terminated) * next_value
    obs, latent, level, weight = batch.obs, batch.action, jnp.zeros(target.shape, int), jnp.ones_like(target)
    if args.num_denoising_steps > 1:
        rows = jnp.arange(target.shape[0])
        j = jax.random.randint(key, rows.shape, 1, args.num_denoising_steps)
        inner_log_prob = jnp.cumsum(chain.log_ratio, axis=0)[j - 1, rows] - distributions.tanh_log_det(chain.latents[0])
        target = jnp.concatenate([target, next_q - jnp.exp(agent.log_alpha) * inner_log_prob])
        obs, latent = jnp.concatenate([obs, batch.next_obs]), jnp.concatenate([latent, chain.latents[j, rows]])
        level, weight = jnp.concatenate([level, j]), jnp.concatenate([weight, 1.0 - batch.terminated])
    q = agent.critic.apply(critic_params, obs, latent, level)
    error = (q - jax.lax.stop_gradient(target)) ** 2
    loss = jnp.mean(weight * error, axis=1).sum()
    q, error = q[:, : len(batch.reward)], error[:, : len(batch.reward)]  # level 0
    return loss, {"losses/qf_loss": error.mean(), "losses/qf1_values": q[0].mean(), "losses/qf2_values": q[1].mean()}


def actor_loss(actor_params, args, agent, key, batch, chain):
    """Wasserstein gradient of alpha rho_k - min Q(s', a^{k-1}, k-1) of one step k per sample, at a detached a^k."""
    agent = agent.replace(actor_params=actor_params)
    step_key, noise_key = jax.random.split(key)
    rows = jnp.arange(len(batch.reward))
    k = jax.random.randint(step_key, rows.shape, 1, args.num_denoising_steps + 1)
    latent = jax.lax.stop_gradient(chain.latents[k, rows])
    drift, schedule = policy_terms(args, agent, batch.next_obs)
    mean, std = diffusion.denoising_mean_std(schedule, drift(latent, k), latent, k)
    fixed_mean, fixed_std = jax.lax.stop_gradient((mean, std))
    next_latent = fixed_mean + fixed_std * jax.random.normal(noise_key, latent.shape)

    def value(next_latent):
        log_denoise = distributions.gaussian_log_prob(next_latent, mean, std)
        log_noise = distributions.gaussian_log_prob(latent, *diffusion.noising_mean_std(schedule, next_latent, k))
        log_prob = log_denoise - log_noise - (k == 1) * distributions.tanh_log_det(next_latent)
        value_input = jnp.where((k == 1)[:, None], jnp.tanh(next_latent), next_latent)
        q = agent.critic.apply(agent.critic_params, batch.next_obs, value_input, k - 1).min(axis=0)
        return (q - jnp.exp(agent.log_alpha) * log_prob).sum(), log_noise

    velocity, log_noise = jax.grad(value, has_aux=True)(next_latent)
    # The inverse Fisher information scales the gradient of the mean by std^2, of std by std^2 / 2; values stay.
    mean_scale, std_scale = (fixed_std**2, fixed_std**2 / 2) if args.precondition else (1.0, 1.0)
    scaled_std = fixed_std + std_scale * (std - fixed_std)
    score = (fixed_mean + mean_scale * (mean - fixed_mean) - next_latent) / scaled_std**2
    # The noise levels also act through pi, which the velocity at a fixed point leaves out.
    loss = -(jax.lax.stop_gradient(velocity) * score).sum(axis=-1) - jnp.exp(agent.log_alpha) * log_noise
    # Trust region.
    old_drift, old_schedule = policy_terms(args, agent.replace(actor_params=agent.target_actor_params), batch.next_obs)
    old_mean_std = diffusion.denoising_mean_std(old_schedule, old_drift(latent, k), latent, k)
    kl = args.num_denoising_steps * distributions.gaussian_kl(*old_mean_std, mean, std)
    multiplier = jnp.exp(agent.log_kl_multiplier)
    loss, kl = jnp.mean((1.0 - batch.terminated) * jnp.stack([loss + multiplier * kl, kl]), axis=1)
    return loss, {"losses/actor_loss": loss, "losses/kl_multiplier": multiplier, "diffusion/kl": kl}


def update(args, agent, key, batch):
    """One update of critics, actor, temperature and targets on one batch (the key is consumed)."""
    critic_key, actor_key, chain_key = jax.random.split(key, 3)
    # One chain at s', without gradient, serves the critics' targets, the actor's a^k and the temperature.
    chain = jax.lax.stop_gradient(sample_chain(args, agent, chain_key, batch.next_obs))
    _, log_prob = squash(chain)

    grads, qf_metrics = jax.grad(critic_loss, has_aux=True)(agent.critic_params, args, agent, critic_key, batch, chain)
    updates, critic_opt_state = optax.adam(args.q_lr).update(grads, agent.critic_opt_state)
    agent = agent.replace(
        critic_params=optax.apply_updates(agent.critic_params, updates), critic_opt_state=critic_opt_state
    )

    grads, actor_metrics = jax.grad(actor_loss, has_aux=True)(agent.actor_params, args, agent, actor_key, batch, chain)
    updates, actor_opt_state = optax.adam(args.policy_lr).update(grads, agent.actor_opt_state)
    agent = agent.replace(
        actor_params=optax.apply_updates(agent.actor_params, updates), actor_opt_state=actor_opt_state
    )

    # Loss of log alpha: -exp(log alpha) stopgrad(l + target entropy); its gradient by hand.
    if args.autotune:
        error = (1.0 - batch.terminated) * (log_prob + args.target_entropy(agent.actor.action_size))
        grad = -jnp.exp(agent.log_alpha) * error.mean()
        updates, alpha_opt_state = optax.adam(args.q_lr).update(grad, agent.alpha_opt_state)
        agent = agent.replace(log_alpha=agent.log_alpha + updates, alpha_opt_state=alpha_opt_state)

    # Loss of log lambda, the trust region's multiplier: -exp(log lambda) stopgrad(kl - bound A).
    grad = -jnp.exp(agent.log_kl_multiplier) * (actor_metrics["diffusion/kl"] - args.kl_bound * agent.actor.action_size)
    updates, kl_opt_state = optax.adam(args.q_lr).update(grad, agent.kl_opt_state)
    agent = agent.replace(log_kl_multiplier=agent.log_kl_multiplier + updates, kl_opt_state=kl_opt_state)

    target_actor_params = optax.incremental_update(agent.actor_params, agent.target_actor_params, args.tau)
    agent = agent.replace(target_actor_params=target_actor_params)
    target_params = optax.incremental_update(agent.critic_params, agent.target_params, args.tau)
    metrics = {"losses/alpha": jnp.exp(agent.log_alpha), "losses/entropy": -log_prob.mean()}
    metrics |= {f"diffusion/log_ratio_{k + 1}": x for k, x in enumerate(chain.log_ratio.mean(axis=1))}
    metrics |= diffusion.noise_level_metrics(policy_terms(args, agent, batch.obs)[1])
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
