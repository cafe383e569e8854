"""What the backward pass does at each nonlinear place: gradients, or relevance coefficients in their stead.

A rule changes what flows back and never a value of the forward pass. With the plain gradient everywhere, gradient
times difference is attribution patching (Nanda 2023; Kramár et al. 2024, arXiv 2403.00745). With the rules of
layer-wise relevance propagation, it is relevance patching, RelP (Jafari et al. 2025, arXiv 2508.21258).

| place | rule | source |
|---|---|---|
| norm | `constant`: the scale is a constant, so the norm is linear | LN-rule [1, sec. 3.2] |
| activation | `identity`: f(x) = x (f(x) / x) with the factor a constant | AttnLRP [2, eq. 9] |
| activation | `secant`: the slope between this run and the other prompt's | DeepLIFT's Rescale rule [3, sec. 3.5.2] |
| gate | `half`: of a product a b, half of what comes back goes to each factor | AttnLRP [2, prop. 3.2, uniform rule] |
| gate | `midpoint`: each factor gets the other one's mean over the two runs | Shapley value of a product [4] |
| norm, attention | `secant`: exact between the two runs, see below | after [3] and [4] |
| attention | `constant`: the pattern is a constant | AH-rule [1, sec. 3.1] |
| attention | `attnlrp`: half to the values, a quarter each to q and k | AttnLRP [2, props. 3.1 and 3.3] |
| router | `constant`: a mixture's weights are constants, so that all goes back to the experts | after AH-rule [1] |
| linear | `epsilon`: z / (z + eps sign z) of what comes back | Bach et al. 2015, eq. 58 |
| linear | `gamma`: contributions of the output's own sign count 1 + gamma times | Montavon et al. 2019, sec. 10.2.1 |

[1] Ali et al. 2022, arXiv 2202.07304. [2] Achtibat et al. 2024, arXiv 2402.05602. [3] Shrikumar et al. 2017, arXiv
1704.02685. [4] Lundberg and Lee 2017, arXiv 1705.07874.

The rules that look at both runs are exact for what they replace: what a part's output changes by between the runs is
the rule's coefficients times what its inputs change by. Products take the midpoint of the two runs (the Shapley value
of a product), functions of one variable the slope between them; a norm is its input times a function of its mean
square; of a softmax, with L_j = (p'_j - p_j) / (ln p'_j - ln p_j), the change of p_i is
L_i (ds_i - sum_j L_j ds_j / sum_j L_j), which follows from sum_i dp_i = 0. In the set `secant` all parts have such
rules, so the estimates of any complete cut (the residual stream at all positions) add up to the metric's difference,
if the metric is linear in the logits.

AttnLRP's softmax rule (its prop. 3.1) is the plain gradient times input, so nothing is changed at the softmax itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from interp.engine.norms import Factor
from interp.engine.rule_sets import GRADIENT, RELP, RULE_SETS, Rules, rules
from interp.errors import UsageError

__all__ = ["GRADIENT", "RELP", "RULE_SETS", "Rules", "rules"]


class _Linearised(Function):
    """Value as given; backward, each input gets what comes back times its factor (None: nothing)."""

    @staticmethod
    def forward(ctx, value: Tensor, *inputs_and_factors: Tensor):
        half = len(inputs_and_factors) // 2
        ctx.save_for_backward(*inputs_and_factors[half:])
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        factors = ctx.saved_tensors
        return (None, *(gradient * factor for factor in factors), *(None for _ in factors))


def activate(chosen: Rules, function, x: Tensor, other: Tensor | None = None) -> Tensor:
    """An activation function of x under its rule; `other` is its input in the other run."""
    if chosen.activation == "gradient" or not x.requires_grad:
        return function(x)
    at = x.detach()
    value = function(at)
    if chosen.activation == "secant":
        return _Linearised.apply(value, x, _secant(function, at, value, _given(other)))
    return _Linearised.apply(value, x, torch.where(at == 0, _slope_at_zero(function, x), value / at))


def gated(
    chosen: Rules, gate: Tensor, up: Tensor, other_gate: Tensor | None = None, other_up: Tensor | None = None
) -> Tensor:
    """The product in a gated MLP under its rule; the others are the factors in the other run."""
    if chosen.gate == "gradient":
        return gate * up
    a, b = gate.detach(), up.detach()
    if chosen.gate == "midpoint":
        return _Linearised.apply(a * b, gate, up, (b + _given(other_up)) / 2, (a + _given(other_gate)) / 2)
    return _Linearised.apply(a * b, gate, up, b / 2, a / 2)


def normed(chosen: Rules, norm, x: Tensor, other: Tensor | None = None) -> Tensor:
    """A norm of x under its rule; `other` is its input in the other run."""
    if chosen.norm != "secant" or not x.requires_grad or isinstance(norm, Factor):
        return norm(x, constant_scale=chosen.norm == "constant")
    with torch.no_grad():
        value = norm(x)
        ours, theirs = (norm.centre(run.to(_wide(run))) for run in (x, _given(other)))
        scale, their_scale = norm.inverse_scale(ours), norm.inverse_scale(theirs)
        middle, mean_scale = (ours + theirs) / 2, (scale + their_scale) / 2
        slope = -((scale * their_scale) ** 2) / (scale + their_scale) * 2 / norm.width(x)
    centred = norm.centre(x.to(_wide(x)))
    linear = mean_scale * centred + slope * middle * (middle * centred).sum(norm.axes, keepdim=True)
    if norm.weight is not None:
        linear = linear * norm.weight.to(linear.dtype)
    return carrying(value, linear.to(value.dtype))


def softmax_secant(pattern: Tensor, scores: Tensor, other_scores: Tensor, linear: Tensor) -> Tensor:
    """The pattern, carrying back through its secant to `linear`, which stands for the scores in the backward pass."""
    with torch.no_grad():
        log, other_log = scores.log_softmax(-1), other_scores.log_softmax(-1)
        p, q, gap = log.exp(), other_log.exp(), other_log - log
        close = gap.abs() < 1e-3
        mean = torch.where(close, (p * q).sqrt() * (1 + gap**2 / 24), (q - p) / torch.where(close, 1.0, gap))
        share = mean / mean.sum(-1, keepdim=True)
    return carrying(pattern.detach(), mean * (linear - (share * linear).sum(-1, keepdim=True)))


def carrying(value: Tensor, surrogate: Tensor) -> Tensor:
    """A value through which what comes back goes on to something else of its shape."""
    return _Linearised.apply(value, surrogate, torch.ones((), dtype=value.dtype, device=value.device))


def secant_slope(function, x: Tensor, other: Tensor) -> Tensor:
    """The slope of an elementwise function between two points."""
    with torch.no_grad():
        return _secant(function, x, function(x), other)


def _wide(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32


def _given(other: Tensor | None) -> Tensor:
    if other is None:
        raise UsageError("the rules 'secant' and 'midpoint' look at the other run, and none is given")
    return other


def _secant(function, x: Tensor, value: Tensor, other: Tensor) -> Tensor:
    """(f(other) - f(x)) / (other - x); where the two are close, the slope half way, which has no rounding error."""
    gap = other - x
    with torch.enable_grad():
        middle = ((x + other) / 2).requires_grad_()
        slope = torch.autograd.grad(function(middle).sum(), middle)[0]
    close = gap.abs() <= 1e-3 * (1 + x.abs())
    return torch.where(close, slope, (function(other) - value) / torch.where(close, 1.0, gap))


def scaled_back(x: Tensor, factor: float) -> Tensor:
    """The value itself; what comes back is multiplied by a factor."""
    return _Linearised.apply(x.detach(), x, torch.full((), factor, dtype=x.dtype, device=x.device))


def project(chosen: Rules, linear, x: Tensor) -> Tensor:
    """A linear map of x under its rule; `linear` is a module."""
    if chosen.linear == "gradient" or not x.requires_grad:
        return linear(x)
    z = linear(x)
    if chosen.linear == "epsilon":
        value = z.detach()
        return _Linearised.apply(value, z, value / (value + chosen.epsilon * torch.where(value < 0, -1.0, 1.0)))
    return _Gamma.apply(x, z.detach(), linear, chosen.gamma)


class _Gamma(Function):
    """The gamma rule for inputs and weights of either sign: of an output z > 0 the positive contributions count
    1 + gamma times, of an output z < 0 the negative ones, scaled so that as much goes in as comes out."""

    @staticmethod
    def forward(ctx, x: Tensor, value: Tensor, linear, gamma: float):
        ctx.save_for_backward(x, value)
        ctx.linear, ctx.gamma = linear, gamma
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, z = ctx.saved_tensors
        weight = ctx.linear.weight if ctx.linear.__class__.__name__ != "Conv1D" else ctx.linear.weight.T
        gamma, up, down = ctx.gamma, weight.clamp(min=0), weight.clamp(max=0)
        positive, negative = x.clamp(min=0), x.clamp(max=0)
        for_positive = z + gamma * (positive @ up.T + negative @ down.T)
        for_negative = z + gamma * (positive @ down.T + negative @ up.T)
        scale = torch.where(z > 0, z / for_positive, torch.where(z < 0, z / for_negative, 1.0))
        flow = gradient * scale
        above, below = flow * (z > 0), flow * (z < 0)
        boosted = torch.where(x > 0, above @ up + below @ down, above @ down + below @ up)
        return flow @ weight + gamma * boosted, None, None, None


def _slope_at_zero(function, x: Tensor) -> Tensor:
    """The limit of f(x) / x at 0: f's own derivative there, since all activations in use have f(0) = 0."""
    with torch.enable_grad():
        zero = torch.zeros((), dtype=x.dtype, device=x.device, requires_grad=True)
        return torch.autograd.grad(function(zero), zero)[0]
