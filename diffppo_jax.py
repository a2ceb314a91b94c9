"""DiffPPO: proximal policy optimisation with a diffusion policy (arXiv 2512.02019v1), in one file.

  Run:   python diffppo_jax.py --env-id Hopper-v4 --seed 1
  Docs:  docs/diffppo.md
  Diff:  diff -u ppo_jax.py diffppo_jax.py shows what a diffusion policy changes.

Shapes in the comments: B batch, N environments, T rollout length, O observation, A action, S seeds, K denoising steps.
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

from common import diffusion, distributions, normalization
from common.seeds import vmap_seeds
from envs import EnvState, make_env
from harness import Evaluator, Experiment, Run, cli

# ---------------------------------------------------------------------------------------------------------- arguments


@dataclass(frozen=True)
class Args(Experiment):  # which has env_id, seed, num_envs, total_timesteps, eval_frequency, ..
    num_envs: int = 8
    """environments per agent"""
    eval_frequency: int = 40_000
    """environment steps between evaluations"""
    num_steps: int = 200
    """T, steps of each environment per rollout; a rollout and its updates are one compiled chunk"""
    learning_rate: float = 3e-4
    """learning rate of policy and value function (Adam)"""
    anneal_lr: bool = True
    """lower the learning rate linearly to 0 over total_timesteps"""
    gamma: float = 0.99
    """discount"""
    gae_lambda: float = 0.95
    """lambda of the generalised advantage estimate"""
    num_minibatches: int = 32
    """minibatches per epoch"""
    update_epochs: int = 10
    """epochs over each rollout"""
    norm_adv: bool = True
    """normalise the advantages of each minibatch"""
    clip_coef: float = 0.2
    """clip range c: the ratio is clipped to [1 - c, 1 + c]"""
    clip_vloss: bool = True
    """clip the change of the value function as well, by clip_coef"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """largest norm of the gradient of all parameters together"""
    hidden_dim: int = 64
    """units in each of the two hidden layers"""
    alpha: float = 0.001
    """temperature of the entropy terms, in units of normalised reward per nat; 0: no entropy terms"""

    num_denoising_steps: int = 8
    """K, denoising steps per action"""
    prior_std: float = 0.5
    """nu, standard deviation of the prior that the chain starts from"""
    initial_beta_first: float = 0.05
    """initial beta_1, of the last denoising step (the smallest noise level; unused with one step)"""
    initial_beta_last: float = 0.6
    """initial beta_K, of the first denoising step (the largest); levels in between are spaced linearly"""
    prediction: Literal["action", "noise"] = "noise"
    """units of the network's output: a prediction of the action, or of the step's noise"""

    def __post_init__(self):
        self.positive("num_envs", "num_steps")  # first: what is said of log_frequency, their product, names no flag
        super().__post_init__()
        self.positive("learning_rate", "num_minibatches", "update_epochs", "clip_coef", "max_grad_norm", "hidden_dim")
        self.positive("num_denoising_steps", "prior_std", "initial_beta_first", "initial_beta_last")
        self.not_negative("vf_coef", "alpha")
        self.fraction("gamma", "gae_lambda")
        self.check(max(self.initial_beta_first, self.initial_beta_last) < 1, "--initial-beta-.. must be below 1")
        self.check(
            self.num_rows % self.num_minibatches == 0,
            f"--num-minibatches {self.num_minibatches} must divide the {self.num_rows} rows of a rollout",
        )

    @property
    def log_frequency(self) -> int:
        """Environment steps per compiled chunk: logs, evaluations and signals wait for its end."""
        return self.num_envs * self.num_steps

    def fixed_on_resume(self) -> dict[str, str]:
        return {"total_timesteps": "the learning rate is annealed over it"} if self.anneal_lr else {}

    @property
    def num_rows(self) -> int:
        """Rows that one rollout gives the learner."""
        return self.num_envs * self.num_steps * self.num_denoising_steps


# ----------------------------------------------------------------------------------------------------------- networks


def dense(size, scale=2.0**0.5):
    """A linear layer with orthogonal weights, times `scale`, and no bias at the start."""
    return nn.Dense(size, kernel_init=nn.initializers.orthogonal(scale))


class MLP(nn.Module):
    """Two tanh layers and a linear one: `[B, ..]` -> `[B, size]`. `scale`: of the last layer's weights at the start."""

    hidden_dim: int
    size: int
    scale: float

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(dense(self.hidden_dim)(x))
        x = nn.tanh(dense(self.hidden_dim)(x))
        return dense(self.size, self.scale)(x)


def network_input(args, obs, latent, k):
    """(s, a^k, k) for either network: obs `[B, O]`, latent `[B, A]`, k int `[B]` or scalar -> `[B, O + A + 8]`."""
    level = diffusion.level_embedding(jnp.broadcast_to(k, obs.shape[:-1]), args.num_denoising_steps)
    return jnp.concatenate([obs, latent, level], axis=-1)


# -------------------------------------------------------------------------------------------------------- agent state


@struct.dataclass
class Agent:
    """Everything that one agent learns, and the statistics that normalise its observations and rewards."""

    actor: nn.Module = struct.field(pytree_node=False)
    critic: nn.Module = struct.field(pytree_node=False)
    networks: TrainState
    obs_stats: normalization.RunningStats
    return_stats: normalization.RunningStats


@struct.dataclass
class Training:
    """The whole state of one agent's training; discounted_return `[N]`: rewards of the running episodes."""

    agent: Agent
    env_state: EnvState
    discounted_return: jax.Array
    key: jax.Array


@struct.dataclass
class Rollout:
    """T steps of N environments, leaves `[T, N, ..]`; observations and rewards are normalised.

    final_obs is what the step ended in, before any reset; sample `[T, .., N, A]` is what the policy drew (see
    `sample_action`).
    """

    obs: jax.Array
    sample: jax.Array
    reward: jax.Array
    final_obs: jax.Array
    terminated: jax.Array
    truncated: jax.Array


@struct.dataclass
class Batch:
    """Rows for the learner, leaves `[B, ..]`; log_denoising and value are those of the agent before its updates."""

    obs: jax.Array
    latent: jax.Array
    next_latent: jax.Array
    k: jax.Array
    log_denoising: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


def learning_rate(args, step):
    """The learning rate at environment step `step`."""
    return args.learning_rate * (1.0 - step / args.total_timesteps) if args.anneal_lr else args.learning_rate


def optimizer(args):
    """Clips the gradient's norm, then Adam."""

    def schedule(count):
        return learning_rate(args, count // (args.update_epochs * args.num_minibatches) * args.log_frequency)

    clip, adam = optax.clip_by_global_norm(args.max_grad_norm), optax.scale_by_adam(eps=1e-5)
    return optax.chain(clip, adam, optax.scale_by_learning_rate(schedule))


def init_agent(args, env, key):
    """A new agent for the environment's sizes (the key is consumed)."""
    actor_key, critic_key = jax.random.split(key)
    x = network_input(args, jnp.zeros((1, env.observation_size)), jnp.zeros((1, env.action_size)), 1)
    actor = MLP(args.hidden_dim, env.action_size, scale=0.0)
    critic = MLP(args.hidden_dim, 1, scale=1.0)
    noise_logits = diffusion.initial_noise_logits(
        args.num_denoising_steps, env.action_size, args.initial_beta_first, args.initial_beta_last
    )
    actor_params = {"drift": actor.init(actor_key, x), "noise_logits": noise_logits}
    params = {"actor": actor_params, "critic": critic.init(critic_key, x)}
    return Agent(
        actor=actor,
        critic=critic,
        networks=TrainState.create(apply_fn=None, params=params, tx=optimizer(args)),
        obs_stats=normalization.init((env.observation_size,)),
        return_stats=normalization.init(()),
    )


def init_training(args, env, key):
    """The state before the first step (the key is consumed)."""
    agent_key, env_key, key = jax.random.split(key, 3)
    env_state = env.reset(env_key)
    agent = init_agent(args, env, agent_key)
    return Training(
        agent=agent.replace(obs_stats=normalization.update(agent.obs_stats, env_state.obs)),
        env_state=env_state,
        discounted_return=jnp.zeros(args.num_envs),
        key=key,
    )


# ------------------------------------------------------------------------------------------------------------- policy


def policy_terms(args, agent, obs):
    """The drift with the normalised observations `[B, O]` bound, and the noise schedule."""
    params = agent.networks.params["actor"]
    schedule = diffusion.NoiseSchedule(params["noise_logits"], args.prior_std, args.prediction)
    return lambda latent, k: agent.actor.apply(params["drift"], network_input(args, obs, latent, k)), schedule


def sample_action(args, agent, key, obs):
    """Action u = tanh(a^0) `[B, A]`; and the latents of the chain, a^0 first, `[K+1, B, A]` (the key is consumed)."""
    obs = normalization.normalize(agent.obs_stats, obs)
    sample = diffusion.sample_chain(key, *policy_terms(args, agent, obs), obs.shape[:-1]).latents
    return jnp.tanh(sample[0]), sample


def deterministic_action(args, agent, obs):
    """tanh of the chain of means, started from a^K = 0, `[B, A]`."""
    obs = normalization.normalize(agent.obs_stats, obs)
    return jnp.tanh(diffusion.deterministic_chain(*policy_terms(args, agent, obs), obs.shape[:-1]))


def entropy_terms(args, agent, key, obs):
    """One sample of the policy's entropy, or of bounds of it, by tag, `[B]` in nats (the key is consumed)."""
    obs = normalization.normalize(agent.obs_stats, obs)
    return diffusion.entropy_terms(key, *policy_terms(args, agent, obs), obs.shape[:-1], distributions.tanh_log_det)


# ----------------------------------------------------------------------------------------------------------- learning


def state_value(agent, x):
    """The value function of its inputs `[B, ..]` -> `[B]`."""
    return agent.critic.apply(agent.networks.params["critic"], x).squeeze(-1)


def gae(args, reward, value, bootstrap, terminated, truncated):
    """Generalised advantage estimate (arXiv 1506.02438, equation 16) over consecutive steps, all `[T, N]`.

    A_t = r_t + gamma (1 - terminated_t) V'_t - V_t + gamma lambda (1 - done_t) A_{t+1},  done = terminated or truncated

    V'_t is `bootstrap` where an episode ended and at the last step, and the next step's `value` elsewhere.
    """
    done = terminated | truncated
    next_value = jnp.where(done, bootstrap, jnp.concatenate([value[1:], bootstrap[-1:]]))
    delta = reward + args.gamma * (1.0 - terminated) * next_value - value

    def step(advantage, inputs):
        delta, done = inputs
        advantage = delta + args.gamma * args.gae_lambda * (1.0 - done) * advantage
        return advantage, advantage

    return jax.lax.scan(step, jnp.zeros_like(delta[0]), (delta, done), reverse=True)[1]


def make_batch(args, agent, key, rollout):
    """The rollout's rows for the learner, one per denoising step, `[T * K * N, ..]`, and metrics (the key is consumed).

    The augmented MDP's reward of step k is  1{k=1} (r + alpha ldj(a^0)) - alpha rho_k - 1{k=K} alpha log p(a^K), its
    discount and lambda act at k = 1 only. So the advantage at k = K is that of whole chains, with the reward
    r - alpha l and the value V(s, a^K, K) - alpha log p(a^K). The return of k is the same less what came before k.
    """
    latent, next_latent = rollout.sample[:, :0:-1], rollout.sample[:, -2::-1]  # [T, K, N, A], k = K first
    k = jnp.broadcast_to(jnp.arange(args.num_denoising_steps, 0, -1)[:, None], latent.shape[:-1])
    obs = jnp.broadcast_to(rollout.obs[:, None], (*k.shape, rollout.obs.shape[-1]))
    value = state_value(agent, network_input(args, obs, latent, k))
    drift, schedule = policy_terms(args, agent, obs)
    log_denoising, log_noising = diffusion.step_log_densities(drift, schedule, latent, next_latent, k)
    rho = log_denoising - log_noising

    fresh = diffusion.sample_prior(key, schedule, rollout.reward.shape)  # a^K where the next chain's is not known
    bootstrap = state_value(agent, network_input(args, rollout.final_obs, fresh, args.num_denoising_steps))
    bootstrap -= args.alpha * diffusion.prior_log_prob(schedule, fresh)
    before = diffusion.prior_log_prob(schedule, latent[:, :1]) + jnp.cumsum(rho, axis=1) - rho
    log_lik = (before + rho)[:, -1] - distributions.tanh_log_det(next_latent[:, -1])
    chain_value = value[:, 0] - args.alpha * before[:, 0]
    reward = rollout.reward - args.alpha * log_lik
    advantage = gae(args, reward, chain_value, bootstrap, rollout.terminated, rollout.truncated)
    target = (advantage + chain_value)[:, None] + args.alpha * before
    batch = Batch(obs, latent, next_latent, k, log_denoising, value, target - value, target)
    metrics = {"losses/explained_variance": 1.0 - batch.advantage.var() / (batch.target.var() + 1e-8)}
    metrics |= diffusion.chain_metrics(rho.swapaxes(0, 1)[::-1], schedule) | {"losses/entropy_bound": -log_lik.mean()}
    return jax.tree.map(lambda x: x.reshape(args.num_rows, *x.shape[value.ndim :]), batch), metrics


def policy_loss(args, agent, batch):
    """Clipped surrogate (1707.06347, equation 7) plus the entropy term."""
    terms = policy_terms(args, agent, batch.obs)
    log_denoising, log_noising = diffusion.step_log_densities(*terms, batch.latent, batch.next_latent, batch.k)
    log_ratio = log_denoising - batch.log_denoising
    ratio = jnp.exp(jnp.minimum(log_ratio, 80.0))  # an inf times the 0 of a clipped row is NaN
    shift, scale = (batch.advantage.mean(), batch.advantage.std() + 1e-8) if args.norm_adv else (0.0, 1.0)
    advantage = (batch.advantage - shift) / scale
    clipped_ratio = jnp.clip(ratio, 1.0 - args.clip_coef, 1.0 + args.clip_coef)
    loss = -jnp.minimum(advantage * ratio, advantage * clipped_ratio).mean()
    metrics = {
        "losses/policy_loss": loss,
        "losses/old_approx_kl": -log_ratio.mean(),
        "losses/approx_kl": (ratio - 1.0 - log_ratio).mean(),
        "losses/clipfrac": (jnp.abs(ratio - 1.0) > args.clip_coef).mean(),
        "losses/first_ratio_error": jnp.abs(ratio - 1.0).max(),
    }
    # beta is shared with the reference pi, so the reward alpha log pi depends on the parameters: one more term.
    if args.alpha > 0.0:
        clipped = jnp.where(advantage > 0.0, ratio > 1.0 + args.clip_coef, ratio < 1.0 - args.clip_coef)
        loss -= args.alpha * jnp.mean(jax.lax.stop_gradient(ratio * ~clipped / scale) * log_noising)
    return loss, metrics


def value_loss(args, agent, batch):
    """Half the mean squared error of the value function, the larger of the unclipped and the clipped one."""
    value = state_value(agent, network_input(args, batch.obs, batch.latent, batch.k))
    error = (value - batch.target) ** 2
    if args.clip_vloss:
        clipped = batch.value + jnp.clip(value - batch.value, -args.clip_coef, args.clip_coef)
        error = jnp.maximum(error, (clipped - batch.target) ** 2)
    loss = 0.5 * error.mean()
    return loss, {"losses/value_loss": loss}


def update(args, agent, batch):
    """One gradient step of policy and value function on one minibatch."""

    def loss(params):
        candidate = agent.replace(networks=agent.networks.replace(params=params))
        pg_loss, pg_metrics = policy_loss(args, candidate, batch)
        v_loss, v_metrics = value_loss(args, candidate, batch)
        return pg_loss + args.vf_coef * v_loss, {**pg_metrics, **v_metrics}

    grads, metrics = jax.grad(loss, has_aux=True)(agent.networks.params)
    return agent.replace(networks=agent.networks.apply_gradients(grads=grads)), metrics


def learn(args, agent, key, batch):
    """All epochs over one batch (the key is consumed). Metrics are means over all minibatches."""

    def epoch(agent, key):
        order = jax.random.permutation(key, args.num_rows).reshape(args.num_minibatches, -1)
        minibatches = jax.tree.map(lambda x: x[order], batch)
        return jax.lax.scan(partial(update, args), agent, minibatches)

    agent, metrics = jax.lax.scan(epoch, agent, jax.random.split(key, args.update_epochs))
    first_ratio_error = metrics["losses/first_ratio_error"][0, 0]
    metrics = jax.tree.map(lambda x: x.mean(), metrics)
    return agent, {**metrics, "losses/first_ratio_error": first_ratio_error}


# ----------------------------------------------------------------------------------------------------------- training


def rollout_step(args, env, state, key):
    """One step of the N environments, which also updates the statistics (the key is consumed)."""
    obs = state.env_state.obs
    action, sample = sample_action(args, state.agent, key, obs)
    env_state, time_step = env.step(state.env_state, action)
    discounted_return = args.gamma * state.discounted_return + time_step.reward
    agent = state.agent.replace(
        obs_stats=normalization.update(state.agent.obs_stats, time_step.obs),
        return_stats=normalization.update(state.agent.return_stats, discounted_return),
    )
    rollout = Rollout(
        obs=normalization.normalize(state.agent.obs_stats, obs),
        sample=sample,
        reward=normalization.scale(agent.return_stats, time_step.reward),
        final_obs=normalization.normalize(agent.obs_stats, time_step.final_obs),
        terminated=time_step.terminated,
        truncated=time_step.truncated,
    )
    return Training(agent, env_state, discounted_return * ~time_step.done, state.key), (rollout, time_step.episode)


def train_step(args, env, state, step):
    """One rollout and the updates on it. `step`: environment steps taken before. Episodes `[T, N]`."""
    key, rollout_key, prior_key, learn_key = jax.random.split(state.key, 4)
    rollout_keys = jax.random.split(rollout_key, args.num_steps)
    running = state.env_state.episode_length > 0  # a resumed run may have begun new episodes
    state = state.replace(key=key, discounted_return=state.discounted_return * running)
    state, (rollout, episodes) = jax.lax.scan(partial(rollout_step, args, env), state, rollout_keys)

    batch, batch_metrics = make_batch(args, state.agent, prior_key, rollout)
    agent, metrics = learn(args, state.agent, learn_key, batch)
    metrics |= {**batch_metrics, "charts/learning_rate": jnp.float32(learning_rate(args, step))}
    return state.replace(agent=agent), episodes, metrics


@partial(jax.jit, static_argnames=("args", "env"), donate_argnames="state")
def train_chunk(args, env, state, step):
    """`log_frequency` environment steps of all S agents in one XLA program. `state`, leaves `[S, ..]`, is donated.

    Returns the new state, the episodes `[S, T, N]`, and metrics by tag `[S]`.
    """
    return vmap_seeds(partial(train_step, args, env))(state, step)


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
