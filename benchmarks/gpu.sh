#!/usr/bin/env bash
# Every GPU test and benchmark, in parts of at most nine minutes; ends with a table of what ran and what did not.
#
#   benchmarks/gpu.sh [PART ...]     the named parts, by default all, one after another
#
# PYTHON  an environment with CUDA torch, triton, pytest, pytest-benchmark and this package; default .venv/bin/python
# OUT     where logs and rows are left; default out/gpu
# COMMIT  what the rows say they measured, where there is no git to ask
# LIMIT   seconds a part may take
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${OUT:-out/gpu}
limit=${LIMIT:-530}
all=(doctor core kernels ops bundled sd15-b1 sd15-b4 sd15-b16 sdxl)

core() {
  cmake -S . -B "$out/core" -DINVFAST_CUDA=ON && cmake --build "$out/core" --parallel &&
    ctest --test-dir "$out/core" --output-on-failure
}

run() {  # run PART: its command
  case $1 in
    doctor) "$python" -c "from invfast.cli import main; main()" doctor ;;
    core) core ;;
    kernels) "$python" -m pytest -q -p no:xdist tests/test_gpu.py tests/test_ops.py ;;
    ops) "$python" -m pytest -q -p no:xdist --timeout=0 --benchmark-only benchmarks/test_ops.py ;;
    *) "$python" -m benchmarks.latency "$1" ;;
  esac
}

if [ "${1:-}" = --run ]; then  # the script calls itself, for timeout takes no function
  run "$2"
  exit
fi
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=("${all[@]}")
for part in "${parts[@]}"; do
  [[ " ${all[*]} " == *" $part "* ]] || { echo "unknown part $part; expected some of ${all[*]}" >&2; exit 2; }
done

"$python" - <<'P' || exit 1
import sys, torch
if not torch.cuda.is_available():
    sys.exit(f"no CUDA device: torch {torch.__version__} sees none; run this where nvidia-smi shows one")
print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda)
P

mkdir -p "$out"
states=() failed=0
for part in "${parts[@]}"; do
  log=$out/$part.log began=$SECONDS
  PYTHON=$python OUT=$out timeout "$limit" benchmarks/gpu.sh --run "$part" >"$log" 2>&1
  code=$?
  case $code in
    0) state="ran: $(tail -n 1 "$log")" ;;
    5) state="not run: nothing was selected" ;;
    124) state="stopped after $limit s, see $log" ;;
    *) state="failed ($code), see $log" ;;
  esac
  [ $code -eq 0 ] || failed=1
  states+=("$(printf '%-9s %4d s  %s' "$part" $((SECONDS - began)) "$state")")
  grep -h '^|' "$log"  # its tables
  cp -f out/bench/gpu*.jsonl "$out" 2>/dev/null  # what has been measured so far, also if a later part is cut off
done

printf '\npart       took  state\n'
printf '%s\n' "${states[@]}"
exit $failed
