#!/usr/bin/env bash
# The documentation site, in build/site; open build/site/index.html. Sets itself up. Further flags go to `mkdocs build`.
set -eu
cd "$(dirname "$0")/.."
environment() { . scripts/environment.sh docs; } # in a function: a sourced file sees its arguments, none, not our flags
environment
export NO_MKDOCS_2_WARNING=1 # an advertisement of the theme
exec "$PYTHON" -m mkdocs build --strict --quiet --config-file scripts/site/mkdocs.yml "$@"
