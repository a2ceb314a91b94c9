#!/usr/bin/env bash
# Every run behind the figures and tables, by name.
#
#   benchmarks/run_all.sh                    the quick suite: minutes on a laptop, to see that all works
#   SUITE=gym JOBS=8 benchmarks/run_all.sh   another suite, eight runs side by side
#   DRY_RUN=1 SUITE=gym benchmarks/run_all.sh   only print the commands
#
# Finished runs are skipped, interrupted ones are resumed: after an interruption call it again. A run that fails does
# not stop the others; failures are listed at the end, and the exit status is then 1.
#
#   SUITE=quick      quick, committed, turning, gym or full, as listed below
#   JOBS=1           runs side by side. On a GPU all seeds of a line are one process.
#   NPROC=1          threads of a run on a CPU
#   RUNS=runs        folder of the run folders; what a run prints goes to $RUNS/logs
#   PYTHON=python    the interpreter; default: the .venv of this checkout if there is one
#   STEPS=           environment steps in place of the listed ones, for a trial
#   LIST=            a file with a list of your own, in place of the one below
#   VMAP=            1 or 0: seeds of a line in one process or not; default: 1 where jax finds a GPU or TPU
#
# Afterwards: python benchmarks/export.py runs/* && python benchmarks/plot.py
set -euo pipefail
cd "$(dirname "$0")/.."

list='
# name | script | flags | environments | seeds | steps
# The name is the --exp-name: runs are found again by it. A suite is what follows "suite NAME"; "+ NAME" adds a suite.

suite quick
quick_sac     | sac_jax.py     | --eval-frequency 2000 --learning-starts 1000 --hidden-dim 64 | Pendulum-v1 | 1 | 8000
quick_diffsac | diffsac_jax.py | --eval-frequency 2000 --learning-starts 1000 --hidden-dim 64 | Pendulum-v1 | 1 | 8000
quick_diffwpo | diffwpo_jax.py | --eval-frequency 2000 --learning-starts 1000 --hidden-dim 64 | Pendulum-v1 | 1 | 8000
quick_ppo     | ppo_jax.py     | --eval-frequency 16000 | Hopper-v4 | 1 | 80000
quick_diffppo | diffppo_jax.py | --eval-frequency 16000 | Hopper-v4 | 1 | 80000

# The runs whose results are in benchmarks/results; a test compares.
suite committed
diffppo_alpha0 | diffppo_jax.py | --alpha 0 | HalfCheetah-v4 | 1 | 480000
diffppo_alpha0 | diffppo_jax.py | --alpha 0 | Hopper-v4 | 2 3 | 480000
diffppo_alpha0.001 | diffppo_jax.py |  | HalfCheetah-v4 | 1 | 480000
diffppo_alpha0.001 | diffppo_jax.py |  | Hopper-v4 | 2 3 | 480000
diffppo_alpha0.003 | diffppo_jax.py | --alpha 0.003 | HalfCheetah-v4 | 1 | 480000
diffppo_alpha0.003 | diffppo_jax.py | --alpha 0.003 | Hopper-v4 | 2 3 | 480000
diffppo_alpha0.01 | diffppo_jax.py | --alpha 0.01 | HalfCheetah-v4 | 1 | 480000
diffppo_alpha0.01 | diffppo_jax.py | --alpha 0.01 | Hopper-v4 | 2 3 | 480000
diffppo_jax | diffppo_jax.py |  | HalfCheetah-v4 Hopper-v4 Walker2d-v4 | 1 2 3 | 1000000
diffppo_k1 | diffppo_jax.py | --num-denoising-steps 1 | Hopper-v4 | 1 2 3 | 480000
diffppo_k16 | diffppo_jax.py | --num-denoising-steps 16 | Hopper-v4 | 1 2 3 | 480000
diffppo_k2 | diffppo_jax.py | --num-denoising-steps 2 | Hopper-v4 | 1 2 3 | 480000
diffppo_k4 | diffppo_jax.py | --num-denoising-steps 4 | Hopper-v4 | 1 2 3 | 480000
diffppo_k8 | diffppo_jax.py |  | Hopper-v4 | 1 2 3 | 480000
diffppo_no_entropy | diffppo_jax.py | --alpha 0 | HalfCheetah-v4 Hopper-v4 Walker2d-v4 | 1 2 3 | 1000000
diffsac_jax | diffsac_jax.py |  | HalfCheetah-v4 Walker2d-v4 | 1 2 3 | 100000
diffsac_jax | diffsac_jax.py |  | Hopper-v4 | 1 2 3 | 150000
diffsac_jax | diffsac_jax.py |  | Pendulum-v1 | 1 2 3 | 20000
diffsac_k1 | diffsac_jax.py | --num-denoising-steps 1 | Hopper-v4 | 1 2 3 | 100000
diffsac_k16 | diffsac_jax.py | --num-denoising-steps 16 | Hopper-v4 | 1 2 3 | 100000
diffsac_k2 | diffsac_jax.py | --num-denoising-steps 2 | Hopper-v4 | 1 2 3 | 100000
diffsac_k4 | diffsac_jax.py | --num-denoising-steps 4 | Hopper-v4 | 1 2 3 | 100000
diffwpo_bound0.1 | diffwpo_jax.py | --kl-bound 0.1 | Hopper-v4 | 1 2 3 | 150000
diffwpo_bound0.1 | diffwpo_jax.py | --kl-bound 0.1 | Walker2d-v4 | 1 | 100000
diffwpo_jax | diffwpo_jax.py |  | HalfCheetah-v4 Hopper-v4 Walker2d-v4 | 1 2 3 | 100000
diffwpo_jax | diffwpo_jax.py |  | Pendulum-v1 | 1 2 3 | 20000
ppo_ent0 | ppo_jax.py |  | HalfCheetah-v4 | 1 | 480000
ppo_ent0 | ppo_jax.py |  | Hopper-v4 | 2 3 | 480000
ppo_ent0.003 | ppo_jax.py | --ent-coef 0.003 | HalfCheetah-v4 | 1 | 480000
ppo_ent0.003 | ppo_jax.py | --ent-coef 0.003 | Hopper-v4 | 2 3 | 480000
ppo_ent0.01 | ppo_jax.py | --ent-coef 0.01 | HalfCheetah-v4 | 1 | 480000
ppo_ent0.01 | ppo_jax.py | --ent-coef 0.01 | Hopper-v4 | 2 3 | 480000
ppo_jax | ppo_jax.py |  | HalfCheetah-v4 Hopper-v4 Walker2d-v4 | 1 2 3 | 1000000
ppo_std0.5 | ppo_jax.py | --initial-std 0.5 | HalfCheetah-v4 Hopper-v4 Walker2d-v4 | 1 2 3 | 1000000
ppo_std0.5_480k | ppo_jax.py | --initial-std 0.5 | HalfCheetah-v4 | 1 | 480000
ppo_std0.5_480k | ppo_jax.py | --initial-std 0.5 | Hopper-v4 | 2 3 | 480000
sac_jax | sac_jax.py |  | HalfCheetah-v4 Walker2d-v4 | 1 2 3 | 100000
sac_jax | sac_jax.py |  | Hopper-v4 | 1 2 3 | 150000
sac_jax | sac_jax.py |  | Pendulum-v1 | 1 2 3 | 20000

suite gym
sac_jax     | sac_jax.py     | | Hopper-v4 Walker2d-v4 HalfCheetah-v4 Ant-v4 Humanoid-v4 | 1 2 3 4 5 | 1000000
diffsac_jax | diffsac_jax.py | | Hopper-v4 Walker2d-v4 HalfCheetah-v4 Ant-v4 Humanoid-v4 | 1 2 3 4 5 | 1000000
diffwpo_jax | diffwpo_jax.py | | Hopper-v4 Walker2d-v4 HalfCheetah-v4 Ant-v4 Humanoid-v4 | 1 2 3 4 5 | 1000000
ppo_jax     | ppo_jax.py     | | Hopper-v4 Walker2d-v4 HalfCheetah-v4 Ant-v4 Humanoid-v4 | 1 2 3 4 5 | 1000000
diffppo_jax | diffppo_jax.py | | Hopper-v4 Walker2d-v4 HalfCheetah-v4 Ant-v4 Humanoid-v4 | 1 2 3 4 5 | 1000000

# Multimodality: afterwards python -m benchmarks.turning runs/*Turning*
suite turning
sac_jax     | sac_jax.py     | --no-autotune --alpha 0.05 --gamma 0.9 --eval-frequency 5000 | benchmarks.turning:TurningAgent-v0 | 1 2 3 | 30000
diffsac_jax | diffsac_jax.py | --no-autotune --alpha 0.05 --gamma 0.9 --eval-frequency 5000 | benchmarks.turning:TurningAgent-v0 | 1 2 3 | 30000
diffwpo_jax | diffwpo_jax.py | --no-autotune --alpha 0.05 --gamma 0.9 --eval-frequency 5000 | benchmarks.turning:TurningAgent-v0 | 1 2 3 | 30000
ppo_jax     | ppo_jax.py     | --gamma 0.9 --eval-frequency 80000                   | benchmarks.turning:TurningAgent-v0 | 1 2 3 | 400000
ppo_entropy | ppo_jax.py     | --gamma 0.9 --eval-frequency 80000 --ent-coef 0.0286 | benchmarks.turning:TurningAgent-v0 | 1 2 3 | 400000
diffppo_jax | diffppo_jax.py | --gamma 0.9 --eval-frequency 80000 --alpha 0.0286    | benchmarks.turning:TurningAgent-v0 | 1 2 3 | 400000

suite full
+ gym
+ turning
# PPO with the noise that the diffusion policies start from, and DiffPPO without entropy terms
ppo_std0.5         | ppo_jax.py     | --initial-std 0.5 | Hopper-v4 Walker2d-v4 HalfCheetah-v4 | 1 2 3 4 5 | 1000000
diffppo_no_entropy | diffppo_jax.py | --alpha 0.0       | Hopper-v4 Walker2d-v4 HalfCheetah-v4 | 1 2 3 4 5 | 1000000
ppo_ent0.003 | ppo_jax.py    | --ent-coef 0.003         | Hopper-v4 HalfCheetah-v4 | 1 2 3 4 5 | 480000
ppo_ent0.01  | ppo_jax.py    | --ent-coef 0.01          | Hopper-v4 HalfCheetah-v4 | 1 2 3 4 5 | 480000
# number of denoising steps
diffsac_k1  | diffsac_jax.py | --num-denoising-steps 1  | Hopper-v4 | 1 2 3 4 5 | 300000
diffsac_k2  | diffsac_jax.py | --num-denoising-steps 2  | Hopper-v4 | 1 2 3 4 5 | 300000
diffsac_k4  | diffsac_jax.py | --num-denoising-steps 4  | Hopper-v4 | 1 2 3 4 5 | 300000
diffsac_k8  | diffsac_jax.py | --num-denoising-steps 8  | Hopper-v4 | 1 2 3 4 5 | 300000
diffsac_k16 | diffsac_jax.py | --num-denoising-steps 16 | Hopper-v4 | 1 2 3 4 5 | 300000
diffppo_k1  | diffppo_jax.py | --num-denoising-steps 1  | Hopper-v4 | 1 2 3 4 5 | 480000
diffppo_k2  | diffppo_jax.py | --num-denoising-steps 2  | Hopper-v4 | 1 2 3 4 5 | 480000
diffppo_k4  | diffppo_jax.py | --num-denoising-steps 4  | Hopper-v4 | 1 2 3 4 5 | 480000
diffppo_k8  | diffppo_jax.py | --num-denoising-steps 8  | Hopper-v4 | 1 2 3 4 5 | 480000
diffppo_k16 | diffppo_jax.py | --num-denoising-steps 16 | Hopper-v4 | 1 2 3 4 5 | 480000
# temperature
diffsac_entropy1      | diffsac_jax.py | --target-entropy-scale 1.0 | Hopper-v4 HalfCheetah-v4 | 1 2 3 4 5 | 300000
diffsac_entropy3      | diffsac_jax.py | --target-entropy-scale 3.0 | Hopper-v4 HalfCheetah-v4 | 1 2 3 4 5 | 300000
diffsac_alpha0.2      | diffsac_jax.py | --no-autotune --alpha 0.2  | Hopper-v4 HalfCheetah-v4 | 1 2 3 4 5 | 300000
diffsac_alpha0.05     | diffsac_jax.py | --no-autotune --alpha 0.05 | Hopper-v4 HalfCheetah-v4 | 1 2 3 4 5 | 300000
diffppo_alpha0        | diffppo_jax.py | --alpha 0.0                | Hopper-v4 HalfCheetah-v4 | 1 2 3 4 5 | 480000
diffppo_alpha0.001    | diffppo_jax.py | --alpha 0.001              | Hopper-v4 HalfCheetah-v4 | 1 2 3 4 5 | 480000
diffppo_alpha0.003    | diffppo_jax.py | --alpha 0.003              | Hopper-v4 HalfCheetah-v4 | 1 2 3 4 5 | 480000
diffppo_alpha0.01     | diffppo_jax.py | --alpha 0.01               | Hopper-v4 HalfCheetah-v4 | 1 2 3 4 5 | 480000
'

if [ -n "${LIST:-}" ]; then list=$(cat "$LIST") || exit 2; fi
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
# exec: a signal to this process reaches the scheduler.
exec "$PYTHON" benchmarks/jobs.py --suite "${SUITE:-quick}" --list "$list" --runs "${RUNS:-runs}" \
  --jobs "${JOBS:-1}" --vmap "${VMAP:-auto}" ${STEPS:+--steps "$STEPS"} ${DRY_RUN:+--dry-run}
