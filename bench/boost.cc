// The table's rows behind boost::unordered_flat_map instead of the index: called by bench/boost_index.py.
//
// As the table has it: stripes by the hash's top bits, rows in the order in which they came, blocks of keys whose rows
// are fetched together. What the map gives no way to do is left out: its own lines cannot be fetched ahead. No locks,
// versions, dirty bits or slabs, which would only cost it time.
#include <sys/mman.h>

#include <array>
#include <boost/unordered/unordered_flat_map.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tablebay/hash.h"
#include "tablebay/kernels.h"

namespace {

constexpr uint32_t kBlock = 32;
constexpr uint64_t kHugePage = 2u << 20;

// Keys of a stripe have the same top bits, and the map goes by those.
struct Hash {
  using is_avalanching = void;
  size_t operator()(uint64_t key) const { return tablebay::HashKey(key) << (64 - tablebay::kStripeShift); }
};
using Map = boost::unordered_flat_map<uint64_t, uint32_t, Hash>;

struct Peer {
  std::array<Map, tablebay::kStripes> maps;
  char* rows;
  uint64_t count = 0;
  uint32_t row_bytes;
  uint32_t weights;
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void* boost_make(uint64_t rows, uint32_t row_bytes, uint32_t weights) {
  void* mapped =
      mmap(nullptr, rows * row_bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  const auto begin = (reinterpret_cast<uint64_t>(mapped) + kHugePage - 1) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(begin), rows * row_bytes, MADV_HUGEPAGE);
  auto* peer = new Peer;
  peer->rows = reinterpret_cast<char*>(begin);
  peer->row_bytes = row_bytes;
  peer->weights = weights;
  return peer;
}

// Rows for keys that have none, with weights that are normally distributed and sums of 0.1, as the table's are.
void boost_insert(void* of, const uint64_t* keys, uint64_t count) {
  Peer& peer = *static_cast<Peer*>(of);
  const auto fill = tablebay::ActiveKernels().fill_normal;
  for (uint64_t i = 0; i < count; ++i) {
    Map& map = peer.maps[tablebay::StripeOfHash(tablebay::HashKey(keys[i]))];
    if (!map.try_emplace(keys[i], static_cast<uint32_t>(peer.count)).second) continue;
    char* const row = peer.rows + peer.count++ * peer.row_bytes;
    std::memcpy(row, &keys[i], sizeof keys[i]);
    char* weights = row + peer.weights;
    const uint64_t base = tablebay::HashKey(keys[i]);
    fill({&weights, &base, 1, 16, 0.0f, 0.01f});
    for (uint32_t d = 0; d < 16; ++d) {
      const float sum = 0.1f;
      std::memcpy(weights + 64 + d * sizeof sum, &sum, sizeof sum);
    }
  }
}

// The 16 weights of each key's row; a missing key reads as zeros.
void boost_pull(void* of, const uint64_t* keys, uint64_t count, char* out) {
  const Peer& peer = *static_cast<const Peer*>(of);
  for (uint64_t begin = 0; begin < count; begin += kBlock) {
    const uint64_t n = count - begin < kBlock ? count - begin : kBlock;
    const char* rows[kBlock];
    for (uint64_t j = 0; j < n; ++j) {
      const uint64_t key = keys[begin + j];
      const Map& map = peer.maps[tablebay::StripeOfHash(tablebay::HashKey(key))];
      const auto found = map.find(key);
      rows[j] = found == map.end() ? nullptr : peer.rows + uint64_t{found->second} * peer.row_bytes + peer.weights;
      if (rows[j] == nullptr) continue;
      __builtin_prefetch(rows[j]);
      __builtin_prefetch(rows[j] + 63);
    }
    for (uint64_t j = 0; j < n; ++j) {
      if (rows[j] == nullptr) {
        std::memset(out + (begin + j) * 64, 0, 64);
      } else {
        std::memcpy(out + (begin + j) * 64, rows[j], 64);
      }
    }
  }
}

}  // extern "C"
#pragma GCC visibility pop
