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
from flax.training.train_state import TrainState

from common import diffusion, distributions, replay
from common.seeds import vmap_seeds
from envs import EnvState, make_env
from harness import Evaluator, Experiment, Run, cli

# ---------------------------------------------------------------------------------------------------------- arguments


@dataclass(frozen=True)
class Args(Experiment):
    exp_name: str = "diffwpo_jax"
    """name of this experiment, part of the folder's name"""
    log_frequency: int = Experiment.changeable(1000)
    """environment steps per compiled chunk: logs, evaluations and signals wait for its end"""
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
        super().__post_init__()
        self.positive("buffer_size", "batch_size", "updates_per_step", "policy_lr", "q_lr", "hidden_dim")
        self.positive("num_denoising_steps", "prior_std", "initial_beta_first", "initial_beta_last", "kl_bound")
        self.not_negative("learning_starts", "alpha", "target_entropy_scale", "kl_multiplier")
        self.fraction("gamma", "tau")
        self.check(self.initial_beta_first < 1 and self.initial_beta_last < 1, "noise levels must be below 1")
        self.check(self.learning_starts <= self.total_timesteps, "--learning-starts is above --total-timesteps")
        self.check(
            self.num_updates >= 1 and self.num_updates % 1 == 0,
            "--num-envs times --updates-per-step must be a whole number of at least 1",
        )

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
    num_denoising_steps: int

    @nn.compact
    def __call__(self, obs, latent, k):
        level = diffusion.level_embedding(jnp.broadcast_to(k, obs.shape[:-1]), self.num_denoising_steps)
        x = jnp.concatenate([obs, latent, level], axis=-1)
        x = nn.relu(nn.Dense(self.hidden_dim)(x))
        x = nn.relu(nn.Dense(self.hidden_dim)(x))
        return nn.Dense(self.action_size, kernel_init=nn.initializers.zeros)(x)


class Critic(nn.Module):
    """Q(s, a^j, j): obs `[B, O]`, latent a^j `[B, A]` (the action u at j = 0), j int `[B]` or scalar -> `[B]`."""

    hidden_dim: int
    num_denoising_steps: int

    @nn.compact
    def __call__(self, obs, latent, j=0):
        level = diffusion.level_embedding(jnp.broadcast_to(j, obs.shape[:-1]), self.num_denoising_steps)
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

    actor: TrainState
    critic: TrainState
    target_params: dict
    target_actor_params: dict
    temperature: TrainState
    multiplier: TrainState

    @property
    def alpha(self):
        return jnp.exp(self.temperature.params["log_alpha"])


@struct.dataclass
class Training:
    """The whole state of one agent's training."""

    agent: Agent
    buffer: replay.Transition
    env_state: EnvState
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
    log_multiplier = jnp.log(jnp.float32(args.kl_multiplier))
    return Agent(
        actor=TrainState.create(apply_fn=actor.apply, params=actor_params, tx=optax.adam(args.policy_lr)),
        critic=TrainState.create(apply_fn=critic.apply, params=critic_params, tx=optax.adam(args.q_lr)),
        target_params=jax.tree.map(jnp.copy, critic_params),
        target_actor_params=jax.tree.map(jnp.copy, actor_params),
        temperature=TrainState.create(apply_fn=None, params={"log_alpha": log_alpha}, tx=optax.adam(args.q_lr)),
        multiplier=TrainState.create(
            apply_fn=None, params={"log_multiplier": log_multiplier}, tx=optax.adam(args.q_lr)
        ),
    )


def init_training(args, env, key):
    """The state before the first step (the key is consumed)."""
    agent_key, env_key, key = jax.random.split(key, 3)
    env_state = env.reset(env_key)
    return Training(
        agent=init_agent(args, env, agent_key),
        buffer=replay.init(replay.capacity(args.buffer_size, args.num_envs), transition_row(env)),
        env_state=env_state,
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
    params = agent.actor.params
    schedule = diffusion.NoiseSchedule(params["noise_logits"], args.prior_std, args.prediction)
    return lambda latent, k: agent.actor.apply_fn(params["drift"], obs, latent, k), schedule


def sample_chain(args, agent, key, obs):
    """A denoising chain for each observation `[B, O]` (the key is consumed)."""
    return diffusion.sample_chain(key, *policy_terms(args, agent, obs), obs.shape[:-1])


def squash(chain):
    """Action tanh(a^0) `[B, A]` and l = log p(a^K) + sum_k rho_k - log det tanh, `[B]` in nats."""
    log_lik = diffusion.chain_log_likelihood(chain) - distributions.tanh_log_det(chain.latents[0])
    return jnp.tanh(chain.latents[0]), log_lik


def sample_action(args, agent, key, obs):
    """Action `[B, A]` and chain log-likelihood `[B]` (the key is consumed)."""
    return squash(sample_chain(args, agent, key, obs))


def deterministic_action(args, agent, obs):
    """tanh of the chain of means, started from a^K = 0, `[B, A]`."""
    return jnp.tanh(diffusion.deterministic_chain(*policy_terms(args, agent, obs), obs.shape[:-1]))


def entropy_terms(args, agent, key, obs):
    """One sample of the policy's entropy, or of bounds of it, by tag, `[B]` in nats (the key is consumed)."""
    return diffusion.entropy_terms(key, *policy_terms(args, agent, obs), obs.shape[:-1], distributions.tanh_log_det)


# ----------------------------------------------------------------------------------------------------------- learning


def critic_loss(critic_params, args, agent, key, batch, chain):
    """Mean squared soft Bellman error of the critics at level 0 and, at s', at one inner level per sample.

    The inner target is Monte-Carlo over the rest of the chain: y_j = min Q(s', u', 0) - alpha (sum_{k<=j} rho_k - ldj).
    """
    next_action, next_log_lik = squash(chain)
    next_q = agent.critic.apply_fn(agent.target_params, batch.next_obs, next_action).min(axis=0)
    next_value = next_q - agent.alpha * next_log_lik
    target = batch.reward + args.gamma * (1.0 - batch.terminated) * next_value
    obs, latent, level, weight = batch.obs, batch.action, jnp.zeros(target.shape, int), jnp.ones_like(target)
    if args.num_denoising_steps > 1:
        rows = jnp.arange(target.shape[0])
        j = jax.random.randint(key, rows.shape, 1, args.num_denoising_steps)
        inner_log_lik = jnp.cumsum(chain.rho, axis=0)[j - 1, rows] - distributions.tanh_log_det(chain.latents[0])
        target = jnp.concatenate([target, next_q - agent.alpha * inner_log_lik])
        obs, latent = jnp.concatenate([obs, batch.next_obs]), jnp.concatenate([latent, chain.latents[j, rows]])
        level, weight = jnp.concatenate([level, j]), jnp.concatenate([weight, 1.0 - batch.terminated])
    q = agent.critic.apply_fn(critic_params, obs, latent, level)
    error = (q - jax.lax.stop_gradient(target)) ** 2
    loss = jnp.mean(weight * error, axis=1).sum()
    q, error = q[:, : len(batch.reward)], error[:, : len(batch.reward)]  # level 0
    return loss, {"losses/qf_loss": error.mean(), "losses/qf1_values": q[0].mean(), "losses/qf2_values": q[1].mean()}


def actor_loss(actor_params, args, agent, key, batch, chain):
    """Wasserstein gradient of alpha rho_k - min Q(s', a^{k-1}, k-1) of one step k per sample, at a detached a^k."""
    agent = agent.replace(actor=agent.actor.replace(params=actor_params))
    step_key, noise_key = jax.random.split(key)
    rows = jnp.arange(len(batch.reward))
    k = jax.random.randint(step_key, rows.shape, 1, args.num_denoising_steps + 1)
    latent = jax.lax.stop_gradient(chain.latents[k, rows])
    drift, schedule = policy_terms(args, agent, batch.next_obs)
    mean, std = diffusion.denoising_mean_std(schedule, drift(latent, k), latent, k)
    fixed_mean, fixed_std = jax.lax.stop_gradient((mean, std))
    next_latent = fixed_mean + fixed_std * jax.random.normal(noise_key, latent.shape)

    def value(next_latent):
        log_denoising = distributions.gaussian_log_prob(next_latent, mean, std)
        log_noising = distributions.gaussian_log_prob(latent, *diffusion.noising_mean_std(schedule, next_latent, k))
        rho = log_denoising - log_noising - (k == 1) * distributions.tanh_log_det(next_latent)
        value_input = jnp.where((k == 1)[:, None], jnp.tanh(next_latent), next_latent)
        q = agent.critic.apply_fn(agent.critic.params, batch.next_obs, value_input, k - 1).min(axis=0)
        return (q - agent.alpha * rho).sum(), log_noising

    velocity, log_noising = jax.grad(value, has_aux=True)(next_latent)
    # The inverse Fisher information scales the gradient of the mean by std^2, of std by std^2 / 2; values stay.
    mean_scale, std_scale = (fixed_std**2, fixed_std**2 / 2) if args.precondition else (1.0, 1.0)
    scaled_std = fixed_std + std_scale * (std - fixed_std)
    score = (fixed_mean + mean_scale * (mean - fixed_mean) - next_latent) / scaled_std**2
    # The noise levels also act through pi, which the velocity at a fixed point leaves out.
    loss = -(jax.lax.stop_gradient(velocity) * score).sum(axis=-1) - agent.alpha * log_noising
    # Trust region.
    old_drift, old_schedule = policy_terms(
        args, agent.replace(actor=agent.actor.replace(params=agent.target_actor_params)), batch.next_obs
    )
    old_mean_std = diffusion.denoising_mean_std(old_schedule, old_drift(latent, k), latent, k)
    kl = args.num_denoising_steps * distributions.gaussian_kl(*old_mean_std, mean, std)
    multiplier = jnp.exp(agent.multiplier.params["log_multiplier"])
    loss, kl = jnp.mean((1.0 - batch.terminated) * jnp.stack([loss + multiplier * kl, kl]), axis=1)
    return loss, {"losses/actor_loss": loss, "losses/kl_multiplier": multiplier, "diffusion/kl": kl}


def update(args, agent, key, batch):
    """One update of critics, actor, temperature and targets on one batch (the key is consumed)."""
    critic_key, actor_key, chain_key = jax.random.split(key, 3)
    # One chain at s', without gradient, serves the critics' targets, the actor's a^k and the temperature.
    chain = jax.lax.stop_gradient(sample_chain(args, agent, chain_key, batch.next_obs))
    _, log_lik = squash(chain)

    grads, qf_metrics = jax.grad(critic_loss, has_aux=True)(agent.critic.params, args, agent, critic_key, batch, chain)
    agent = agent.replace(critic=agent.critic.apply_gradients(grads=grads))

    grads, actor_metrics = jax.grad(actor_loss, has_aux=True)(agent.actor.params, args, agent, actor_key, batch, chain)
    agent = agent.replace(actor=agent.actor.apply_gradients(grads=grads))

    # Loss of log alpha: -exp(log alpha) stopgrad(l + target entropy); its gradient by hand.
    if args.autotune:
        error = (1.0 - batch.terminated) * (log_lik + args.target_entropy(batch.action.shape[-1]))
        grads = {"log_alpha": -agent.alpha * error.mean()}
        agent = agent.replace(temperature=agent.temperature.apply_gradients(grads=grads))

    # Loss of log lambda, the trust region's multiplier: -exp(log lambda) stopgrad(kl - bound A).
    excess = actor_metrics["diffusion/kl"] - args.kl_bound * batch.action.shape[-1]
    grads = {"log_multiplier": -jnp.exp(agent.multiplier.params["log_multiplier"]) * excess}
    agent = agent.replace(multiplier=agent.multiplier.apply_gradients(grads=grads))

    target_actor_params = optax.incremental_update(agent.actor.params, agent.target_actor_params, args.tau)
    agent = agent.replace(target_actor_params=target_actor_params)
    target_params = optax.incremental_update(agent.critic.params, agent.target_params, args.tau)
    metrics = {"losses/alpha": agent.alpha, "losses/entropy": -log_lik.mean()}
    metrics |= {f"diffusion/rho_{k + 1}": x for k, x in enumerate(chain.rho.mean(axis=1))}
    metrics |= diffusion.noise_level_metrics(policy_terms(args, agent, batch.obs)[1])
    return agent.replace(target_params=target_params), {**qf_metrics, **actor_metrics, **metrics}


# ----------------------------------------------------------------------------------------------------------- training


def train_step(args, env, state, step):
    """One step of the N environments and the updates that belong to it. `step`: environment steps taken before."""
    key, action_key, learn_key = jax.random.split(state.key, 3)
    random_key, policy_key = jax.random.split(action_key)
    obs = state.env_state.obs
    random_action = jax.random.uniform(random_key, (args.num_envs, env.action_size), minval=-1.0, maxval=1.0)
    policy_action, _ = sample_action(args, state.agent, policy_key, obs)
    action = jnp.where(step < args.learning_starts, random_action, policy_action)

    env_state, time_step = env.step(state.env_state, action)
    rows = replay.Transition(obs, action, time_step.reward, time_step.final_obs, time_step.terminated)
    buffer = replay.insert(state.buffer, step, rows)

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
    return Training(agent, buffer, env_state, key), (time_step.episode, metrics)


@partial(jax.jit, static_argnames=("args", "env"), donate_argnames="state")
def train_chunk(args, env, state, step):
    """`log_frequency` environment steps of all S agents in one XLA program; leaves of `state` are `[S, ..]`.

    Returns the new state, the episodes `[S, T, N]`, and by tag the mean over the steps that learned, `[S]`.
    """
    steps = step + args.num_envs * jnp.arange(args.log_frequency // args.num_envs)
    learned = steps >= args.learning_starts

    def one_seed(state):
        state, (episodes, metrics) = jax.lax.scan(partial(train_step, args, env), state, steps)
        return state, episodes, jax.tree.map(lambda x: x.sum(axis=0) / learned.sum(), metrics)

    return vmap_seeds(one_seed)(state)


# --------------------------------------------------------------------------------------------------------------- main


def train(args):
    env = make_env(args.env_id, args.num_envs, args.num_seeds, args.env_kwargs)
    evaluate = Evaluator(args, sample_action, deterministic_action, entropy_terms)
    with Run(args, env) as run:
        state = run.start(partial(init_training, args, env))
        while run.goes_on():
            state, episodes, metrics = train_chunk(args, env, state, run.step)
            learned = run.step + args.log_frequency - args.num_envs >= args.learning_starts
            run.log(state, episodes, metrics if learned else {})
            if run.due(args.eval_frequency):
                run.log_evaluation(evaluate(state.agent, run.step))
            run.save_if_due(state)
        run.finish(state, evaluate)


if __name__ == "__main__":
    cli.run(Args, train)
