// Rules as other engines have them, and what stands beside Adam's; a part of kernels.cc, whose anonymous namespace it
// stands in, after update_rules.h.
#pragma once

// base^exponent by squaring.
inline double PowerOf(double base, uint32_t exponent) {
  double result = 1.0;
  for (; exponent != 0; exponent >>= 1, base *= base) {
    if ((exponent & 1) != 0) result *= base;
  }
  return result;
}

// The decay of the steps since the row's last, but for that of the update that follows.
void Fade(const Update& u) {
  for (uint32_t r = 0; r < u.count; ++r) {
    const uint32_t last = *reinterpret_cast<const Word32*>(u.rows[r] + u.step);
    if (u.now <= last || u.now - last == 1) continue;
    const uint32_t missed = u.now - last - 1;
    const auto first = static_cast<float>(PowerOf(u.fade1, missed));
    const auto second = static_cast<float>(PowerOf(u.fade2, missed));
    Float* __restrict m = reinterpret_cast<Float*>(u.rows[r] + u.slots);
    for (uint32_t d = 0; d < u.dim; ++d) m[d] *= first;
    Float* __restrict v = m + u.dim;
    for (uint32_t d = 0; d < u.seconds; ++d) v[d] *= second;
  }
}

// TensorNet's Adam for sparse rows: no correction of the moments.
template <uint32_t kDim>
void UncorrectedAdamDim(const Update u) {
  const float learning_rate = u.learning_rate;
  const float beta1 = u.beta1;
  const float beta2 = u.beta2;
  const float rest1 = u.rest1;
  const float rest2 = u.rest2;
  const float epsilon = u.epsilon;
  TABLEBAY_FOR_ROWS({
    Float* __restrict v = s + dim;
    TABLEBAY_FOR_COLUMNS {
      const float gradient = g[d];
      const float first = beta1 * s[d] + rest1 * gradient;
      const float second = beta2 * v[d] + rest2 * (gradient * gradient);
      s[d] = first;
      v[d] = second;
      w[d] -= learning_rate * first / (__builtin_sqrtf(second) + epsilon);
    }
  })
}
void UncorrectedAdam(const Update& u) { TABLEBAY_FOR_DIM(u.dim, UncorrectedAdamDim, u) }

// Paddle's: by the sum before this gradient, which is added afterwards.
template <uint32_t kDim>
void PaddleAdagradDim(const Update u) {
  const float initial = u.initial_accumulator;
  TABLEBAY_FOR_ROWS({
    const float rate = u.learning_rate * __builtin_sqrtf(initial / (initial + s[0]));
    s[0] += SumOfSquares(g, dim) / static_cast<float>(dim);
    TABLEBAY_FOR_COLUMNS w[d] -= rate * g[d];
  })
}
void PaddleAdagrad(const Update& u) { TABLEBAY_FOR_DIM(u.dim, PaddleAdagradDim, u) }

// TensorNet's: it multiplies by what is called its learning rate where alpha divides.
template <uint32_t kDim>
void InverseFtrlDim(const Update u) {
  FtrlRows<kDim, false>(u, u.learning_rate, u.l2, 0.0f);
}
void InverseFtrl(const Update& u) { TABLEBAY_FOR_DIM(u.dim, InverseFtrlDim, u) }

// TensorFlow's: twice l2, and a penalty on the loss beside.
template <uint32_t kDim>
void TensorFlowFtrlDim(const Update u) {
  FtrlRows<kDim, true>(u, 1.0f / u.learning_rate, 2.0f * u.l2, 2.0f * u.l2_shrinkage);
}
void TensorFlowFtrl(const Update& u) { TABLEBAY_FOR_DIM(u.dim, TensorFlowFtrlDim, u) }
