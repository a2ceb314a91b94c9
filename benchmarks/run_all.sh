#!/usr/bin/env bash
# python -m benchmarks.sweep, with its settings as variables.
#
#   SUITE=quick      a suite of benchmarks/suites.toml
#   JOBS=1           runs side by side
#   NPROC=1          threads of a run on a CPU
#   RUNS=runs        folder of the run folders; what a run prints goes to $RUNS/logs
#   STEPS=           environment steps in place of the listed ones, for a trial
#   DRY_RUN=         1: only print the commands
#   PYTHON=python    the interpreter; default: the .venv of this checkout if there is one
#
# Afterwards: python -m benchmarks.export runs/* && python -m benchmarks.pages
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
# exec: a signal to this process reaches the sweep.
exec "$PYTHON" -m benchmarks.sweep "${SUITE:-quick}" --runs "${RUNS:-runs}" --jobs "${JOBS:-1}" \
  ${STEPS:+--steps "$STEPS"} ${DRY_RUN:+--dry-run}
