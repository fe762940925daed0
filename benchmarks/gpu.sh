#!/usr/bin/env bash
# Every GPU test and benchmark in one call, for the day there is a GPU; ends with a table of what ran and what did not.
#
#   benchmarks/gpu.sh [PYTHON]     an environment with CUDA torch, triton and this package; default .venv/bin/python
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
out=${OUT:-out/gpu}
mkdir -p "$out"

"$python" - <<'P' || exit 1
import sys, torch
if not torch.cuda.is_available():
    sys.exit(f"no CUDA device: torch {torch.__version__} sees none; run this where nvidia-smi shows one")
print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda)
P

names=() states=()
part() {  # part NAME COMMAND...: runs it, keeps its output, remembers how it ended
  local name=$1 code
  shift
  "$@" >"$out/$name.log" 2>&1
  code=$?
  names+=("$name")
  case $code in
    0) states+=("ran: $(tail -n 1 "$out/$name.log")") ;;
    5) states+=("not run: nothing was selected") ;;
    *) states+=("failed ($code), see $out/$name.log") ;;
  esac
}

part doctor "$python" -c "from invfast.cli import main; main()" doctor
part core cmake -S . -B "$out/core" -DINVFAST_CUDA=ON
part core-build cmake --build "$out/core" --parallel
part ctest ctest --test-dir "$out/core" --output-on-failure
part kernels "$python" -m pytest -q -p no:xdist tests/test_gpu.py tests/test_ops.py
part ops "$python" -m pytest -q -p no:xdist --timeout=0 --benchmark-only benchmarks/test_ops.py
part latency "$python" -m benchmarks.latency

printf '\n%-12s %s\n' part state
for i in "${!names[@]}"; do printf '%-12s %s\n' "${names[$i]}" "${states[$i]}"; done
