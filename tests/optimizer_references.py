"""Each optimizer as its source has it, in float64 and one row at a time: what the native kernels are held against.

A rule takes the row's weights, the gradient (sums of repeats already), the row's own state, which begins empty, and
the parameters; it gives the new weights. Nothing here is shared with the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float64]
State = dict[str, Any]
Parameters = dict[str, float]


def sgd(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """Robbins, Monro 1951: w - lr g."""
    return w - p["learning_rate"] * g


def momentum(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """Polyak 1964, as Sutskever et al. 2013 write it with the rate outside: n = mu n + g; w - lr n."""
    state["n"] = p["momentum"] * state.get("n", np.zeros_like(w)) + g
    return w - p["learning_rate"] * state["n"]


def nesterov(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """Nesterov 1983, in the form of Bengio et al. 2013: n = mu n + g; w - lr (g + mu n)."""
    state["n"] = p["momentum"] * state.get("n", np.zeros_like(w)) + g
    return w - p["learning_rate"] * (g + p["momentum"] * state["n"])


def adagrad(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """Duchi, Hazan, Singer 2011, diagonal form: G += g g; w - lr g / (sqrt(G) + eps)."""
    state["G"] = state.get("G", np.full_like(w, p["initial_accumulator"])) + g * g
    return w - p["learning_rate"] * g / (np.sqrt(state["G"]) + p["epsilon"])


def rowwise_adagrad(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """FBGEMM, EXACT_ROWWISE_ADAGRAD: one G for a row, G += mean(g g); w - lr g / (sqrt(G) + eps)."""
    state["G"] = state.get("G", p["initial_accumulator"]) + np.mean(g * g)
    return w - p["learning_rate"] * g / (np.sqrt(state["G"]) + p["epsilon"])


def adams_time(state: State, p: Parameters) -> int:
    """Adam's t at the row's next update, by p["clock"]: 0 a row's updates, 1 and 2 the time p["now"] of the push.

    With 2 the moments decay for each step that passed as dense Adam's do under gradients of 0.
    """
    before = state.get("t", 0)
    if not p.get("clock"):
        state["t"] = before + 1
    else:
        state["t"] = max(int(p["now"]), before)
        for _ in range(state["t"] - before - 1) if p["clock"] == 2 and before else ():
            state["m"] = state["m"] * p["beta1"]
            state["v"] = state["v"] * p["beta2"]
    return int(state["t"])


def adam(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """Kingma, Ba 2015, algorithm 1; t counts the row's own updates, unless there is a clock."""
    t = adams_time(state, p)
    state["m"] = p["beta1"] * state.get("m", np.zeros_like(w)) + (1 - p["beta1"]) * g
    state["v"] = p["beta2"] * state.get("v", np.zeros_like(w)) + (1 - p["beta2"]) * g * g
    first = state["m"] / (1 - p["beta1"] ** t)
    second = state["v"] / (1 - p["beta2"] ** t)
    return w - p["learning_rate"] * first / (np.sqrt(second) + p["epsilon"])


def adamw(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """Loshchilov, Hutter 2019, algorithm 2, with PyTorch's scale: the decay is lr times weight_decay, before Adam."""
    return adam(w - p["learning_rate"] * p["weight_decay"] * w, g, state, p)


def ftrl(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """McMahan et al. 2013, algorithm 1, one coordinate like the other; alpha is learning_rate.

    A row that begins elsewhere than at 0 has the z that its weights follow from.
    """
    n = state.get("n", np.full_like(w, p["initial_accumulator"]))
    if "z" not in state:
        scale = (p["beta"] + np.sqrt(n)) / p["learning_rate"] + p["l2"]
        state["z"] = -w * scale - np.sign(w) * p["l1"]
    sigma = (np.sqrt(n + g * g) - np.sqrt(n)) / p["learning_rate"]
    z = state["z"] = state["z"] + g - sigma * w
    n = state["n"] = n + g * g
    below = -(z - np.sign(z) * p["l1"]) / ((p["beta"] + np.sqrt(n)) / p["learning_rate"] + p["l2"])
    return np.where(np.abs(z) <= p["l1"], 0.0, below)


def decayed_adagrad(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """PERSIA's Adagrad with g_square_momentum: G = rho G + g g, accumulated first; w - lr g / (sqrt(G) + eps)."""
    state["G"] = p["rho"] * state.get("G", np.full_like(w, p["initial_accumulator"])) + g * g
    return w - p["learning_rate"] * g / (np.sqrt(state["G"]) + p["epsilon"])


def amsgrad(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """Reddi, Kale, Kumar 2018, algorithm 2, with Adam's corrections as PyTorch has them: the largest v counts."""
    t = adams_time(state, p)
    state["m"] = p["beta1"] * state.get("m", np.zeros_like(w)) + (1 - p["beta1"]) * g
    state["v"] = p["beta2"] * state.get("v", np.zeros_like(w)) + (1 - p["beta2"]) * g * g
    state["v_max"] = np.maximum(state.get("v_max", np.zeros_like(w)), state["v"])
    root = np.sqrt(state["v_max"] / (1 - p["beta2"] ** t))
    return w - p["learning_rate"] * state["m"] / (1 - p["beta1"] ** t) / (root + p["epsilon"])


def rmsprop(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """Tieleman, Hinton 2012, lecture 6e: v = rho v + (1 - rho) g g; w - lr g / (sqrt(v) + eps)."""
    state["v"] = p["rho"] * state.get("v", np.zeros_like(w)) + (1 - p["rho"]) * g * g
    return w - p["learning_rate"] * g / (np.sqrt(state["v"]) + p["epsilon"])


def adadelta(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """Zeiler 2012, algorithm 1; its step is multiplied by the learning rate, which the paper has as 1."""
    state["v"] = p["rho"] * state.get("v", np.zeros_like(w)) + (1 - p["rho"]) * g * g
    before = state.get("delta", np.zeros_like(w))
    delta = np.sqrt(before + p["epsilon"]) / np.sqrt(state["v"] + p["epsilon"]) * g
    state["delta"] = p["rho"] * before + (1 - p["rho"]) * delta * delta
    return w - p["learning_rate"] * delta


def partial_rowwise_adam(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """FBGEMM, PARTIAL_ROWWISE_ADAM: Adam whose v is one number for the row, of mean(g g)."""
    t = adams_time(state, p)
    state["m"] = p["beta1"] * state.get("m", np.zeros_like(w)) + (1 - p["beta1"]) * g
    state["v"] = p["beta2"] * state.get("v", 0.0) + (1 - p["beta2"]) * np.mean(g * g)
    root = np.sqrt(state["v"] / (1 - p["beta2"] ** t))
    return w - p["learning_rate"] * state["m"] / (1 - p["beta1"] ** t) / (root + p["epsilon"])


def group_ftrl(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """Yue et al. 2021, "Adaptive optimizers with sparse group lasso", Group FTRL, the row being the group.

    FTRL's z and n; then s = z beyond l1, and the row is 0 where |s| <= l21 sqrt(dim), else shrunk by that much.
    """
    threshold = p["l21"] * np.sqrt(len(w))
    n = state.get("n", np.full_like(w, p["initial_accumulator"]))
    if "z" not in state:
        s = -w * ((p["beta"] + np.sqrt(n)) / p["learning_rate"] + p["l2"])
        if s.any():
            s = s * (1 + threshold / np.linalg.norm(s))
        state["z"] = s + np.sign(s) * p["l1"]
    sigma = (np.sqrt(n + g * g) - np.sqrt(n)) / p["learning_rate"]
    z = state["z"] = state["z"] + g - sigma * w
    n = state["n"] = n + g * g
    s = np.sign(z) * np.maximum(np.abs(z) - p["l1"], 0.0)
    norm = np.linalg.norm(s)
    if norm <= threshold:
        return np.zeros_like(w)
    return -s * (1 - threshold / norm) / ((p["beta"] + np.sqrt(n)) / p["learning_rate"] + p["l2"])


def lamb(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """You et al. 2020, algorithm 2, with phi(x) = x and the row as the layer; where a norm is 0 the ratio is 1."""
    t = adams_time(state, p)
    state["m"] = p["beta1"] * state.get("m", np.zeros_like(w)) + (1 - p["beta1"]) * g
    state["v"] = p["beta2"] * state.get("v", np.zeros_like(w)) + (1 - p["beta2"]) * g * g
    r = state["m"] / (1 - p["beta1"] ** t) / (np.sqrt(state["v"] / (1 - p["beta2"] ** t)) + p["epsilon"])
    u = r + p["weight_decay"] * w
    norms = np.linalg.norm(w), np.linalg.norm(u)
    ratio = norms[0] / norms[1] if norms[0] > 0 and norms[1] > 0 else 1.0
    return w - p["learning_rate"] * ratio * u


def tensornet_adagrad(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """TensorNet, ada_grad_kernel.cc, SparseAdaGradValue: G += sum(g g) / dim; w - lr g / (eps + sqrt(G))."""
    state["G"] = state.get("G", p["initial_accumulator"]) + np.sum(g * g) / len(g)
    return w - p["learning_rate"] * g / (p["epsilon"] + np.sqrt(state["G"]))


def tensornet_adam(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """TensorNet, adam_kernel.cc, SparseAdamValue: Adam's moments as they are; w - lr m / (eps + sqrt(v))."""
    state["m"] = p["beta1"] * state.get("m", np.zeros_like(w)) + (1 - p["beta1"]) * g
    state["v"] = p["beta2"] * state.get("v", np.zeros_like(w)) + (1 - p["beta2"]) * g * g
    return w - p["learning_rate"] * state["m"] / (p["epsilon"] + np.sqrt(state["v"]))


def tensornet_ftrl(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """TensorNet, ftrl_kernel.cc, SparseFtrlValue: lr where FTRL has 1 / alpha, n from 0.

    But for a row that begins elsewhere than at 0, which has the z that its weights follow from.
    """
    rate = p["learning_rate"]
    n = state.get("n", np.zeros_like(w))
    if "z" not in state:
        state["z"] = -w * ((p["beta"] + np.sqrt(n)) * rate + p["l2"]) - np.sign(w) * p["l1"]
    z = state["z"] = state["z"] + g - rate * (np.sqrt(n + g * g) - np.sqrt(n)) * w
    n = state["n"] = n + g * g
    below = -1 / ((p["beta"] + np.sqrt(n)) * rate + p["l2"]) * (z - np.sign(z) * p["l1"])
    return np.where(np.abs(z) <= p["l1"], 0.0, below)


def paddle_adagrad(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """Paddle, sparse_sgd_rule.cc, SparseAdaGradSGDRule, scale 1: w - lr g sqrt(G0 / (G0 + G)), then G += mean(g g)."""
    before = state.get("G", 0.0)
    state["G"] = before + np.sum(g * g) / len(g)
    return w - p["learning_rate"] * g * np.sqrt(
        p["initial_accumulator"] / (p["initial_accumulator"] + before)
    )


def tensorflow_ftrl(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """TensorFlow, training_ops.cc and tf.keras.optimizers.Ftrl, with learning_rate_power -0.5.

    Keras gives the kernel l2 + beta / (2 lr), which is twice in the divisor: so beta / lr + 2 l2. The shrinkage is in z
    alone. But for a row that begins elsewhere than at 0, which has the z that its weights follow from.
    """
    n = state.get("n", np.full_like(w, p["initial_accumulator"]))
    l2 = p["l2"] + p["beta"] / (2 * p["learning_rate"])
    if "z" not in state:
        state["z"] = -w * (np.sqrt(n) / p["learning_rate"] + 2 * l2) - np.sign(w) * p["l1"]
    shrunk = g + 2 * p["l2_shrinkage"] * w
    z = state["z"] = state["z"] + shrunk - (np.sqrt(n + g * g) - np.sqrt(n)) / p["learning_rate"] * w
    n = state["n"] = n + g * g
    return (np.clip(z, -p["l1"], p["l1"]) - z) / (np.sqrt(n) / p["learning_rate"] + 2 * l2)


def add(w: Row, g: Row, state: State, p: Parameters) -> Row:
    """w + g."""
    return w + g


SCHEDULES = ("Constant", "Linear", "Cosine", "Exponential", "Staircase")


def factor(step: int, p: Parameters) -> float:
    """What the learning rate is multiplied by at a step, as docs/optimizers.md says."""
    warmup = p.get("warmup_steps", 0)
    if step < warmup:
        return (step + 1) / warmup
    shape, to = SCHEDULES[int(p.get("schedule", 0))], p.get("schedule_to", 0.0)
    if shape == "Constant":
        return 1.0
    way = (step - warmup) / p["schedule_steps"]
    if shape == "Linear":
        return to + (1 - to) * (1 - min(way, 1))
    if shape == "Cosine":
        return to + (1 - to) * (1 + math.cos(math.pi * min(way, 1))) / 2
    return float(to ** (way if shape == "Exponential" else math.floor(way)))


def update(
    rule: Callable[[Row, Row, State, Parameters], Row], w: Row, g: Row, state: State, p: Parameters, step: int
) -> Row:
    """A rule with what stands beside it, in the order of docs/optimizers.md."""
    rate = p["learning_rate"] * factor(step, p)
    if p.get("clip_value"):
        g = np.clip(g, -p["clip_value"], p["clip_value"])
    if p.get("clip_norm") and np.linalg.norm(g) > p["clip_norm"]:
        g = g * (p["clip_norm"] / np.linalg.norm(g))
    if rule not in (adamw, lamb):
        if p.get("decoupled"):
            w = w - rate * p["weight_decay"] * w
        else:
            g = g + p.get("weight_decay", 0.0) * w
    w = rule(w, g, state, {**p, "learning_rate": rate})
    return np.clip(w, -p["weight_bound"], p["weight_bound"]) if p.get("weight_bound") else w


@dataclass(frozen=True)
class Reference:
    """A rule, parameters for random runs, and three steps worked by hand.

    hand: gradients 1, 2, -1 on one weight of 0 with `hand_parameters`; the weights after each, by arithmetic on paper.
    """

    rule: Callable[[Row, Row, State, Parameters], Row]
    parameters: Parameters
    hand_parameters: Parameters
    hand: tuple[float, float, float]
    state: tuple[str, ...] = field(default=())


_ADAM = {"learning_rate": 2e-4, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8}
_ADAM_BY_HAND = {"learning_rate": 1.0, "beta1": 0.5, "beta2": 0.5, "epsilon": 0.0}

REFERENCES: dict[str, Reference] = {
    "SGD": Reference(sgd, {"learning_rate": 1e-3}, {"learning_rate": 0.5}, (-0.5, -1.5, -1.0)),
    # n: 1, 2.5, 0.25.
    "Momentum": Reference(
        momentum,
        {"learning_rate": 1e-4, "momentum": 0.9},
        {"learning_rate": 0.5, "momentum": 0.5},
        (-0.5, -1.75, -1.875),
        ("momentum",),
    ),
    # n: 1, 2.5, 0.25; g + n / 2: 1.5, 3.25, -0.875.
    "Nesterov": Reference(
        nesterov,
        {"learning_rate": 1e-4, "momentum": 0.9},
        {"learning_rate": 0.5, "momentum": 0.5},
        (-0.75, -2.375, -1.9375),
        ("momentum",),
    ),
    # G: 4, 8, 9 from 3: 1 / 2, 2 / 2.8284271, -1 / 3.
    "Adagrad": Reference(
        adagrad,
        {"learning_rate": 1e-3, "initial_accumulator": 0.1, "epsilon": 1e-8},
        {"learning_rate": 1.0, "initial_accumulator": 3.0, "epsilon": 0.0},
        (-0.5, -1.2071068, -0.8737734),
        ("accumulator",),
    ),
    # The same, since the mean over one weight is the square.
    "RowwiseAdagrad": Reference(
        rowwise_adagrad,
        {"learning_rate": 1e-3, "initial_accumulator": 0.1, "epsilon": 1e-8},
        {"learning_rate": 1.0, "initial_accumulator": 3.0, "epsilon": 0.0},
        (-0.5, -1.2071068, -0.8737734),
        ("accumulator",),
    ),
    # m: .5, 1.25, .125; v: .5, 2.25, 1.625; corrections 1/2, 3/4, 7/8:
    # 1 / 1; 1.6666667 / 1.7320508 = .9622504; .1428571 / 1.3627703 = .1048285.
    "Adam": Reference(adam, _ADAM, _ADAM_BY_HAND, (-1.0, -1.9622504, -2.0670789), ("m", "v", "step")),
    # Adam's steps, with the weight halved before each: 0 - 1; -.5 - .9622504; -.7311252 - .1048285.
    "AdamW": Reference(
        adamw,
        {**_ADAM, "weight_decay": 0.1},
        {**_ADAM_BY_HAND, "weight_decay": 0.5},
        (-1.0, -1.4622504, -0.8359537),
        ("m", "v", "step"),
    ),
    # alpha = 2, beta = 1, l1 = .5, l2 = 1, n from 0.
    # 1: sigma .5, z 1, n 1: w = -.5 / (1 + 1) = -.25.
    # 2: n 5, sigma (2.236068 - 1) / 2 = .618034, z = 1 + 2 + .1545085 = 3.1545085:
    #    w = -2.6545085 / (1.618034 + 1) = -1.0139320.
    # 3: n 6, sigma (2.4494897 - 2.236068) / 2 = .1067109, z = 3.1545085 - 1 + .1081976 = 2.2627061:
    #    w = -1.7627061 / (1.7247449 + 1) = -.6469252.
    "FTRL": Reference(
        ftrl,
        {"learning_rate": 1e-3, "beta": 1.0, "l1": 0.5, "l2": 2.0, "initial_accumulator": 0.0},
        {"learning_rate": 2.0, "beta": 1.0, "l1": 0.5, "l2": 1.0, "initial_accumulator": 0.0},
        (-0.25, -1.0139320, -0.6469252),
        ("z", "n"),
    ),
    # G: 2.5, 5.25, 3.625 from 3: 1 / 1.5811388 = .6324555; 2 / 2.2912878 = .8728716; 1 / 1.9039433 = .5252257.
    "DecayedAdagrad": Reference(
        decayed_adagrad,
        {"learning_rate": 1e-3, "rho": 0.95, "initial_accumulator": 0.1, "epsilon": 1e-8},
        {"learning_rate": 1.0, "rho": 0.5, "initial_accumulator": 3.0, "epsilon": 0.0},
        (-0.6324555, -1.5053271, -0.9801014),
        ("accumulator",),
    ),
    # As Adam; the third v is 2.25 still: .1428571 / sqrt(2.25 / .875) = .1428571 / 1.6035675 = .0890871.
    "AMSGrad": Reference(
        amsgrad, _ADAM, _ADAM_BY_HAND, (-1.0, -1.9622504, -2.0513375), ("m", "v", "v_max", "step")
    ),
    # v: .5, 2.25, 1.625: 1 / .7071068 = 1.4142136; 2 / 1.5 = 1.3333333; 1 / 1.2747549 = .7844645.
    "RMSProp": Reference(
        rmsprop,
        {"learning_rate": 1e-4, "rho": 0.9, "epsilon": 1e-8},
        {"learning_rate": 1.0, "rho": 0.5, "epsilon": 0.0},
        (-1.4142136, -2.7475469, -1.9630824),
        ("v",),
    ),
    # epsilon 1; v: .5, 2.25, 1.625.
    # 1: sqrt(1 / 1.5) = .8164966; delta squared .6666667, of which half is kept: .3333333.
    # 2: 2 sqrt(1.3333333 / 3.25) = 1.2810252; .1666667 + 1.6410256 / 2 = .9871795.
    # 3: -sqrt(1.9871795 / 2.625) = -.8700694.
    "AdaDelta": Reference(
        adadelta,
        {"learning_rate": 0.01, "rho": 0.9, "epsilon": 1e-5},
        {"learning_rate": 1.0, "rho": 0.5, "epsilon": 1.0},
        (-0.8164966, -2.0975218, -1.2274524),
        ("v", "delta"),
    ),
    # Adam's steps, since the mean over one weight is the square.
    "PartialRowwiseAdam": Reference(
        partial_rowwise_adam, _ADAM, _ADAM_BY_HAND, (-1.0, -1.9622504, -2.0670789), ("m", "v", "step")
    ),
    # FTRL's example with l21 = .25, so that |s| is less by .25, too.
    # 1: z 1, s .5, less .25: w = -.25 / 2 = -.125.
    # 2: z = 1 + 2 + .618034 * .125 = 3.0772543, s 2.5772543: w = -2.3272543 / 2.618034 = -.8889320.
    # 3: z = 3.0772543 - 1 + .1067109 * .8889320 = 2.1721130, s 1.6721130: w = -1.4221130 / 2.7247449 = -.5219252.
    "GroupFTRL": Reference(
        group_ftrl,
        {"learning_rate": 1e-3, "beta": 1.0, "l1": 0.5, "l2": 2.0, "l21": 0.3, "initial_accumulator": 0.0},
        {"learning_rate": 2.0, "beta": 1.0, "l1": 0.5, "l2": 1.0, "l21": 0.25, "initial_accumulator": 0.0},
        (-0.125, -0.8889320, -0.5219252),
        ("z", "n"),
    ),
    # On one weight a step is lr |w| in the direction of u, and lr u from 0:
    # u = 1: 0 - .5; u = .9622504 - .25 > 0: -.5 - .25; u = .1048285 - .375 < 0: -.75 + .375.
    "LAMB": Reference(
        lamb,
        {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-6, "weight_decay": 0.1},
        {"learning_rate": 0.5, "beta1": 0.5, "beta2": 0.5, "epsilon": 0.0, "weight_decay": 0.5},
        (-0.5, -0.75, -0.375),
        ("m", "v", "step"),
    ),
    # G: 4, 8, 9 from 3, as Adagrad on one weight.
    "TensorNetAdagrad": Reference(
        tensornet_adagrad,
        {"learning_rate": 1e-3, "initial_accumulator": 0.1, "epsilon": 1e-8},
        {"learning_rate": 1.0, "initial_accumulator": 3.0, "epsilon": 0.0},
        (-0.5, -1.2071068, -0.8737734),
        ("accumulator",),
    ),
    # m: .5, 1.25, .125; v: .5, 2.25, 1.625: .5 / .7071068 = .7071068; 1.25 / 1.5 = .8333333;
    # .125 / 1.2747549 = .0980581.
    "TensorNetAdam": Reference(
        tensornet_adam, _ADAM, _ADAM_BY_HAND, (-0.7071068, -1.5404401, -1.6384982), ("m", "v")
    ),
    # FTRL's example: its alpha of 2 is a learning rate of 1/2.
    "TensorNetFTRL": Reference(
        tensornet_ftrl,
        {"learning_rate": 1e3, "beta": 1.0, "l1": 0.5, "l2": 2.0},
        {"learning_rate": 0.5, "beta": 1.0, "l1": 0.5, "l2": 1.0},
        (-0.25, -1.0139320, -0.6469252),
        ("z", "n"),
    ),
    # G before: 0, 1, 5, of 3: 1; 2 sqrt(3 / 4) = 1.7320508; sqrt(3 / 8) = .6123724.
    "PaddleAdagrad": Reference(
        paddle_adagrad,
        {"learning_rate": 1e-3, "initial_accumulator": 3.0},
        {"learning_rate": 1.0, "initial_accumulator": 3.0},
        (-1.0, -2.7320508, -2.1196784),
        ("accumulator",),
    ),
    # lr = 2, l1 = .5, l2 = .5, shrinkage .25, n from 1, no beta; divisor sqrt(n) / 2 + 1.
    # 1: z 1, n 2: w = -.5 / 1.7071068 = -.2928932.
    # 2: n 6, (2.4494897 - 1.4142136) / 2 = .5176381; z = 1 + 2 - .1464466 + .1516127 = 3.0051661:
    #    w = -2.5051661 / 2.2247449 = -1.1260465.
    # 3: n 7, (2.6457513 - 2.4494897) / 2 = .0981308; z = 3.0051661 - 1 - .5630233 + .1104998 = 1.5526426:
    #    w = -1.0526426 / 2.3228757 = -.4531635.
    "TensorFlowFTRL": Reference(
        tensorflow_ftrl,
        {
            "learning_rate": 1e-3,
            "initial_accumulator": 0.1,
            "l1": 0.5,
            "l2": 2.0,
            "l2_shrinkage": 0.01,
            "beta": 1.0,
        },
        {
            "learning_rate": 2.0,
            "initial_accumulator": 1.0,
            "l1": 0.5,
            "l2": 0.5,
            "l2_shrinkage": 0.25,
            "beta": 0.0,
        },
        (-0.2928932, -1.1260465, -0.4531635),
        ("z", "n"),
    ),
    "Add": Reference(add, {}, {}, (1.0, 3.0, 2.0)),
}
