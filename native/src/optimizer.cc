#include <cmath>
#include <cstring>

#include "tablebay/options.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

float NoSlot(const Parameters&, size_t) { return 0.0f; }

float AdagradSlot(const Parameters& parameters, size_t) {
  return static_cast<float>(parameters.at("initial_accumulator"));
}

float FtrlSlot(const Parameters& parameters, size_t slot) {
  return slot == 0 ? 0.0f : static_cast<float>(parameters.at("initial_accumulator"));
}

float LoadFloat(const char* at) {
  float value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// What FTRL multiplies a weight by to get its z, less l1. inverse: 1 / alpha.
float FtrlScale(const Update& u, const char* slots, uint32_t d, float inverse, float l2) {
  const float n = LoadFloat(slots + (uint64_t{u.dim} + d) * sizeof(float));
  return (u.beta + std::sqrt(n)) * inverse + l2;
}

// z = -(w * scale + sign(w) * l1), n as it is.
void AgreeFtrlBy(const Update& u, char* row, float inverse, float l2) {
  char* const slots = row + u.slots;
  for (uint32_t d = 0; d < u.dim; ++d) {
    const float w = LoadFloat(row + u.weights + d * sizeof w);
    const float size = std::fabs(w) * FtrlScale(u, slots, d, inverse, l2) + u.l1;
    const float z = w == 0.0f ? 0.0f : std::copysign(size, -w);
    std::memcpy(slots + d * sizeof z, &z, sizeof z);
  }
}
void AgreeFtrl(const Update& u, char* row) { AgreeFtrlBy(u, row, 1.0f / u.learning_rate, u.l2); }
void AgreeInverseFtrl(const Update& u, char* row) { AgreeFtrlBy(u, row, u.learning_rate, u.l2); }
void AgreeTensorFlowFtrl(const Update& u, char* row) { AgreeFtrlBy(u, row, 1.0f / u.learning_rate, 2.0f * u.l2); }

// As AgreeFtrl, with the threshold on the row's length undone first.
void AgreeGroupFtrl(const Update& u, char* row) {
  char* const slots = row + u.slots;
  const auto beyond = [&](uint32_t d) {
    return std::fabs(LoadFloat(row + u.weights + d * sizeof(float))) *
           FtrlScale(u, slots, d, 1.0f / u.learning_rate, u.l2);
  };
  float squares = 0;
  for (uint32_t d = 0; d < u.dim; ++d) squares += beyond(d) * beyond(d);
  const float threshold = u.l21 * std::sqrt(static_cast<float>(u.dim));
  const float grown = squares > 0 ? 1 + threshold / std::sqrt(squares) : 1;
  for (uint32_t d = 0; d < u.dim; ++d) {
    const float w = LoadFloat(row + u.weights + d * sizeof w);
    const float z = w == 0.0f ? 0.0f : std::copysign(beyond(d) * grown + u.l1, -w);
    std::memcpy(slots + d * sizeof z, &z, sizeof z);
  }
}

const std::vector<Optimizer>& Optimizers() {
  static const std::vector<Optimizer> all = {
      // w -= lr * g
      {"SGD",
       ElementType::kFloat32,
       false,
       false,
       {},
       {"learning_rate"},
       NoSlot,
       [](const Kernels& kernels, ElementType) { return kernels.sgd; }},
      // G += g^2; w -= lr * g / (sqrt(G) + epsilon): Duchi, Hazan, Singer 2011, diagonal form, accumulated first.
      {"Adagrad",
       ElementType::kFloat32,
       false,
       false,
       {{"accumulator"}},
       {"learning_rate", "initial_accumulator", "epsilon"},
       AdagradSlot,
       [](const Kernels& kernels, ElementType) { return kernels.adagrad; }},
      // Kingma, Ba 2015, algorithm 1, with epsilon outside of the corrected root as PyTorch has it; lazy: t counts
      // the updates of the row, and an untouched row's moments stay as they are.
      {"Adam",
       ElementType::kFloat32,
       false,
       true,
       {{"m"}, {"v"}},
       {"learning_rate", "beta1", "beta2", "epsilon"},
       NoSlot,
       [](const Kernels& kernels, ElementType) { return kernels.adam; }},
      // n = mu n + g; w -= lr * n: Polyak 1964, the rate outside of n as in Sutskever et al. 2013 and PyTorch.
      {"Momentum",
       ElementType::kFloat32,
       false,
       false,
       {{"momentum"}},
       {"learning_rate", "momentum"},
       NoSlot,
       [](const Kernels& kernels, ElementType) { return kernels.momentum; }},
      // n = mu n + g; w -= lr * (g + mu n): Nesterov 1983, in the form of Bengio et al. 2013 and PyTorch.
      {"Nesterov",
       ElementType::kFloat32,
       false,
       false,
       {{"momentum"}},
       {"learning_rate", "momentum"},
       NoSlot,
       [](const Kernels& kernels, ElementType) { return kernels.nesterov; }},
      // G += mean(g^2); w -= lr * g / (sqrt(G) + epsilon), one G for a row: FBGEMM's EXACT_ROWWISE_ADAGRAD.
      {"RowwiseAdagrad",
       ElementType::kFloat32,
       false,
       false,
       {{"accumulator", true}},
       {"learning_rate", "initial_accumulator", "epsilon"},
       AdagradSlot,
       [](const Kernels& kernels, ElementType) { return kernels.rowwise_adagrad; }},
      // w -= lr * weight_decay * w, then Adam: Loshchilov, Hutter 2019, algorithm 2, scaled as PyTorch does.
      {"AdamW",
       ElementType::kFloat32,
       false,
       true,
       {{"m"}, {"v"}},
       {"learning_rate", "beta1", "beta2", "epsilon", "weight_decay"},
       NoSlot,
       [](const Kernels& kernels, ElementType) { return kernels.adamw; },
       nullptr,
       false,
       true,
       true,
       false},
      // McMahan et al. 2013, algorithm 1, alpha being the learning rate.
      {"FTRL",
       ElementType::kFloat32,
       false,
       false,
       {{"z"}, {"n"}},
       {"learning_rate", "beta", "l1", "l2", "initial_accumulator"},
       FtrlSlot,
       [](const Kernels& kernels, ElementType) { return kernels.ftrl; },
       AgreeFtrl,
       true,
       true,
       false,
       false},
      // G = rho G + g^2; w -= lr * g / (sqrt(G) + epsilon): PERSIA's g_square_momentum, accumulated first.
      {"DecayedAdagrad",
       ElementType::kFloat32,
       false,
       false,
       {{"accumulator"}},
       {"learning_rate", "rho", "initial_accumulator", "epsilon"},
       AdagradSlot,
       [](const Kernels& kernels, ElementType) { return kernels.decayed_adagrad; }},
      // Adam by the largest v so far: Reddi, Kale, Kumar 2018, algorithm 2, with PyTorch's corrections.
      {"AMSGrad",
       ElementType::kFloat32,
       false,
       true,
       {{"m"}, {"v"}, {"v_max"}},
       {"learning_rate", "beta1", "beta2", "epsilon"},
       NoSlot,
       [](const Kernels& kernels, ElementType) { return kernels.amsgrad; }},
      // v = rho v + (1 - rho) g^2; w -= lr * g / (sqrt(v) + epsilon): Tieleman, Hinton 2012, lecture 6e.
      {"RMSProp",
       ElementType::kFloat32,
       false,
       false,
       {{"v"}},
       {"learning_rate", "rho", "epsilon"},
       NoSlot,
       [](const Kernels& kernels, ElementType) { return kernels.rmsprop; }},
      // Zeiler 2012, algorithm 1, the step times the learning rate.
      {"AdaDelta",
       ElementType::kFloat32,
       false,
       false,
       {{"v"}, {"delta"}},
       {"learning_rate", "rho", "epsilon"},
       NoSlot,
       [](const Kernels& kernels, ElementType) { return kernels.adadelta; }},
      // Adam with one v for a row, of mean(g^2): FBGEMM's PARTIAL_ROWWISE_ADAM.
      {"PartialRowwiseAdam",
       ElementType::kFloat32,
       false,
       true,
       {{"m"}, {"v", true}},
       {"learning_rate", "beta1", "beta2", "epsilon"},
       NoSlot,
       [](const Kernels& kernels, ElementType) { return kernels.partial_rowwise_adam; }},
      // Yue et al. 2021, Group FTRL, the row being the group.
      {"GroupFTRL",
       ElementType::kFloat32,
       false,
       false,
       {{"z"}, {"n"}},
       {"learning_rate", "beta", "l1", "l2", "l21", "initial_accumulator"},
       FtrlSlot,
       [](const Kernels& kernels, ElementType) { return kernels.group_ftrl; },
       AgreeGroupFtrl,
       true,
       true,
       false,
       false},
      // Adam's step plus weight_decay * w, scaled to the length of the row: You et al. 2020, algorithm 2.
      {"LAMB",
       ElementType::kFloat32,
       false,
       true,
       {{"m"}, {"v"}},
       {"learning_rate", "beta1", "beta2", "epsilon", "weight_decay"},
       NoSlot,
       [](const Kernels& kernels, ElementType) { return kernels.lamb; },
       nullptr,
       false,
       true,
       true,
       false},
      // RowwiseAdagrad by another name, with TensorNet's defaults: core/ps/optimizer/ada_grad_kernel.cc, sparse rows.
      {"TensorNetAdagrad",
       ElementType::kFloat32,
       false,
       false,
       {{"accumulator", true}},
       {"learning_rate", "initial_accumulator", "epsilon"},
       AdagradSlot,
       [](const Kernels& kernels, ElementType) { return kernels.rowwise_adagrad; }},
      // Adam without corrections: TensorNet, core/ps/optimizer/adam_kernel.cc, sparse rows.
      {"TensorNetAdam",
       ElementType::kFloat32,
       false,
       false,
       {{"m"}, {"v"}},
       {"learning_rate", "beta1", "beta2", "epsilon"},
       NoSlot,
       [](const Kernels& kernels, ElementType) { return kernels.uncorrected_adam; }},
      // FTRL with 1 / alpha for the learning rate: TensorNet, core/ps/optimizer/ftrl_kernel.cc, sparse rows.
      {"TensorNetFTRL",
       ElementType::kFloat32,
       false,
       false,
       {{"z"}, {"n"}},
       {"learning_rate", "beta", "l1", "l2"},
       NoSlot,
       [](const Kernels& kernels, ElementType) { return kernels.inverse_ftrl; },
       AgreeInverseFtrl,
       true,
       true,
       false,
       false},
      // w -= lr * g * sqrt(G0 / (G0 + G)), then G += mean(g^2): Paddle, sparse_sgd_rule.cc, SparseAdaGradSGDRule.
      {"PaddleAdagrad",
       ElementType::kFloat32,
       false,
       false,
       {{"accumulator", true}},
       {"learning_rate", "initial_accumulator"},
       NoSlot,
       [](const Kernels& kernels, ElementType) { return kernels.paddle_adagrad; }},
      // FTRL with twice l2, and l2_shrinkage: TensorFlow, training_ops.cc, learning_rate_power being -0.5.
      {"TensorFlowFTRL",
       ElementType::kFloat32,
       false,
       false,
       {{"z"}, {"n"}},
       {"learning_rate", "initial_accumulator", "l1", "l2", "l2_shrinkage", "beta"},
       FtrlSlot,
       [](const Kernels& kernels, ElementType) { return kernels.tensorflow_ftrl; },
       AgreeTensorFlowFtrl,
       true,
       true,
       false,
       false},
      // w += g; integers wrap.
      {"Add",
       ElementType::kFloat32,
       true,
       false,
       {},
       {},
       NoSlot,
       [](const Kernels& kernels, ElementType type) {
         return type == ElementType::kInt64 ? kernels.add_int64 : kernels.add_float32;
       },
       nullptr,
       false,
       false,
       false,
       false},
  };
  return all;
}

const std::vector<Initializer>& Initializers() {
  static const std::vector<Initializer> all = {
      {"Zeros", {}},
      {"Constant", {"value"}},
      {"Uniform", {"low", "high"}},
      {"Normal", {"stddev", "mean"}},
      // A normal distribution that ends at two standard deviations.
      {"TruncatedNormal", {"stddev", "mean"}},
      // Uniform within +-sqrt(6 / (fan_in + dim)): Glorot, Bengio 2010, formula 16. fan_in is dim unless given.
      {"Xavier", {}, {"fan_in"}}};
  return all;
}

template <class Entry>
const Entry& FindByName(const std::vector<Entry>& entries, const char* what, const std::string& name) {
  std::string names;
  for (const Entry& entry : entries) {
    if (entry.name == name) return entry;
    names += names.empty() ? entry.name : std::string(", ") + entry.name;
  }
  throw StatusError("BadRequest",
                    Format("%s '%s' does not exist; wanted one of %s", what, name.c_str(), names.c_str()));
}

void CheckParameters(const TableOptions& options, const char* what, const std::string& name,
                     const std::vector<std::string>& wanted, const std::vector<std::string>& may,
                     const Parameters& found) {
  for (const auto& [key, value] : found) {
    bool known = false;
    for (const std::string& parameter : wanted) known = known || parameter == key;
    for (const std::string& parameter : may) known = known || parameter == key;
    if (!known) {
      throw StatusError("BadRequest", Format("table '%s': %s %s has no parameter '%s'", options.name.c_str(), what,
                                             name.c_str(), key.c_str()));
    }
    if (!std::isfinite(value)) {
      throw StatusError("BadRequest", Format("table '%s': %s %s: %s is %g, wanted a finite number",
                                             options.name.c_str(), what, name.c_str(), key.c_str(), value));
    }
  }
  for (const std::string& parameter : wanted) {
    if (!found.contains(parameter)) {
      throw StatusError("BadRequest", Format("table '%s': %s %s needs parameter '%s'", options.name.c_str(), what,
                                             name.c_str(), parameter.c_str()));
    }
  }
}

// Throws unless low <= value <= high.
void CheckRange(const TableOptions& options, const char* parameter, double low, double high) {
  const auto found = options.optimizer_parameters.find(parameter);
  if (found == options.optimizer_parameters.end() || (found->second >= low && found->second <= high)) return;
  throw StatusError("BadRequest", Format("table '%s': %s is %g, wanted %g to %g", options.name.c_str(), parameter,
                                         found->second, low, high));
}

// Names of what an optimizer takes beside its rule's own parameters.
std::vector<std::string> BesideTheRule(const Optimizer& optimizer) {
  std::vector<std::string> names;
  if (optimizer.clips) names = {"clip_value", "clip_norm", "weight_bound"};
  if (optimizer.schedules) {
    for (const char* name : {"schedule", "schedule_steps", "schedule_to", "warmup_steps"}) names.emplace_back(name);
  }
  if (optimizer.decays) {
    for (const char* name : {"weight_decay", "decoupled"}) names.emplace_back(name);
  }
  if (optimizer.counts_steps) names.emplace_back("clock");
  return names;
}

constexpr double kWholeMax = 9007199254740992.0;  // 2^53

double ValueOf(const Parameters& parameters, const char* name) {
  const auto found = parameters.find(name);
  return found == parameters.end() ? 0 : found->second;
}

void CheckWhole(const TableOptions& options, const char* parameter, double high) {
  CheckRange(options, parameter, 0, high);
  const double value = ValueOf(options.optimizer_parameters, parameter);
  if (value == std::floor(value)) return;
  throw StatusError("BadRequest",
                    Format("table '%s': %s is %g, wanted a whole number", options.name.c_str(), parameter, value));
}

// What would be ignored is refused.
void CheckBesideTheRule(const TableOptions& options) {
  const auto value = [&](const char* name) { return ValueOf(options.optimizer_parameters, name); };
  const auto refuse = [&](const char* words) {
    throw StatusError("BadRequest", Format("table '%s': %s", options.name.c_str(), words));
  };
  for (const char* parameter : {"clip_value", "clip_norm", "weight_bound"}) CheckRange(options, parameter, 0, 1e30);
  CheckRange(options, "schedule_to", 0, 1);
  CheckWhole(options, "decoupled", 1);
  CheckWhole(options, "clock", kAdamClocks - 1);
  CheckWhole(options, "schedule", kScheduleShapes - 1);
  CheckWhole(options, "schedule_steps", kWholeMax);
  CheckWhole(options, "warmup_steps", kWholeMax);
  if (value("decoupled") != 0 && value("weight_decay") == 0) {
    refuse("decoupled is set and weight_decay is 0; wanted more than 0");
  }
  const Schedule schedule = ScheduleOf(options.optimizer_parameters);
  if (schedule.shape == ScheduleShape::kConstant) {
    if (schedule.steps > 0 || schedule.to > 0) {
      refuse("schedule_steps and schedule_to say how a schedule ends, and schedule is Constant; wanted another");
    }
    return;
  }
  if (schedule.steps == 0) refuse("schedule_steps is 0, wanted at least 1 with a schedule");
  if (schedule.to == 0 &&
      (schedule.shape == ScheduleShape::kExponential || schedule.shape == ScheduleShape::kStaircase)) {
    refuse("schedule_to is 0, which no product reaches; wanted more than 0 with schedule Exponential or Staircase");
  }
}

// steps: whether a row has a step though its optimizer counts none.
RowLayout LayoutOf(uint32_t dim, const Optimizer& optimizer, ElementType type, bool steps,
                   const EvictionRules& eviction) {
  RowLayout layout;
  const bool wide = type == ElementType::kInt64;
  uint32_t offset = RowLayout::kVersion + 4;
  if (optimizer.counts_steps || steps) {
    layout.step = offset;
    offset += 4;
  }
  if (wide) offset = (offset + 7) / 8 * 8;
  layout.weights = offset;
  layout.weight_bytes = dim * (wide ? 8 : IsNarrow(type) ? 2 : 4);
  layout.slots = (layout.weights + layout.weight_bytes + 3) / 4 * 4;
  for (const Slot& slot : optimizer.slots) layout.slot_bytes += (slot.row_wise ? 1 : dim) * 4;
  uint32_t end = layout.slots + layout.slot_bytes;
  const auto add = [&](uint32_t& place, bool wanted) {
    if (!wanted) return;
    place = end;
    end += 4;
  };
  add(layout.seen, eviction.asks_seen());
  add(layout.born, eviction.grace_seconds > 0);
  add(layout.pushes, eviction.asks_pushes());
  for (uint32_t* const place : {&layout.shows, &layout.clicks, &layout.day}) add(*place, eviction.counts_shows());
  layout.row_bytes = (end + 7) / 8 * 8;
  return layout;
}

}  // namespace

Schedule ScheduleOf(const Parameters& parameters) {
  Schedule schedule;
  schedule.shape = static_cast<ScheduleShape>(static_cast<int>(ValueOf(parameters, "schedule")));
  schedule.warmup_steps = ValueOf(parameters, "warmup_steps");
  schedule.steps = ValueOf(parameters, "schedule_steps");
  schedule.to = ValueOf(parameters, "schedule_to");
  return schedule;
}

const Optimizer& FindOptimizer(const std::string& name) { return FindByName(Optimizers(), "optimizer", name); }
const Initializer& FindInitializer(const std::string& name) { return FindByName(Initializers(), "initializer", name); }

ElementType ElementTypeNamed(const std::string& name) {
  if (name == "float32") return ElementType::kFloat32;
  if (name == "int64") return ElementType::kInt64;
  if (name == "bfloat16") return ElementType::kBfloat16;
  if (name == "float16") return ElementType::kFloat16;
  const char* const hint = name == "int8" ? ": rows are exported as int8, and not trained" : "";
  throw StatusError("BadRequest",
                    Format("dtype is '%s', wanted float32, bfloat16, float16 or int64%s", name.c_str(), hint));
}

std::string SightingsOf(const std::string& name) { return name + "--sightings"; }

CheckedOptions Check(const TableOptions& options) {
  constexpr uint32_t kDimMax = 65536;
  if (options.name.empty()) throw StatusError("BadRequest", "a table needs a name; found an empty one");
  if (options.dim < 1 || options.dim > kDimMax) {
    throw StatusError("BadRequest",
                      Format("table '%s': dim is %u, wanted 1 to %u", options.name.c_str(), options.dim, kDimMax));
  }
  CheckedOptions checked;
  checked.options = options;
  try {
    checked.element_type = ElementTypeNamed(options.element_type);
  } catch (const StatusError& error) {
    throw StatusError(error.kind(), Format("table '%s': %s", options.name.c_str(), error.what()));
  }
  if (options.non_finite == "Reject") {
    checked.non_finite = NonFinite::kReject;
  } else if (options.non_finite == "Zero") {
    checked.non_finite = NonFinite::kZero;
  } else if (options.non_finite == "Allow") {
    checked.non_finite = NonFinite::kAllow;
  } else {
    throw StatusError("BadRequest", Format("table '%s': nonFinite is '%s', wanted Reject, Zero or Allow",
                                           options.name.c_str(), options.non_finite.c_str()));
  }
  if (options.push_missing == "Create") {
    checked.push_missing = PushMissing::kCreate;
  } else if (options.push_missing == "Drop") {
    checked.push_missing = PushMissing::kDrop;
  } else {
    throw StatusError("BadRequest", Format("table '%s': pushMissing is '%s', wanted Create or Drop",
                                           options.name.c_str(), options.push_missing.c_str()));
  }
  if (options.admit_at < 1) {
    throw StatusError("BadRequest", Format("table '%s': admitAt is 0, wanted at least 1", options.name.c_str()));
  }
  if (options.admit_at > 1 && checked.push_missing == PushMissing::kDrop) {
    throw StatusError("BadRequest", Format("table '%s': admitAt is %u and pushMissing is Drop, so that no key would "
                                           "ever have a row; wanted Create",
                                           options.name.c_str(), options.admit_at));
  }
  if (!(options.admit_probability > 0 && options.admit_probability <= 1)) {
    throw StatusError("BadRequest", Format("table '%s': admitProbability is %g, wanted more than 0, at most 1",
                                           options.name.c_str(), options.admit_probability));
  }
  if (options.admit_probability < 1 && (options.admit_at > 1 || checked.push_missing == PushMissing::kDrop)) {
    throw StatusError("BadRequest", Format("table '%s': admitProbability is %g beside admitAt %u and pushMissing %s; "
                                           "wanted it with neither",
                                           options.name.c_str(), options.admit_probability, options.admit_at,
                                           options.push_missing.c_str()));
  }
  if (options.admit_filter_keys > 0 && (options.admit_at < 2 || options.admit_at > kFilterCountMax)) {
    throw StatusError("BadRequest", Format("table '%s': admitFilterKeys is set and admitAt is %u, wanted 2 to %u with "
                                           "it",
                                           options.name.c_str(), options.admit_at, kFilterCountMax));
  }
  const Optimizer& optimizer = FindOptimizer(options.optimizer);
  checked.optimizer = &optimizer;
  if (!optimizer.any_element_type && checked.element_type == ElementType::kInt64) {
    throw StatusError("BadRequest", Format("table '%s': optimizer %s works on float32, dtype is %s; wanted Add",
                                           options.name.c_str(), optimizer.name, options.element_type.c_str()));
  }
  CheckParameters(options, "optimizer", options.optimizer, optimizer.parameters, BesideTheRule(optimizer),
                  options.optimizer_parameters);
  CheckRange(options, "learning_rate", 0, 1e30);
  CheckRange(options, "initial_accumulator", 0, 1e30);
  CheckRange(options, "epsilon", 0, 1e30);
  // Up to here the bias corrections reach 1 within four million steps (table.cc keeps one for each).
  CheckRange(options, "beta1", 0, 0.999995);
  CheckRange(options, "beta2", 0, 0.999995);
  CheckRange(options, "momentum", 0, 1);
  CheckRange(options, "rho", 0, 1);
  for (const char* parameter : {"weight_decay", "beta", "l1", "l2", "l21", "l2_shrinkage"}) {
    CheckRange(options, parameter, 0, 1e30);
  }
  CheckBesideTheRule(options);
  if (optimizer.divides_by_learning_rate && options.optimizer_parameters.at("learning_rate") == 0) {
    throw StatusError("BadRequest",
                      Format("table '%s': %s divides by its learning_rate, which is 0; wanted more than 0",
                             options.name.c_str(), optimizer.name));
  }
  const Initializer& initializer = FindInitializer(options.initializer);
  CheckParameters(options, "initializer", options.initializer, initializer.parameters, initializer.optional,
                  options.initializer_parameters);
  if (const auto stddev = options.initializer_parameters.find("stddev");
      stddev != options.initializer_parameters.end() && !(stddev->second >= 0 && stddev->second <= 1e30)) {
    throw StatusError("BadRequest",
                      Format("table '%s': stddev is %g, wanted 0 to 1e30", options.name.c_str(), stddev->second));
  }
  if (const auto fan = options.initializer_parameters.find("fan_in");
      fan != options.initializer_parameters.end() &&
      !(fan->second >= 1 && fan->second <= kWholeMax && fan->second == std::floor(fan->second))) {
    throw StatusError("BadRequest", Format("table '%s': fan_in is %g, wanted a whole number from 1 to 2^53",
                                           options.name.c_str(), fan->second));
  }
  if (checked.element_type == ElementType::kInt64 && options.initializer != "Zeros") {
    throw StatusError("BadRequest", Format("table '%s': an int64 table begins with Zeros, found initializer %s",
                                           options.name.c_str(), options.initializer.c_str()));
  }

  const ElementType type = checked.element_type;
  checked.eviction = CheckEviction(options, type);
  checked.layout = LayoutOf(options.dim, optimizer, type, IsNarrow(type), checked.eviction);
  checked.wide =
      IsNarrow(type) ? LayoutOf(options.dim, optimizer, ElementType::kFloat32, true, checked.eviction) : checked.layout;
  checked.wire_bytes = checked.wide.weight_bytes;
  return checked;
}

}  // namespace tablebay
