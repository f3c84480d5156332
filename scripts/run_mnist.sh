#!/usr/bin/env bash
# Fit, influence, leave-one-out refits, verdict and pictures on MNIST; installs what it needs. Further flags are passed to
# `ifloo pipeline`.
set -eu
cd "$(dirname "$0")/.."
environment() { . scripts/environment.sh; } # in a function, so that the sourced file does not see this script's flags
environment
exec "$PYTHON" -m ifloo pipeline --config configs/mnist.yaml "$@"
