#!/usr/bin/env bash
# Fit, unrolled influence, leave-one-out refits, verdict and pictures of a small multimodal model; installs what it needs.
# TRAIN_JSONL, TEST_JSONL, IMAGE_ROOT: your own rows and images (default: the embedded set), relative to the current
# folder. Further flags are passed to `ifloo pipeline`.
set -eu
if [ -n "${TRAIN_JSONL:-}" ] && [ -z "${TEST_JSONL:-}" ]; then
    echo "run_multimodal.sh: TRAIN_JSONL needs TEST_JSONL beside it: tests are explained from a file of their own" >&2
    exit 2
fi
rows=()
for setting in TRAIN_JSONL TEST_JSONL IMAGE_ROOT; do
    path="${!setting:-}"
    case "$path" in
        "") continue ;;
        /*) ;;
        *) path="$PWD/$path" ;;
    esac
    rows+=("--data.$(echo "$setting" | tr '[:upper:]' '[:lower:]')" "$path")
done
cd "$(dirname "$0")/.."
environment() { . scripts/environment.sh; } # in a function, so that the sourced file does not see this script's flags
environment
exec "$PYTHON" -m ifloo pipeline --config configs/multimodal.yaml ${rows[@]+"${rows[@]}"} "$@"
