#!/usr/bin/env bash
# Checks that are too slow for CI: the whole suite with other processor instructions and numbers of threads, which sum in
# another order, and the tests on the full MNIST files if IFLOO_MNIST_ROOT is set to their folder. Prints one line per
# run: result, time, setting. Flags are passed to scripts/run_tests.sh, e.g. tests/curvature.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh test gallery
export IFLOO_GALLERY=required # its slow tests are here: whole networks, further commands and refits
logs="$(mktemp -d)"
failed=0 number=0
check() { # "NAME=value of the environment, or nothing" FLAG...
    local started=$SECONDS result=ok log="$logs/$((number += 1)).txt" name="${1:-as it is}"
    env ${1:+"$1"} bash scripts/run_tests.sh --all "${@:2}" >"$log" 2>&1 || result=FAILED
    local took=$((SECONDS - started))
    printf '%-6s %3d min %02d s  %s\n' "$result" $((took / 60)) $((took % 60)) "$name"
    if [ "$result" = FAILED ]; then
        failed=1
        tail -n 15 "$log" | sed 's/^/    /'
        echo "    The whole output: $log"
    fi
}
# MKL_CBWR: on processors of other makers MKL_ENABLE_INSTRUCTIONS changes nothing.
for variant in ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
    MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=1 OMP_NUM_THREADS=2; do
    check "$variant" -m "not full" "$@"
done
if [ -n "${IFLOO_MNIST_ROOT:-}" ]; then
    check "" -m full "$@"
else
    echo "skip                  -m full: IFLOO_MNIST_ROOT names no folder of the MNIST files"
fi
exit "$failed"
