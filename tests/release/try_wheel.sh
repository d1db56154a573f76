#!/usr/bin/env bash
# Install the newest wheel of dist/ into an empty environment, and run a short demo there, away from the source tree.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
wheel=$(ls -t "$root"/dist/*.whl | head -1)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --disable-pip-version-check -q -c "$root/constraints.txt" "$wheel[demo]"
cd "$place"
venv/bin/unmask demo --steps 60 --classifier-steps 60 --samples 100
for file in checkpoints config.json metrics.jsonl model.safetensors samples.png decode.gif order.png inpaint.png loss.png report.json; do
    [ -e "runs/demo/$file" ] || { echo "the demo of the wheel did not leave runs/demo/$file"; exit 1; }
done
venv/bin/unmask sample runs/demo --labels 3 --num 4 --steps 4 --out threes.png
[ -s threes.png ] || { echo "the wheel did not sample"; exit 1; }
echo "$(basename "$wheel") works in an empty environment"
