# docs/results/partition/commands.sh trains these runs
unmask tune runs/mnist-0 --passes 4 8
unmask tune runs/mnist-1 --passes 4
unmask tune runs/small-0 --passes 2 4 8 16
unmask tune runs/cifar10-0 --passes 2 4 8 16 --rows 300 --trials 0
# the sampler of MaskGIT at 16 passes, with several guidance scales, constant and rising
rival="--orders confidence --noises 4.5 --schedules cosine --steps 16 --temperatures 1 --tune 0 --samples 5000 --seed 1"
unmask sweep runs/mnist-0 $rival --scales 1.3 1.6 2 --ramp linear --out runs/mnist-0/rival
unmask sweep runs/mnist-0 $rival --scales 1.3 --ramp constant --out runs/mnist-0/rival
unmask sweep runs/mnist-0 $rival --scales 1 1.15 --ramp linear --out runs/mnist-0/rival
