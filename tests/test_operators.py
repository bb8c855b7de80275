"""Operators against loops over numbers, and against what torch asks of an operator."""

import numpy as np
import pytest
import torch
from torch.library import opcheck

from sanbench.errors import InputError
from sanbench.ops.footprint import Footprint
from sanbench.ops.operator import tile_size
from sanbench.relation import RELATIONS
from tests.support import naive_attention
from tests.support.operator_cases import to

ops = torch.ops.sanbench
KINDS = [(kind, relation) for kind, table in RELATIONS.items() for relation in table]
GEOMETRIES = [  # height, width, footprint, stride, dilation
    (5, 7, 3, 1, 1),
    (1, 1, 7, 1, 1),
    (2, 3, 7, 1, 1),
    (1, 6, 5, 2, 1),
    (4, 5, 3, 2, 3),
    (6, 3, 1, 1, 1),
    (7, 7, 5, 3, 2),
]


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng((seed, *shape)).standard_normal(shape))


def layer(kind, relation, geometry, depth=2, images=2, narrow=4, groups=2, channels=6):
    """Random arguments of an attention operator, in the operator's order."""
    height, width, size, stride, dilation = geometry
    query, key = draw(images, narrow, height, width, seed=1), draw(images, narrow, height, width, seed=2)
    value = draw(images, channels, height, width, seed=3)
    if kind == "scalar":
        return (query, key, value, groups, size, stride, dilation)
    position = draw(2, 2, height, width, seed=4) if kind == "pairwise" else None
    widths = [RELATIONS[kind][relation].channels(narrow, size**2) + (2 if kind == "pairwise" else 0)]
    widths += [3] * (depth - 1) + [groups * (size**2 if kind == "patchwise" else 1)]
    gamma = []
    for seed, (inner, outer) in enumerate(zip(widths, widths[1:])):
        gamma += [draw(inner, seed=seed), draw(inner, seed=9 + seed), draw(outer, inner, seed=seed) / inner**0.5]
    gamma.append(draw(widths[-1], seed=5))
    shared = (position, gamma) if kind == "pairwise" else (gamma,)
    return (query, key, value, *shared, relation, size, stride, dilation)


def operator(kind, statistics=False):
    return getattr(ops, f"{kind}_{'statistics' if statistics else 'attention'}")


def as_statistics(arguments, prefix):
    """The arguments of the statistics operator: no value, and gamma without bias up to `prefix` linears."""
    query, key, _, *rest = arguments
    return (query, key, *[item[: 3 * prefix] if isinstance(item, list) else item for item in rest])


def loops(kind, arguments):
    """The same by loops; `arguments` as the operator takes them."""
    numbers = [[t.numpy() for t in a] if isinstance(a, list) else a.numpy() if torch.is_tensor(a) else a for a in arguments]
    query, key, value, *rest = numbers
    position = rest.pop(0) if kind == "pairwise" else None
    gamma = rest.pop(0) if kind != "scalar" else None
    return naive_attention.attention(kind, query, key, value, position, gamma, *rest)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("kind", "relation"), [*KINDS, ("scalar", None)])
def test_attention_equals_loops(kind, relation, geometry):
    arguments = layer(kind, relation, geometry)
    torch.testing.assert_close(operator(kind)(*arguments), torch.from_numpy(loops(kind, arguments)[0]))


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize(("kind", "relation"), KINDS)
def test_gamma_depths_equal_loops(kind, relation, depth):
    arguments = layer(kind, relation, (3, 4, 3, 1, 1), depth)
    torch.testing.assert_close(operator(kind)(*arguments), torch.from_numpy(loops(kind, arguments)[0]))


@pytest.mark.parametrize("linears", [0, 1])
@pytest.mark.parametrize("geometry", GEOMETRIES[:4], ids=str)
@pytest.mark.parametrize(("kind", "relation"), KINDS)
def test_statistics_equal_loops(kind, relation, geometry, linears):
    arguments = layer(kind, relation, geometry)
    partial = as_statistics(arguments, linears)
    gamma_at = 4 if kind == "pairwise" else 3
    prefix = arguments[gamma_at][: 3 * linears]
    _, mapped = loops(kind, (*arguments[:gamma_at], prefix, *arguments[gamma_at + 1 :]))
    values = torch.from_numpy(np.array(mapped))  # N x positions x D
    expected = torch.stack([values.mean(1), values.var(1, correction=0)], 1)
    torch.testing.assert_close(operator(kind, True)(*partial), expected)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_aggregation_equals_loops(geometry):
    height, width, size, stride, dilation = geometry
    grid = Footprint(size, stride, dilation).output_size(height, width)
    weights, value = draw(2, 3, size**2, *grid), draw(2, 6, height, width)
    expected = torch.zeros(2, 6, *grid, dtype=torch.double)
    for n in range(2):
        for y in range(grid[0]):
            for x in range(grid[1]):
                pixels = naive_attention.footprint(y * stride, x * stride, height, width, size, dilation)
                values = np.array([value[n, :, v, u].numpy() for v, u in pixels])
                expected[n, :, y, x] = torch.from_numpy(naive_attention.weighted(weights[n, :, :, y, x].numpy(), values))
    torch.testing.assert_close(ops.aggregation(weights, value, size, stride, dilation), expected)


def test_weights_are_shared_by_stride_not_in_blocks():
    """Two weight channels, 1 and 0: strided sharing keeps channels 0, 2, 4; blocked sharing would keep 0, 1, 2."""
    weights = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1)
    value = torch.arange(1.0, 7.0).view(1, 6, 1, 1)
    assert ops.aggregation(weights, value, 1, 1, 1).flatten().tolist() == [1, 0, 3, 0, 5, 0]


def test_images_of_a_batch_do_not_meet_and_tiles_do_not_show():
    arguments = layer("pairwise", "subtraction", (5, 5, 3, 1, 1), images=7)
    whole = ops.pairwise_attention(*arguments)
    with tile_size(1):  # one image a tile
        torch.testing.assert_close(ops.pairwise_attention(*arguments), whole)
    query, key, value, *rest = arguments
    torch.testing.assert_close(ops.pairwise_attention(query[3:4], key[3:4], value[3:4], *rest), whole[3:4])


def every_operator():
    for kind, relation in [*KINDS, ("scalar", None)]:
        arguments = layer(kind, relation, (3, 4, 3, 1, 1))
        yield pytest.param(operator(kind), arguments, id=f"{kind}-{relation}")
        if kind != "scalar":
            for prefix in (0, 1):
                name = f"{kind}-{relation}-statistics{prefix}"
                yield pytest.param(operator(kind, True), as_statistics(arguments, prefix), id=name)
    yield pytest.param(ops.aggregation, (draw(2, 2, 9, 3, 4), draw(2, 4, 3, 4), 3, 1, 1), id="aggregation")


def requiring_grad(arguments):
    def leaf(t):
        return t.clone().requires_grad_()

    return tuple([leaf(t) for t in a] if isinstance(a, list) else leaf(a) if torch.is_tensor(a) else a for a in arguments)


@pytest.mark.parametrize(("op", "arguments"), list(every_operator()))
def test_torch_accepts_the_operator(op, arguments):
    outcome = opcheck(op.default, requiring_grad(arguments))
    assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("op", "arguments"), list(every_operator()))
def test_gradients_equal_differences(op, arguments):
    arguments = requiring_grad(arguments)
    leaves, structure = torch.utils._pytree.tree_flatten(arguments)
    tensors = [leaf for leaf in leaves if torch.is_tensor(leaf)]

    def function(*chosen):
        values = iter(chosen)
        return op(*structure.unflatten([next(values) if torch.is_tensor(leaf) else leaf for leaf in leaves]))

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)


def test_gradients_come_only_for_what_asks():
    query, key, value, position, gamma, *rest = layer("pairwise", "subtraction", (4, 4, 3, 1, 1))
    key.requires_grad_()
    gamma[2].requires_grad_()
    ops.pairwise_attention(query, key, value, position, gamma, *rest).square().sum().backward()
    assert query.grad is None
    assert gamma[0].grad is None
    every = requiring_grad((query.detach(), key.detach(), value, position, [g.detach() for g in gamma]))
    ops.pairwise_attention(*every, *rest).square().sum().backward()
    torch.testing.assert_close(key.grad, every[1].grad)
    torch.testing.assert_close(gamma[2].grad, every[4][2].grad)


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_compiles_and_exports(kind):
    arguments = layer(kind, "concatenation", (4, 5, 3, 1, 1))
    expected = operator(kind)(*arguments)

    class Layer(torch.nn.Module):
        def forward(self, query, key, value, *rest):
            return operator(kind)(query, key, value, *rest) * 2

    compiled = torch.compile(Layer(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), expected * 2)
    exported = torch.export.export(Layer(), arguments).module()
    torch.testing.assert_close(exported(*arguments), expected * 2)


@pytest.mark.parametrize(("kind", "relation"), KINDS)
def test_relations_differentiate(kind, relation):
    entry = RELATIONS[kind][relation]
    query = draw(2, 3, 4 if entry.expands_query else 1, 5).requires_grad_()
    key = draw(2, 3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(entry.delta, (query, key))
    assert entry.delta(query, key).shape[1] == entry.channels(3, 4)


def replaced(arguments, **changes):
    """Arguments of an operator with some exchanged, by position in the tuple."""
    values = list(arguments)
    for at, value in changes.items():
        values[int(at[1:])] = value(values[int(at[1:])])
    return tuple(values)


REFUSED = [  # operator, its arguments, what the sentence names
    ("pairwise", {"_0": lambda q: q.long()}, "query with torch.int64"),
    ("pairwise", {"_2": lambda v: v.float()}, "value with torch.float32"),
    ("pairwise", {"_1": lambda k: k.to("meta")}, "key with meta"),
    ("pairwise", {"_0": lambda q: q[:0], "_1": lambda k: k[:0], "_2": lambda v: v[:0]}, "query with 0 x 4"),
    ("pairwise", {"_1": lambda k: k[:, :3]}, "key with 2 x 3 x 4 x 5"),
    ("pairwise", {"_2": lambda v: v[:, :, :3]}, "value with 2 x 6 x 3 x 5"),
    ("pairwise", {"_2": lambda v: v[:, :5]}, "2 weight channels .* divisor of value's 5 channels"),
    ("pairwise", {"_3": lambda p: p[:, :, :3]}, "position with 2 x 2 x 3 x 5"),
    ("pairwise", {"_4": lambda g: g[:-1]}, "gamma with 6 tensors"),
    ("pairwise", {"_4": lambda g: [g[0][:3], *g[1:]]}, r"gamma\[0\] with 3"),
    ("pairwise", {"_5": lambda r: "subtract"}, "Did you mean 'subtraction'"),
    ("pairwise", {"_6": lambda k: 4}, "footprint 4"),
    ("patchwise", {"_5": lambda k: 5}, r"gamma\[0\] with 40"),
    ("patchwise", {"_2": lambda v: v[:, :5]}, "9 times a divisor of value's 5"),
    ("scalar", {"_3": lambda h: 3}, "heads with 3"),
]


@pytest.mark.parametrize("dtype", [torch.double, torch.float], ids=str)
@pytest.mark.parametrize(("kind", "changes", "named"), REFUSED, ids=[named for *_, named in REFUSED])
def test_arguments_that_do_not_fit_are_named(kind, changes, named, dtype):
    """By the compiled kernels' way in (float) as by the specification's (double)."""
    relation = {"pairwise": "subtraction", "patchwise": "concatenation", "scalar": None}[kind]
    arguments = layer(kind, relation, (4, 5, 3, 1, 1))
    if dtype is torch.float:
        named = named.replace("torch.float32", "torch.float64")
        changes = {at: (lambda v: v.double()) if "float64" in named else change for at, change in changes.items()}
    with pytest.raises(InputError, match=named):
        operator(kind)(*replaced(tuple(to(list(arguments), dtype)), **changes))


def test_weights_that_do_not_fit_are_named():
    with pytest.raises(InputError, match="weights with 2 x 4 x 9 x 3 x 4"):
        ops.aggregation(draw(2, 4, 9, 3, 4), draw(2, 6, 3, 4), 3, 1, 1)


@pytest.mark.parametrize(
    ("geometry", "named"),
    [((4, 1, 1), "footprint 4"), ((0, 1, 1), "footprint 0"), ((3, 0, 1), "stride 0"), ((3, 1, 0), "dilation 0")],
)
def test_impossible_geometry_is_named(geometry, named):
    with pytest.raises(InputError, match=named):
        Footprint(*geometry)
