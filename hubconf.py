"""Entries of torch.hub, every network of MODELS: torch.hub.load(REPOSITORY, "san15_pairwise", num_classes=10, footprint=5).

Each takes what `sanbench.build_model` takes behind the name, and gives a network with fresh weights from pixels to logits.
"""

from functools import partial as _partial  # torch.hub lists every callable without an underscore

from sanbench.models import MODELS as _MODELS
from sanbench.models import build_model as _build_model

dependencies = ["torch", "torchvision", "numpy", "pydantic", "safetensors"]
globals().update({name: _partial(_build_model, name) for name in _MODELS})
