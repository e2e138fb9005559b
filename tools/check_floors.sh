#!/usr/bin/env bash
# Install the lowest versions that pyproject.toml declares in a fresh environment and run the quick tests.
#   tools/check_floors.sh [lowest|newest] [PYTEST_ARGUMENT ...]    e.g. tools/check_floors.sh lowest tests/models
# `newest` takes the newest versions. Needs uv (pip install uv) and about 8 GB; uv keeps what it fetches in its cache.
# PYTHON names the interpreter (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-lowest}" in
    lowest) resolution=lowest-direct ;;
    newest) resolution=highest ;;
    *) echo "usage: $0 [lowest|newest] [PYTEST_ARGUMENT ...]" >&2; exit 2 ;;
esac
shift $(($# > 0))

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
uv venv --quiet --python "${PYTHON:-python3}" "$work/venv"
uv pip install --quiet --python "$work/venv" --resolution "$resolution" -e '.[test]'
uv pip list --python "$work/venv"
"$work/venv/bin/python" -m pytest -m 'not slow' "$@"
