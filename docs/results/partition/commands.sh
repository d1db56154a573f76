# --training.compile changes the rounding alone; the runs mnist-0, mnist-partition-0, small-0, small-partition-0 and
# small-half-0 were trained without it
mnist="--data mnist --training.batch-size 128 --training.compile"
text="--data tinyshakespeare.txt --model.dim 128 --tokenizer.context 64 --training.batch-size 64
  --training.evaluate-every 1000 --training.compile"
split="--model.encoder-depth 2 --model.decoder-depth 2"
measure_digits() {
  unmask score runs/$1 --orders halton --steps 4 8 16 49 --rows 256
  # mnist-0 comes first, without --classifier: it trains the classifier that all use
  unmask sweep runs/$1 --orders halton --temperatures 1 --steps 4 8 16 --samples 2000 --classifier runs/mnist-0/classifier.safetensors
}
measure_text() { unmask score runs/$1 --orders halton --steps 4 8 16 64 --rows 256; }

for s in 0 1 2; do
  unmask train mnist $mnist --training.steps 1200 --training.seed $s --out runs/mnist-$s
  unmask train mnist-partition $mnist --training.steps 1200 --training.seed $s --out runs/mnist-partition-$s
  unmask train shakespeare $text --model.depth 4 --training.steps 2000 --training.seed $s --out runs/small-$s
  unmask train shakespeare-partition $text $split --training.steps 2000 --training.seed $s --out runs/small-partition-$s
  for run in mnist-$s mnist-partition-$s; do measure_digits $run; done
  for run in small-$s small-partition-$s; do measure_text $run; done
done
# half of the training, with its own decay of the learning rate
unmask train shakespeare $text --model.depth 4 --training.steps 1000 --out runs/small-half-0
unmask train shakespeare-partition $text $split --training.steps 1000 --out runs/small-half-partition-0
for run in small-half-0 small-half-partition-0; do measure_text $run; done
# a wider partition model, which still samples in less time than the plain network
unmask train mnist-partition $mnist --training.steps 1200 --model.dim 192 --model.heads 6 --out runs/mnist-wide-0
measure_digits mnist-wide-0
# tokens of CIFAR-10; the tokenizer has 1,500 training steps, where the recipe has 4,000
unmask train-tokenizer cifar10-tokenizer --data DIR --training.steps 1500
unmask tokenize runs/cifar10-tokenizer --out codes/cifar10
photos="--data codes/cifar10 --model.dim 192 --training.steps 1000 --training.compile --training.evaluate-every 500"
unmask train cifar10 $photos --model.depth 4 --out runs/cifar10-0
unmask train cifar10-partition $photos $split --out runs/cifar10-partition-0
for run in cifar10-0 cifar10-partition-0; do measure_text $run; done
