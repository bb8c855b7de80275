"""What networks and their parts cost, as records of the store, and what the GPU's kernels need. Only commands import it."""

BENCHMARKS = {
    "model": "steps of a SAN against its ResNet, and their memory",
    "ops": "attention layers of each stage by kernel",
    "evaluate": "the evaluation loop against the network's own passes",
    "standard": "the ensemble `standard` against the official AutoAttack, image by image",
    "train": "steps of the training loop, and the shares of their parts",
    "pipeline": "images a second, waiting and memory of evaluation beside the network",
    "attacks": "seconds, passes and memory of each attack on photographs",
    "protocol": "what all measurements of a network would take, by command",
    "workers": "two workers on a study's measurements against one, and claims against parts",
    "corruptions": "corruptions of images, against imagecorruptions",
    "startup": "whole commands as processes of their own",
    "data": "decoders and the whole input pipeline against torchvision's ImageFolder",
}
