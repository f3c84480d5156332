#!/usr/bin/env bash
# The test suite; installs what it needs. Without flags it leaves out the tests marked `slow`; --all runs these too.
# Further flags are passed to pytest, e.g. -m full or tests/test_flagship.py; a test given by file::name always runs.
# Two test files run at a time; -n 0 runs one.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh test
all="" marks="" files=0
two=(-n 2 --dist loadfile --no-loadscope-reorder)
flags=()
while [ $# -gt 0 ]; do
    case "$1" in
        --all) all=yes ;;
        -m=*) marks="${1#-m=}" ;;
        -m?*) marks="${1#-m}" ;;
        -m)
            if [ $# = 1 ]; then
                echo "run_tests.sh: -m needs an expression of marks, such as -m slow" >&2
                exit 2
            fi
            marks="$2"
            shift
            ;;
        *)
            flags+=("$1")
            case "$1" in
                -n* | --numprocesses* | --maxprocesses* | --dist* | no:xdist | -pno:xdist) two=() ;;
                --pdb* | --trace | -s | --capture=no) two=() ;;
                *::*) all=yes ;; # asked for by name
            esac
            if [ -e "${1%%::*}" ]; then files=$((files + 1)); fi
            if [ -d "$1" ]; then files=$((files + 1)); fi
            ;;
    esac
    shift
done
[ "$files" = 1 ] && two=() # a single file cannot be distributed
case "$all $marks" in
    yes* | *slow*) ;; # nothing is left out, or the given marks decide about the slow tests
    *) marks="${marks:+($marks) and }not slow" ;;
esac
[ -z "$marks" ] || flags+=(-m "$marks")
# Each of two processes has one core: more threads would only wait for each other.
[ ${#two[@]} = 0 ] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$PYTHON" -m pytest ${two[@]+"${two[@]}"} ${flags[@]+"${flags[@]}"}
