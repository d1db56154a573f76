# The plain networks of full training are those of orders.md, with seeds 0, 1 and 2: runs/mnist-0, runs/small-0, ...
mnist="--training.batch-size 128"
text="--data tinyshakespeare.txt --model.dim 128 --tokenizer.context 64 --training.batch-size 64 --training.evaluate-every 1000"
split="--model.encoder-depth 2 --model.decoder-depth 2"
measure_digits() {
  unmask score runs/$1 --orders halton --steps 4 8 16 49 --rows 256
  # the classifier of orders.md: runs/mnist-0 trained it, from the same images with the same seed
  unmask sweep runs/$1 --orders halton --temperatures 1 --steps 4 8 16 --samples 2000 --classifier runs/mnist-0/classifier.safetensors
}
measure_text() { unmask score runs/$1 --orders halton --steps 4 8 16 64 --rows 256; }

for s in 0 1 2; do
  unmask train mnist-partition --data mnist $mnist --training.steps 1200 --training.seed $s --out runs/mnist-partition-$s
  measure_digits mnist-partition-$s
  unmask train shakespeare-partition $text $split --training.steps 2000 --training.seed $s --out runs/small-partition-$s
  measure_text small-partition-$s
done
# half of the training, and its own decay of the learning rate
for s in 0 1 2; do
  for network in "" -partition; do
    depth=$([ -z "$network" ] && echo "--model.depth 4" || echo "$split")
    unmask train mnist$network --data mnist $mnist --training.steps 600 --training.seed $s --out runs/mnist-half$network-$s
    measure_digits mnist-half$network-$s
    unmask train shakespeare$network $text $depth --training.steps 1000 --training.seed $s --out runs/small-half$network-$s
    measure_text small-half$network-$s
  done
done
# other divisions of the four blocks
for e in 1 3; do
  unmask train mnist-partition --data mnist $mnist --training.steps 1200 --training.seed 0 \
    --model.encoder-depth $e --model.decoder-depth $((4 - e)) --out runs/mnist-$e+$((4 - e))-0
  measure_digits mnist-$e+$((4 - e))-0
done
