#!/usr/bin/env bash
# What a machine with one GPU is asked for, in at most eight minutes:
#   1. steps/s, compile time and peak memory by number of seeds, into benchmarks/speed.csv with the device's name
#   2. two minutes of learning of PPO and of DiffPPO on playground/CheetahRun
#   3. beside these, the fast tests of environments on the host and on the device, and the scripts as commands, there
#
#   SMALL=1          tiny sizes on the CPU, a rehearsal that needs no GPU and no Playground; saves nothing
#   OUT=runs/gpu     folder of logs, results and runs
#   PYTHON=python    the interpreter; default: the .venv of this checkout if there is one
#
# Needs ".[test,playground,cuda12]" or cuda13.
set -uo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
OUT=${OUT:-runs/gpu}
mkdir -p "$OUT"
status=0
learn=(--env-id playground/CheetahRun --num-envs 2048 --num-steps 60 --num-minibatches 32 --update-epochs 4
  --gamma 0.995 --learning-rate 1e-3 --no-anneal-lr --hidden-dim 256 --total-timesteps 200000000
  --eval-frequency 4000000 --eval-episodes 16)
device=(--save)
seconds=120
tests=(tests/envs/test_gymnasium_env.py tests/envs/test_jax_env.py tests/scripts/test_as_commands.py)
export JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false
if [ -n "${SMALL:-}" ]; then
  export JAX_PLATFORMS=cpu
  learn=(--env-id Pendulum-v1 --num-envs 8 --num-steps 40 --total-timesteps 4000000)
  device=(--small)
  seconds=40
  tests=(tests/envs/test_jax_env.py)
fi

step() { # name, seconds, command
  local begin=$SECONDS name=$1 limit=$2
  shift 2
  timeout --signal=TERM --kill-after=20 "$limit" "$@" >"$OUT/$name.log" 2>&1
  local code=$?
  if [ "$code" -ne 0 ] && [ "$code" -ne 124 ]; then status=1; fi # 124: the time was up
  echo "$name: exit status $code after $((SECONDS - begin)) s: $(tail -n 1 "$OUT/$name.log")"
  [ "$code" -eq 0 ] || [ "$code" -eq 124 ]
}

step device 230 "$PYTHON" -m benchmarks.device "${device[@]}" --seconds 210
step tests $((2 * seconds)) "$PYTHON" -m pytest -n 0 -q "${tests[@]}" &
step ppo "$seconds" "$PYTHON" ppo_jax.py "${learn[@]}" --ent-coef 0.01 --runs-folder "$OUT/runs"
step diffppo "$seconds" "$PYTHON" diffppo_jax.py "${learn[@]}" --prior-std 1 --runs-folder "$OUT/runs"
wait $! || status=1
rows=()
if [ -z "${SMALL:-}" ]; then rows=(--save); fi
"$PYTHON" -m benchmarks.device "${rows[@]}" --of "$OUT"/runs/*__*/ || status=1
cp benchmarks/speed.csv "$OUT/"
"$PYTHON" -m benchmarks.export --allow-unfinished --results "$OUT/results" "$OUT"/runs/*__*/ || status=1
exit $status
