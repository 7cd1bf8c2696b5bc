#!/usr/bin/env bash
# Trains a teacher, serves it on this machine, trains a student by it and, for comparison, the student alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
out=${1:-output/mnist_distill}
example=examples/mnist_distill/train_with_fleet.py
mkdir -p "$out"

echo "teacher"
$python $example --network convolutional_neural_network --save_serving_model "$out/mnist_cnn_model"

$python -m paddleseg_ext.cli.serve --model "$out/mnist_cnn_model" --thread 1 --port 0 > "$out/serve.log" 2>&1 &
server=$!
trap 'kill $server 2> /dev/null || true; wait $server || true' EXIT
for _ in $(seq 600); do # at most a minute
    teacher=$(grep -oE '127\.0\.0\.1:[0-9]+' "$out/serve.log" | head -n 1) && break
    kill -0 $server 2> /dev/null || { cat "$out/serve.log"; exit 1; }
    sleep 0.1
done

echo "student by the teacher at $teacher"
$python $example --use_distill_service True --distill_teachers "$teacher"
echo "student alone"
$python $example
