#!/usr/bin/env bash
# Fit, influence, leave-one-out refits, verdict and pictures on MNIST; sets itself up. Further flags go to `ifloo pipeline`.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
exec "$PYTHON" -m ifloo pipeline --config configs/mnist.yaml "$@"
