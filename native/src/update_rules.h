// The update rules that only some tables have; a part of kernels.cc, whose anonymous namespace it stands in.
//
// Each is one pass over a row, or two where a norm is wanted first. Sums over a row are kept in 16 lanes, which are
// folded in one order, so that every instruction set gives the same bits.
#pragma once

constexpr uint32_t kLanes = 16;

inline float FoldLanes(float* lanes) {
  for (uint32_t width = kLanes / 2; width > 0; width /= 2) {
    for (uint32_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

inline float SumOfSquares(const Float* values, uint32_t dim) {
  float lanes[kLanes] = {};
  uint32_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    for (uint32_t i = 0; i < kLanes; ++i) lanes[i] += values[d + i] * values[d + i];
  }
  for (uint32_t i = 0; d + i < dim; ++i) lanes[i] += values[d + i] * values[d + i];
  return FoldLanes(lanes);
}

template <uint32_t kDim>
void ConditionDim(const Update& u, float* out) {
  const uint32_t dim = kDim != 0 ? kDim : u.dim;
  for (uint32_t r = 0; r < u.count; ++r) {
    const Float* __restrict w = reinterpret_cast<const Float*>(u.rows[r] + u.weights);
    const Float* __restrict g = reinterpret_cast<const Float*>(u.gradients[r]);
    Float* __restrict to = out + uint64_t{r} * dim;
    if (u.clip_value > 0.0f) {
      const float most = u.clip_value;
      for (uint32_t d = 0; d < dim; ++d) {
        const float below = g[d] > most ? most : g[d];
        to[d] = below < -most ? -most : below;
      }
    } else {
      for (uint32_t d = 0; d < dim; ++d) to[d] = g[d];
    }
    if (u.clip_norm > 0.0f) {
      const float norm = __builtin_sqrtf(SumOfSquares(to, dim));
      if (norm > u.clip_norm) {
        const float scale = u.clip_norm / norm;
        for (uint32_t d = 0; d < dim; ++d) to[d] *= scale;
      }
    }
    if (u.coupled_decay > 0.0f) {
      for (uint32_t d = 0; d < dim; ++d) to[d] += u.coupled_decay * w[d];
    }
  }
}
void Condition(const Update& u, float* out) { TABLEBAY_FOR_DIM(u.dim, ConditionDim, u, out) }

template <uint32_t kDim>
void ShrinkDim(const Update& u) {
  const uint32_t dim = kDim != 0 ? kDim : u.dim;
  const float share = u.learning_rate * u.decoupled_decay;
  for (uint32_t r = 0; r < u.count; ++r) {
    Float* __restrict w = reinterpret_cast<Float*>(u.rows[r] + u.weights);
    for (uint32_t d = 0; d < dim; ++d) w[d] -= share * w[d];
  }
}
void Shrink(const Update& u) { TABLEBAY_FOR_DIM(u.dim, ShrinkDim, u) }

template <uint32_t kDim>
void BoundDim(const Update& u) {
  const uint32_t dim = kDim != 0 ? kDim : u.dim;
  const float most = u.weight_bound;
  for (uint32_t r = 0; r < u.count; ++r) {
    Float* __restrict w = reinterpret_cast<Float*>(u.rows[r] + u.weights);
    for (uint32_t d = 0; d < dim; ++d) {
      const float below = w[d] > most ? most : w[d];
      w[d] = below < -most ? -most : below;
    }
  }
}
void Bound(const Update& u) { TABLEBAY_FOR_DIM(u.dim, BoundDim, u) }

template <uint32_t kDim>
void MomentumDim(const Update u) {
  const float rate = u.learning_rate;
  const float momentum = u.momentum;
  TABLEBAY_FOR_ROWS({
    TABLEBAY_FOR_COLUMNS {
      const float next = momentum * s[d] + g[d];
      s[d] = next;
      w[d] -= rate * next;
}
})
}
void Momentum(const Update& u) { TABLEBAY_FOR_DIM(u.dim, MomentumDim, u) }

template <uint32_t kDim>
void NesterovDim(const Update u) {
  const float rate = u.learning_rate;
  const float momentum = u.momentum;
  TABLEBAY_FOR_ROWS({
    TABLEBAY_FOR_COLUMNS {
      const float gradient = g[d];
      const float next = momentum * s[d] + gradient;
      s[d] = next;
      w[d] -= rate * (gradient + momentum * next);
}
})
}
void Nesterov(const Update& u) { TABLEBAY_FOR_DIM(u.dim, NesterovDim, u) }

template <uint32_t kDim>
void RowwiseAdagradDim(const Update u) {
  const float learning_rate = u.learning_rate;
  const float epsilon = u.epsilon;
  TABLEBAY_FOR_ROWS({
    const float sum = s[0] + SumOfSquares(g, dim) / static_cast<float>(dim);
    s[0] = sum;
    const float rate = learning_rate / (__builtin_sqrtf(sum) + epsilon);
    TABLEBAY_FOR_COLUMNS w[d] -= rate * g[d];
  })
}
void RowwiseAdagrad(const Update& u) { TABLEBAY_FOR_DIM(u.dim, RowwiseAdagradDim, u) }

template <uint32_t kDim>
void AdamWDim(const Update u) {
  const float beta1 = u.beta1;
  const float beta2 = u.beta2;
  const float rest1 = u.rest1;
  const float rest2 = u.rest2;
  const float epsilon = u.epsilon;
  const float shrink = u.learning_rate * u.weight_decay;
  TABLEBAY_FOR_ROWS({
    Float* __restrict v = s + dim;
    const uint32_t t = NextStep(u, r);
    const float rate = u.learning_rate / Correction(u.corrections1, u, t);
    const float root = Correction(u.corrections2, u, t);
    TABLEBAY_FOR_COLUMNS {
      const float gradient = g[d];
      const float first = beta1 * s[d] + rest1 * gradient;
      const float second = beta2 * v[d] + rest2 * (gradient * gradient);
      s[d] = first;
      v[d] = second;
      const float shrunk = w[d] - shrink * w[d];
      w[d] = shrunk - rate * first / (__builtin_sqrtf(second) / root + epsilon);
    }
  })
}
void AdamW(const Update& u) { TABLEBAY_FOR_DIM(u.dim, AdamWDim, u) }

// z, then n. The weight follows from the two; where a row begins otherwise, optimizer.cc makes its z agree.
// inverse: 1 / alpha. shrinkage: added to the gradient, times the weight, in z alone.
template <uint32_t kDim, bool kShrinks>
[[gnu::always_inline]] inline void FtrlRows(const Update& u, float inverse, float l2, float shrinkage) {
  const float beta = u.beta;
  const float l1 = u.l1;
  TABLEBAY_FOR_ROWS({
    Float* __restrict squares = s + dim;
    TABLEBAY_FOR_COLUMNS {
      const float gradient = g[d];
      const float before = squares[d];
      const float after = before + gradient * gradient;
      const float root = __builtin_sqrtf(after);
      const float sigma = (root - __builtin_sqrtf(before)) * inverse;
      const float shrinking = kShrinks ? gradient + shrinkage * w[d] : gradient;
      const float z = s[d] + (shrinking - sigma * w[d]);
      squares[d] = after;
      s[d] = z;
      const float beyond = __builtin_fabsf(z) - l1;
      const float size = (beyond > 0.0f ? beyond : 0.0f) / ((beta + root) * inverse + l2);
      w[d] = (z > 0.0f ? -size : size) + 0.0f;  // never -0
    }
  })
}
template <uint32_t kDim>
void FtrlDim(const Update u) {
  FtrlRows<kDim, false>(u, 1.0f / u.learning_rate, u.l2, 0.0f);
}
void Ftrl(const Update& u) { TABLEBAY_FOR_DIM(u.dim, FtrlDim, u) }

template <uint32_t kDim>
void DecayedAdagradDim(const Update u) {
  const float learning_rate = u.learning_rate;
  const float rho = u.rho;
  const float epsilon = u.epsilon;
  TABLEBAY_FOR_ROWS({
    TABLEBAY_FOR_COLUMNS {
      const float gradient = g[d];
      const float sum = rho * s[d] + gradient * gradient;
      s[d] = sum;
      w[d] -= learning_rate * gradient / (__builtin_sqrtf(sum) + epsilon);
}
})
}
void DecayedAdagrad(const Update& u) { TABLEBAY_FOR_DIM(u.dim, DecayedAdagradDim, u) }

template <uint32_t kDim>
void AmsGradDim(const Update u) {
  const float beta1 = u.beta1;
  const float beta2 = u.beta2;
  const float rest1 = u.rest1;
  const float rest2 = u.rest2;
  const float epsilon = u.epsilon;
  TABLEBAY_FOR_ROWS({
    Float* __restrict v = s + dim;
    Float* __restrict largest = v + dim;
    const uint32_t t = NextStep(u, r);
    const float rate = u.learning_rate / Correction(u.corrections1, u, t);
    const float root = Correction(u.corrections2, u, t);
    TABLEBAY_FOR_COLUMNS {
      const float gradient = g[d];
      const float first = beta1 * s[d] + rest1 * gradient;
      const float second = beta2 * v[d] + rest2 * (gradient * gradient);
      const float top = second > largest[d] ? second : largest[d];
      s[d] = first;
      v[d] = second;
      largest[d] = top;
      w[d] -= rate * first / (__builtin_sqrtf(top) / root + epsilon);
    }
  })
}
void AmsGrad(const Update& u) { TABLEBAY_FOR_DIM(u.dim, AmsGradDim, u) }

template <uint32_t kDim>
void RmsPropDim(const Update u) {
  const float learning_rate = u.learning_rate;
  const float rho = u.rho;
  const float rest = 1.0f - rho;
  const float epsilon = u.epsilon;
  TABLEBAY_FOR_ROWS({
    TABLEBAY_FOR_COLUMNS {
      const float gradient = g[d];
      const float mean = rho * s[d] + rest * (gradient * gradient);
      s[d] = mean;
      w[d] -= learning_rate * gradient / (__builtin_sqrtf(mean) + epsilon);
}
})
}
void RmsProp(const Update& u) { TABLEBAY_FOR_DIM(u.dim, RmsPropDim, u) }

template <uint32_t kDim>
void AdaDeltaDim(const Update u) {
  const float learning_rate = u.learning_rate;
  const float rho = u.rho;
  const float rest = 1.0f - rho;
  const float epsilon = u.epsilon;
  TABLEBAY_FOR_ROWS({
    Float* __restrict deltas = s + dim;
    TABLEBAY_FOR_COLUMNS {
      const float gradient = g[d];
      const float mean = rho * s[d] + rest * (gradient * gradient);
      const float delta = __builtin_sqrtf(deltas[d] + epsilon) / __builtin_sqrtf(mean + epsilon) * gradient;
      s[d] = mean;
      deltas[d] = rho * deltas[d] + rest * (delta * delta);
      w[d] -= learning_rate * delta;
    }
  })
}
void AdaDelta(const Update& u) { TABLEBAY_FOR_DIM(u.dim, AdaDeltaDim, u) }

// m, then one v.
template <uint32_t kDim>
void PartialRowwiseAdamDim(const Update u) {
  const float beta1 = u.beta1;
  const float rest1 = u.rest1;
  TABLEBAY_FOR_ROWS({
    const uint32_t t = NextStep(u, r);
    const float second = u.beta2 * s[dim] + u.rest2 * (SumOfSquares(g, dim) / static_cast<float>(dim));
    s[dim] = second;
    const float root = __builtin_sqrtf(second) / Correction(u.corrections2, u, t) + u.epsilon;
    const float rate = u.learning_rate / Correction(u.corrections1, u, t) / root;
    TABLEBAY_FOR_COLUMNS {
      const float first = beta1 * s[d] + rest1 * g[d];
      s[d] = first;
      w[d] -= rate * first;
    }
  })
}
void PartialRowwiseAdam(const Update& u) { TABLEBAY_FOR_DIM(u.dim, PartialRowwiseAdamDim, u) }

// FTRL's z and n; between the passes the weights' places hold what of z lies beyond l1.
template <uint32_t kDim>
void GroupFtrlDim(const Update u) {
  const float inverse = 1.0f / u.learning_rate;
  const float beta = u.beta;
  const float l1 = u.l1;
  const float l2 = u.l2;
  const float threshold = u.l21 * __builtin_sqrtf(static_cast<float>(u.dim));
  TABLEBAY_FOR_ROWS({
    Float* __restrict squares = s + dim;
    TABLEBAY_FOR_COLUMNS {
      const float gradient = g[d];
      const float before = squares[d];
      const float after = before + gradient * gradient;
      const float sigma = (__builtin_sqrtf(after) - __builtin_sqrtf(before)) * inverse;
      const float z = s[d] + (gradient - sigma * w[d]);
      squares[d] = after;
      s[d] = z;
      const float beyond = __builtin_fabsf(z) - l1;
      const float size = beyond > 0.0f ? beyond : 0.0f;
      w[d] = z > 0.0f ? -size : size;
    }
    const float norm = __builtin_sqrtf(SumOfSquares(w, dim));
    const float share = norm > threshold ? 1.0f - threshold / norm : 0.0f;
    TABLEBAY_FOR_COLUMNS {
      w[d] = (share > 0.0f ? w[d] * share / ((beta + __builtin_sqrtf(squares[d])) * inverse + l2) : 0.0f) + 0.0f;
    }
  })
}
void GroupFtrl(const Update& u) { TABLEBAY_FOR_DIM(u.dim, GroupFtrlDim, u) }

template <uint32_t kDim>
void LambDim(const Update u) {
  const float beta1 = u.beta1;
  const float beta2 = u.beta2;
  const float rest1 = u.rest1;
  const float rest2 = u.rest2;
  const float epsilon = u.epsilon;
  const float weight_decay = u.weight_decay;
  TABLEBAY_FOR_ROWS({
    Float* __restrict v = s + dim;
    const uint32_t t = NextStep(u, r);
    const float correction = Correction(u.corrections1, u, t);
    const float root = Correction(u.corrections2, u, t);
    TABLEBAY_FOR_COLUMNS {
      const float gradient = g[d];
      s[d] = beta1 * s[d] + rest1 * gradient;
      v[d] = beta2 * v[d] + rest2 * (gradient * gradient);
    }
    // The step is worked out twice rather than kept: a row may be long.
    const auto step = [&](uint32_t d) {
      return s[d] / correction / (__builtin_sqrtf(v[d]) / root + epsilon) + weight_decay * w[d];
    };
    float lanes[kLanes] = {};
    uint32_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
      for (uint32_t i = 0; i < kLanes; ++i) lanes[i] += step(d + i) * step(d + i);
    }
    for (uint32_t i = 0; d + i < dim; ++i) lanes[i] += step(d + i) * step(d + i);
    const float steps = __builtin_sqrtf(FoldLanes(lanes));
    const float weights = __builtin_sqrtf(SumOfSquares(w, dim));
    const float rate = u.learning_rate * (weights > 0.0f && steps > 0.0f ? weights / steps : 1.0f);
    for (uint32_t i = 0; i < dim; ++i) w[i] -= rate * step(i);
  })
}
void Lamb(const Update& u) { TABLEBAY_FOR_DIM(u.dim, LambDim, u) }
