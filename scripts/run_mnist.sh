#!/usr/bin/env bash
# Fit, influence, leave-one-out refits, verdict and pictures on MNIST; sets itself up. Further flags go to `ifloo pipeline`.
set -eu
cd "$(dirname "$0")/.."
environment() { . scripts/environment.sh; } # in a function: a sourced file sees its arguments, none, not our flags
environment
exec "$PYTHON" -m ifloo pipeline --config configs/mnist.yaml "$@"
