"""The optimizers: what a push does to a row. The rules themselves are in native/src.

g is the gradient of one row, repeats summed; operations are element by element, and a row that a push does not name
stays as it is, with its state.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tablebay.client.options import CONFIG, Beta, Named, Positive, Unit, bad_request


def require_divisor(initial_accumulator: float, epsilon: float) -> None:
    """Refuse an Adagrad that would divide 0 by 0."""
    if initial_accumulator == 0.0 and epsilon == 0.0:
        raise ValueError("initial_accumulator and epsilon are both 0, so a zero gradient would divide 0 by 0")


def require_epsilon(epsilon: float) -> None:
    """Refuse an Adam that would divide 0 by 0."""
    if epsilon == 0.0:
        raise ValueError("epsilon is 0, so a zero gradient would divide 0 by 0; wanted more than 0")


@bad_request
@dataclass(frozen=True, config=CONFIG)
class SGD(Named):
    """w -= learning_rate * g."""

    learning_rate: Positive = 0.01
    type: Literal["SGD"] = Field(default="SGD", kw_only=True, repr=False)


@bad_request
@dataclass(frozen=True, config=CONFIG)
class Adagrad(Named):
    """G += g²; w -= learning_rate * g / (√G + epsilon), element by element. Duchi, Hazan, Singer 2011.

    G begins as `initial_accumulator`.
    """

    learning_rate: Positive = 0.05
    initial_accumulator: Positive = 0.1
    epsilon: Positive = 1e-8
    type: Literal["Adagrad"] = Field(default="Adagrad", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_divisor(self.initial_accumulator, self.epsilon)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG)
class Adam(Named):
    """Adam with bias correction by a step count of each row. Kingma, Ba 2015, algorithm 1, with PyTorch's
    epsilon.

    Lazy: the moments of a row that a push does not name stay as they are.
    """

    learning_rate: Positive = 0.001
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: Positive = 1e-8
    type: Literal["Adam"] = Field(default="Adam", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_epsilon(self.epsilon)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG)
class Momentum(Named):
    """n = momentum * n + g; w -= learning_rate * n. Polyak 1964.

    The learning rate is outside of n, as in Sutskever et al. 2013 and PyTorch, so that a change of it counts at
    once. State: "momentum".
    """

    learning_rate: Positive = 0.01
    momentum: Unit = 0.9
    type: Literal["Momentum"] = Field(default="Momentum", kw_only=True, repr=False)


@bad_request
@dataclass(frozen=True, config=CONFIG)
class Nesterov(Named):
    """n = momentum * n + g; w -= learning_rate * (g + momentum * n). Nesterov 1983.

    In the form of Bengio et al. 2013 and PyTorch's SGD(nesterov=True). State: "momentum".
    """

    learning_rate: Positive = 0.01
    momentum: Unit = 0.9
    type: Literal["Nesterov"] = Field(default="Nesterov", kw_only=True, repr=False)


@bad_request
@dataclass(frozen=True, config=CONFIG)
class RowwiseAdagrad(Named):
    """G += mean(g²); w -= learning_rate * g / (√G + epsilon), with one G for the whole row.

    FBGEMM's EXACT_ROWWISE_ADAGRAD: 4 bytes of state a row in place of 4 for each weight. G begins as
    `initial_accumulator`. State: "accumulator".
    """

    learning_rate: Positive = 0.05
    initial_accumulator: Positive = 0.1
    epsilon: Positive = 1e-8
    OF_A_ROW: ClassVar[tuple[str, ...]] = ("accumulator",)
    type: Literal["RowwiseAdagrad"] = Field(default="RowwiseAdagrad", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_divisor(self.initial_accumulator, self.epsilon)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG)
class AdamW(Named):
    """w -= learning_rate * weight_decay * w, then as Adam. Loshchilov, Hutter 2019, algorithm 2.

    The decay is scaled by the learning rate as in PyTorch, and only rows that a push names decay. State: "m", "v",
    "step".
    """

    learning_rate: Positive = 0.001
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: Positive = 1e-8
    weight_decay: Positive = 0.01
    type: Literal["AdamW"] = Field(default="AdamW", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_epsilon(self.epsilon)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG)
class FTRL(Named):
    """FTRL-proximal: sparse weights under L1. McMahan et al. 2013, "Ad click prediction", algorithm 1.

    s = (√(n + g²) - √n) / learning_rate; z += g - s w; n += g²; then w = 0 where |z| <= l1, else
    -(z - sign(z) * l1) / ((beta + √n) / learning_rate + l2). n begins as `initial_accumulator`.

    l2 is the paper's lambda2; TensorFlow's is half of it. The weights follow from z and n: a row that begins at other
    weights than 0, or is assigned others, gets the z that they follow from. State: "z", "n".
    """

    learning_rate: Positive = 0.05
    beta: Positive = 1.0
    l1: Positive = 0.0
    l2: Positive = 0.0
    initial_accumulator: Positive = 0.0
    type: Literal["FTRL"] = Field(default="FTRL", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.learning_rate == 0.0:
            raise ValueError("learning_rate is 0, and FTRL divides by it; wanted more than 0")
        if self.beta == self.l2 == self.initial_accumulator == 0.0:
            raise ValueError(
                "beta, l2 and initial_accumulator are all 0, so a zero gradient would divide 0 by 0"
            )
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG)
class Add(Named):
    """w += g. The one optimizer of int64 tables, whose sums wrap; it has no learning rate."""

    type: Literal["Add"] = Field(default="Add", kw_only=True, repr=False)


Optimizer = SGD | Momentum | Nesterov | Adagrad | RowwiseAdagrad | Adam | AdamW | FTRL | Add
OPTIMIZERS: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (SGD, Momentum, Nesterov, Adagrad, RowwiseAdagrad, Adam, AdamW, FTRL, Add)
}
