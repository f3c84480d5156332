#!/usr/bin/env bash
# The test suite; sets itself up. Further flags go to pytest, e.g. -m "not full" or tests/test_flagship.py.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh test
exec "$PYTHON" -m pytest "$@"
