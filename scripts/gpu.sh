#!/usr/bin/env bash
# All that needs a GPU, in one go and without a network: scripts/gpu.sh OUT [--cpu]
#
# No failure of a step ends it. OUT gets log.txt, with all that the steps print, and result.json, with the exit code and
# the seconds of each. Wheels in .whl/, of packages that are not installed, are unpacked beside. --cpu tries the script.
set -u
out=${1:?usage: scripts/gpu.sh OUT [--cpu]}
mkdir -p "$out" && out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
device=cuda:0 backbones="resnet50 vit_b_16 mobilenet_v3_small" precision=bf16
[ "${2:-}" = --cpu ] && device=cpu backbones=mobilenet_v3_small precision=fp32
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python
python=${PYTHON:-$python}
: >"$out/log.txt"
echo "[" >"$out/result.json"

# Runs a command for at most so many seconds: step NAME SECONDS COMMAND…
step() {
    local name=$1 limit=$2 begin=$SECONDS code
    shift 2
    echo "== $name: $*" >>"$out/log.txt"
    timeout --kill-after 10 "$limit" "$@" >>"$out/log.txt" 2>&1
    code=$?
    echo "$name: exit code $code, $((SECONDS - begin)) s"
    echo "  {\"step\": \"$name\", \"exit_code\": $code, \"seconds\": $((SECONDS - begin))}," >>"$out/result.json"
}

# Packages from wheels, and the version of embedx where it is not installed.
mkdir -p "$work/site/embedx-0.dist-info"
for wheel in .whl/*.whl; do [ -e "$wheel" ] && "$python" -m zipfile -e "$wheel" "$work/site"; done
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
printf 'Metadata-Version: 2.1\nName: embedx\nVersion: %s\n' "$version" >"$work/site/embedx-0.dist-info/METADATA"
export PYTHONPATH="$PWD:$work/site"

extract=("$python" -m embedx extract --backbone resnet18 --weights random --precision "$precision" -b 16
    --shard-size 64KiB)
shards() { (cd "$1" && find . -name '*.safetensors' -exec sha256sum {} + | sort); }
same() { [ -n "$(shards one)" ] && [ "$(shards one)" = "$(shards "$1")" ] && shards "$1" | wc -l; }
export -f shards same

step card 60 "$python" -c "import torch, sys; print(sys.version, torch.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())"
step tests 200 "$python" -m pytest -m gpu -q -ra -p no:cacheprovider --continue-on-collection-errors tests/test_gpu.py tests/callbacks tests/data/decoding
step "one process" 120 "${extract[@]}" --out "$work/one" --devices "$device"
step "two members on one device" 120 "${extract[@]}" --out "$work/two" --devices "$device,$device"
step "their bytes" 10 bash -c "cd $work && same two"
"${extract[@]}" --out "$work/killed" --devices "$device,$device" >>"$out/log.txt" 2>&1 &
victim=$!
for _ in $(seq 600); do [ -n "$(find "$work/killed" -name '*.parquet' 2>/dev/null)" ] && break; sleep 0.1; done
kill -KILL "$victim"
wait "$victim" 2>/dev/null
step "after a kill" 120 "${extract[@]}" --out "$work/killed" --devices "$device"
step "its bytes" 10 bash -c "cd $work && same killed"
for backbone in $backbones; do
    step "rates of $backbone" 150 "$python" scripts/bench.py measure --backbone "$backbone" --precision "$precision" --rounds 1 --json
done
sed -i '$ s/,$//' "$out/result.json"
echo "]" >>"$out/result.json"
