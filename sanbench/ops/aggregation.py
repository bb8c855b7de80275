"""Aggregation: y_i = sum_{j in R(i)} w_ij * v_j, each weight shared by every G-th channel."""

from torch import Tensor

from sanbench.ops.footprint import Footprint, RowRange


def aggregate(weights: Tensor, value: Tensor) -> Tensor:
    """y_c = sum_k w_{c mod G} * v_c: weights N x G x K x P and values N x C x K x P -> N x C x P.

    Sharing is strided, not blocked: value channel c uses weight channel c mod G (the released kernels' order).
    G divides C.
    """
    groups = weights.shape[1]
    product = value.unflatten(1, (-1, groups)) * weights.unsqueeze(1)  # N x C/G x G x K x P
    return product.sum(3).flatten(1, 2)


def aggregation(
    weights: Tensor, value: Tensor, footprint: int, stride: int, dilation: int, rows: RowRange | None = None
) -> Tensor:
    """y_i = sum_{j in R(i)} w_ij * beta(x_j).

    weights N x G x K x Ho x Wo, value N x C x H x W -> N x C x Ho x Wo, with K = footprint^2.
    """
    window = Footprint(footprint, stride, dilation, rows)
    first, last = rows or (0, None)
    out = aggregate(weights[..., first:last, :].flatten(-2), window.expand(value))
    return out.unflatten(-1, window.output_size(*value.shape[-2:]))
