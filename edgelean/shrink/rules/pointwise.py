"""Operators that work element by element, and those that make a tensor of one number."""

from __future__ import annotations

from edgelean.shrink.labels import Dimension, Value, plain
from edgelean.shrink.rules.call import Call, Flow, rule_for_uniform


@rule_for_uniform(
    "relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu",
    "celu", "gelu", "gelu_", "silu", "silu_", "mish", "mish_", "sigmoid", "sigmoid_", "tanh", "tanh_", "hardswish",
    "hardswish_", "hardsigmoid", "hardsigmoid_", "softplus", "log_sigmoid", "exp", "expm1",
    "log", "log1p", "log2", "sqrt", "rsqrt", "square", "reciprocal", "abs", "neg", "sign", "cos", "sin", "erf", "pow",
    "clamp", "clamp_", "clamp_min", "clamp_max", "round", "floor", "ceil", "add", "add_", "sub", "sub_", "rsub", "mul",
    "mul_", "div", "div_", "maximum", "minimum", "where", "prelu", "atan2", "fmod",
    "remainder", "lerp", "addcmul", "addcdiv", "masked_fill", "masked_fill_", "ge", "le", "gt", "lt", "eq", "ne",
    "__and__", "__or__", "__xor__", "bitwise_and", "bitwise_or", "bitwise_not", "logical_and", "logical_or",
    "logical_not", "isnan", "isinf", "nan_to_num", "float_power", "threshold", "threshold_", "hardshrink", "softshrink",
    "log_", "exp_", "floor_divide", "true_divide", "heaviside", "copysign", "trunc", "frac", "bitwise_xor",
    "copy", "sgn", "logit", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erfc", "erfinv",
    "exp2", "log10", "clip", "hypot", "xlogy", "logaddexp", "isfinite", "real", "imag", "conj", "resolve_conj",
    "conj_physical", "angle", "complex", "polar", "negative", "subtract", "multiply", "divide", "square_", "mish_",
    "neg_", "abs_", "sqrt_", "pow_", "less", "greater", "less_equal", "greater_equal", "not_equal", "fmax", "fmin",
    "celu_", "selu_", "clamp_max_", "clamp_min_", "sinc", "lgamma", "digamma", "logaddexp2", "special_erfcx", "_conj",
)  # fmt: skip
def _pointwise(call: Call) -> Flow:
    parts = [value for value in call.tensors() if not value.uniform]
    if call.operator == "prelu":
        parts = parts[:1] if parts[1].shape == (1,) else [parts[0], _along_channels(parts[1], len(parts[0].shape))]
    shape = call.shapes[0]
    rank = len(shape)
    lines: list[Dimension] = [None] * rank
    for place in range(rank):
        sides = [(v.shape[place - rank], v.labels[place - rank]) for v in parts if len(v.shape) >= rank - place]
        wide = [line for size, line in sides if size == shape[place]]
        for size, line in sides:
            if size != shape[place]:
                call.labels.freeze(line, f"{call.operator} repeats it along a dimension")
        lines[place] = wide[0] if wide else None
        for other in wide[1:]:
            lines[place] = call.labels.unify(lines[place], other, f"{call.operator} meets a dimension without units")
    return Flow((Value(shape, tuple(lines), uniform=not parts),), "pointwise")


def _along_channels(value: Value, rank: int) -> Value:
    """Return a vector as a tensor that meets the second of ``rank`` dimensions."""
    return Value((value.shape[0], *(1 for _ in range(rank - 2))), (value.labels[0], *(None for _ in range(rank - 2))))


@rule_for_uniform(
    "dropout", "dropout_", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach", "detach_", "alias",
    "lift_fresh_copy", "positive", "to", "_to_copy", "type_as",
)  # fmt: skip
def _unchanged(call: Call) -> Flow:
    first = call.tensors()[0]
    return Flow((Value(first.shape, first.labels, uniform=first.uniform),), "free")


@rule_for_uniform(
    "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "empty",
    "scalar_tensor", "empty_like", "new_empty", "randn_like", "rand_like",
)  # fmt: skip
def _filled(call: Call) -> Flow:
    return Flow(tuple(Value(s, (None,) * len(s), constant=True, uniform=True) for s in call.shapes), "free")


@rule_for_uniform("arange", "linspace", "tril_indices", "eye", "hann_window", "randn", "rand")
def _made(call: Call) -> Flow:
    return Flow(tuple(Value(shape, (None,) * len(shape), constant=True) for shape in call.shapes), "free")


@rule_for_uniform(
    "_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size", "sym_size", "_local_scalar_dense"
)
def _said(call: Call) -> Flow:
    """Say nothing: these are checks."""
    return Flow(tuple(plain(shape) for shape in call.shapes), "free")
