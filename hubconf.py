"""Entries of torch.hub: torch.hub.load(REPOSITORY, "san15_pairwise", num_classes=10, footprint=5).

Each takes what `sanbench.build_model` takes behind the name, and gives a network with fresh weights from pixels to logits.
"""

from functools import partial

from sanbench.models import build_model

dependencies = ["torch", "torchvision", "numpy", "pydantic", "safetensors"]

resnet26 = partial(build_model, "resnet26")
resnet38 = partial(build_model, "resnet38")
resnet50 = partial(build_model, "resnet50")
san10_pairwise = partial(build_model, "san10_pairwise")
san10_patchwise = partial(build_model, "san10_patchwise")
san15_pairwise = partial(build_model, "san15_pairwise")
san15_patchwise = partial(build_model, "san15_patchwise")
san19_pairwise = partial(build_model, "san19_pairwise")
san19_patchwise = partial(build_model, "san19_patchwise")
