#include "tablebay/plan.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>

#include "tablebay/bulk.h"
#include "tablebay/kernels.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

constexpr uint32_t kBlock = 32;  // keys whose slots are fetched together
constexpr size_t kAhead = 16;    // keys fetched before they are compared
constexpr uint32_t kEmptySlot = 0xffffffffu;

// Open addressing over places among the unique keys: four bytes a slot, so that the slots of a large call stay in
// the cache, and clearing them takes no time worth saving.
class Dedup {
 public:
  // Writes unique keys and first occurrences in order of occurrence, each key's place among them, and returns how
  // many there are. REQUIRES room for as many as there are keys.
  size_t Run(std::string_view bytes, uint64_t* unique, uint32_t* first, uint32_t* inverse) {
    const size_t count = bytes.size() / sizeof(uint64_t);
    Clear(count);
    uint32_t* const slots = slots_.data();
    size_t found = 0;
    for (size_t begin = 0; begin < count; begin += kBlock) {
      const size_t n = std::min<size_t>(kBlock, count - begin);
      uint64_t keys[kBlock];
      uint64_t at[kBlock];
      for (size_t j = 0; j < n; ++j) {
        keys[j] = LoadKey(bytes.data(), begin + j);
        at[j] = HashKey(keys[j]) & mask_;
        __builtin_prefetch(&slots[at[j]], 1);
      }
      for (size_t j = 0; j < n; ++j) {
        uint64_t slot = at[j];
        while (slots[slot] != kEmptySlot && unique[slots[slot]] != keys[j]) slot = (slot + 1) & mask_;
        if (slots[slot] == kEmptySlot) {
          slots[slot] = static_cast<uint32_t>(found);
          unique[found] = keys[j];
          first[found] = static_cast<uint32_t>(begin + j);
          ++found;
        }
        inverse[begin + j] = slots[slot];
      }
    }
    return found;
  }

 private:
  void Clear(size_t count) {
    uint64_t size = 1024;
    while (size < count * 2) size *= 2;
    if (size > slots_.size()) slots_.resize(size);
    mask_ = size - 1;
    std::fill_n(slots_.begin(), size, kEmptySlot);
  }

  std::vector<uint32_t> slots_;
  uint64_t mask_ = 0;
};

Dedup& ThreadDedup() {
  static thread_local Dedup dedup;
  return dedup;
}

// What MakePlan works on, kept from call to call.
class Sorter {
 public:
  struct Given {
    uint64_t key;
    uint32_t index;
    uint32_t bits;  // of its hash
  };

  // Sorts keys by place, in order of occurrence within each; begin[p] becomes where those of place p begin.
  const Given* Sort(const Router& router, std::string_view bytes, std::array<uint32_t, kShards + 1>* begin) {
    const size_t count = bytes.size() / sizeof(uint64_t);
    if (given_.size() < count) given_.resize(count);
    begin->fill(0);
    // Hashed twice: what the hashes would take of the cache costs more.
    ForHashes(bytes, [&](size_t, uint64_t hash) { ++(*begin)[router.PlaceOf(ShardOfHash(hash)) + 1]; });
    std::partial_sum(begin->begin(), begin->end(), begin->begin());
    std::array<uint32_t, kShards> next;
    std::copy(begin->begin(), begin->end() - 1, next.begin());
    ForHashes(bytes, [&](size_t i, uint64_t hash) {
      given_[next[router.PlaceOf(ShardOfHash(hash))]++] = {LoadKey(bytes.data(), i), static_cast<uint32_t>(i),
                                                           static_cast<uint32_t>(hash)};
    });
    return given_.data();
  }

  // Empty slots for so many keys; their number is a power of two.
  std::pair<uint32_t*, size_t> Slots(size_t keys) {
    size_t size = 16;
    while (size < keys * 2) size *= 2;
    if (size > slots_.size()) slots_.resize(size);
    std::fill_n(slots_.begin(), size, kEmptySlot);
    return {slots_.data(), size};
  }

  // After an uncommonly large call.
  void Release() {
    if (given_.size() > kKeptKeys) *this = Sorter();
  }

 private:
  static constexpr size_t kKeptKeys = 1 << 21;

  template <class Visit>
  static void ForHashes(std::string_view bytes, Visit&& visit) {
    constexpr size_t kChunk = 256;
    const auto hash_keys = ActiveKernels().hash_keys;
    const size_t count = bytes.size() / sizeof(uint64_t);
    for (size_t first = 0; first < count; first += kChunk) {
      uint64_t hashes[kChunk];
      const size_t n = std::min(kChunk, count - first);
      hash_keys(bytes.data() + first * sizeof(uint64_t), n, hashes);
      for (size_t j = 0; j < n; ++j) visit(first + j, hashes[j]);
    }
  }

  Numbers<Given> given_;
  std::vector<uint32_t> slots_;
};

}  // namespace

Router::Router(const std::vector<uint16_t>& owners, uint32_t servers) {
  if (owners.size() != kShards) {
    throw StatusError("BadRequest", Format("the shard map has %zu owners, wanted %u", owners.size(), kShards));
  }
  server_begin_.assign(servers + 1, 0);
  for (uint32_t shard = 0; shard < kShards; ++shard) {
    if (owners[shard] >= servers) {
      throw StatusError("BadRequest", Format("shard %u belongs to server %u, and there are %u servers", shard,
                                             owners[shard], servers));
    }
    ++server_begin_[owners[shard] + 1];
  }
  std::partial_sum(server_begin_.begin(), server_begin_.end(), server_begin_.begin());
  std::vector<uint32_t> next(server_begin_.begin(), server_begin_.end() - 1);
  for (uint32_t shard = 0; shard < kShards; ++shard) place_[shard] = static_cast<uint16_t>(next[owners[shard]]++);
}

Plan MakePlan(std::shared_ptr<const Router> router, std::string_view bytes) {
  const size_t count = bytes.size() / sizeof(uint64_t);
  if (count >= 0xffffffffu) {
    throw StatusError("ResourceExhausted", Format("%zu keys in one call, wanted fewer than 2^32 - 1", count));
  }
  Plan plan;
  static thread_local Sorter sorter;
  std::array<uint32_t, kShards + 1> begin;
  const Sorter::Given* const given = sorter.Sort(*router, bytes, &begin);
  plan.keys.resize(count);
  plan.first.resize(count);
  plan.inverse.resize(count);
  // Repeats are looked for within a place, whose few slots stay in the nearest cache.
  uint32_t found = 0;
  for (uint32_t place = 0; place < kShards; ++place) {
    plan.place_begin[place] = found;
    if (begin[place] == begin[place + 1]) continue;
    const auto [slots, size] = sorter.Slots(begin[place + 1] - begin[place]);
    for (uint32_t i = begin[place]; i < begin[place + 1]; ++i) {
      const uint64_t key = given[i].key;
      size_t slot = given[i].bits & (size - 1);
      while (slots[slot] != kEmptySlot && plan.keys[slots[slot]] != key) slot = (slot + 1) & (size - 1);
      if (slots[slot] == kEmptySlot) {
        slots[slot] = found;
        plan.keys[found] = key;
        plan.first[found] = given[i].index;
        ++found;
      }
      plan.inverse[given[i].index] = slots[slot];
    }
  }
  plan.place_begin[kShards] = found;
  plan.keys.resize(found);
  plan.first.resize(found);
  sorter.Release();
  plan.router = std::move(router);
  return plan;
}

bool Plan::IsOf(std::string_view given) const {
  if (given.size() != count() * sizeof(uint64_t)) return false;
  for (size_t i = 0; i < count(); ++i) {
    if (i + kAhead < count()) __builtin_prefetch(&keys[inverse[i + kAhead]]);
    if (keys[inverse[i]] != LoadKey(given.data(), i)) return false;
  }
  return true;
}

std::vector<uint32_t> Intersect(const Plan& plan, std::string_view bytes) {
  // The plan's keys first: they are unique, so that their places among the unique keys are their positions.
  const size_t planned = plan.unique();
  std::vector<uint64_t> both(planned + bytes.size() / sizeof(uint64_t));
  if (planned > 0) std::memcpy(both.data(), plan.keys.data(), planned * sizeof(uint64_t));
  if (!bytes.empty()) std::memcpy(both.data() + planned, bytes.data(), bytes.size());
  std::vector<uint64_t> unique(both.size());
  std::vector<uint32_t> first(both.size());
  std::vector<uint32_t> inverse(both.size());
  ThreadDedup().Run({reinterpret_cast<const char*>(both.data()), both.size() * sizeof(uint64_t)}, unique.data(),
                    first.data(), inverse.data());
  std::vector<uint32_t> common;
  for (size_t i = planned; i < inverse.size(); ++i) {
    if (inverse[i] < planned) common.push_back(inverse[i]);
  }
  std::sort(common.begin(), common.end());
  common.erase(std::unique(common.begin(), common.end()), common.end());
  return common;
}

void SumRows(const Plan& plan, const char* rows, uint32_t dim, bool is_int64, char* out) {
  const Kernels& kernels = ActiveKernels();
  const uint32_t row_bytes = dim * (is_int64 ? 8 : 4);
  BulkGather(rows, plan.first.data(), plan.unique(), row_bytes, out);
  if (!plan.repeats()) return;
  const auto add = is_int64 ? kernels.add_repeats_int64 : kernels.add_repeats_float32;
  add(rows, plan.inverse.data(), plan.first.data(), plan.count(), dim, out);
}

void LastRows(const Plan& plan, const char* rows, uint32_t row_bytes, char* out) {
  std::vector<uint32_t> last(plan.unique());
  for (size_t i = 0; i < plan.count(); ++i) last[plan.inverse[i]] = static_cast<uint32_t>(i);
  BulkGather(rows, last.data(), last.size(), row_bytes, out);
}

}  // namespace tablebay
