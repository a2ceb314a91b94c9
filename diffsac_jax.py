"""DiffSAC: soft actor-critic with a diffusion policy (arXiv 2512.02019v1), in one file.

  Run:   python diffsac_jax.py --env-id Hopper-v4 --seed 1
  Docs:  docs/diffsac.md
  Diff:  diff -u sac_jax.py diffsac_jax.py shows what a diffusion policy changes.

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
from common.seeds import learn_if, mean_metrics, vmap_seeds
from envs import EnvState, make_env
from harness import Evaluator, Experiment, Run, cli

# ---------------------------------------------------------------------------------------------------------- arguments


@dataclass(frozen=True)
class Args(Experiment):  # which has env_id, seed, num_envs, total_timesteps, eval_frequency, ..
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
    policy_frequency: int = 1
    """critic updates per update of actor and temperature"""
    gamma: float = 0.99
    """discount"""
    tau: float = 0.005
    """Polyak coefficient of the target networks"""
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
    """target entropy = -scale * action dimensions, in nats"""

    num_denoising_steps: int = 8
    """K, denoising steps per action"""
    head_dim: int = 64
    """units in each of the two layers that run at every denoising step"""
    entropy_paths: int = 16
    """M, extra chains per state for the entropy estimate; 0: use the bound -l and a lowered target"""
    prior_std: float = 1.0
    """nu, standard deviation of the prior that the chain starts from"""
    initial_beta_first: float = 0.05
    """initial beta_1, of the last denoising step (the smallest noise level; unused with one step)"""
    initial_beta_last: float = 0.6
    """initial beta_K, of the first denoising step (the largest); levels in between are spaced linearly"""
    prediction: Literal["action", "noise"] = "action"
    """units of the network's output: a prediction of the action, or of the step's noise"""

    def __post_init__(self):
        super().__post_init__()
        self.positive(
            "buffer_size", "batch_size", "updates_per_step", "policy_frequency", "policy_lr", "q_lr", "hidden_dim"
        )
        self.positive("num_denoising_steps", "head_dim", "prior_std", "initial_beta_first", "initial_beta_last")
        self.not_negative("learning_starts", "alpha", "target_entropy_scale", "entropy_paths")
        self.fraction("gamma", "tau")
        self.check(max(self.initial_beta_first, self.initial_beta_last) < 1, "--initial-beta-.. must be below 1")
        self.check(self.alpha > 0 or not self.autotune, "--alpha 0 needs --no-autotune: a tuned 0 would stay 0")
        self.check(self.learning_starts <= self.total_timesteps, "--learning-starts is above --total-timesteps")
        self.check(
            self.num_updates >= 1 and self.num_updates == round(self.num_envs * self.updates_per_step, 6),
            "--num-envs times --updates-per-step must be a whole number of at least 1",
        )

    @property
    def num_updates(self) -> int:
        return round(self.num_envs * self.updates_per_step)  # 100 * 0.07 is 7.000000000000001 in floats

    def target_entropy(self, action_size: int) -> float:
        policy = self.num_denoising_steps, self.prior_std, -self.target_entropy_scale
        gap = 0.0 if self.entropy_paths else diffusion.path_kl_per_dimension(*policy)
        return -(self.target_entropy_scale + gap) * action_size


# ----------------------------------------------------------------------------------------------------------- networks


class Actor(nn.Module):
    """Drift f(a^k, s, k) and noise levels: the observation is encoded once, a small head runs at every step."""

    action_size: int
    hidden_dim: int
    head_dim: int
    num_denoising_steps: int
    initial_betas: tuple[float, float]

    def setup(self):
        self.trunk = [nn.Dense(self.hidden_dim), nn.Dense(self.hidden_dim)]
        self.from_obs, self.from_latent, self.from_level, self.head = [nn.Dense(self.head_dim) for _ in range(4)]
        self.drift = nn.Dense(2 * self.action_size, kernel_init=nn.initializers.zeros)
        sizes = self.num_denoising_steps, self.action_size
        self.levels = nn.DenseGeneral(sizes, use_bias=False, kernel_init=nn.initializers.zeros)
        self.noise_logits = self.param(
            "noise_logits", lambda _: diffusion.initial_noise_logits(*sizes, *self.initial_betas)
        )

    def encode(self, obs):
        """obs `[B, O]` -> features `[B, head_dim]`, noise logits `[K, B, A]`."""
        x = nn.relu(self.trunk[1](nn.relu(self.trunk[0](obs))))
        return self.from_obs(x), jnp.moveaxis(self.noise_logits + self.levels(x), -2, 0)

    def denoise(self, features, latent, k):
        """features `[B, head_dim]`, latent a^k / nu `[B, A]`, k int `[B]` or scalar -> f(a^k, s, k) `[B, A]`."""
        level = diffusion.level_embedding(k, self.num_denoising_steps)
        x = nn.relu(features + self.from_latent(latent) + self.from_level(level))
        shift, pull = jnp.split(self.drift(nn.relu(self.head(x))), 2, axis=-1)
        return shift - pull * latent

    def __call__(self, obs, latent, k):
        return self.denoise(self.encode(obs)[0], latent, k)


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
    """Everything that one agent learns."""

    actor: TrainState
    critic: TrainState
    target_params: dict
    temperature: TrainState

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
    betas = args.initial_beta_first, args.initial_beta_last
    actor = Actor(env.action_size, args.hidden_dim, args.head_dim, args.num_denoising_steps, betas)
    critic = TwinCritic(args.hidden_dim)
    actor_params = actor.init(actor_key, obs, action, 1)
    critic_params = critic.init(critic_key, obs, action)
    log_alpha = jnp.log(jnp.float32(args.alpha))
    return Agent(
        actor=TrainState.create(apply_fn=actor.apply, params=actor_params, tx=optax.adam(args.policy_lr)),
        critic=TrainState.create(apply_fn=critic.apply, params=critic_params, tx=optax.adam(args.q_lr)),
        target_params=jax.tree.map(jnp.copy, critic_params),
        temperature=TrainState.create(apply_fn=None, params={"log_alpha": log_alpha}, tx=optax.adam(args.q_lr)),
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
    """The drift with the observations `[B, O]` bound, and the noise schedule at them."""
    actor = partial(agent.actor.apply_fn, agent.actor.params)
    features, logits = actor(obs, method="encode")
    schedule = diffusion.NoiseSchedule(logits, args.prior_std, args.prediction)
    return lambda latent, k: actor(features, latent / args.prior_std, k, method="denoise"), schedule


def squash(chain):
    """Action u = tanh(a^0) `[B, A]` and l = log p(a^K) + sum_k rho_k - log det tanh, `[B]` in nats."""
    log_lik = diffusion.chain_log_likelihood(chain) - distributions.tanh_log_det(chain.latents[0])
    return jnp.tanh(chain.latents[0]), log_lik


def sample_action(args, agent, key, obs):
    """Action `[B, A]` and chain log-likelihood `[B]` (the key is consumed)."""
    return squash(diffusion.sample_chain(key, *policy_terms(args, agent, obs), obs.shape[:-1]))


def deterministic_action(args, agent, obs):
    """tanh of the chain of means, started from a^K = 0, `[B, A]`."""
    return jnp.tanh(diffusion.deterministic_chain(*policy_terms(args, agent, obs), obs.shape[:-1]))


def entropy_terms(args, agent, key, obs):
    """One sample of the policy's entropy, or of bounds of it, by tag, `[B]` in nats (the key is consumed)."""
    return diffusion.entropy_terms(key, *policy_terms(args, agent, obs), obs.shape[:-1], distributions.tanh_log_det)


def log_prob_estimate(args, agent, key, obs, chain, rows=16):  # each row costs M more chains
    """Mean of log q(u | s), nats: estimated on the batch's first rows, or by l where its mean over these is lower."""
    if args.entropy_paths == 0:
        return squash(chain)[1].mean()
    latents, terms = chain.latents[:, :rows], policy_terms(args, agent, obs[:rows])
    _, log_prob, _ = diffusion.log_prob_estimates(key, *terms, latents, args.entropy_paths)
    return jnp.minimum(squash(chain)[1][:rows].mean(), (log_prob - distributions.tanh_log_det(latents[0])).mean())


# ----------------------------------------------------------------------------------------------------------- learning


def with_actor(agent, params):
    """The agent with other parameters of the actor."""
    return agent.replace(actor=agent.actor.replace(params=params))


def critic_loss(critic_params, args, agent, key, batch):
    """Mean squared soft Bellman error, summed over the two critics (1812.05905, equations 5 and 6)."""
    next_action, next_log_lik = sample_action(args, agent, key, batch.next_obs)
    next_q = agent.critic.apply_fn(agent.target_params, batch.next_obs, next_action).min(axis=0)
    next_value = next_q - agent.alpha * next_log_lik
    target = batch.reward + args.gamma * (1.0 - batch.terminated) * next_value
    q = agent.critic.apply_fn(critic_params, batch.obs, batch.action)
    error = (q - jax.lax.stop_gradient(target)) ** 2
    loss = jnp.mean(error, axis=1).sum()
    return loss, {"losses/qf_loss": loss / 2, "losses/qf1_values": q[0].mean(), "losses/qf2_values": q[1].mean()}


def actor_loss(actor_params, args, agent, key, batch):
    """alpha l - min Q at reparameterised actions: the gradient passes through all K denoising steps."""
    agent = with_actor(agent, actor_params)
    drift, schedule = policy_terms(args, agent, batch.obs)
    chain = diffusion.sample_chain(key, drift, schedule, batch.obs.shape[:-1])
    action, log_lik = squash(chain)
    q = agent.critic.apply_fn(agent.critic.params, batch.obs, action).min(axis=0)
    loss = jnp.mean(agent.alpha * log_lik - q)
    metrics = {"losses/actor_loss": loss, "losses/entropy_bound": -log_lik.mean()}
    return loss, (chain, metrics | diffusion.chain_metrics(chain.rho, schedule))


def update(args, agent, key, batch, index):
    """One update on one batch (the key is consumed). `index`: updates before this one."""
    critic_key, actor_key = jax.random.split(key)
    grads, qf_metrics = jax.grad(critic_loss, has_aux=True)(agent.critic.params, args, agent, critic_key, batch)
    agent = agent.replace(critic=agent.critic.apply_gradients(grads=grads))

    def learn_actor(agent):
        chain_key, estimate_key = jax.random.split(actor_key)
        grads, (chain, metrics) = jax.grad(actor_loss, has_aux=True)(agent.actor.params, args, agent, chain_key, batch)
        log_prob = log_prob_estimate(args, agent, estimate_key, batch.obs, chain)
        agent = agent.replace(actor=agent.actor.apply_gradients(grads=grads))
        # Loss of log alpha: -exp(log alpha) stopgrad(estimate + target entropy); its gradient by hand.
        if args.autotune:
            error = log_prob + args.target_entropy(batch.action.shape[-1])
            grads = {"log_alpha": -agent.alpha * error.mean()}
            agent = agent.replace(temperature=agent.temperature.apply_gradients(grads=grads))
        return agent, {**metrics, "losses/alpha": agent.alpha, "losses/entropy": -log_prob.mean()}

    due = args.policy_frequency == 1 or index % args.policy_frequency == 0
    agent, actor_metrics = learn_if(due, learn_actor, agent)
    target_params = optax.incremental_update(agent.critic.params, agent.target_params, args.tau)
    return agent.replace(target_params=target_params), {**qf_metrics, **actor_metrics}


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
        def one_update(agent, key_and_index):
            key, index = key_and_index
            sample_key, update_key = jax.random.split(key)
            batch = replay.sample(sample_key, buffer, step + args.num_envs, args.batch_size)
            return update(args, agent, update_key, batch, index)

        first = (step - args.learning_starts) // args.num_envs * args.num_updates
        keys, indices = jax.random.split(learn_key, args.num_updates), first + jnp.arange(args.num_updates)
        return jax.lax.scan(one_update, agent, (keys, indices))

    agent, metrics = learn_if(step >= args.learning_starts, learn, state.agent)
    return Training(agent, buffer, env_state, key), (time_step.episode, metrics)


@partial(jax.jit, static_argnames=("args", "env"), donate_argnames="state")
def train_chunk(args, env, state, step):
    """`log_frequency` environment steps of all S agents in one XLA program. `state`, leaves `[S, ..]`, is donated.

    Returns the new state, the episodes `[S, T, N]`, and metrics by tag `[S]`.
    """
    steps = step + args.num_envs * jnp.arange(args.log_frequency // args.num_envs)

    def one_seed(state):
        state, (episodes, metrics) = jax.lax.scan(partial(train_step, args, env), state, steps)
        return state, episodes, mean_metrics(metrics)

    return vmap_seeds(one_seed)(state)


# --------------------------------------------------------------------------------------------------------------- main


def train(args):
    env = make_env(args.env_id, args.num_envs, args.num_seeds, args.env_kwargs)
    with Run(args, env) as run, Evaluator(args, sample_action, deterministic_action, entropy_terms) as evaluate:
        state = run.start(partial(init_training, args, env))
        while run.goes_on():
            state, episodes, metrics = train_chunk(args, env, state, run.step)
            run.log(state, episodes, metrics)
            if run.due(args.eval_frequency):
                run.log_evaluation(evaluate(state.agent, run.step))
            run.save_if_due(state)
        run.finish(state, evaluate)


if __name__ == "__main__":
    cli.run(Args, train)
