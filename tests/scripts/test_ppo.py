"""PPO and DiffPPO: advantages, losses and updates against closed forms, loops in numpy and finite differences."""

import dataclasses
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffppo_jax
import ppo_jax
from common import diffusion, normalization
from common.distributions import gaussian_log_prob, tanh_log_det
from envs import make_env
from tests.chains import log_densities

SIZES = SimpleNamespace(observation_size=3, action_size=2)
SMALL = {"num_envs": 4, "num_steps": 8, "num_minibatches": 4, "update_epochs": 2, "hidden_dim": 8}
T, N = SMALL["num_steps"], SMALL["num_envs"]
MODULES = {"ppo": ppo_jax, "diffppo": diffppo_jax}


def make_args(module, **more):
    steps = {"total_timesteps": 3200, "eval_frequency": 3200, "env_id": "Pendulum-v1"}
    if module is diffppo_jax:
        steps["num_denoising_steps"] = 3
    return module.Args(**{**steps, **SMALL, **more})


def with_params(agent, **params):
    """The agent with other parameters of "actor" or "critic"."""
    return agent.replace(networks=agent.networks.replace(params={**agent.networks.params, **params}))


def make_agent(module, args, seed=0, sizes=SIZES, spread=0.3):
    """An agent whose parameters, the heads included, are away from their start."""
    agent = compiled_init(module.init_agent, args, *vars(sizes).values())(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    params = jax.device_get(agent.networks.params)
    params = jax.tree.map(lambda x: x + np.float32(spread * rng.normal(size=x.shape)), params)
    return with_params(agent, **params)


def make_rollout(module, args, agent, seed=0, end_rate=0.2):
    """A rollout with random rewards and ends, its samples drawn by the agent (whose statistics are 0 and 1)."""
    rng = np.random.default_rng(seed)
    obs, final_obs = rng.normal(size=(2, T, N, SIZES.observation_size)).astype(np.float32)
    key = jax.random.key(seed)
    sample_all = jax.vmap(partial(module.sample_action, args), in_axes=(None, 0, 0))
    _, sample = jax.jit(sample_all)(agent, jax.random.split(key, T), obs)
    ends = rng.uniform(size=(T, N))
    return module.Rollout(
        obs=obs,
        sample=np.asarray(sample),
        reward=rng.normal(size=(T, N)).astype(np.float32),
        final_obs=final_obs,
        terminated=ends < end_rate,
        truncated=(ends > 0.5 * end_rate) & (ends < 1.5 * end_rate),  # some steps are both
    )


def make_batch(module, args, agent, rollout):
    keys = () if module is ppo_jax else (jax.random.key(7),)
    return jax.device_get(compiled(module.make_batch, args)(agent, *keys, rollout))


@cache
def compiled_init(init_agent, args, observation_size, action_size):
    sizes = SimpleNamespace(observation_size=observation_size, action_size=action_size)
    return jax.jit(lambda key: init_agent(args, sizes, key))


@cache
def compiled(function, args):
    return jax.jit(partial(function, args))


def loss_of(loss, part):
    """A loss as a function of the parameters of "actor" or "critic": (params, args, agent, batch)."""
    return lambda params, args, agent, batch: loss(args, with_params(agent, **{part: params}), batch)


@cache
def compiled_gradient(loss, part):
    """Its value and gradient."""
    return jax.jit(jax.value_and_grad(loss_of(loss, part), has_aux=True), static_argnums=1)


@pytest.fixture(scope="module")
def setups():
    """(args, agent, rollout, batch, metrics) by script, with a large learning rate; DiffPPO with its entropy terms."""
    result = {}
    for name, module in MODULES.items():
        args = make_args(module, learning_rate=1e-2, **({"alpha": 0.3} if name == "diffppo" else {}))
        agent = make_agent(module, args)
        rollout = make_rollout(module, args, agent)
        result[name] = (args, agent, rollout, *make_batch(module, args, agent, rollout))
    return result


def bootstrap_value(name, args, agent, rollout):
    """V of the observation in which each step ended, for DiffPPO with the prior sample that make_batch draws."""

    @jax.jit
    def value(agent):
        if name == "ppo":
            return ppo_jax.state_value(agent, rollout.final_obs)
        _, schedule = diffppo_jax.policy_terms(args, agent, None)
        prior = diffusion.sample_prior(jax.random.key(7), schedule, (T, N))
        x = diffppo_jax.network_input(args, rollout.final_obs, prior, args.num_denoising_steps)
        return diffppo_jax.state_value(agent, x) - args.alpha * diffusion.prior_log_prob(schedule, prior)

    return np.asarray(value(agent))


def to_float64(tree):
    """In numpy, which compiles nothing."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if x.dtype == np.float32 else np.asarray(x), tree)


# ------------------------------------------------------------------------------------------------------------ rollout


@pytest.mark.parametrize("name", MODULES)
def test_a_rollout_by_hand(name):
    """Step by step in numpy: what is stored, normalised by which statistics, and the discounted returns of the scale.

    The environment counts its steps in its observations and terminates where the first action is above 0.9.
    """
    module = MODULES[name]
    wide = {"initial_std": 1.5} if name == "ppo" else {"prior_std": 1.5}
    args = make_args(module, num_envs=2, gamma=0.9, **wide)
    env = make_env("tests.envs.test_gymnasium_env:Grid-v0", 2, env_kwargs='{"max_episode_steps": 4}')
    state = jax.jit(partial(module.init_training, args, env))(jax.random.key(0))
    np.testing.assert_allclose(state.agent.obs_stats.count, 2, rtol=1e-3)  # the first observations are in it
    agent = state.agent.replace(
        obs_stats=normalization.RunningStats(*map(jnp.float32, (np.ones(6), np.full(6, 2), 50)))
    )
    agent = agent.replace(return_stats=normalization.RunningStats(jnp.float32(3), jnp.float32(40), jnp.float32(50)))
    state, step = state.replace(agent=agent), jax.jit(partial(module.rollout_step, args, env))
    act = compiled(module.sample_action, args)
    returns, ends, cuts = np.zeros(2), 0, 0
    for key in jax.random.split(jax.random.key(1), 40):
        before, obs = jax.device_get(state.agent), np.asarray(state.env_state.obs)
        action, sample = act(state.agent, key, obs)
        state, (rollout, episode) = jax.device_get(step(state, key))
        after, action = state.agent, np.asarray(action)
        np.testing.assert_allclose(rollout.sample, sample, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(rollout.obs, normalization.normalize(before.obs_stats, obs), rtol=1e-5, atol=1e-6)
        terminated, final_obs, reward = action[:, 0] > 0.9, obs + 1, 4 + 2 * action[:, 1]
        truncated = (final_obs[:, 0] == 4) & ~terminated
        np.testing.assert_array_equal(rollout.terminated, terminated)
        np.testing.assert_array_equal(rollout.truncated & ~terminated, truncated)
        np.testing.assert_array_equal(episode.done, terminated | truncated)
        expected = normalization.normalize(after.obs_stats, final_obs)
        np.testing.assert_allclose(rollout.final_obs, expected, rtol=1e-5, atol=1e-6)
        returns = 0.9 * returns + reward
        assert_stats_are_those_with(after.return_stats, before.return_stats, returns)
        assert_stats_are_those_with(after.obs_stats, before.obs_stats, np.asarray(state.env_state.obs))
        scaled = np.clip(reward / np.sqrt(after.return_stats.var + 1e-8), -10, 10)
        np.testing.assert_allclose(rollout.reward, scaled, rtol=1e-4)
        returns = returns * ~episode.done
        np.testing.assert_allclose(state.discounted_return, returns, rtol=1e-4, atol=1e-4)
        ends, cuts = ends + terminated.sum(), cuts + truncated.sum()
    assert ends > 2 and cuts > 2
    env.close()


def assert_stats_are_those_with(after, before, rows):
    expected = normalization.update(before, rows.astype(np.float32))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), after, expected)


@pytest.mark.parametrize("name", MODULES)
def test_the_samples_are_the_policys_that_learning_sees(name):
    """Of observations normalised by the agent's statistics: their mean and deviation are those of `policy_terms`, at
    every denoising step where there are several; and the action is what the last of them becomes in the box."""
    module = MODULES[name]
    args = make_args(module)
    stats = normalization.RunningStats(np.arange(3.0), np.array([0.5, 1.0, 2.0]), np.array(7.0))
    agent = make_agent(module, args).replace(obs_stats=stats)
    obs = np.tile(np.float32([0.3, -2.0, 4.0]), (20_000, 1))
    terms = module.policy_terms(args, agent, normalization.normalize(stats, obs))
    action, sample = jax.device_get(compiled(module.sample_action, args)(agent, jax.random.key(0), obs))
    if name == "ppo":
        np.testing.assert_array_equal(action, np.clip(sample, -1, 1))
        of_step = [(sample, *terms)]
    else:
        np.testing.assert_allclose(action, np.tanh(sample[0]), rtol=1e-4, atol=1e-6)
        drift, schedule = terms
        assert (schedule.prediction, schedule.prior_std) == (args.prediction, args.prior_std) == ("noise", 0.5)
        levels = [(k, diffusion.denoising_mean_std(schedule, drift(sample[k], k), sample[k], k)) for k in (1, 2, 3)]
        of_step = [(sample[k - 1], *mean_and_std) for k, mean_and_std in levels]
        of_step.append((sample[3], 0.0, args.prior_std))
    for x, mean, std in of_step:
        noise = np.asarray((x - mean) / std)
        assert np.all(np.abs(noise.mean(axis=0)) < 0.03) and np.all(np.abs(noise.std(axis=0) - 1) < 0.03)


def test_diffppos_networks_know_the_level():
    """As sin and cos of (k/K)(pi/2){1, 2, 4, 8} behind observation and latent; the levels at the start."""
    args = make_args(diffppo_jax)
    obs, latent = np.float32([[0.3, -2.0, 4.0]]), np.float32([[0.1, -0.2]])
    angle = 2 / 3 * np.pi / 2 * np.array([1, 2, 4, 8])
    expected = [*obs[0], *latent[0], *np.sin(angle), *np.cos(angle)]
    np.testing.assert_allclose(diffppo_jax.network_input(args, obs, latent, 2)[0], expected, rtol=1e-5, atol=1e-6)
    start = compiled_init(diffppo_jax.init_agent, args, *vars(SIZES).values())(jax.random.key(0))
    betas = jax.nn.sigmoid(start.networks.params["actor"]["noise_logits"])
    np.testing.assert_allclose(betas, np.tile([[0.05], [0.325], [0.6]], (1, 2)), rtol=1e-5)


# ----------------------------------------------------------------------------------------------------------- optimiser


@pytest.mark.parametrize("name", MODULES)
def test_the_optimiser_by_hand(name):
    """A gradient of norm 10 is clipped to 0.5; Adam's epsilon is 1e-5; the rate falls with the rollouts."""
    module = MODULES[name]
    args = make_args(module, learning_rate=1e-2, total_timesteps=64)  # two rollouts
    tx, gradient = module.optimizer(args), {"a": jnp.array([10.0, 2e-4]), "b": jnp.array(0.0)}
    state = tx.init(gradient)
    clipped = np.array([10.0, 2e-4]) / 20
    for count in range(2 * args.update_epochs * args.num_minibatches):
        step, state = tx.update(gradient, state)
        rate = 1e-2 if count < args.update_epochs * args.num_minibatches else 5e-3
        np.testing.assert_allclose(step["a"], -rate * clipped / (clipped + 1e-5), rtol=1e-3)


@pytest.mark.parametrize("name", MODULES)
def test_one_step_follows_both_losses(setups, name):
    args, agent, _, batch, _ = setups[name]
    module = MODULES[name]
    rows = jax.tree.map(lambda x: x[:16], batch)
    params = {}
    for part, loss, weight in (("actor", module.policy_loss, 1.0), ("critic", module.value_loss, args.vf_coef)):
        (_, _), gradient = compiled_gradient(loss, part)(agent.networks.params[part], args, agent, rows)
        params[part] = jax.tree.map(lambda x, weight=weight: weight * x, gradient)
    expected = agent.networks.apply_gradients(grads=params)
    after, _ = jax.jit(partial(module.update, args))(agent, rows)
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-7)
    jax.tree.map(close, after.networks.opt_state[1].mu, expected.opt_state[1].mu)
    assert args.vf_coef == 0.5


@pytest.mark.parametrize("name", MODULES)
def test_every_epoch_has_all_rows_in_an_order_of_its_own(monkeypatch, name):
    module = MODULES[name]
    args = make_args(module)
    size = args.num_rows // args.num_minibatches

    def update(args, seen, rows):  # in the agent's place what it has seen
        count, table = seen
        return (count + 1, table.at[count].set(rows["row"])), {"losses/first_ratio_error": jnp.zeros(())}

    monkeypatch.setattr(module, "update", update)
    table = jnp.zeros((args.update_epochs * args.num_minibatches, size), jnp.int32)
    (count, table), _ = module.learn(args, (0, table), jax.random.key(0), {"row": jnp.arange(args.num_rows)})
    orders = np.asarray(table).reshape(args.update_epochs, args.num_rows)
    assert count == len(table) and all(sorted(order) == list(range(args.num_rows)) for order in orders)
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], np.arange(args.num_rows))


@pytest.mark.parametrize("name", MODULES)
def test_a_ratio_that_overflows_spoils_nothing(setups, name):
    """A row whose ratio is clipped has no gradient, also where the ratio is infinite in float32."""
    args, agent, _, batch, _ = setups[name]
    module, field = MODULES[name], "log_prob" if name == "ppo" else "log_denoising"
    row = int(np.argmax(batch.advantage))
    far = batch.replace(**{field: np.asarray(getattr(batch, field)).copy()})
    getattr(far, field)[row] -= 100.0
    (loss, metrics), gradient = compiled_gradient(module.policy_loss, "actor")(
        agent.networks.params["actor"], args, agent, far
    )
    assert np.isfinite(loss) and all(np.isfinite(x).all() for x in jax.tree.leaves((gradient, metrics)))


# --------------------------------------------------------------------------------------- advantages and value targets


def loop_gae(reward, value, bootstrap, terminated, done, gamma, gae_lambda):
    """The definition, sum over l of (gamma lambda)^l delta_{t+l} until the episode ends, one environment at a time.

    All arrays `[L, N]`; gamma and gae_lambda `[L]`, of each step.
    """
    length, num_envs = reward.shape
    advantage = np.zeros((length, num_envs))
    for n in range(num_envs):
        for start in range(length):
            weight = 1.0
            for i in range(start, length):
                last = i == length - 1 or done[i, n]
                after = 0.0 if terminated[i, n] else (bootstrap[i, n] if last else value[i + 1, n])
                advantage[start, n] += weight * (reward[i, n] + gamma[i] * after - value[i, n])
                if last:
                    break
                weight *= gamma[i] * gae_lambda[i]
    return advantage


def test_gae_is_the_loop(setups):
    args, agent, rollout, batch, _ = setups["ppo"]
    assert rollout.terminated.any() and rollout.truncated.any() and (rollout.terminated & rollout.truncated).any()
    value, bootstrap = jax.jit(ppo_jax.state_value)(agent, rollout.obs), bootstrap_value("ppo", args, agent, rollout)
    done = rollout.terminated | rollout.truncated
    series = (np.asarray(x, np.float64) for x in (rollout.reward, value, bootstrap))
    ones = np.ones(T)
    expected = loop_gae(*series, np.asarray(rollout.terminated), done, args.gamma * ones, args.gae_lambda * ones)
    np.testing.assert_allclose(batch.advantage.reshape(T, N), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.target - batch.value, batch.advantage, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.value.reshape(T, N), value, rtol=1e-5, atol=1e-6)


def augmented(args, agent, rollout):
    """Every denoising step of a rollout in the order of time, `[T * K, N]`: reward (with all soft terms), rho (that of
    step 1 with the tanh), V, the state's whole value, bootstrap value, terminated, done, gamma, lambda, log p(a^K)."""
    steps, tau = args.num_denoising_steps, args.alpha

    @jax.jit
    def terms(agent):
        drift, schedule = diffppo_jax.policy_terms(args, agent, rollout.obs)
        latents = jnp.moveaxis(rollout.sample, 1, 0)  # [K+1, T, N, A]
        log_q, log_pi = log_densities(drift, schedule, latents)
        inputs = [diffppo_jax.network_input(args, rollout.obs, latents[k], k) for k in range(1, steps + 1)]
        v = diffppo_jax.state_value(agent, jnp.stack(inputs))
        return log_q - log_pi, v, diffusion.prior_log_prob(schedule, latents[-1]), tanh_log_det(latents[0])

    ratio, v, prior, ldj = jax.device_get(terms(agent))  # [K, T, N] twice, [T, N] twice
    after = bootstrap_value("diffppo", args, agent, rollout)
    rows = {name: [] for name in ("reward", "rho", "v", "value", "bootstrap", "terminated", "done", "gamma", "lam")}
    for t in range(T):
        for k in range(steps, 0, -1):
            rho = ratio[k - 1, t] - (ldj[t] if k == 1 else 0.0)
            soft_prior = tau * prior[t] if k == steps else 0.0
            last, never = k == 1, np.zeros(N, bool)
            rows["reward"].append(-tau * rho - soft_prior + (rollout.reward[t] if last else 0.0))
            rows["rho"].append(rho)
            rows["v"].append(v[k - 1, t])
            rows["value"].append(v[k - 1, t] - soft_prior)
            rows["bootstrap"].append(after[t])
            rows["terminated"].append(rollout.terminated[t] if last else never)
            rows["done"].append(rollout.terminated[t] | rollout.truncated[t] if last else never)
            rows["gamma"].append(args.gamma if last else 1.0)
            rows["lam"].append(args.gae_lambda if last else 1.0)
    rows = {
        name: np.asarray(values, bool if name in ("terminated", "done") else float) for name, values in rows.items()
    }
    return SimpleNamespace(**rows, prior=prior)


def by_step(args, x):
    """A batch's `[T * K * N]` rows in the order of time, `[T * K, N]`."""
    return np.asarray(x).reshape(T * args.num_denoising_steps, N)


def test_gae_of_the_augmented_mdp_is_the_loop(setups):
    """One step per denoising step, the reward of each with its soft terms, discount and lambda at k = 1 only."""
    args, agent, rollout, batch, _ = setups["diffppo"]
    a = augmented(args, agent, rollout)
    expected = loop_gae(a.reward, a.value, a.bootstrap, a.terminated, a.done, a.gamma, a.lam)
    np.testing.assert_allclose(by_step(args, batch.advantage), expected, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(by_step(args, batch.value), a.v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_step(args, batch.target), expected + a.v, rtol=1e-4, atol=2e-5)


def test_identity_5_without_temperature_the_first_step_has_plain_gae(setups):
    """alpha = 0: the advantage at k = K equals PPO's GAE with V(s_t) := V(s_t, a^K_t, K)."""
    _, agent, rollout, *_ = setups["diffppo"]
    args = make_args(diffppo_jax, alpha=0.0)
    batch, _ = make_batch(diffppo_jax, args, agent, rollout)
    first = by_step(args, batch.value)[:: args.num_denoising_steps]
    bootstrap = bootstrap_value("diffppo", args, agent, rollout)
    ends = rollout.terminated, rollout.truncated
    plain = compiled(ppo_jax.gae, args)(rollout.reward, np.asarray(first), bootstrap, *ends)
    advantage = by_step(args, batch.advantage)[:: args.num_denoising_steps]
    np.testing.assert_allclose(advantage, plain, rtol=1e-4, atol=1e-5)
    print(f"identity 5: advantages differ by {np.abs(advantage - plain).max():.1e} at most")


def test_identity_5_returns_with_and_without_the_own_log_ratio(setups):
    """G^V = r - tau rho + g G^V_next is G^Q - tau rho with G^Q = r - g tau rho_next + g G^Q_next (lambda = 1)."""
    _, agent, rollout, *_ = setups["diffppo"]
    args = make_args(diffppo_jax, alpha=0.3, gae_lambda=1.0)
    batch, _ = make_batch(diffppo_jax, args, agent, rollout)
    a = augmented(args, agent, rollout)
    q = np.zeros((T * args.num_denoising_steps + 1, N))
    for i in range(T * args.num_denoising_steps - 1, -1, -1):
        t, last = divmod(i, args.num_denoising_steps)
        last = last == args.num_denoising_steps - 1
        for n in range(N):
            if not last:
                q[i, n] = -args.alpha * a.rho[i + 1, n] + q[i + 1, n]
                continue
            if a.terminated[i, n]:
                after = 0.0
            elif a.done[i, n] or t == T - 1:
                after = a.bootstrap[i, n]
            else:
                after = q[i + 1, n] - args.alpha * (a.rho[i + 1, n] + a.prior[t + 1, n])
            q[i, n] = rollout.reward[t, n] + args.gamma * after
    np.testing.assert_allclose(by_step(args, batch.target), q[:-1] - args.alpha * a.rho, rtol=1e-4, atol=2e-5)


def test_the_soft_bootstrap_counts_the_prior_once():
    """With the exact soft value every advantage has mean 0, also where a truncated episode is bootstrapped.

    f = 0, K = 1, no reward: V(a^1) = alpha (log p(a^1) - E[log p(a^0) - ldj(a^0) | a^1]) + gamma H, with
    H = alpha h / (1 - gamma) and h the entropy of tanh(a^0). The critic is fitted to it beforehand, by least squares.
    """
    steps = {"num_steps": 1, "num_envs": 100_000, "total_timesteps": 100_000, "eval_frequency": 100_000}
    args = make_args(diffppo_jax, num_denoising_steps=1, alpha=0.5, gamma=0.9, hidden_dim=64, **steps)
    agent = compiled_init(diffppo_jax.init_agent, args, 1, 1)(jax.random.key(0))
    obs = np.zeros((1, args.num_envs, 1), np.float32)
    _, schedule = diffppo_jax.policy_terms(args, agent, obs)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def prior_log_density(latent):
        return -0.5 * (latent / args.prior_std) ** 2 - 0.5 * np.log(2 * np.pi * args.prior_std**2)

    def log_density(latent):  # of u = tanh(a^0), at a^0
        return prior_log_density(latent) - np.log(1.0 - np.tanh(latent) ** 2)

    entropy = -np.sum(weights * log_density(args.prior_std * nodes))
    grid = np.linspace(-5.0, 5.0, 1001) * args.prior_std
    beta = float(schedule.beta[0, 0])
    inner = log_density(np.sqrt(1 - beta) * grid[:, None] + np.sqrt(beta) * args.prior_std * nodes) @ weights
    value = args.alpha * (prior_log_density(grid) - inner) + args.gamma * args.alpha * entropy / (1.0 - args.gamma)

    # The value as the last layer of the network: least squares on the hidden units.
    params = jax.device_get(agent.networks.params["critic"]["params"])
    params["Dense_0"]["bias"] = np.random.default_rng(0).normal(size=64).astype(np.float32)

    @jax.jit
    def network_input(latent):
        return diffppo_jax.network_input(args, jnp.zeros((1001, 1)), latent[:, None], 1)

    x = network_input(grid.astype(np.float32))
    hidden = np.tanh(np.asarray(x, np.float64) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    hidden = np.tanh(hidden @ params["Dense_1"]["kernel"])
    head = np.linalg.lstsq(np.c_[hidden, np.ones(1001)], value, rcond=1e-6)[0].astype(np.float32)
    params["Dense_2"] = {"kernel": head[:-1, None], "bias": head[-1:]}
    agent = with_params(agent, critic={"params": params})
    fitted = np.asarray(jax.jit(diffppo_jax.state_value)(agent, x))
    assert np.abs(fitted - value).max() < 0.01

    _, sample = compiled(diffppo_jax.sample_action, args)(agent, jax.random.key(1), obs[0])
    never = np.zeros((1, args.num_envs), bool)
    for truncated in (never, ~never):  # the rollout's end is bootstrapped as well
        rollout = diffppo_jax.Rollout(obs, sample[None], 0.0 * obs[..., 0], obs, never, truncated)
        batch, metrics = make_batch(diffppo_jax, args, agent, rollout)
        assert abs(float(batch.advantage.mean())) < 0.01  # counted twice, or not at all, it would be 0.33 off
        assert float(metrics["losses/entropy_bound"]) == pytest.approx(entropy, abs=0.01)


@pytest.mark.parametrize("name", MODULES)
def test_explained_variance_of_constant_targets_is_finite(setups, name):
    """No reward and every step terminal: a loss that is not finite would stop the seed, this one says nothing."""
    module = MODULES[name]
    args, agent, rollout, batch, metrics = setups[name]
    variance = 1 - batch.advantage.var() / batch.target.var()
    assert float(metrics["losses/explained_variance"]) == pytest.approx(variance, rel=1e-4)
    if name == "diffppo":
        args = dataclasses.replace(args, alpha=0.0)
    constant = rollout.replace(reward=np.zeros((T, N), np.float32), terminated=np.ones((T, N), bool))
    batch, metrics = make_batch(module, args, agent, constant)
    assert batch.target.var() < 1e-10 and np.isfinite(metrics["losses/explained_variance"])


@pytest.mark.parametrize("name", MODULES)
def test_identity_11_truncation_is_not_termination(setups, name):
    module = MODULES[name]
    args, agent, rollout, *_ = setups[name]
    if name == "diffppo":
        args = dataclasses.replace(args, alpha=0.0)
    never = np.zeros((T, N), bool)
    at = never | (np.arange(T) == 3)[:, None]
    rows = (T, N) if name == "ppo" else (T, args.num_denoising_steps, N)

    def target(**more):
        changed = rollout.replace(**{"terminated": never, "truncated": never, **more})
        x = np.asarray(make_batch(module, args, agent, changed)[0].target).reshape(rows)
        return x if name == "ppo" else x[:, -1]

    truncated, terminated = target(truncated=at), target(terminated=at)
    bootstrap = bootstrap_value(name, args, agent, rollout)
    np.testing.assert_allclose(terminated[3], rollout.reward[3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(truncated[3], rollout.reward[3] + args.gamma * bootstrap[3], rtol=1e-4, atol=1e-5)

    # What follows an episode's end does not change what came before it.
    later = rollout.reward + 5.0 * (np.arange(T) >= 4).astype(np.float32)[:, None]
    for end in ("terminated", "truncated"):
        before, after = target(**{end: at}), target(**{end: at, "reward": later})
        np.testing.assert_array_equal(before[:4], after[:4])
        assert np.all(before[4:] != after[4:])
    assert np.all(target()[:4] != target(reward=later)[:4])


# -------------------------------------------------------------------------------------------------- losses and updates


def at_the_end(args, agent):
    """The agent with its optimiser's counters where the run ends: the learning rate has been lowered to 0."""
    num_updates = args.total_timesteps // args.log_frequency * args.update_epochs * args.num_minibatches
    counters = jax.tree.map(
        lambda x: jnp.full_like(x, num_updates) if x.dtype == jnp.int32 else x, agent.networks.opt_state
    )
    return agent.replace(networks=agent.networks.replace(opt_state=counters))


@pytest.mark.parametrize("name", MODULES)
def test_identity_6_first_ratio_is_one_and_no_learning_rate_no_change(setups, name):
    module = MODULES[name]
    args, agent, _, batch, _ = setups[name]
    learn = compiled(module.learn, args)
    still, metrics = learn(at_the_end(args, agent), jax.random.key(0), batch)
    jax.tree.map(np.testing.assert_array_equal, still.networks.params, agent.networks.params)
    assert metrics["losses/first_ratio_error"] < 1e-4
    assert metrics["losses/approx_kl"] < 1e-6 and metrics["losses/clipfrac"] == 0.0
    print(f"identity 6, {name}: first ratio {metrics['losses/first_ratio_error']:.1e} from 1")
    moved, metrics = learn(agent, jax.random.key(0), batch)
    assert metrics["losses/first_ratio_error"] < 1e-4
    assert metrics["losses/approx_kl"] > 1e-4
    before, after = jax.device_get((agent.networks.params, moved.networks.params))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), after, before)))


def test_identity_6_one_step_from_zero_is_gaussian_ppo():
    """K = 1, alpha = 0, a^1 = 0: on the same samples DiffPPO's loss and gradient are those of PPO's Gaussian with mean
    c_1 nu f and std sqrt(beta) nu. With "action" prediction c_1 = 1, so that beta moves the std only."""
    with jax.enable_x64(True):
        args = make_args(diffppo_jax, num_denoising_steps=1, prediction="action", prior_std=0.7, alpha=0.0)
        agent = to_float64(make_agent(diffppo_jax, args))
        plain_args = make_args(ppo_jax)
        plain = to_float64(make_agent(ppo_jax, plain_args))
        obs_size, nu = SIZES.observation_size, args.prior_std

        # PPO's mean network: the level's constant inputs become a bias, nu scales the head.
        layers = agent.networks.params["actor"]["drift"]["params"]
        level = np.asarray(diffusion.level_embedding(1, 1), np.float64)
        kernel, bias = layers["Dense_0"]["kernel"], layers["Dense_0"]["bias"]
        mean = {
            "Dense_0": {"kernel": kernel[:obs_size], "bias": bias + level @ kernel[obs_size + SIZES.action_size :]},
            "Dense_1": layers["Dense_1"],
            "Dense_2": jax.tree.map(lambda x: nu * x, layers["Dense_2"]),
        }
        beta = 1.0 / (1.0 + np.exp(-agent.networks.params["actor"]["noise_logits"][0]))
        actor = {"mean": {"params": mean}, "log_std": np.log(nu * np.sqrt(beta))}
        plain = with_params(plain, actor=actor)

        rng = np.random.default_rng(0)
        obs = rng.normal(size=(64, obs_size))
        center, std = jax.device_get(compiled(ppo_jax.policy_terms, plain_args)(plain, obs))
        noise = rng.normal(size=center.shape)
        sample = center + std * noise
        log_prob = np.sum(-0.5 * noise**2 - 0.5 * np.log(2 * np.pi) - np.log(std), axis=-1)
        log_prob += 0.3 * rng.normal(size=64)  # some are clipped
        advantage = rng.normal(size=64)
        shared = {"value": advantage, "advantage": advantage, "target": advantage}
        batch = ppo_jax.Batch(obs=obs, sample=sample, log_prob=log_prob, **shared)
        latent, k = np.zeros_like(sample), np.ones(64, int)
        chain = diffppo_jax.Batch(obs=obs, latent=latent, next_latent=sample, k=k, log_denoising=log_prob, **shared)

        grad = compiled_gradient(ppo_jax.policy_loss, "actor")
        (loss, metrics), plain_grad = grad(actor, plain_args, plain, batch)
        grad = compiled_gradient(diffppo_jax.policy_loss, "actor")
        (chain_loss, chain_metrics), chain_grad = grad(agent.networks.params["actor"], args, agent, chain)
        assert 0.1 < metrics["losses/clipfrac"] < 0.9
        np.testing.assert_allclose(chain_loss, loss, rtol=1e-10)
        print(f"identity 6: relative difference of the losses {abs(float(chain_loss / loss) - 1):.1e}")
        for tag in ("losses/approx_kl", "losses/old_approx_kl", "losses/clipfrac", "losses/policy_loss"):
            np.testing.assert_allclose(chain_metrics[tag], metrics[tag], rtol=1e-10)
        plain_layers, chain_layers = plain_grad["mean"]["params"], chain_grad["drift"]["params"]
        for name in ("kernel", "bias"):
            np.testing.assert_allclose(chain_layers["Dense_1"][name], plain_layers["Dense_1"][name], rtol=1e-8)
            np.testing.assert_allclose(chain_layers["Dense_2"][name], nu * plain_layers["Dense_2"][name], rtol=1e-8)
        # d log_std / d logit = (1 - beta) / 2
        expected = plain_grad["log_std"] * 0.5 * (1.0 - beta)
        np.testing.assert_allclose(chain_grad["noise_logits"][0], expected, rtol=1e-8)


def test_identity_9_gradient_of_the_bound_against_finite_differences():
    """One decision, K = 2, one action dimension: make_batch and policy_loss together give the gradient of
    J = E[r(tanh a^0) - alpha l], beta's included, which they would not without the term for beta in pi."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    weights = weights / weights.sum()
    num = len(nodes) ** 3
    with jax.enable_x64(True):
        steps = {"num_steps": 1, "num_envs": num, "total_timesteps": num, "eval_frequency": num}
        more = {"norm_adv": False, "prior_std": 0.8, "hidden_dim": 4}
        args = make_args(diffppo_jax, num_denoising_steps=2, alpha=0.7, **more, **steps)
        agent = to_float64(
            make_agent(diffppo_jax, args, sizes=SimpleNamespace(observation_size=1, action_size=1), spread=0.2)
        )
        agent = with_params(agent, critic=jax.tree.map(jnp.zeros_like, agent.networks.params["critic"]))
        obs = jnp.full((1, num, 1), 0.3)
        noise = jnp.asarray(np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij")).reshape(3, num, 1))
        weight = jnp.asarray(np.einsum("i,j,k->ijk", weights, weights, weights).ravel())

        def chain(actor_params):
            """a^0, a^1, a^2 of every node, `[3, num, 1]`."""
            drift, schedule = diffppo_jax.policy_terms(args, with_params(agent, actor=actor_params), obs[0])
            latents = [schedule.prior_std * noise[0]]
            for k in (2, 1):
                mean, std = diffusion.denoising_mean_std(schedule, drift(latents[0], k), latents[0], k)
                latents.insert(0, mean + std * noise[3 - k])
            return jnp.stack(latents), drift, schedule

        def reward(latent):
            return jnp.sin(2.0 * jnp.tanh(latent[..., 0])) + jnp.tanh(latent[..., 0])

        @jax.jit
        def bound(actor_params):
            latents, drift, schedule = chain(actor_params)
            log_q, log_pi = log_densities(drift, schedule, latents)
            log_likelihood = diffusion.prior_log_prob(schedule, latents[2]) + (log_q - log_pi).sum(axis=0)
            return jnp.sum(weight * (reward(latents[0]) - args.alpha * (log_likelihood - tanh_log_det(latents[0]))))

        flat, unflatten = jax.flatten_util.ravel_pytree(agent.networks.params["actor"])
        difference = []
        for i in range(flat.size):
            step = 1e-5 * (jnp.arange(flat.size) == i)
            difference.append((bound(unflatten(flat + step)) - bound(unflatten(flat - step))) / 2e-5)

        latents = chain(agent.networks.params["actor"])[0]
        ended = jnp.ones((1, num), bool)
        rollout = diffppo_jax.Rollout(obs, latents[None], reward(latents[:1]), obs, ended, ~ended)
        batch, _ = make_batch(diffppo_jax, args, agent, rollout)

        def weighted_gradient(args):
            def one_row(row):
                row, actor = jax.tree.map(lambda x: x[None], row), agent.networks.params["actor"]
                return jax.grad(loss_of(diffppo_jax.policy_loss, "actor"), has_aux=True)(actor, args, agent, row)[0]

            grads = jax.jit(jax.vmap(one_row))(batch)  # rows: k = 2 of every node, then k = 1 of every node
            both = jnp.concatenate([weight, weight])
            return -jax.flatten_util.ravel_pytree(jax.tree.map(lambda g: jnp.tensordot(both, g, 1), grads))[0]

        automatic = weighted_gradient(args)
        np.testing.assert_allclose(automatic, difference, rtol=1e-5, atol=1e-7)
        print(
            f"identity 9, DiffPPO: gradients differ by {np.abs(automatic - jnp.asarray(difference)).max():.1e} at most"
        )
        # The same advantages without the extra term: beta's gradient is another.
        without = weighted_gradient(dataclasses.replace(args, alpha=0.0))
        logits = jax.flatten_util.ravel_pytree({**unflatten(jnp.zeros_like(flat)), "noise_logits": jnp.ones((2, 1))})[0]
        assert np.abs((without - jnp.asarray(difference))[logits == 1]).min() > 1e-2


def test_the_extra_term_is_cut_where_the_ratio_is_clipped_and_shares_the_advantages_scale(setups):
    """In a minibatch with normalised advantages: the gradient to beta by hand, row by row."""
    args, agent, _, batch, _ = setups["diffppo"]
    rng = np.random.default_rng(1)
    batch = batch.replace(log_denoising=batch.log_denoising + 0.3 * rng.normal(size=batch.k.shape).astype(np.float32))
    actor = agent.networks.params["actor"]
    gradient = compiled_gradient(diffppo_jax.policy_loss, "actor")
    extra = jax.tree.map(
        lambda a, b: np.asarray(a) - np.asarray(b),
        gradient(actor, args, agent, batch)[1],
        gradient(actor, dataclasses.replace(args, alpha=0.0), agent, batch)[1],
    )
    assert all(np.abs(x).max() < 1e-6 for x in jax.tree.leaves(extra["drift"]))

    terms = diffppo_jax.policy_terms(args, agent, batch.obs)
    log_q, _ = jax.jit(partial(diffusion.step_log_densities, *terms))(batch.latent, batch.next_latent, batch.k)
    ratio, advantage = np.exp(np.asarray(log_q - batch.log_denoising)), np.asarray(batch.advantage)
    normalised = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    kept = ~(((normalised > 0) & (ratio > 1.2)) | ((normalised < 0) & (ratio < 0.8)))
    assert 0.1 < kept.mean() < 0.9
    # log N(a^k; sqrt(1-beta) a^{k-1}, beta nu^2): derivative to beta, times beta (1-beta) for the logit.
    beta = 1.0 / (1.0 + np.exp(-np.asarray(actor["noise_logits"])[batch.k - 1]))
    latent, after = np.asarray(batch.latent), np.asarray(batch.next_latent)
    residual, nu2 = latent - np.sqrt(1 - beta) * after, args.prior_std**2
    slope = -residual * after / (2 * np.sqrt(1 - beta) * beta * nu2) + residual**2 / (2 * beta**2 * nu2) - 0.5 / beta
    rows = -args.alpha * (ratio * kept / (advantage.std() + 1e-8))[:, None] * slope * beta * (1 - beta)
    expected = np.stack([rows[np.asarray(batch.k) == k].sum(axis=0) for k in range(1, 4)]) / len(ratio)
    np.testing.assert_allclose(extra["noise_logits"], expected, rtol=1e-3, atol=1e-5)


def test_policy_and_value_loss_by_hand():
    """CleanRL's formulas on two rows."""
    args = make_args(ppo_jax, ent_coef=0.1)
    agent = make_agent(ppo_jax, args)
    obs = np.array([[0.1, 0.2, 0.3], [-1.0, 0.5, 2.0]], np.float32)
    mean, std = jax.device_get(compiled(ppo_jax.policy_terms, args)(agent, obs))
    noise = np.array([[0.5, -1.0], [1.5, 0.2]], np.float32)
    sample = mean + std * noise
    log_prob = np.sum(-0.5 * noise**2 - 0.5 * np.log(2 * np.pi) - np.log(std), axis=-1)
    value = np.asarray(jax.jit(ppo_jax.state_value)(agent, obs))
    batch = ppo_jax.Batch(
        obs=obs,
        sample=sample,
        log_prob=log_prob - np.log(np.array([1.5, 0.9], np.float32)),  # ratios 1.5 and 0.9
        value=value - np.array([0.5, 0.1], np.float32),  # the first has moved further than clip_coef
        advantage=np.array([2.0, -1.0], np.float32),
        target=value + np.array([1.0, -1.0], np.float32),
    )
    params = agent.networks.params
    (loss, metrics), _ = compiled_gradient(ppo_jax.policy_loss, "actor")(params["actor"], args, agent, batch)
    surrogate = -0.5 * (1.2 * 1.0 - 0.9 * 1.0)  # normalised advantages 1 and -1
    entropy = np.sum(np.log(std) + 0.5 * np.log(2 * np.pi * np.e))
    assert float(metrics["losses/policy_loss"]) == pytest.approx(surrogate, abs=1e-5)
    assert float(metrics["losses/entropy"]) == pytest.approx(entropy, abs=1e-5)
    assert float(loss) == pytest.approx(surrogate - 0.1 * entropy, abs=1e-5)
    assert float(metrics["losses/clipfrac"]) == 0.5
    kl = np.mean([0.5 - np.log(1.5), -0.1 - np.log(0.9)])
    assert float(metrics["losses/approx_kl"]) == pytest.approx(kl, abs=1e-5)
    (loss, _), _ = compiled_gradient(ppo_jax.value_loss, "critic")(params["critic"], args, agent, batch)
    assert float(loss) == pytest.approx(0.5 * np.mean([1.3**2, 1.0**2]), abs=1e-4)
    args = dataclasses.replace(args, clip_vloss=False)
    (loss, _), _ = compiled_gradient(ppo_jax.value_loss, "critic")(params["critic"], args, agent, batch)
    assert float(loss) == pytest.approx(0.5, abs=1e-5)


def test_the_other_options_of_the_losses():
    """PPO without normalised advantages; DiffPPO's value loss, clipped or not, of a latent and a level as well."""
    args = make_args(ppo_jax, norm_adv=False)
    agent, obs, zero = make_agent(ppo_jax, args), np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    mean, std = ppo_jax.policy_terms(args, agent, obs)
    log_prob = np.asarray(gaussian_log_prob(mean, mean, std)) - np.log(np.float32([1.5, 0.9]))  # ratios 1.5 and 0.9
    batch = ppo_jax.Batch(obs, mean, log_prob, value=zero, advantage=np.float32([2, -1]), target=zero)
    loss, metrics = compiled(ppo_jax.policy_loss, args)(agent, batch)
    assert float(loss) == pytest.approx(-0.5 * (1.2 * 2.0 - 0.9 * 1.0), abs=1e-5)
    assert float(metrics["losses/old_approx_kl"]) == pytest.approx(-0.5 * (np.log(1.5) + np.log(0.9)), abs=1e-5)

    obs, k = np.array([[0.1, 0.2, 0.3], [-1.0, 0.5, 2.0]], np.float32), np.array([1, 3])
    for clipped, expected in ((True, 0.5 * np.mean([1.3**2, 1.0**2])), (False, 0.5)):
        args = make_args(diffppo_jax, clip_vloss=clipped)
        agent = make_agent(diffppo_jax, args)
        latent = obs[:, :2]
        value = np.asarray(diffppo_jax.state_value(agent, diffppo_jax.network_input(args, obs, latent, k)))
        before, target = value - np.float32([0.5, 0.1]), value + np.float32([1.0, -1.0])  # the first has moved far
        batch = diffppo_jax.Batch(obs, latent, latent, k, zero, before, zero, target)
        assert float(compiled(diffppo_jax.value_loss, args)(agent, batch)[0]) == pytest.approx(expected, abs=1e-4)


def test_the_learning_rate_may_stay():
    for module in MODULES.values():
        args = make_args(module)
        assert float(module.learning_rate(args, 1600)) == pytest.approx(args.learning_rate / 2)
        assert float(module.learning_rate(make_args(module, anneal_lr=False), 1600)) == pytest.approx(
            args.learning_rate
        )


def test_rho_is_reported_by_its_step(setups):
    args, agent, rollout, _, metrics = setups["diffppo"]
    terms = diffppo_jax.policy_terms(args, agent, rollout.obs)
    log_q, log_pi = jax.jit(partial(log_densities, *terms))(jnp.moveaxis(rollout.sample, 1, 0))
    for k in (1, 2, 3):
        expected = float((log_q - log_pi)[k - 1].mean())
        assert float(metrics[f"diffusion/rho_{k}"]) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_network_initialisation():
    """Orthogonal weights times sqrt 2, the policy's head times 0.01, the value's times 1, no biases; a zero drift."""

    def products(layers):
        for name, layer in layers["params"].items():
            assert not layer["bias"].any()
            small = min(layer["kernel"].shape)
            kernel = np.asarray(layer["kernel"])
            kernel = kernel if kernel.shape[1] == small else kernel.T
            yield name, kernel.T @ kernel, np.eye(small)

    for module in (ppo_jax, diffppo_jax):
        agent = jax.device_get(compiled_init(module.init_agent, module.Args(), 11, 3)(jax.random.key(3)))
        head = {ppo_jax: ("mean", 0.01), diffppo_jax: ("drift", 0.0)}[module]
        for part, scale in ((agent.networks.params["actor"][head[0]], head[1]), (agent.networks.params["critic"], 1.0)):
            for name, product, eye in products(part):
                np.testing.assert_allclose(product, (scale**2 if name == "Dense_2" else 2.0) * eye, atol=1e-5)
        assert [layer["bias"].size for layer in agent.networks.params["critic"]["params"].values()] == [64, 64, 1]
    agent = compiled_init(ppo_jax.init_agent, ppo_jax.Args(initial_std=0.5), 11, 3)(jax.random.key(3))
    np.testing.assert_allclose(agent.networks.params["actor"]["log_std"], np.full(3, np.log(0.5)), rtol=1e-6)


# ------------------------------------------------------------------------------------------------ chunks, keys, agents


@pytest.fixture(scope="module", params=MODULES)
def chunks(request):
    """A function that trains agents of the given seeds for two chunks, all with one compiled program, and the counts
    of compilations. `change` edits the states before the first chunk."""
    module = MODULES[request.param]
    args = make_args(module, **({"alpha": 0.01} if request.param == "diffppo" else {}), num_seeds=2)
    env = make_env(args.env_id, args.num_envs, args.num_seeds)
    init = jax.jit(jax.vmap(partial(module.init_training, args, env)))
    before = module.train_chunk._cache_size()

    def train(seeds, change=lambda state: state):
        state = change(init(jax.vmap(jax.random.key)(jnp.asarray(seeds))))
        logs = []
        for i in range(2):
            state, *log = module.train_chunk(args, env, state, jnp.int32(i * args.log_frequency))
            logs.append(jax.device_get(log))
        assert env.error is None
        return jax.device_get(state.replace(key=jax.random.key_data(state.key))), logs

    result = train([1, 2])
    assert module.train_chunk._cache_size() == before + 1
    yield SimpleNamespace(module=module, args=args, env=env, init=init, train=train, result=result)
    env.close()


def agent_of(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def test_chunk_logs_and_statistics(chunks):
    args, (state, logs) = chunks.args, chunks.result
    for episodes, metrics in logs:
        assert all(x.shape == (2, T, N) for x in jax.tree.leaves(episodes))
        assert all(values.shape == (2,) and np.isfinite(values).all() for values in metrics.values())
        assert np.all(metrics["losses/first_ratio_error"] < 1e-4)
        assert np.all(episodes.length <= 200)
    rates = [metrics["charts/learning_rate"][0] for _, metrics in logs]
    np.testing.assert_allclose(rates, [3e-4, 3e-4 * (1 - args.log_frequency / args.total_timesteps)], rtol=1e-6)
    np.testing.assert_allclose(state.agent.obs_stats.count, (2 * T + 1) * N, rtol=1e-5)
    np.testing.assert_allclose(state.agent.return_stats.count, 2 * T * N, rtol=1e-5)


def test_returns_of_episodes_before_a_start_are_not_in_the_rewards_scale(chunks):
    """As after a resume whose environments begin new episodes: what was gathered before is of none of them."""
    state, _ = chunks.result
    again, _ = chunks.train([1, 2], lambda state: state.replace(discounted_return=state.discounted_return + 1e6))
    jax.tree.map(np.testing.assert_array_equal, state.agent.return_stats, again.agent.return_stats)


def test_chunk_is_compiled_once(chunks):
    size = chunks.module.train_chunk._cache_size()
    chunks.train([3, 4])
    assert chunks.module.train_chunk._cache_size() == size


def test_agents_do_not_touch_each_other(chunks):
    """An agent's results are bit-identical whatever the other agents' seeds are, and if one turns NaN."""
    state, logs = chunks.result

    def nan_second(state):
        params = jax.tree.map(lambda x: x.at[1].set(jnp.nan), state.agent.networks.params)
        return state.replace(agent=with_params(state.agent, **params))

    for other, change in ((9, lambda state: state), (2, nan_second)):
        state_2, logs_2 = chunks.train([1, other], change)
        jax.tree.map(np.testing.assert_array_equal, agent_of(state, 0), agent_of(state_2, 0))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), logs, logs_2)
    assert np.isnan(jax.tree.leaves(state_2.agent.networks.params)[0][1]).all()


def test_vmapped_start_is_the_single_one(chunks):
    """Keys and the environments' first observations bit by bit, parameters to 1e-6."""
    module, args = chunks.module, chunks.args
    both = chunks.init(jax.vmap(jax.random.key)(jnp.array([1, 2])))
    single_args = dataclasses.replace(args, num_seeds=1)
    env = make_env(args.env_id, args.num_envs, 1)
    alone = jax.jit(jax.vmap(partial(module.init_training, single_args, env)))
    for i, seed in enumerate([1, 2]):
        single = agent_of(alone(jax.random.key(seed)[None]), 0)
        np.testing.assert_array_equal(jax.random.key_data(single.key), jax.random.key_data(both.key[i]))
        np.testing.assert_array_equal(single.env_state.obs, both.env_state.obs[i])
        ours, theirs = (jax.tree_util.tree_leaves_with_path(x) for x in (single.agent, agent_of(both.agent, i)))
        for (path, x), (other_path, y) in zip(ours, theirs, strict=True):
            assert path == other_path
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
    env.close()


@pytest.mark.parametrize("x64, tolerance", [(False, 1e-5), (True, 1e-10)])
@pytest.mark.parametrize("name", MODULES)
def test_vmapped_update_is_the_single_one(setups, name, x64, tolerance):
    with jax.enable_x64(x64):
        module = MODULES[name]
        args, agent, _, batch, _ = setups[name]
        agents = [agent, with_params(agent, **make_agent(module, args, seed=5).networks.params)]
        if x64:
            agents, batch = to_float64(agents), to_float64(batch)
        together = jax.tree.map(lambda *x: np.stack(x), *agents)
        update = partial(module.update, args)
        moved, _ = jax.jit(jax.vmap(update, in_axes=(0, None)))(together, batch)
        for i, one in enumerate(agents):
            single, _ = compiled(module.update, args)(one, batch)
            # Adam's first step divides a gradient by its size: a relative error of the parameters' change.
            close = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
            jax.tree.map(close, agent_of(moved.networks.params, i), single.networks.params)


def test_actions_lie_in_the_box_and_the_deterministic_ones_have_no_noise():
    for name, module in MODULES.items():
        args = make_args(module)
        agent = make_agent(module, args, spread=2.0)
        stats = normalization.RunningStats(np.arange(3.0), np.array([0.5, 1.0, 2.0]), np.array(7.0))
        agent, obs = agent.replace(obs_stats=stats), np.random.default_rng(0).normal(size=(50, 3))
        action, sample = jax.device_get(compiled(module.sample_action, args)(agent, jax.random.key(0), obs))
        assert action.shape == (50, 2) and np.abs(action).max() <= 1.0 and np.abs(sample).max() > 1.0
        act = compiled(module.deterministic_action, args)
        fixed = np.asarray(act(agent, obs))
        terms = module.policy_terms(args, agent, normalization.normalize(stats, obs))
        if name == "ppo":
            expected = np.clip(terms[0], -1, 1)
        else:
            expected = np.tanh(diffusion.deterministic_chain(*terms, (50,)))
            # The meter sees what the policy sees.
            plain = agent.replace(obs_stats=stats.replace(mean=np.zeros(3), var=np.ones(3)))
            meter = compiled(module.entropy_terms, args)
            both = (
                meter(agent, jax.random.key(1), obs),
                meter(plain, jax.random.key(1), (obs - stats.mean) / stats.var**0.5),
            )
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), *both)
        np.testing.assert_allclose(fixed, expected, rtol=1e-4, atol=1e-5)
        assert fixed.shape == (50, 2) and np.abs(fixed).max() <= 1.0
        # The statistics are the agent's: other ones, another action.
        other = agent.replace(obs_stats=stats.replace(mean=np.zeros(3)))
        assert np.abs(np.asarray(act(other, obs)) - fixed).max() > 1e-3, name
