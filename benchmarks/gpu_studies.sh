#!/bin/bash
# The studies of docs/results.md on one GPU, for a machine that is lent for minutes.
#
#   bash benchmarks/gpu_studies.sh DATA WORK OUT [LANE ...]
#
# DATA    holds cifar10-train (or cifar10-train.npz: opened by many processes, one file beats 50,000), fashion-mnist-20k.npz, ...
# WORK    the studies' folders; the same command goes on with what is left
# OUT     gets NAME.tar.xz of each study as soon as it is finished (benchmarks/collect_study.py), at most 16 MB each
# LANE    cifar, cifar-unconditional, fashion, tiles, brain, satellite (none: these six); gap, efficiency, mixing, degradations
#
# First of all, before the lanes share the machine, the Fréchet distance is timed there (benchmarks/frechet.py, to OUT/frechet.json).
#
# Lanes run at the same time and share the GPU through NVIDIA's multi-process service where that is installed: without it small networks
# leave most of the chip idle. AUTOGUIDANCE_NETWORKS as for third_party_features.py. The exit status is the number of lanes that failed.
set -u
data=$1 work=$2 out=$3
shift 3
[ $# -gt 0 ] || set -- cifar cifar-unconditional fashion tiles brain satellite
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$here/src:$here/benchmarks:${PYTHONPATH:-} OMP_NUM_THREADS=1
python=${PYTHON:-python3} device=${DEVICE:-cuda}
mkdir -p "$work" "$out"
# Whatever is missing shows here, in seconds.
"$python" -m autoguidance study --list > /dev/null && "$python" -c "import third_party_features as t; t.resnet56.sha256, t.mobilenet_v2.sha256" || exit 1

if [ "$device" = cuda ] && command -v nvidia-cuda-mps-control > /dev/null; then
  export CUDA_MPS_PIPE_DIRECTORY=$work/mps CUDA_MPS_LOG_DIRECTORY=$work/mps
  mkdir -p "$work/mps"
  nvidia-cuda-mps-control -d
  trap 'echo quit | nvidia-cuda-mps-control' EXIT
  timeout 60 "$python" -c "import torch; torch.ones(8, device='cuda').sum().item()" || { echo quit | nvidia-cuda-mps-control; trap - EXIT; unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY; }
fi

# Most of this is the textbook's way on the CPU, with all cores.
OMP_NUM_THREADS=$(nproc) timeout 90 "$python" "$here/benchmarks/frechet.py" --device "$device" > "$out/frechet.json" && cut -c 1-2000 "$out/frechet.json"

cifar=$data/cifar10-train.npz
[ -e "$cifar" ] || cifar=$data/cifar10-train
resnet=callable:third_party_features:resnet56 mobilenet=callable:third_party_features:mobilenet_v2
large=(--preset base --images 768Ki --batch 256 --set mirror=true --features $resnet --num 10000 --search-num 2000 --measurements 10)
grey=(--preset small --images 512Ki --batch 256 --features $resnet --search-num 2000 --measurements 10)
little=(--preset small --images 224Ki --batch 256 --features $mobilenet --num 5000 --search-num 1500 --measurements 8 --processes 1 --jobs 3)

lane() {
  local name=$1
  case $name in
    cifar) set -- methods "$cifar" "${large[@]}" --processes 4 --jobs 4 ;;
    cifar-unconditional) set -- unconditional "$cifar" "${large[@]}" --processes 3 --jobs 3 ;;
    fashion) set -- domains "$data/fashion-mnist-20k.npz" "${grey[@]}" --num 10000 --processes 2 --jobs 3 ;;
    tiles) set -- domains "$data/crawl-tiles-32" "${little[@]}" ;;
    brain) set -- domains "$data/brain-mri-64" "${little[@]}" ;;
    satellite) set -- domains "$data/rsscn7-64" "${little[@]}" ;;
    gap) set -- gap "$data/fashion-mnist-20k.npz" "${grey[@]}" --num 5000 --processes 2 --jobs 4 ;;
    efficiency) set -- efficiency "$data/fashion-mnist-20k.npz" "${grey[@]}" --num 5000 --steps 8 --processes 2 --jobs 4 ;;
    mixing | degradations) set -- "$name" "$data/fashion-mnist-20k.npz" "${grey[@]}" --num 3000 --processes 2 --jobs 3 ;;
    *) echo "there is no lane $name"; return 1 ;;
  esac
  # EXTRA: more options, the last of an option counts (a trial: EXTRA="--images 1Ki --batch 32 --num 256 ...").
  # shellcheck disable=SC2086
  "$python" -m autoguidance study "$@" --out "$work/$name" --device "$device" ${EXTRA:-} > "$work/$name.txt" 2>&1 &&
    "$python" "$here/benchmarks/collect_study.py" "$work/$name" "$out/$name.tar.xz" >> "$work/$name.txt" 2>&1
  local status=$?
  echo "$SECONDS s  $name (exit status $status)"
  tail -n 12 "$work/$name.txt" # the table: what is on the screen is not lost with the machine
  return "$status"
}

pids=()
for name in "$@"; do
  lane "$name" &
  pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=$((failed + 1)); done
exit "$failed"
