small="--model.dim 128 --model.depth 4 --tokenizer.context 64 --training.batch-size 64 --training.evaluate-every 1000"
orders="halton margin-repulsion margin entropy confidence-without-noise raster random"
sweep="--orders confidence halton margin-repulsion margin entropy random raster --noises 4.5 --temperatures 1"
for s in 0 1 2; do
  unmask train shakespeare --data tinyshakespeare.txt $small --training.steps 2000 --training.seed $s --out runs/small-$s
  unmask score runs/small-$s --orders $orders --steps 4 8 16 32 --rows 256

  unmask train mnist --data mnist --training.steps 1200 --training.batch-size 128 --training.seed $s --out runs/mnist-$s
  unmask score runs/mnist-$s --orders $orders --steps 4 8 16 --rows 256
  # seed 0 runs first, without --classifier: it trains the classifier that all use
  unmask sweep runs/mnist-$s $sweep --steps 4 8 16 --samples 2000 --classifier runs/mnist-0/classifier.safetensors

  unmask train cifar10 --data codes/cifar10 --model.dim 192 --model.depth 4 --training.steps 1500 \
    --training.evaluate-every 1500 --training.seed $s --out runs/cifar-small-$s
  unmask score runs/cifar-small-$s --orders $orders --steps 4 8 16 --rows 256
  unmask sweep runs/cifar-small-$s $sweep --steps 8 --scales 1 6 --ramp linear --samples 1000 --classifier runs/cifar10-features
done
# the fully trained run of cifar10.md
unmask score runs/cifar10 --orders $orders --steps 4 8 16 --rows 96 --passes 8
unmask sweep runs/cifar10 $sweep --steps 8 --scales 6 --ramp linear --samples 1000 --classifier runs/cifar10-features
unmask sweep runs/cifar10 --orders halton margin-repulsion --temperatures 0.9 --steps 8 --scales 6 --ramp linear \
  --samples 1000 --classifier runs/cifar10-features --out runs/cifar10/sweep-temperature
