"""The optimizers: what a push does to a row. The rules themselves are in native/src.

g is the gradient of one row, repeats summed; operations are element by element, and a row that a push does not name
stays as it is, with its state.

What may stand beside a rule, in this order for each row: g is clipped to +-clip_value; scaled to a length of at most
clip_norm; weight_decay * w is added to g (or, `decoupled`, learning_rate * weight_decay * w taken from w); the rule;
w is clipped to +-weight_bound. 0 means none.

The learning rate, by the number s of the pushing client's step: times (s + 1) / warmup_steps for the first
warmup_steps, then by `schedule` from 1 to schedule_to over schedule_steps, in a line or half a cosine, staying there;
or times schedule_to with every schedule_steps that pass, smoothly (Exponential) or at once (Staircase).

The t of Adam and its like, by `clock`: Row: how many updates the row has had. Global: s + 1, or what the row's t was
if that is more, so that a row's time never goes back. LazyDecay: as Global, and m and v decay for the steps since
the row's last update as if each had had a gradient of 0, which makes them those of dense Adam; w moves in pushes alone.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from tablebay.client.options import CLOCKS, CONFIG, SCHEDULES, Beta, Named, Positive, Steps, Unit, bad_request

Schedule = Literal["Constant", "Linear", "Cosine", "Exponential", "Staircase"]
assert get_args(Schedule) == SCHEDULES
Clock = Literal["Row", "Global", "LazyDecay"]
assert get_args(Clock) == CLOCKS


def require_divisor(initial_accumulator: float, epsilon: float) -> None:
    """Refuse an Adagrad that would divide 0 by 0."""
    if initial_accumulator == 0.0 and epsilon == 0.0:
        raise ValueError("initial_accumulator and epsilon are both 0, so a zero gradient would divide 0 by 0")


def require_epsilon(epsilon: float) -> None:
    """Refuse an optimizer that would divide 0 by 0."""
    if epsilon == 0.0:
        raise ValueError("epsilon is 0, so a zero gradient would divide 0 by 0; wanted more than 0")


def require_ftrl(learning_rate: float, beta: float, l2: float, initial_accumulator: float) -> None:
    """Refuse an FTRL that would divide by 0."""
    if learning_rate == 0.0:
        raise ValueError("learning_rate is 0, and FTRL divides by it; wanted more than 0")
    if beta == l2 == initial_accumulator == 0.0:
        raise ValueError("beta, l2 and initial_accumulator are all 0, so a zero gradient would divide 0 by 0")


@dataclass(frozen=True, config=CONFIG, repr=False)
class _Clips(Named):
    clip_value: Positive = Field(default=0.0, kw_only=True)
    clip_norm: Positive = Field(default=0.0, kw_only=True)
    weight_bound: Positive = Field(default=0.0, kw_only=True)


@dataclass(frozen=True, config=CONFIG, repr=False)
class _Schedules(_Clips):
    schedule: Schedule = Field(default="Constant", kw_only=True)
    schedule_steps: Steps = Field(default=0, kw_only=True)
    schedule_to: Unit = Field(default=0.0, kw_only=True)
    warmup_steps: Steps = Field(default=0, kw_only=True)

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.schedule == "Constant":
            if self.schedule_steps or self.schedule_to:
                raise ValueError(
                    "schedule_steps and schedule_to say how a schedule ends, and schedule is Constant; wanted another"
                )
        elif not self.schedule_steps:
            raise ValueError(f"schedule is {self.schedule} and schedule_steps is 0; wanted at least 1")
        elif not self.schedule_to and self.schedule in ("Exponential", "Staircase"):
            raise ValueError(
                f"schedule is {self.schedule} and schedule_to is 0, which no product reaches; wanted more than 0"
            )
        return self


@dataclass(frozen=True, config=CONFIG, repr=False)
class _Decays(_Schedules):
    weight_decay: Positive = Field(default=0.0, kw_only=True)
    decoupled: Annotated[bool, Field(strict=True)] = Field(default=False, kw_only=True)

    @model_validator(mode="after")
    def _has_something_to_decouple(self) -> Self:
        if self.decoupled and not self.weight_decay:
            raise ValueError("decoupled is set and weight_decay is 0; wanted more than 0")
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class SGD(_Decays):
    """w -= learning_rate * g."""

    learning_rate: Positive = 0.01
    type: Literal["SGD"] = Field(default="SGD", kw_only=True, repr=False)


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class Adagrad(_Decays):
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
@dataclass(frozen=True, config=CONFIG, repr=False)
class Adam(_Decays):
    """Adam with bias correction by a step count of each row. Kingma, Ba 2015, algorithm 1, with PyTorch's epsilon.

    m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g²; w -= learning_rate * m̂ / (√v̂ + epsilon), where
    m̂ = m / (1 - beta1^t), v̂ = v / (1 - beta2^t). Lazy: the moments of a row that a push does not name stay as they
    are, unless `clock` is LazyDecay. State: "m", "v", "step", which is t.
    """

    learning_rate: Positive = 0.001
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: Positive = 1e-8
    clock: Clock = Field(default="Row", kw_only=True)
    type: Literal["Adam"] = Field(default="Adam", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_epsilon(self.epsilon)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class Momentum(_Decays):
    """n = momentum * n + g; w -= learning_rate * n. Polyak 1964.

    The learning rate is outside of n, as in Sutskever et al. 2013 and PyTorch, so that a change of it counts at
    once. State: "momentum".
    """

    learning_rate: Positive = 0.01
    momentum: Unit = 0.9
    type: Literal["Momentum"] = Field(default="Momentum", kw_only=True, repr=False)


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class Nesterov(_Decays):
    """n = momentum * n + g; w -= learning_rate * (g + momentum * n). Nesterov 1983.

    In the form of Bengio et al. 2013 and PyTorch's SGD(nesterov=True). State: "momentum".
    """

    learning_rate: Positive = 0.01
    momentum: Unit = 0.9
    type: Literal["Nesterov"] = Field(default="Nesterov", kw_only=True, repr=False)


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class RowwiseAdagrad(_Decays):
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
@dataclass(frozen=True, config=CONFIG, repr=False)
class AdamW(_Schedules):
    """w -= learning_rate * weight_decay * w, then as Adam. Loshchilov, Hutter 2019, algorithm 2.

    The decay is scaled by the learning rate as in PyTorch, and only rows that a push names decay. State: "m", "v",
    "step".
    """

    learning_rate: Positive = 0.001
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: Positive = 1e-8
    weight_decay: Positive = 0.01
    clock: Clock = Field(default="Row", kw_only=True)
    type: Literal["AdamW"] = Field(default="AdamW", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_epsilon(self.epsilon)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class FTRL(_Clips):
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
        require_ftrl(self.learning_rate, self.beta, self.l2, self.initial_accumulator)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class DecayedAdagrad(_Decays):
    """G = rho * G + g²; w -= learning_rate * g / (√G + epsilon). PERSIA, its g_square_momentum being rho.

    The sum is updated first, and epsilon is outside of the root, as in Adagrad here; PERSIA has both the other way.
    G begins as `initial_accumulator`. State: "accumulator".
    """

    learning_rate: Positive = 0.05
    rho: Unit = 0.99
    initial_accumulator: Positive = 0.1
    epsilon: Positive = 1e-8
    type: Literal["DecayedAdagrad"] = Field(default="DecayedAdagrad", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_epsilon(self.epsilon)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class AMSGrad(_Decays):
    """Adam with the largest v so far in place of v. Reddi, Kale, Kumar 2018, algorithm 2.

    With Adam's corrections, as in PyTorch: the largest is taken of v before its correction. State: "m", "v", "v_max",
    "step".
    """

    learning_rate: Positive = 0.001
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: Positive = 1e-8
    clock: Clock = Field(default="Row", kw_only=True)
    type: Literal["AMSGrad"] = Field(default="AMSGrad", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_epsilon(self.epsilon)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class RMSProp(_Decays):
    """v = rho * v + (1 - rho) * g²; w -= learning_rate * g / (√v + epsilon). Tieleman, Hinton 2012, lecture 6e.

    Neither centred nor with momentum. State: "v".
    """

    learning_rate: Positive = 0.01
    rho: Unit = 0.99
    epsilon: Positive = 1e-8
    type: Literal["RMSProp"] = Field(default="RMSProp", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_epsilon(self.epsilon)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class AdaDelta(_Decays):
    """Zeiler 2012, algorithm 1; the step is multiplied by learning_rate, which the paper has as 1.

    v = rho * v + (1 - rho) * g²; d = √(delta + epsilon) / √(v + epsilon) * g; delta = rho * delta + (1 - rho) * d²;
    w -= learning_rate * d. State: "v", "delta".
    """

    learning_rate: Positive = 1.0
    rho: Unit = 0.9
    epsilon: Positive = 1e-6
    type: Literal["AdaDelta"] = Field(default="AdaDelta", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_epsilon(self.epsilon)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class PartialRowwiseAdam(_Decays):
    """Adam whose v is one number for the row, of mean(g²). FBGEMM, PARTIAL_ROWWISE_ADAM.

    The corrections are by the row's own updates, as in Adam here. State: "m", "v" (one a row), "step".
    """

    learning_rate: Positive = 0.001
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: Positive = 1e-8
    OF_A_ROW: ClassVar[tuple[str, ...]] = ("v",)
    clock: Clock = Field(default="Row", kw_only=True)
    type: Literal["PartialRowwiseAdam"] = Field(default="PartialRowwiseAdam", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_epsilon(self.epsilon)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class GroupFTRL(_Clips):
    """FTRL that makes whole rows 0. Yue et al. 2021, "Adaptive optimizers with sparse group lasso", Group FTRL.

    z and n as in FTRL; s = z less l1 towards 0; then the row is 0 where |s| <= l21 * √dim, else
    w = -s * (1 - l21 * √dim / |s|) / ((beta + √n) / learning_rate + l2), |s| the length of the whole row.
    State: "z", "n".
    """

    learning_rate: Positive = 0.05
    beta: Positive = 1.0
    l1: Positive = 0.0
    l2: Positive = 0.0
    l21: Positive = 0.0
    initial_accumulator: Positive = 0.0
    type: Literal["GroupFTRL"] = Field(default="GroupFTRL", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_ftrl(self.learning_rate, self.beta, self.l2, self.initial_accumulator)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class LAMB(_Schedules):
    """Adam's step and weight decay, scaled to the length of the row. You et al. 2020, algorithm 2.

    u = m̂ / (√v̂ + epsilon) + weight_decay * w; w -= learning_rate * |w| / |u| * u, with 1 for the ratio where either
    length is 0. The row stands for the paper's layer. State: "m", "v", "step".
    """

    learning_rate: Positive = 0.001
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: Positive = 1e-6
    weight_decay: Positive = 0.01
    clock: Clock = Field(default="Row", kw_only=True)
    type: Literal["LAMB"] = Field(default="LAMB", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_epsilon(self.epsilon)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class TensorNetAdagrad(_Decays):
    """TensorNet's Adagrad of sparse rows, with its defaults: core/ps/optimizer/ada_grad_kernel.cc.

    G += mean(g²); w -= learning_rate * g / (√G + epsilon), one G a row, which begins as `initial_accumulator`: the rule
    of RowwiseAdagrad. State: "accumulator".
    """

    learning_rate: Positive = 0.01
    initial_accumulator: Positive = 0.0
    epsilon: Positive = 1e-8
    OF_A_ROW: ClassVar[tuple[str, ...]] = ("accumulator",)
    type: Literal["TensorNetAdagrad"] = Field(default="TensorNetAdagrad", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_divisor(self.initial_accumulator, self.epsilon)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class TensorNetAdam(_Decays):
    """TensorNet's Adam of sparse rows, which corrects nothing: core/ps/optimizer/adam_kernel.cc.

    m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g²; w -= learning_rate * m / (√v + epsilon). The
    first step of a row is some 3 times as long as Adam's. State: "m", "v".
    """

    learning_rate: Positive = 0.01
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: Positive = 1e-8
    type: Literal["TensorNetAdam"] = Field(default="TensorNetAdam", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_epsilon(self.epsilon)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class TensorNetFTRL(_Clips):
    """TensorNet's FTRL, whose learning rate multiplies where alpha divides: core/ps/optimizer/ftrl_kernel.cc.

    z += g - learning_rate * (√(n + g²) - √n) * w; n += g²; then w = 0 where |z| <= l1, else
    -(z - sign(z) * l1) / ((beta + √n) * learning_rate + l2). So FTRL(1 / learning_rate), and steps are the shorter the
    higher learning_rate is. n begins at 0. One thing is not TensorNet's: a row that begins at other weights than 0 has
    the z that they follow from, where TensorNet has 0 and forgets the weights. State: "z", "n".
    """

    learning_rate: Positive = 0.01
    beta: Positive = 1.0
    l1: Positive = 0.1
    l2: Positive = 1.0
    type: Literal["TensorNetFTRL"] = Field(default="TensorNetFTRL", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.learning_rate == 0.0:
            raise ValueError("learning_rate is 0, wanted more than 0")
        if self.beta == self.l2 == 0.0:
            raise ValueError("beta and l2 are both 0, so a zero gradient would divide 0 by 0")
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class PaddleAdagrad(_Decays):
    """Paddle's Adagrad of sparse rows, by the sum before the gradient: sparse_sgd_rule.cc, SparseAdaGradSGDRule.

    w -= learning_rate * g * √(G0 / (G0 + G)), then G += mean(g²), one G a row, which begins at 0; G0 is
    `initial_accumulator`, Paddle's initial_g2sum. Paddle's gradients are divided by the shows of the push where its
    `show_scale` is on; here they are not. Its weight_bounds are `weight_bound`. State: "accumulator".
    """

    learning_rate: Positive = 0.05
    initial_accumulator: Positive = 3.0
    OF_A_ROW: ClassVar[tuple[str, ...]] = ("accumulator",)
    type: Literal["PaddleAdagrad"] = Field(default="PaddleAdagrad", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.initial_accumulator == 0.0:
            raise ValueError(
                "initial_accumulator is 0, so the first gradient would divide 0 by 0; wanted more than 0"
            )
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class TensorFlowFTRL(_Clips):
    """TensorFlow's FTRL with learning_rate_power -0.5: tf.keras.optimizers.Ftrl, training_ops.cc.

    z += g + 2 * l2_shrinkage * w - (√(n + g²) - √n) / learning_rate * w; n += g²; then w = 0 where |z| <= l1, else
    -(z - sign(z) * l1) / ((beta + √n) / learning_rate + 2 * l2). n begins as `initial_accumulator`. One thing is not
    TensorFlow's: a row that begins at other weights than 0 has the z that they follow from. State: "z", "n".
    """

    learning_rate: Positive = 0.001
    initial_accumulator: Positive = 0.1
    l1: Positive = 0.0
    l2: Positive = 0.0
    l2_shrinkage: Positive = 0.0
    beta: Positive = 0.0
    type: Literal["TensorFlowFTRL"] = Field(default="TensorFlowFTRL", kw_only=True, repr=False)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_ftrl(self.learning_rate, self.beta, self.l2, self.initial_accumulator)
        return self


@bad_request
@dataclass(frozen=True, config=CONFIG, repr=False)
class Add(Named):
    """w += g. The one optimizer of int64 tables, whose sums wrap; it has no learning rate."""

    type: Literal["Add"] = Field(default="Add", kw_only=True, repr=False)


Optimizer = (
    SGD
    | Momentum
    | Nesterov
    | Adagrad
    | RowwiseAdagrad
    | DecayedAdagrad
    | Adam
    | AdamW
    | AMSGrad
    | PartialRowwiseAdam
    | LAMB
    | RMSProp
    | AdaDelta
    | FTRL
    | GroupFTRL
    | TensorNetAdagrad
    | TensorNetAdam
    | TensorNetFTRL
    | PaddleAdagrad
    | TensorFlowFTRL
    | Add
)
OPTIMIZERS: dict[str, type[Any]] = {cls.__name__: cls for cls in get_args(Optimizer)}
