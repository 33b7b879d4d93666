// Compiled once for each instruction set, with TABLEBAY_ISA naming it (CMakeLists.txt).
//
// Only what is in the anonymous namespace, and no inline function of another header: the linker keeps one copy of
// an inline function, and it must not be one that needs more than the CPU has.
#include "tablebay/kernels.h"

#include <cstdint>
#include <cstring>

#include "tablebay/options.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define TABLEBAY_NAME_OF2(x) #x
#define TABLEBAY_NAME_OF(x) TABLEBAY_NAME_OF2(x)
#define TABLEBAY_TABLE_OF2(x) kKernels_##x
#define TABLEBAY_TABLE_OF(x) TABLEBAY_TABLE_OF2(x)

namespace tablebay {
namespace {

// Rows begin at any multiple of 4 and wire bytes anywhere. (Written out wherever a pointer is declared: `auto` and
// template arguments drop the attributes.)
using Float = float __attribute__((aligned(1), may_alias));
using Word = uint64_t __attribute__((aligned(1), may_alias));
using Word32 = uint32_t __attribute__((aligned(1), may_alias));

// The dims most tables have get loops of a known length; 0 stands for any other.
#define TABLEBAY_FOR_DIM(dim, function, ...) \
  switch (dim) {                             \
    case 8:                                  \
      return function<8>(__VA_ARGS__);       \
    case 16:                                 \
      return function<16>(__VA_ARGS__);      \
    case 32:                                 \
      return function<32>(__VA_ARGS__);      \
    case 64:                                 \
      return function<64>(__VA_ARGS__);      \
    case 128:                                \
      return function<128>(__VA_ARGS__);     \
    default:                                 \
      return function<0>(__VA_ARGS__);       \
  }

inline uint64_t Mix(uint64_t h) {  // HashKey of hash.h
  h ^= h >> 33;
  h *= 0xff51afd7ed558ccdULL;
  h ^= h >> 33;
  h *= 0xc4ceb9fe1a85ec53ULL;
  h ^= h >> 33;
  return h;
}

void HashKeys(const char* keys, size_t count, uint64_t* hashes) {
  const Word* in = reinterpret_cast<const Word*>(keys);
  for (size_t i = 0; i < count; ++i) hashes[i] = Mix(in[i]);
}

// An exponent of all ones: NaN or infinity.
inline uint32_t Magnitude(uint32_t bits) { return bits & 0x7fffffffu; }
constexpr uint32_t kNonFinite = 0x7f800000u;

size_t FirstNonFinite(const char* rows, size_t count, uint32_t dim) {
  const Word32* in = reinterpret_cast<const Word32*>(rows);
  const size_t total = count * dim;
  constexpr size_t kChunk = 4096;
  for (size_t begin = 0; begin < total; begin += kChunk) {
    const size_t end = begin + kChunk < total ? begin + kChunk : total;
    uint32_t largest = 0;
    for (size_t i = begin; i < end; ++i) {
      const uint32_t magnitude = Magnitude(in[i]);
      largest = magnitude > largest ? magnitude : largest;
    }
    if (largest < kNonFinite) continue;
    for (size_t i = begin; i < end; ++i) {
      if (Magnitude(in[i]) >= kNonFinite) return i / dim;
    }
  }
  return count;
}

// The lines of a row, into the second-level cache: the line buffers of the first level are too few for this many rows.
// (Always inlined, since GCC takes a function of nothing but prefetches for one without effect, and drops its calls.)
[[gnu::always_inline]] inline void FetchRow(const char* row, uint32_t bytes) {
  constexpr uintptr_t kLine = 64;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(row);
  for (uintptr_t line = begin & ~(kLine - 1); line < begin + bytes; line += kLine) {
    __builtin_prefetch(reinterpret_cast<const char*>(line), 0, 2);
  }
}

// The row ahead of the r-th; after the last, the rest.
[[gnu::always_inline]] inline void FetchOne(const Ahead& ahead, uint32_t r) {
  if (r < ahead.count && ahead.rows[r] != nullptr) FetchRow(ahead.rows[r], ahead.bytes);
}
[[gnu::always_inline]] inline void FetchRest(const Ahead& ahead, uint32_t from) {
  for (uint32_t r = from; r < ahead.count; ++r) FetchOne(ahead, r);
}

// What is guessed of so many rows. (Its own copy, as of `u` below.)
class Looks {
 public:
  explicit Looks(Guessed* told) : told_(told), guessed_(told == nullptr ? Guessed{} : *told) {}
  ~Looks() {
    if (told_ != nullptr) told_->other_count = guessed_.other_count;
  }
  Looks(const Looks&) = delete;
  Looks& operator=(const Looks&) = delete;

  // Fetches a later row; whether the r-th one is its key's.
  [[gnu::always_inline]] bool Fits(const char* const* rows, uint32_t count, uint32_t r) {
    if (r + Guessed::kAhead < count) FetchRow(rows[r + Guessed::kAhead], guessed_.bytes);
    if (*reinterpret_cast<const Word*>(rows[r]) == guessed_.keys[r]) [[likely]]
      return true;
    guessed_.others[guessed_.other_count++] = static_cast<uint16_t>(r);
    return false;
  }

  // What comes before a rule's work on its r-th row; whether it is to work on it.
  [[gnu::always_inline]] bool Begin(const Update& u, uint32_t r) {
    if (told_ == nullptr) {
      FetchOne(u.ahead, r);
      return true;
    }
    if (!Fits(u.rows, u.count, r)) return false;
    Word32* const version = reinterpret_cast<Word32*>(u.rows[r] + RowLayout::kVersion);
    if (*version <= guessed_.clean_version) {
      const uint32_t position = guessed_.positions[r];
      guessed_.dirty[position >> 6] |= uint64_t{1} << (position & 63);
    }
    *version = guessed_.version;
    return true;
  }

 private:
  Guessed* const told_;
  Guessed guessed_;
};

// For each row of the block: what comes before the work on it; then its weights, slots and gradient. `u` has to be the
// function's own: what lies elsewhere any store to a row might change, for all that the compiler knows, and would be
// read again for each row.
#define TABLEBAY_FOR_ROWS(...)                                                              \
  const uint32_t dim = kDim != 0 ? kDim : u.dim;                                            \
  Looks looks(u.guessed);                                                                   \
  for (uint32_t r = 0; r < u.count; ++r) {                                                  \
    if (!looks.Begin(u, r)) continue;                                                       \
    [[maybe_unused]] Float* __restrict w = reinterpret_cast<Float*>(u.rows[r] + u.weights); \
    [[maybe_unused]] Float* __restrict s = reinterpret_cast<Float*>(u.rows[r] + u.slots);   \
    const Float* __restrict g = reinterpret_cast<const Float*>(u.gradients[r]);             \
    __VA_ARGS__                                                                             \
  }                                                                                         \
  FetchRest(u.ahead, u.count);

// For each column of a row. Without the pragma the compiler, which asks no `__restrict` of a block's, looks row by row
// whether its three parts overlap: as long as the rule takes for 16 columns.
#define TABLEBAY_FOR_COLUMNS _Pragma("GCC ivdep") for (uint32_t d = 0; d < dim; ++d)

template <uint32_t kDim>
void SgdDim(const Update u) {
  TABLEBAY_FOR_ROWS({ TABLEBAY_FOR_COLUMNS w[d] -= u.learning_rate * g[d]; })
}
void Sgd(const Update& u) { TABLEBAY_FOR_DIM(u.dim, SgdDim, u) }

template <uint32_t kDim>
void AdagradDim(const Update u) {
  TABLEBAY_FOR_ROWS({
    TABLEBAY_FOR_COLUMNS {
      const float gradient = g[d];
      const float sum = s[d] + gradient * gradient;
      s[d] = sum;
      w[d] -= u.learning_rate * gradient / (__builtin_sqrtf(sum) + u.epsilon);
}
}  // namespace
)
}  // namespace tablebay
void Adagrad(const Update& u) { TABLEBAY_FOR_DIM(u.dim, AdagradDim, u) }

// The row's step count, raised, or the time of the push; it stays at its highest.
inline uint32_t NextStep(const Update& u, uint32_t r) {
  Word32* step = reinterpret_cast<Word32*>(u.rows[r] + u.step);
  uint32_t t = *step == 0xffffffffu ? *step : *step + 1;
  if (u.by_time) t = u.now > *step ? u.now : *step;
  *step = t;
  return t;
}
inline float Correction(const float* corrections, const Update& u, uint32_t t) {
  return t < u.corrections ? corrections[t] : 1.0f;
}

template <uint32_t kDim>
void AdamDim(const Update u) {
  const float beta1 = u.beta1;
  const float beta2 = u.beta2;
  const float rest1 = u.rest1;
  const float rest2 = u.rest2;
  const float epsilon = u.epsilon;
  TABLEBAY_FOR_ROWS({
    Float* __restrict m = s;
    Float* __restrict v = m + dim;
    const uint32_t t = NextStep(u, r);
    const float rate = u.learning_rate / Correction(u.corrections1, u, t);
    const float root = Correction(u.corrections2, u, t);
    TABLEBAY_FOR_COLUMNS {
      const float gradient = g[d];
      const float first = beta1 * m[d] + rest1 * gradient;
      const float second = beta2 * v[d] + rest2 * (gradient * gradient);
      m[d] = first;
      v[d] = second;
      w[d] -= rate * first / (__builtin_sqrtf(second) / root + epsilon);
    }
  })
}
void Adam(const Update& u) { TABLEBAY_FOR_DIM(u.dim, AdamDim, u) }

template <uint32_t kDim>
void AddFloat32Dim(const Update u) {
  TABLEBAY_FOR_ROWS({ TABLEBAY_FOR_COLUMNS w[d] += g[d]; })
}
void AddFloat32(const Update& u) { TABLEBAY_FOR_DIM(u.dim, AddFloat32Dim, u) }

void AddInt64(const Update& given) {
  const Update u = given;
  Looks looks(u.guessed);
  for (uint32_t r = 0; r < u.count; ++r) {
    if (!looks.Begin(u, r)) continue;
    Word* __restrict w = reinterpret_cast<Word*>(u.rows[r] + u.weights);  // unsigned: wraps
    const Word* __restrict g = reinterpret_cast<const Word*>(u.gradients[r]);
    for (uint32_t d = 0; d < u.dim; ++d) w[d] += g[d];
  }
  FetchRest(u.ahead, u.count);
}

#include "update_rules.h"
#include "variant_rules.h"

template <uint32_t kBytes>
inline void CopyRow(char* out, const char* row, uint32_t bytes) {
  if constexpr (kBytes != 0) {
    __builtin_memcpy(out, row, kBytes);
  } else {
    std::memcpy(out, row, bytes);
  }
}

// As TABLEBAY_FOR_DIM, by the bytes of a row.
#define TABLEBAY_FOR_BYTES(bytes, function, ...) \
  switch (bytes) {                               \
    case 32:                                     \
      return function<32>(__VA_ARGS__);          \
    case 64:                                     \
      return function<64>(__VA_ARGS__);          \
    case 128:                                    \
      return function<128>(__VA_ARGS__);         \
    case 256:                                    \
      return function<256>(__VA_ARGS__);         \
    default:                                     \
      return function<0>(__VA_ARGS__);           \
  }

constexpr size_t kAhead = 16;  // rows prefetched

template <uint32_t kBytes, bool kOrdered>
[[gnu::always_inline]] inline void CopyRowsTo(const char* const* rows, uint32_t count, uint32_t offset,
                                              uint32_t any_bytes, const uint32_t* order, char* out,
                                              const Ahead& ahead) {
  const uint32_t bytes = kBytes != 0 ? kBytes : any_bytes;
  for (uint32_t i = 0; i < count; ++i) {
    FetchOne(ahead, i);
    if (kOrdered && i + kAhead < count) __builtin_prefetch(out + uint64_t{order[i + kAhead]} * bytes, 1);
    char* const to = out + uint64_t{kOrdered ? order[i] : i} * bytes;
    if (rows[i] != nullptr) [[likely]] {
      CopyRow<kBytes>(to, rows[i] + offset, bytes);
    } else {
      std::memset(to, 0, bytes);
    }
  }
  FetchRest(ahead, count);
}
template <uint32_t kBytes>
void CopyRowsOf(const char* const* rows, uint32_t count, uint32_t offset, uint32_t bytes, const uint32_t* order,
                char* out, const Ahead& ahead) {
  if (order == nullptr) {
    CopyRowsTo<kBytes, false>(rows, count, offset, bytes, order, out, ahead);
  } else {
    CopyRowsTo<kBytes, true>(rows, count, offset, bytes, order, out, ahead);
  }
}
void CopyRows(const char* const* rows, uint32_t count, uint32_t offset, uint32_t bytes, const uint32_t* order,
              char* out, const Ahead& ahead) {
  TABLEBAY_FOR_BYTES(bytes, CopyRowsOf, rows, count, offset, bytes, order, out, ahead)
}

template <uint32_t kBytes, bool kOrdered>
[[gnu::always_inline]] inline void CopyGuessedTo(const char* const* rows, uint32_t count, uint32_t offset,
                                                 uint32_t any_bytes, const uint32_t* order, char* out,
                                                 Guessed& guessed) {
  const uint32_t bytes = kBytes != 0 ? kBytes : any_bytes;
  Looks looks(&guessed);
  for (uint32_t i = 0; i < count; ++i) {
    if (kOrdered && i + kAhead < count) __builtin_prefetch(out + uint64_t{order[i + kAhead]} * bytes, 1);
    if (!looks.Fits(rows, count, i)) continue;
    CopyRow<kBytes>(out + uint64_t{kOrdered ? order[i] : i} * bytes, rows[i] + offset, bytes);
  }
}
template <uint32_t kBytes>
void CopyGuessedOf(const char* const* rows, uint32_t count, uint32_t offset, uint32_t bytes, const uint32_t* order,
                   char* out, Guessed& guessed) {
  if (order == nullptr) {
    CopyGuessedTo<kBytes, false>(rows, count, offset, bytes, order, out, guessed);
  } else {
    CopyGuessedTo<kBytes, true>(rows, count, offset, bytes, order, out, guessed);
  }
}
void CopyGuessed(const char* const* rows, uint32_t count, uint32_t offset, uint32_t bytes, const uint32_t* order,
                 char* out, Guessed& guessed) {
  TABLEBAY_FOR_BYTES(bytes, CopyGuessedOf, rows, count, offset, bytes, order, out, guessed)
}

template <uint32_t kBytes>
void GatherOf(const char* base, const uint32_t* index, size_t count, uint32_t bytes, char* out) {
  for (size_t i = 0; i < count; ++i, out += bytes) {
    if (i + kAhead < count) __builtin_prefetch(base + uint64_t{index[i + kAhead]} * bytes);
    CopyRow<kBytes>(out, base + uint64_t{index[i]} * bytes, bytes);
  }
}
void Gather(const char* base, const uint32_t* index, size_t count, uint32_t bytes, char* out) {
  TABLEBAY_FOR_BYTES(bytes, GatherOf, base, index, count, bytes, out)
}

template <uint32_t kBytes>
void GatherPointersOf(const char* const* rows, const uint32_t* index, size_t count, uint32_t bytes, char* out) {
  for (size_t i = 0; i < count; ++i, out += bytes) {
    if (i + kAhead < count) __builtin_prefetch(rows[index[i + kAhead]]);
    CopyRow<kBytes>(out, rows[index[i]], bytes);
  }
}
void GatherPointers(const char* const* rows, const uint32_t* index, size_t count, uint32_t bytes, char* out) {
  TABLEBAY_FOR_BYTES(bytes, GatherPointersOf, rows, index, count, bytes, out)
}

// A line of 64 bytes, written around the caches.
[[gnu::always_inline]] inline void StreamLine(char* to, const char* from) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__SSE2__)
  for (size_t at = 0; at < 64; at += sizeof(__m128i)) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + at), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at)));
  }
#else
  std::memcpy(to, from, 64);
#endif
}

// Between two rows the one before has time to reach memory.
template <uint32_t kBytes>
void GatherTwiceOf(const char* base, const uint32_t* index, size_t count, uint32_t bytes, char* out, char* kept) {
  for (size_t i = 0; i < count; ++i, out += bytes) {
    if (i + kAhead < count) __builtin_prefetch(base + uint64_t{index[i + kAhead]} * bytes);
    const char* const row = base + uint64_t{index[i]} * bytes;
    CopyRow<kBytes>(out, row, bytes);
    for (uint32_t at = 0; at < bytes; at += 64, kept += 64) StreamLine(kept, row + at);
  }
}
void GatherTwice(const char* base, const uint32_t* index, size_t count, uint32_t bytes, char* out, char* kept) {
  TABLEBAY_FOR_BYTES(bytes, GatherTwiceOf, base, index, count, bytes, out, kept)
}

template <uint32_t kDim>
void AddRepeatsFloat32Dim(const char* rows, const uint32_t* index, const uint32_t* first, size_t count,
                          uint32_t any_dim, char* out) {
  const uint32_t dim = kDim != 0 ? kDim : any_dim;
  for (size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) __builtin_prefetch(out + uint64_t{index[i + kAhead]} * dim * sizeof(float), 1);
    const uint32_t key = index[i];
    if (first[key] == i) continue;
    Float* __restrict sum = reinterpret_cast<Float*>(out + uint64_t{key} * dim * sizeof(float));
    const Float* __restrict row = reinterpret_cast<const Float*>(rows + i * dim * sizeof(float));
    for (uint32_t d = 0; d < dim; ++d) sum[d] += row[d];
  }
}
void AddRepeatsFloat32(const char* rows, const uint32_t* index, const uint32_t* first, size_t count, uint32_t dim,
                       char* out) {
  TABLEBAY_FOR_DIM(dim, AddRepeatsFloat32Dim, rows, index, first, count, dim, out)
}
void AddRepeatsInt64(const char* rows, const uint32_t* index, const uint32_t* first, size_t count, uint32_t dim,
                     char* out) {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t key = index[i];
    if (first[key] == i) continue;
    Word* __restrict sum = reinterpret_cast<Word*>(out + uint64_t{key} * dim * sizeof(int64_t));
    const Word* __restrict row = reinterpret_cast<const Word*>(rows + i * dim * sizeof(int64_t));
    for (uint32_t d = 0; d < dim; ++d) sum[d] += row[d];
  }
}

constexpr uint32_t kLineFloats = 16;

template <uint32_t kDim>
void AddToEachDim(const float* vector, const int64_t* index, size_t count, size_t more, int64_t passed_over,
                  uint32_t any_dim, uint64_t* seen, float* out) {
  const uint32_t dim = kDim != 0 ? kDim : any_dim;
  const Float* __restrict from = reinterpret_cast<const Float*>(vector);
  for (size_t i = 0; i < count; ++i) {
    if (i + kAhead < count + more) {
      const float* const next = out + static_cast<uint64_t>(index[i + kAhead]) * dim;
      for (uint32_t d = 0; d < dim; d += kLineFloats) __builtin_prefetch(next + d, 1);
    }
    if (index[i] == passed_over) continue;
    const auto at = static_cast<uint64_t>(index[i]);
    Float* __restrict to = reinterpret_cast<Float*>(out + at * dim);
    const uint64_t bit = uint64_t{1} << at % 64;
    if ((seen[at / 64] & bit) != 0) {
      for (uint32_t d = 0; d < dim; ++d) to[d] += from[d];
    } else {
      seen[at / 64] |= bit;
      for (uint32_t d = 0; d < dim; ++d) to[d] = from[d];
    }
  }
}
void AddToEach(const float* vector, const int64_t* index, size_t count, size_t more, int64_t passed_over, uint32_t dim,
               uint64_t* seen, float* out) {
  TABLEBAY_FOR_DIM(dim, AddToEachDim, vector, index, count, more, passed_over, dim, seen, out)
}

inline uint64_t ColumnHash(uint64_t base, uint32_t column) {
  return Mix(base + (uint64_t{column} + 1) * 0x9e3779b97f4a7c15ULL);
}

// For each new row: its weights and its base.
#define TABLEBAY_FOR_NEW_ROWS(...)                               \
  const uint32_t dim = kDim != 0 ? kDim : f.dim;                 \
  for (uint32_t r = 0; r < f.count; ++r) {                       \
    Float* weights = reinterpret_cast<Float*>(f.rows[r]);        \
    const uint64_t base = f.bases[r];                            \
    for (uint32_t c = 0; c < dim; ++c) weights[c] = __VA_ARGS__; \
  }

inline float Uniform(uint64_t hash, float low, float width) {
  return low + width * (static_cast<float>(static_cast<int32_t>(hash >> 40)) * 0x1p-24f);
}
template <uint32_t kDim>
void FillUniformDim(const Fill& f) {
  const float low = f.a;
  const float width = f.b - f.a;
  TABLEBAY_FOR_NEW_ROWS(Uniform(ColumnHash(base, c), low, width))
}
void FillUniform(const Fill& f) { TABLEBAY_FOR_DIM(f.dim, FillUniformDim, f) }

// ln(x) for x in (0, 1], a normal number: mantissa and exponent, then the polynomial of Cephes' logf (S. Moshier).
inline float Log(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  // Mantissa in [sqrt(1/2), sqrt(2)).
  const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
  bits -= static_cast<uint32_t>(exponent) << 23;
  float mantissa;
  __builtin_memcpy(&mantissa, &bits, sizeof mantissa);
  const float e = static_cast<float>(exponent);
  const float m = mantissa - 1.0f;
  const float z = m * m;
  float p = 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  float y = p * m * z;
  y = y + e * -2.12194440e-4f;
  y = y - 0.5f * z;
  return (m + y) + e * 0.693359375f;
}

inline float InverseErf(float x) {  // Giles 2012, table 5
  const float w = -Log((1.0f - x) * (1.0f + x));
  const float c = w - 2.5f;
  float central = 2.81022636e-08f;
  central = 3.43273939e-07f + central * c;
  central = -3.5233877e-06f + central * c;
  central = -4.39150654e-06f + central * c;
  central = 0.00021858087f + central * c;
  central = -0.00125372503f + central * c;
  central = -0.00417768164f + central * c;
  central = 0.246640727f + central * c;
  central = 1.50140941f + central * c;
  const float t = __builtin_sqrtf(w < 0.0f ? 0.0f : w) - 3.0f;
  float tail = -0.000200214257f;
  tail = 0.000100950558f + tail * t;
  tail = 0.00134934322f + tail * t;
  tail = -0.00367342844f + tail * t;
  tail = 0.00573950773f + tail * t;
  tail = -0.0076224613f + tail * t;
  tail = 0.00943887047f + tail * t;
  tail = 1.00167406f + tail * t;
  tail = 2.83297682f + tail * t;
  return (w < 5.0f ? central : tail) * x;
}

// 23 bits, so that it is exact and within (-1, 1).
inline float SignedUnit(uint64_t hash) {
  return static_cast<float>(2 * static_cast<int32_t>(hash >> 41) + 1) * 0x1p-23f - 1.0f;
}

template <uint32_t kDim>
void FillNormalDim(const Fill& f) {
  const float mean = f.a;
  const float scale = f.b * 1.41421356f;
  TABLEBAY_FOR_NEW_ROWS(mean + scale * InverseErf(SignedUnit(ColumnHash(base, c))))
}
void FillNormal(const Fill& f) { TABLEBAY_FOR_DIM(f.dim, FillNormalDim, f) }

inline float Truncated(uint64_t hash, float mean, float stddev) {
  const float deviations = 1.41421356f * InverseErf(SignedUnit(hash) * 0.954499736f);
  const float below = deviations > 2.0f ? 2.0f : deviations;  // the polynomials may end a little beyond
  return mean + stddev * (below < -2.0f ? -2.0f : below);
}
template <uint32_t kDim>
void FillTruncatedNormalDim(const Fill& f) {
  const float mean = f.a;
  const float stddev = f.b;
  TABLEBAY_FOR_NEW_ROWS(Truncated(ColumnHash(base, c), mean, stddev))
}
void FillTruncatedNormal(const Fill& f) { TABLEBAY_FOR_DIM(f.dim, FillTruncatedNormalDim, f) }

void FillConstant(const Fill& f) {
  for (uint32_t r = 0; r < f.count; ++r) {
    Float* weights = reinterpret_cast<Float*>(f.rows[r]);
    for (uint32_t c = 0; c < f.dim; ++c) weights[c] = f.a;
  }
}

}  // namespace

extern const Kernels TABLEBAY_TABLE_OF(TABLEBAY_ISA);
const Kernels TABLEBAY_TABLE_OF(TABLEBAY_ISA) = {
    .name = TABLEBAY_NAME_OF(TABLEBAY_ISA),
    .hash_keys = HashKeys,
    .first_nonfinite = FirstNonFinite,
    .condition = Condition,
    .shrink = Shrink,
    .fade = Fade,
    .bound = Bound,
    .sgd = Sgd,
    .adagrad = Adagrad,
    .adam = Adam,
    .momentum = Momentum,
    .nesterov = Nesterov,
    .rowwise_adagrad = RowwiseAdagrad,
    .adamw = AdamW,
    .ftrl = Ftrl,
    .decayed_adagrad = DecayedAdagrad,
    .amsgrad = AmsGrad,
    .rmsprop = RmsProp,
    .adadelta = AdaDelta,
    .partial_rowwise_adam = PartialRowwiseAdam,
    .group_ftrl = GroupFtrl,
    .lamb = Lamb,
    .uncorrected_adam = UncorrectedAdam,
    .paddle_adagrad = PaddleAdagrad,
    .inverse_ftrl = InverseFtrl,
    .tensorflow_ftrl = TensorFlowFtrl,
    .add_float32 = AddFloat32,
    .add_int64 = AddInt64,
    .copy_rows = CopyRows,
    .copy_guessed = CopyGuessed,
    .gather = Gather,
    .gather_pointers = GatherPointers,
    .gather_twice = GatherTwice,
    .add_repeats_float32 = AddRepeatsFloat32,
    .add_repeats_int64 = AddRepeatsInt64,
    .add_to_each = AddToEach,
    .fill_uniform = FillUniform,
    .fill_normal = FillNormal,
    .fill_truncated_normal = FillTruncatedNormal,
    .fill_constant = FillConstant,
};

}  // namespace tablebay
