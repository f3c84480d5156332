#!/usr/bin/env bash
# Builds the documentation site in build/site; open build/site/index.html. Installs what it needs. Further flags are
# passed to `mkdocs build`.
set -eu
cd "$(dirname "$0")/.."
environment() { . scripts/environment.sh docs; } # in a function, so that the sourced file does not see this script's flags
environment
export NO_MKDOCS_2_WARNING=1 # an advertisement of the theme
exec "$PYTHON" -m mkdocs build --strict --quiet --config-file scripts/site/mkdocs.yml "$@"
