// The hot loops, compiled once for each instruction set and chosen at run time.
//
// All variants give the same bits: element-wise IEEE arithmetic in the same order, no contraction into
// multiply-add, no reassociation. Kernels see plain pointers only; they allocate nothing and cannot fail.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace tablebay {

// Rows that will be wanted next. A kernel fetches one of them for each row that it works on, so that memory and
// arithmetic are busy at the same time.
struct Ahead {
  const char* const* rows = nullptr;  // null entries are passed over
  uint32_t count = 0;
  uint32_t bytes = 0;  // of each, from its start
};

// Of rows that are likely to be those of their keys, but have not been looked at: a kernel fetches each well before it
// works on it, and passes it over if its key is another. A rule notes of the others that they change.
struct Guessed {
  static constexpr uint32_t kAhead = 32;  // rows that are fetched before one is worked on; REQUIRES the first ones so
  const uint64_t* keys;
  uint32_t bytes;  // of a row to fetch, from its start
  // Those passed over, in order. REQUIRES room for as many as there are rows.
  uint16_t* others;
  uint32_t other_count = 0;
  // Where they change:
  const uint32_t* positions = nullptr;
  uint64_t* dirty = nullptr;  // a bit for each position; a row of a version after clean_version has it already
  uint32_t clean_version = 0;
  uint32_t version = 0;  // that each row gets
};

// One block of rows to update. Row pointers are to the start of a row; gradients may lie at any address.
struct Update {
  char* const* rows;
  const char* const* gradients;
  uint32_t count;
  uint32_t dim;
  uint32_t weights;  // byte offsets within a row
  uint32_t slots;
  uint32_t step;
  float learning_rate;
  float epsilon;
  float beta1;
  float beta2;
  float rest1;  // 1 - beta1, rounded once: float's own 0.999 is too far from it
  float rest2;
  float momentum;
  float rho;
  float weight_decay;
  // FTRL's beta, and what it divides by beside.
  float beta;
  float l1;
  float l2;
  float l21;  // group lasso
  // Beside the rule; 0 where there is none.
  float clip_value;
  float clip_norm;
  float coupled_decay;    // added to the gradient, times the weight
  float decoupled_decay;  // taken from the weight, times the learning rate
  float weight_bound;
  // Adam: for a row at its t-th update, lr / (1 - beta1^t) is learning_rate / corrections1[t], and
  // sqrt(1 - beta2^t) is corrections2[t]; beyond the arrays both are 1 to the last bit.
  const float* corrections1;
  const float* corrections2;
  uint32_t corrections;
  // Adam's t: how many updates the row has had or, by time, the client's step + 1.
  bool by_time;
  uint32_t now;
  double fade1;  // beta1 and beta2 as they were given
  double fade2;
  uint32_t seconds;  // floats of a row's v, which follow those of its m
  float l2_shrinkage;
  float initial_accumulator;
  Ahead ahead;
  Guessed* guessed = nullptr;  // where not null, instead of `ahead`
};

using UpdateKernel = void (*)(const Update&);

// The weights of some new rows, each by the hash that is its base. a, b: what the initializer is given.
struct Fill {
  char* const* rows;  // to where the weights begin
  const uint64_t* bases;
  uint32_t count;
  uint32_t dim;
  float a;
  float b;
};
using FillKernel = void (*)(const Fill&);

struct Kernels {
  const char* name;

  void (*hash_keys)(const char* keys, size_t count, uint64_t* hashes);

  // The first of `count` rows of `dim` floats that holds a NaN or an infinity; `count` where none does.
  size_t (*first_nonfinite)(const char* rows, size_t count, uint32_t dim);

  // Before the rule: gradients clipped by value, then by the norm of the row, then weights added; to `out`, row by row.
  void (*condition)(const Update&, float* out);
  UpdateKernel shrink;  // before the rule: decoupled decay
  UpdateKernel fade;    // before the rule: Adam's moments decay for the time that passed without a gradient
  UpdateKernel bound;   // after the rule: weights within +-weight_bound

  UpdateKernel sgd;
  UpdateKernel adagrad;
  UpdateKernel adam;
  UpdateKernel momentum;
  UpdateKernel nesterov;
  UpdateKernel rowwise_adagrad;
  UpdateKernel adamw;
  UpdateKernel ftrl;
  UpdateKernel decayed_adagrad;
  UpdateKernel amsgrad;
  UpdateKernel rmsprop;
  UpdateKernel adadelta;
  UpdateKernel partial_rowwise_adam;
  UpdateKernel group_ftrl;
  UpdateKernel lamb;
  UpdateKernel uncorrected_adam;
  UpdateKernel paddle_adagrad;
  UpdateKernel inverse_ftrl;
  UpdateKernel tensorflow_ftrl;
  UpdateKernel add_float32;
  UpdateKernel add_int64;

  // Copies `bytes` at `offset` of each row to out + i * bytes, i counted from 0 or, where that is not null, order[i];
  // a null row reads as zeros.
  void (*copy_rows)(const char* const* rows, uint32_t count, uint32_t offset, uint32_t bytes, const uint32_t* order,
                    char* out, const Ahead& ahead);
  // The same of rows that are guessed, none of them null.
  void (*copy_guessed)(const char* const* rows, uint32_t count, uint32_t offset, uint32_t bytes, const uint32_t* order,
                       char* out, Guessed& guessed);

  // out[i] = base[index[i]], rows of `bytes`.
  void (*gather)(const char* base, const uint32_t* index, size_t count, uint32_t bytes, char* out);
  void (*gather_pointers)(const char* const* rows, const uint32_t* index, size_t count, uint32_t bytes, char* out);
  // As gather, and the same around the caches to `kept`. REQUIRES `bytes` and `kept` multiples of 64.
  void (*gather_twice)(const char* base, const uint32_t* index, size_t count, uint32_t bytes, char* out, char* kept);

  // Adds each row that is not the first of its key to the row of its key, in order of occurrence:
  // for i in [0, count): if first[index[i]] != i then out[index[i]] += rows[i].
  void (*add_repeats_float32)(const char* rows, const uint32_t* index, const uint32_t* first, size_t count,
                              uint32_t dim, char* out);
  void (*add_repeats_int64)(const char* rows, const uint32_t* index, const uint32_t* first, size_t count, uint32_t dim,
                            char* out);

  // Adds a vector to the row at each index, in their order; to one that is not `seen` yet (a bit each) it is written,
  // and the bit set. Where the index is `passed_over` nothing happens. Rows of the `more` indices that follow are
  // fetched.
  void (*add_to_each)(const float* vector, const int64_t* index, size_t count, size_t more, int64_t passed_over,
                      uint32_t dim, uint64_t* seen, float* out);

  // Column c of the row whose base is b: a + (b - a) * u, u the top 24 bits of the hash of (base, c).
  FillKernel fill_uniform;
  // a + b * sqrt(2) * erfinv(x), x of the top 23 bits; erfinv by the single-precision polynomials of
  // M. Giles, "Approximating the erfinv function" (2012), with a polynomial logarithm: no libm, so that the same
  // key has the same row on every machine.
  FillKernel fill_normal;
  // The same of x * erf(sqrt(2)), so that no number is further than two standard deviations from the mean.
  FillKernel fill_truncated_normal;
  FillKernel fill_constant;  // a
};

// The set in use: the best this CPU supports, or what TABLEBAY_INSTRUCTION_SET names.
const Kernels& ActiveKernels();
std::vector<std::string> InstructionSets();
// For tests. Throws StatusError(BadRequest) naming those that exist.
void UseInstructionSet(const std::string& name);

}  // namespace tablebay
