"""One small batch through a network before it is measured: what it gives, and whether measurements of it mean what they say."""

from collections.abc import Callable

import torch
from torch import Tensor

from sanbench.errors import InputError
from sanbench.models.classifier import Classifier
from sanbench.models.external import first_line

SAME = 1e-3  # of the largest logit: far above what sums in another order differ by


def probe(model: Classifier, name: str, side: int) -> tuple[str, ...]:
    """Names of FINDINGS that two images of random pixels, 3 x side x side in [0, 1], show of a network on the CPU.

    Raises InputError, which begins with `name`, where the network raises, where all its logits are NaN or infinite, of a grey
    image too (noise makes maps of a patchwise SAN overflow that has photographs right: nothing bounds its weights), and where
    it does not give float32 logits, a row an image and a column a class.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, side, side, generator=generator)
    directions = torch.randn(2, model.spec.num_classes, generator=generator)
    findings = []
    with torch.random.fork_rng(devices=[]):  # a network's own random numbers change nobody else's
        with torch.no_grad():
            logits = checked(lambda: model(images), model.spec.num_classes, name, side)
            again, alone, grey = model(images), model(images[:1]), model(torch.full_like(images, 0.5))
        if not gradient_reaches(model, images, directions):
            findings.append("no-gradient")
    if not (logits.isfinite() | grey.isfinite()).any():
        raise InputError(f"{name} is not accepted: its logits of random pixels and of grey are all NaN or infinite.")
    if not logits.isfinite().all():
        return (*findings, "non-finite-logits")
    if not same(logits, again):
        findings.append("random")
    elif not same(logits[:1], alone):
        findings.append("depends-on-batch")
    return tuple(findings)


def checked(answer: Callable[[], Tensor], classes: int, name: str, side: int) -> Tensor:
    """The logits that `answer` gives, 2 x classes in float32. Raises InputError where it gives anything else."""
    try:
        logits = answer()
    except Exception as error:  # it may be anybody's code
        raise InputError(f"{name} fails for images of {side} x {side}: {first_line(error)}.") from error
    if not isinstance(logits, Tensor):
        raise InputError(f"{name} is not accepted: it gives {type(logits).__name__}, not logits N x classes.")
    if logits.shape != (2, classes):
        form = " x ".join(map(str, logits.shape)) or "a scalar"
        raise InputError(f"{name} is not accepted: of 2 images it gives {form}, not logits 2 x {classes}.")
    if logits.dtype != torch.float32:
        raise InputError(f"{name} is not accepted: it gives logits of {logits.dtype}, not of torch.float32.")
    return logits


def gradient_reaches(model: Classifier, images: Tensor, directions: Tensor) -> bool:
    """Whether autograd gets from the logits to the pixels. A gradient of zeros counts: attacks count those themselves."""
    images = images.clone().requires_grad_()
    try:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad((model(images) * directions).sum(), images, allow_unused=True)
    except Exception:  # an operator without a backward pass raises NotImplementedError, others what they like
        return False
    return gradient is not None


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= SAME * one.abs().max())
