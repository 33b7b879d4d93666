// What a table is: its name, width, element type, optimizer and initializer, and the row layout that follows.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tablebay/eviction.h"
#include "tablebay/kernels.h"
#include "tablebay/schedule.h"

namespace tablebay {

// Of a row's weights as they are kept. kBfloat16 and kFloat16 are float32 everywhere else: in calls, gradients, slots.
enum class ElementType { kFloat32, kInt64, kBfloat16, kFloat16 };
inline bool IsNarrow(ElementType type) { return type == ElementType::kBfloat16 || type == ElementType::kFloat16; }
enum class NonFinite { kReject, kZero, kAllow };
enum class PushMissing { kCreate, kDrop };
// What Adam's t is: how many updates the row has had, or the time of the push, its client's step + 1; with kLazyDecay
// the moments of a row decay for the steps between its updates too.
enum class AdamClock { kRow, kGlobal, kLazyDecay };
inline constexpr int kAdamClocks = 3;

using Parameters = std::map<std::string, double>;

// Throws StatusError(BadRequest) naming those that exist.
ElementType ElementTypeNamed(const std::string& name);

struct TableOptions {
  std::string name;
  uint32_t dim = 0;
  std::string element_type;  // float32 | int64 | bfloat16 | float16
  std::string optimizer;     // a name of the registry in optimizer.cc
  Parameters optimizer_parameters;
  std::string initializer;  // likewise
  Parameters initializer_parameters;
  uint64_t seed = 0;
  std::string non_finite = "Reject";    // Reject | Zero | Allow
  std::string push_missing = "Create";  // Create | Drop
  // A row is made by the N-th push that names its key; the pushes before are counted in the table of SightingsOf(name).
  uint32_t admit_at = 1;
  // A push of a key without a row makes it with this chance, by (seed, name, key, step); else its gradient is dropped.
  double admit_probability = 1.0;
  // Above 0: the pushes are counted in a filter made for so many keys, rather than key by key (admission.cc).
  uint64_t admit_filter_keys = 0;
  // Which rows leave by themselves; empty: none (eviction.h).
  Parameters eviction = {};
};

// Byte offsets within a row: [key u64 | version u32 | step u32 where the optimizer counts, or weights are rounded by
// chance | weights | slots | what eviction asks for], padded to 8 bytes. One allocation holds all of it, so that no cut
// can separate weights from their slots.
struct RowLayout {
  static constexpr uint32_t kVersion = 8;
  uint32_t step = 0;  // 0 = none
  uint32_t weights = 0;
  uint32_t weight_bytes = 0;
  uint32_t slots = 0;
  uint32_t slot_bytes = 0;
  uint32_t row_bytes = 0;
  // u32 each; 0 = none. Seconds of Unix time: of the last push or assignment, and when the row was made.
  uint32_t seen = 0;
  uint32_t born = 0;
  uint32_t pushes = 0;  // that the row has had
  // Where shows are counted: float32 each, and the day until which they are decayed, of which 0 is not known.
  uint32_t shows = 0;
  uint32_t clicks = 0;
  uint32_t day = 0;
  uint32_t state_bytes() const { return slot_bytes + (step != 0 ? 4 : 0); }
};

// A slot of an optimizer: float32[dim], or one float32 for the row.
struct Slot {
  const char* name;
  bool row_wise = false;
};

// An update rule. A new optimizer is a new entry of the registry in optimizer.cc and a kernel; nothing else knows.
struct Optimizer {
  const char* name;
  ElementType element_type_only;  // with `any_element_type` false: the one it works on
  bool any_element_type;
  bool counts_steps;
  std::vector<Slot> slots;
  std::vector<std::string> parameters;
  float (*initial_slot)(const Parameters&, size_t slot);
  UpdateKernel (*kernel)(const Kernels&, ElementType);
  // Where weights follow from slots: makes the slots those from which the row's weights follow.
  void (*agree)(const Update&, char* row) = nullptr;
  bool divides_by_learning_rate = false;  // so that it must not be 0
  bool clips = true;                      // takes clip_value, clip_norm, weight_bound
  bool schedules = true;                  // takes a schedule of its learning rate
  bool decays = true;                     // takes weight_decay and decoupled, beside what it does itself
};

// Throws StatusError(BadRequest) naming the optimizers that exist.
const Optimizer& FindOptimizer(const std::string& name);

// An initializer fills the weights of a new row from (seed, table, key, column) alone.
struct Initializer {
  const char* name;
  std::vector<std::string> parameters;
  std::vector<std::string> optional = {};
};
const Initializer& FindInitializer(const std::string& name);

// Of the optimizer's parameters. REQUIRES them checked.
Schedule ScheduleOf(const Parameters& parameters);

// The table, int64, that counts the pushes of keys without a row: a row for each such key, with its count, or a
// filter's rows of counters.
inline constexpr uint32_t kFilterDim = 32;
inline constexpr uint32_t kFilterCountMax = 15;
inline uint32_t SightingsDim(const TableOptions& options) { return options.admit_filter_keys > 0 ? kFilterDim : 1; }
std::string SightingsOf(const std::string& name);

// Checks all of it; throws StatusError(BadRequest) naming the field, the value found and the values wanted.
struct CheckedOptions {
  TableOptions options;
  ElementType element_type;
  NonFinite non_finite;
  PushMissing push_missing;
  EvictionRules eviction;
  const Optimizer* optimizer;
  RowLayout layout;
  RowLayout wide;           // with float32 for narrow weights; else the same
  uint32_t wire_bytes = 0;  // of a row's weights, or gradient, in calls
};
CheckedOptions Check(const TableOptions& options);

}  // namespace tablebay
