#!/bin/sh
# Every benchmark, one after the other, saved in bench/results/; about 30 minutes on 2 quiet cores.
#   PYTHON=.venv/bin/python bench/run_all.sh
set -e
cd "$(dirname "$0")/.."
for name in startup quickstart calibration plan convert preset_sets engine_plans latency rtx analyze predict rounding_chaos page audit_matrix qat; do
    "${PYTHON:-python}" "bench/$name.py" --save
    echo
done
