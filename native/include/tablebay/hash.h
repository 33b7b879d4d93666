// Where a key lives. Pinned by a golden test: a change here would lose every checkpoint ever written.
//
// hash = the finaliser of MurmurHash3 (Austin Appleby, public domain), a bijection of 64-bit keys, so that every
// key is legal. shard = its top 10 bits, stripe = its top 6 bits (16 shards a stripe). The index bucket comes of the
// bits below the shard's, whichever shards there are. The tag is the low 8 bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace tablebay {

inline constexpr uint32_t kShards = 1024;
inline constexpr uint32_t kStripes = 64;
inline constexpr uint32_t kShardsPerStripe = kShards / kStripes;

inline uint64_t HashKey(uint64_t key) {
  key ^= key >> 33;
  key *= 0xff51afd7ed558ccdULL;
  key ^= key >> 33;
  key *= 0xc4ceb9fe1a85ec53ULL;
  key ^= key >> 33;
  return key;
}

// The key that HashKey makes `hash` of.
inline uint64_t KeyOfHash(uint64_t hash) {
  hash ^= hash >> 33;
  hash *= 0x9cb4b2f8129337dbULL;  // the inverses of HashKey's factors, modulo 2^64
  hash ^= hash >> 33;
  hash *= 0x4f74430c22a54005ULL;
  hash ^= hash >> 33;
  return hash;
}

inline constexpr uint32_t kStripeShift = 58;
inline constexpr uint32_t kShardShift = 54;

inline uint32_t ShardOfHash(uint64_t hash) { return static_cast<uint32_t>(hash >> kShardShift); }
inline uint32_t StripeOfHash(uint64_t hash) { return static_cast<uint32_t>(hash >> kStripeShift); }
// A key that lies in the shard.
inline uint64_t KeyOfShard(uint32_t shard) { return KeyOfHash(uint64_t{shard} << kShardShift); }
inline uint32_t StripeOfShard(uint32_t shard) { return shard / kShardsPerStripe; }

// Wire bytes are little-endian and may lie at any address.
inline uint64_t LoadKey(const char* keys, uint64_t i) {
  uint64_t key;
  std::memcpy(&key, keys + i * sizeof key, sizeof key);
  return key;
}

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire and file formats are little-endian");

}  // namespace tablebay
