#!/usr/bin/env bash
# The test suite; installs what it needs. Further flags are passed to pytest, e.g. -m "not full" or tests/test_flagship.py.
# Two test files run at a time if pytest-xdist is installed; -n 0 runs one.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh test
two=(-n 2 --dist loadfile --no-loadscope-reorder)
_ifloo_has "$PYTHON" xdist || two=()
files=0
for argument in "$@"; do
    case "$argument" in
        -n* | --numprocesses* | --maxprocesses* | --dist* | no:xdist | -pno:xdist | --pdb* | --trace | -s | --capture=no) two=() ;;
    esac
    if [ -e "${argument%%::*}" ]; then files=$((files + 1)); fi
    if [ -d "$argument" ]; then files=$((files + 1)); fi
done
[ "$files" = 1 ] && two=() # a single file cannot be distributed
# Each of two processes has one core: more threads would only wait for each other.
[ ${#two[@]} = 0 ] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$PYTHON" -m pytest ${two[@]+"${two[@]}"} "$@"
