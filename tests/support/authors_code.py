"""The released networks from the paper's equations alone, in numpy float64 and under their authors' names."""

import numpy as np

from tests.support.naive_attention import attention


def linear(x, weights, name):
    """1 x 1: N x C x H x W -> N x C' x H x W."""
    out = np.einsum("oc,nchw->nohw", weights[f"{name}.weight"][:, :, 0, 0], x)
    return out + weights[f"{name}.bias"][:, None, None] if f"{name}.bias" in weights else out


def affine(weights, name):
    """A batch normalisation with known averages, as scale and shift."""
    scale = weights[f"{name}.weight"] / np.sqrt(weights[f"{name}.running_var"] + 1e-5)
    return scale, weights[f"{name}.bias"] - weights[f"{name}.running_mean"] * scale


def normalised_relu(x, weights, name):
    scale, shift = affine(weights, name)
    return np.maximum(x * scale[:, None, None] + shift[:, None, None], 0)


def layer(x, weights, name, kind, footprint):
    """phi, psi, beta, position and gamma around the loops of naive.py."""
    query, key, value = (linear(x, weights, f"{name}.conv{n}") for n in (1, 2, 3))
    position = None
    if kind == "pairwise":
        height, width = x.shape[2:]
        grid = np.empty((1, 2, height, width))
        grid[0, 0] = np.linspace(-1, 1, width)[None, :]
        grid[0, 1] = np.linspace(-1, 1, height)[:, None]
        encoded = linear(grid, weights, f"{name}.conv_p")[0]
        position = np.stack([encoded, encoded])
    gamma = []
    for norm, mapped in ((0, 2), (3, 5)):
        gamma += [*affine(weights, f"{name}.conv_w.{norm}"), weights[f"{name}.conv_w.{mapped}.weight"][:, :, 0, 0]]
    gamma.append(weights[f"{name}.conv_w.5.bias"])
    relation = {"pairwise": "subtraction", "patchwise": "concatenation"}[kind]
    return attention(kind, query, key, value, position, gamma, relation, footprint, 1, 1)[0]


def logits(pixels, weights, kind, blocks):
    """N x 3 x H x W in [0, 1] and a released state dict without `module.` -> N x classes."""
    weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = (pixels.astype(np.float64) - mean[:, None, None]) / std[:, None, None]
    x = normalised_relu(linear(x, weights, "conv_in"), weights, "bn_in")
    for stage, number in enumerate(blocks):
        n, c, height, width = x.shape
        pairs = x[:, :, : height // 2 * 2, : width // 2 * 2].reshape(n, c, height // 2, 2, width // 2, 2)
        x = linear(pairs.max((3, 5)), weights, f"conv{stage}")
        for block in range(number):
            name = f"layer{stage}.{block}"
            inner = normalised_relu(x, weights, f"{name}.bn1")
            inner = layer(inner, weights, f"{name}.sam", kind, 3 if stage == 0 else 7)
            x = x + linear(normalised_relu(inner, weights, f"{name}.bn2"), weights, f"{name}.conv")
        x = normalised_relu(x, weights, f"bn{stage}")
    return x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


def shapes(blocks, kind="pairwise", classes=1000):
    """Names and shapes of a released checkpoint, from its description alone."""
    found = {}

    def add_linear(name, inner, outer, bias=True):
        found[f"{name}.weight"] = (outer, inner, 1, 1)
        if bias:
            found[f"{name}.bias"] = (outer,)

    def add_norm(name, channels):
        for field in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.{field}"] = (channels,)
        found[f"{name}.num_batches_tracked"] = ()

    add_linear("conv_in", 3, 64, bias=False)
    add_norm("bn_in", 64)
    inner = 64
    for stage, (number, channels) in enumerate(zip(blocks, (64, 256, 512, 1024, 2048), strict=True)):
        add_linear(f"conv{stage}", inner, channels, bias=False)
        add_norm(f"bn{stage}", channels)
        neighbours = 9 if stage == 0 else 49
        for block in range(number):
            name, narrow, wide = f"layer{stage}.{block}", channels // 16, channels // 4
            groups = wide // 8
            add_norm(f"{name}.bn1", channels)
            for transform, width in (("conv1", narrow), ("conv2", narrow), ("conv3", wide)):
                add_linear(f"{name}.sam.{transform}", channels, width)
            if kind == "pairwise":
                delta, hidden, last = narrow + 2, narrow, groups
                add_linear(f"{name}.sam.conv_p", 2, 2)
            else:
                delta, hidden, last = narrow * (neighbours + 1), groups, groups * neighbours
            add_norm(f"{name}.sam.conv_w.0", delta)
            add_linear(f"{name}.sam.conv_w.2", delta, hidden, bias=False)
            add_norm(f"{name}.sam.conv_w.3", hidden)
            add_linear(f"{name}.sam.conv_w.5", hidden, last)
            add_norm(f"{name}.bn2", wide)
            add_linear(f"{name}.conv", wide, channels)
        inner = channels
    found["fc.weight"], found["fc.bias"] = (classes, 2048), (classes,)
    return found
