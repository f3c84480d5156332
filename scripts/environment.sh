# Sourced by the other scripts: sets $PYTHON to a Python that can import ifloo, and creates .venv if none can.
# usage: . scripts/environment.sh [EXTRA ...]      extras of pyproject.toml to install, e.g. test
IFLOO_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
_ifloo_has() { # PYTHON MODULE...: whether it can import them (they are only located, since loading torch takes seconds)
    "$1" - "${@:2}" <<'PY' 2>/dev/null
import importlib.util, sys
sys.path = [p for p in sys.path if p not in ("", ".")]
sys.exit(any(importlib.util.find_spec(m) is None for m in sys.argv[1:]))
PY
}
_ifloo_modules=(ifloo torch lightning jsonargparse)
_ifloo_extras=""
for _extra in "$@"; do
    _ifloo_extras="${_ifloo_extras:+$_ifloo_extras,}$_extra"
    case "$_extra" in
        cluster) _ifloo_modules+=(distributed cloudpickle cryptography) ;;
        test) _ifloo_modules+=(pytest xdist beartype distributed cloudpickle cryptography) ;;
        gallery) _ifloo_modules+=(transformers peft pytorch_lightning) ;;
        docs) _ifloo_modules+=(mkdocs material mkdocstrings) ;;
        dev)
            _ifloo_modules+=(pytest xdist beartype distributed cloudpickle cryptography ruff mypy shtab)
            _ifloo_modules+=(mkdocs material mkdocstrings transformers peft pytorch_lightning)
            ;;
    esac
done
PYTHON=""
for _candidate in "$IFLOO_ROOT/.venv/bin/python" python python3; do
    if command -v "$_candidate" >/dev/null && _ifloo_has "$_candidate" "${_ifloo_modules[@]}"; then
        PYTHON="$_candidate"
        break
    fi
done
if [ -z "$PYTHON" ]; then
    echo "ifloo: installing into $IFLOO_ROOT/.venv (once; PyTorch is the large part)"
    if ! [ -x "$IFLOO_ROOT/.venv/bin/python" ]; then
        "${IFLOO_PYTHON:-python3}" -m venv "$IFLOO_ROOT/.venv" || {
            echo "ifloo: python3 could not make a virtual environment; Python >= 3.10 with venv is needed" \
                "(on Debian: apt install python3-venv)" >&2
            exit 2
        }
    fi
    PYTHON="$IFLOO_ROOT/.venv/bin/python"
    # The tested versions need Python >= 3.11; an older Python installs what pyproject.toml allows.
    _ifloo_pins=()
    if "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        _ifloo_pins=(-c "$IFLOO_ROOT/constraints.txt")
    fi
    "$PYTHON" -m pip install --quiet --disable-pip-version-check ${_ifloo_pins[@]+"${_ifloo_pins[@]}"} \
        -e "$IFLOO_ROOT${_ifloo_extras:+[$_ifloo_extras]}" || exit 1
fi
