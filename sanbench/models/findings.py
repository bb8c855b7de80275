"""FINDINGS: what `sanbench.models.probe` may find of a network, and the sentence that a report has for it."""

FINDINGS: dict[str, str] = {
    "no-gradient": "The gradient of the logits does not reach the pixels: attacks by gradient are refused.",
    "random": "The same images got other logits a second time.",
    "depends-on-batch": "The logits of an image depend on the other images of its batch.",
    "non-finite-logits": "Some logits of random pixels were NaN or infinite.",
}
