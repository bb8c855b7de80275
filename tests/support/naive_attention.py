"""The paper's equations as loops over numpy float64 numbers, written without the library: what operators are held to."""

import numpy as np


def bounce(index, size):
    """Where a walk of `index` steps from pixel 0 ends when it turns round at both borders."""
    while not 0 <= index < size:
        if size == 1:
            return 0
        index = -index if index < 0 else 2 * (size - 1) - index
    return index


def footprint(y, x, height, width, size, dilation):
    """The pixels of R(i), row by row."""
    reach = [dilation * (step - size // 2) for step in range(size)]
    return [(bounce(y + dy, height), bounce(x + dx, width)) for dy in reach for dx in reach]


def gamma_of(delta, gamma):
    """W relu(scale * delta + shift) for each linear, plus the last bias."""
    for scale, shift, weight in zip(gamma[0::3], gamma[1::3], gamma[2::3]):
        delta = weight @ np.maximum(scale * delta + shift, 0)
    return delta + gamma[-1] if len(gamma) % 3 else delta


def softmax(scores):
    """Over the last axis."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


PAIRWISE = {
    "summation": lambda a, b: a + b,
    "subtraction": lambda a, b: a - b,
    "concatenation": lambda a, b: np.concatenate([a, b]),
    "hadamard": lambda a, b: a * b,
    "dot": lambda a, b: np.array([a @ b]),
}
PATCHWISE = {  # of phi at i, phi on the footprint (K x R), psi on the footprint (K x R)
    "star": lambda a, phis, psis: psis @ a,
    "clique": lambda a, phis, psis: (phis @ psis.T).ravel(),
    "concatenation": lambda a, phis, psis: np.concatenate([a, psis.T.ravel()]),
}


def weighted(weights, values):
    """y_c = sum_k w[c mod G, k] v[k, c]: weights G x K, values K x C."""
    groups = len(weights)
    return np.array([weights[c % groups] @ values[:, c] for c in range(values.shape[1])])


def attention(kind, query, key, value, position, gamma, relation, size, stride, dilation):
    """Output N x C x Ho x Wo, and what gamma made of every delta (N lists of vectors, for the statistics)."""
    images, channels, height, width = value.shape
    grid = [(y, x) for y in range(0, height, stride) for x in range(0, width, stride)]
    out, mapped = np.zeros((images, channels, len(grid))), []
    for n in range(images):
        mapped.append([])
        for p, (y, x) in enumerate(grid):
            pixels = footprint(y, x, height, width, size, dilation)
            psis = np.array([key[n, :, v, u] for v, u in pixels])
            values = np.array([value[n, :, v, u] for v, u in pixels])
            here = query[n, :, y, x]
            if kind == "scalar":  # `relation` is the number of heads
                heads = relation
                scores = [[here[h::heads] @ psi[h::heads] / (len(here) / heads) ** 0.5 for psi in psis] for h in range(heads)]
                weights = softmax(np.array(scores))
            elif kind == "pairwise":
                deltas = [PAIRWISE[relation](here, psi) for psi in psis]
                if position is not None:
                    offsets = [position[0, :, y, x] - position[1, :, v, u] for v, u in pixels]
                    deltas = [np.concatenate(pair) for pair in zip(deltas, offsets)]
                columns = [gamma_of(delta, gamma) for delta in deltas]
                mapped[n] += columns
                weights = softmax(np.array(columns).T)
            else:
                phis = np.array([query[n, :, v, u] for v, u in pixels])
                column = gamma_of(PATCHWISE[relation](here, phis, psis), gamma)
                mapped[n].append(column)
                weights = column.reshape(-1, size * size) if len(column) % size**2 == 0 else np.ones((1, size * size))
            out[n, :, p] = weighted(weights, values)
    return out.reshape(images, channels, len(range(0, height, stride)), -1), mapped
