// What stands before and after an optimizer's rule: clipping, weight decay, bounds on weights.

#include <algorithm>
#include <vector>

#include "tablebay/status.h"
#include "tablebay/table.h"

namespace tablebay {
namespace {

constexpr uint32_t kTogetherMax = 32;
// Rows whose gradients are made ready together, so that they stay in the cache; at least one.
constexpr uint32_t kConditionedFloats = 8192;
uint32_t ConditionedRows(uint32_t dim) { return std::clamp(kConditionedFloats / dim, 1u, kTogetherMax); }

// Of the thread that applies a push.
thread_local std::vector<float> conditioned_rows;
void ReserveConditioned(uint32_t dim) {
  const size_t wanted = size_t{ConditionedRows(dim)} * dim;
  if (conditioned_rows.size() < wanted) conditioned_rows.resize(wanted);
}

bool Conditions(const Update& update) {
  return update.clip_value > 0 || update.clip_norm > 0 || update.coupled_decay > 0;
}

}  // namespace

void Table::set_weight_decay(double value) {
  const Parameters& parameters = checked_.options.optimizer_parameters;
  if (!checked_.optimizer->decays && parameters.find("weight_decay") == parameters.end()) {
    throw StatusError("BadRequest",
                      Format("table '%s': optimizer %s has no weight_decay", name().c_str(), checked_.optimizer->name));
  }
  if (!(value >= 0) || value > 1e30 || (decoupled_ && value == 0)) {
    throw StatusError("BadRequest", Format("table '%s': weight_decay is %g, wanted %s0 to 1e30", name().c_str(), value,
                                           decoupled_ ? "more than " : ""));
  }
  weight_decay_.store(static_cast<float>(value), std::memory_order_relaxed);
}

void Table::ReserveBeside() const {
  if (may_condition_) ReserveConditioned(dim());
}

// The decay as it is now, for all rows of a step.
void Table::SetDecay(Update& update) const {
  update.weight_decay = weight_decay();
  if (checked_.optimizer->decays) (decoupled_ ? update.decoupled_decay : update.coupled_decay) = update.weight_decay;
}

// Whether something stands before or after the rule.
bool Table::Beside(const Update& update) const {
  return Conditions(update) || update.decoupled_decay > 0 || update.weight_bound > 0 || clock_ == AdamClock::kLazyDecay;
}

// The rule with what stands before and after it.
void Table::UpdateBeside(UpdateKernel rule, Update update) const {
  const Kernels& kernels = ActiveKernels();
  const Ahead ahead = update.ahead;
  char* const* const rows = update.rows;
  const char* const* const gradients = update.gradients;
  const uint32_t count = update.count;
  const uint32_t together = ConditionedRows(dim());
  const bool conditions = Conditions(update);
  const char* conditioned[kTogetherMax];
  for (uint32_t j = 0; j < together; ++j) {
    conditioned[j] =
        conditions ? reinterpret_cast<const char*>(conditioned_rows.data() + uint64_t{j} * dim()) : nullptr;
  }
  for (uint32_t first = 0; first < count; first += together) {
    update.rows = rows + first;
    update.gradients = gradients + first;
    update.count = std::min(together, count - first);
    update.ahead = first == 0 ? ahead : Ahead{};
    if (conditions) {
      kernels.condition(update, conditioned_rows.data());
      update.gradients = conditioned;
    }
    if (update.decoupled_decay > 0) kernels.shrink(update);
    if (clock_ == AdamClock::kLazyDecay) kernels.fade(update);
    rule(update);
    if (update.weight_bound > 0) kernels.bound(update);
  }
}

}  // namespace tablebay
