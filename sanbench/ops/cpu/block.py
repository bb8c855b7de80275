"""A block of a SAN as one step of autograd, from the compiled kernels: in training, and in evaluation by constants.

On small maps it takes longer to call a block's thirty operators, and to differentiate them, than to compute them. The
specification is `sanbench.models.san.Block` as it composes operators. No map is kept but the inputs of what normalises.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sanbench.ops.cpu.fused import compiled, is_dense, is_float32
from sanbench.ops.cpu.kernels import COMPILED, kernel, run_backward, run_forward, served_by
from sanbench.ops.dispatch import LARGEST_FOOTPRINT, RELATION

PROJECTIONS = ("query", "key", "value")
NORMS = ("before", "first_norm", "second_norm", "after")
LAYERS = ("before", *PROJECTIONS, "first_norm", "first", "second_norm", "second", "after", "expand")  # first, second: of gamma


class Settings(NamedTuple):
    build: str
    kind: str  # pairwise or patchwise
    relation: str
    footprint: int
    norms: Mapping[str, nn.BatchNorm2d]  # of NORMS


def block_in_one_step(
    x: Tensor, kind: str, relation: str, footprint: int, layers: Mapping[str, Any], position: Tensor | None
) -> Tensor | None:
    """The block of x N x C x H x W, laid out as x, or None for what the compiled kernels do not serve as a whole.

    `layers` are the normalisations and 1 x 1 convolutions of LAYERS, `position` is the encoded one of pairwise attention.
    In training the running averages move. In evaluation blocks are served whose parameters need no gradient. Tracing,
    autocast and modes that look at single operators are not served.
    """
    if torch.compiler.is_compiling():
        return None
    norms = {name: layers[name] for name in NORMS}
    parameters = [parameter for name in LAYERS for parameter in (layers[name].weight, layers[name].bias)]
    running: list[Any] = [getattr(norm, name) for norm in norms.values() for name in ("running_mean", "running_var")]
    floats = [tensor for tensor in (*parameters, position) if tensor is not None]
    training = norms["before"].training
    served = (
        all(type(norm) is nn.BatchNorm2d and norm.training == training for norm in norms.values())
        and relation == RELATION.get(kind)
        and footprint in range(3, LARGEST_FOOTPRINT + 1, 2)
        and kernel() in COMPILED
        and all(average is not None for average in running)
        and is_float32(x, *floats, *running)
        and all(tensor.is_contiguous() for tensor in (*(p for p in parameters if p is not None), *running))  # read by address
        and is_dense(x)
        and not torch.is_autocast_enabled("cpu")
        and torch._C._len_torch_dispatch_stack() == 0
    )
    if training:  # the operators refuse a batch without a variance
        served = served and len(x) * x.shape[2] * x.shape[3] > 1
    else:
        served = served and not (torch.is_grad_enabled() and any(parameter.requires_grad for parameter in floats))
    if not served:
        return None
    function: Any = TrainingBlock if training else FixedBlock
    settings = Settings(served_by("training_block" if training else "fixed_block", True), kind, relation, footprint, norms)
    out: Tensor = function.apply(settings, x, *parameters, position)
    for norm in norms.values() if training else ():
        norm.num_batches_tracked += 1
    return out


class Parameters:
    """`weight` and `bias` of each of LAYERS, the parts of a projection and the arguments that attention operators share."""

    def __init__(self, settings: Settings, values: tuple[Tensor, ...]) -> None:
        self.weight: dict[str, Tensor] = dict(zip(LAYERS, values[0:-1:2], strict=True))
        self.bias: dict[str, Tensor] = dict(zip(LAYERS, values[1:-1:2], strict=True))
        self.flat = {name: weight.flatten(1) for name, weight in self.weight.items() if weight.dim() == 4}
        self.sizes = [len(self.bias[name]) for name in PROJECTIONS]
        self.shared: dict[str, Any] = {"relation": settings.relation, "footprint": settings.footprint}
        if settings.kind == "pairwise":
            self.shared["position"] = values[-1]

    def parts(self, projected: Tensor) -> dict[str, Tensor]:
        return dict(zip(PROJECTIONS, projected.split(self.sizes, 1), strict=True))

    def pair(self, projected: Tensor, gamma: list[Tensor]) -> dict[str, Any]:
        """Arguments of the statistics operators."""
        parts = self.parts(projected)
        return {"query": parts["query"], "key": parts["key"], "gamma": gamma, **self.shared}


def pixels_by_channels(x: Tensor) -> Tensor:
    """A view of a dense channels-last map."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def attention_arguments(p: Parameters, projected: Tensor, gamma: list[Tensor]) -> dict[str, Any]:
    return {**p.parts(projected), "gamma": gamma, **p.shared}


class FixedBlock(torch.autograd.Function):
    """x N x C x H x W, dense and channels last, float32 -> the same, by running averages. x alone has a gradient."""

    @staticmethod
    def forward(ctx: Any, settings: Settings, x: Tensor, *parameters: Tensor) -> Tensor:
        build, p = settings.build, Parameters(settings, parameters)

        def normalise(name: str) -> list[Tensor]:
            norm = settings.norms[name]
            given = p.weight[name], p.bias[name], norm.running_mean, norm.running_var, {"eps": norm.eps}
            scaled: list[Tensor] = compiled(build, "batch_normalisation", None, *given)
            return scaled

        before, first, second, after = (normalise(name) for name in NORMS)
        weights, biases = ([given[name] for name in PROJECTIONS] for given in (p.flat, p.bias))
        projected = compiled(build, "normalised_linear", x, *before, weights, biases, None)
        gamma = [*first, p.flat["first"], *second, p.flat["second"], p.bias["second"]]
        attended = run_forward(build, f"{settings.kind}_attention", attention_arguments(p, projected, gamma))
        out: Tensor = compiled(build, "normalised_linear", attended, *after, [p.flat["expand"]], [p.bias["expand"]], x)
        if ctx.needs_input_grad[1]:
            ctx.settings, ctx.parameters, ctx.gamma = settings, p, gamma
            ctx.save_for_backward(x, projected, attended, *before, *after)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        settings: Settings = ctx.settings
        build, p = settings.build, ctx.parameters
        x, projected, attended, *scaled = ctx.saved_tensors
        before, after = scaled[:2], scaled[2:]
        grad = grad.contiguous(memory_format=torch.channels_last)
        (to_attended,) = compiled(
            build, "normalised_linear_backward", grad, attended, *after, [p.flat["expand"]], [p.bias["expand"]], False
        )
        to_projected = torch.zeros_like(projected)
        arguments = attention_arguments(p, projected, ctx.gamma)
        run_backward(build, f"{settings.kind}_attention", to_attended, arguments, False, zeros=p.parts(to_projected))
        weights, biases = ([given[name] for name in PROJECTIONS] for given in (p.flat, p.bias))
        (to_x,) = compiled(build, "normalised_linear_backward", to_projected, x, *before, weights, biases, False)
        return None, to_x.add_(grad), *[None] * (2 * len(LAYERS) + 1)


class TrainingBlock(torch.autograd.Function):
    """x N x C x H x W, dense and channels last, float32 -> the same, by the moments of the batch."""

    @staticmethod
    def forward(ctx: Any, settings: Settings, x: Tensor, *parameters: Tensor) -> Tensor:
        build, kind, p = settings.build, settings.kind, Parameters(settings, parameters)
        pixels = x.shape[2] * x.shape[3]
        pairs = pixels * settings.footprint**2 if kind == "pairwise" else pixels
        kept: list[Tensor] = []

        def normalise(name: str, moments: Tensor, values: int) -> list[Tensor]:
            """Scale and shift by the moments of the images, each over `values` numbers."""
            norm = settings.norms[name]
            rest = {"values": values, "momentum": norm.momentum, "eps": norm.eps}
            running = norm.running_mean, norm.running_var
            scaled = compiled(build, "batch_normalisation", moments, p.weight[name], p.bias[name], *running, rest)
            kept.extend([moments, *scaled])
            return scaled

        def linear(x: Tensor, norm: str, names: tuple[str, ...], residual: Tensor | None) -> Tensor:
            scaled = normalise(norm, compiled(build, "channel_moments", x), pixels)
            weights, biases = [p.flat[name] for name in names], [p.bias[name] for name in names]
            out: Tensor = compiled(build, "normalised_linear", x, *scaled, weights, biases, residual)
            return out

        projected = linear(x, "before", PROJECTIONS, None)
        gamma: list[Tensor] = []
        for layer in ("first", "second"):
            moments = run_forward(build, f"{kind}_statistics", p.pair(projected, gamma))
            gamma = [*gamma, *normalise(f"{layer}_norm", moments, pairs), p.flat[layer]]
        gamma.append(p.bias["second"])
        attended = run_forward(build, f"{kind}_attention", attention_arguments(p, projected, gamma))
        out = linear(attended, "after", ("expand",), x)
        ctx.settings = settings
        ctx.save_for_backward(x, projected, attended, *kept, *parameters)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        settings: Settings = ctx.settings
        x, projected, attended, *rest = ctx.saved_tensors
        build, kind, p = settings.build, settings.kind, Parameters(settings, tuple(rest[12:]))
        kept = {name: rest[3 * at : 3 * at + 3] for at, name in enumerate(NORMS)}  # moments, scale, shift
        to_weight: dict[str, Tensor | None] = {}
        to_bias: dict[str, Tensor | None] = {"first": None}

        def normalise(name: str, to_scale: Tensor, to_shift: Tensor) -> Tensor:
            """The gradient of the moments."""
            given = to_scale, to_shift, kept[name][0], p.weight[name], p.bias[name], {"eps": settings.norms[name].eps}
            to_moments, to_weight[name], to_bias[name] = compiled(build, "batch_normalisation_backward", *given)
            return to_moments

        def linear(grad: Tensor, x: Tensor, norm: str, *names: str) -> tuple[Tensor, Tensor, Tensor]:
            """Gradients of weights and biases of the layers `names`, together, and of x."""
            moments, *scaled = kept[norm]
            of_weight = compiled(build, "normalised_linear_weights", grad, x, *scaled)
            (back,) = compiled(
                build, "normalised_linear_backward", grad, x, None, None, [p.flat[name] for name in names], [], False
            )
            to_x, *to_scaled = compiled(build, "normalised_relu_backward", back, x, *scaled, True)
            compiled(build, "channel_moments_backward", normalise(norm, *to_scaled), x, moments, True, to_x)
            return of_weight, pixels_by_channels(grad).sum(0), to_x

        grad = grad.contiguous(memory_format=torch.channels_last)
        to_weight["expand"], to_bias["expand"], to_attended = linear(grad, attended, "after", "expand")
        to_projected = torch.zeros_like(projected)
        to_parts = p.parts(to_projected)
        gamma = [*kept["first_norm"][1:], p.flat["first"], *kept["second_norm"][1:], p.flat["second"], p.bias["second"]]
        arguments = attention_arguments(p, projected, gamma)
        of_attention = run_backward(build, f"{kind}_attention", to_attended, arguments, True, zeros=to_parts)
        *to_first, to_scale, to_shift, to_weight["second"], to_bias["second"] = of_attention["gamma"]
        to_moments = normalise("second_norm", to_scale, to_shift)
        of_second = run_backward(
            build, f"{kind}_statistics", to_moments, p.pair(projected, gamma[:3]), True, kept["second_norm"][0]
        )
        for total, part in zip(to_first, of_second["gamma"], strict=True):
            total += part
        *to_scaled, to_weight["first"] = to_first
        pair, to_moments = p.pair(projected, []), normalise("first_norm", *to_scaled)
        of_first = run_backward(build, f"{kind}_statistics", to_moments, pair, True, zeros=to_parts)  # adds to them
        for name in ("query", "key"):
            to_parts[name] += of_second[name][0]
        to_position = [to for found in (of_attention, of_second, of_first) for to in found.get("position", [])]
        of_weight, of_bias, to_x = linear(to_projected, x, "before", *PROJECTIONS)
        to_weight |= zip(PROJECTIONS, of_weight.split(p.sizes), strict=True)
        to_bias |= zip(PROJECTIONS, of_bias.split(p.sizes), strict=True)
        to_x += grad
        grads = [(to_weight[name], to_bias[name]) for name in LAYERS]
        shaped = (
            None if to is None else to.view_as(parameter)
            for to, parameter in zip((to for both in grads for to in both), rest[12:-1], strict=True)
        )
        return None, to_x, *shaped, torch.stack(to_position).sum(0) if to_position else None
