// Three streams at once, since the crc32 instruction has a latency of three cycles and a throughput of one.
// Compiled for SSE 4.2; called only where the CPU has it.
#include "tablebay/crc32c.h"

#if defined(__x86_64__)
#include <nmmintrin.h>

#include <cstring>

namespace tablebay {
namespace {

constexpr size_t kStream = 4096;  // bytes of each of the three streams

// crc -> the crc after `kStream` zero bytes, a table for each byte of the crc.
struct ZerosTable {
  uint32_t shifted[4][256];

  ZerosTable() {
    uint32_t of_bit[32];
    for (int bit = 0; bit < 32; ++bit) {
      uint64_t crc = uint32_t{1} << bit;
      for (size_t i = 0; i < kStream / 8; ++i) crc = _mm_crc32_u64(crc, 0);
      of_bit[bit] = static_cast<uint32_t>(crc);
    }
    for (int byte = 0; byte < 4; ++byte) {
      for (int value = 0; value < 256; ++value) {
        uint32_t sum = 0;
        for (int bit = 0; bit < 8; ++bit) {
          if ((value >> bit & 1) != 0) sum ^= of_bit[byte * 8 + bit];
        }
        shifted[byte][value] = sum;
      }
    }
  }

  uint32_t operator()(uint32_t crc) const {
    return shifted[0][crc & 0xff] ^ shifted[1][crc >> 8 & 0xff] ^ shifted[2][crc >> 16 & 0xff] ^ shifted[3][crc >> 24];
  }
};

inline uint64_t Word(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

}  // namespace

uint32_t Crc32cSse42(const void* bytes, size_t size, uint32_t initial) {
  static const ZerosTable shift;
  const auto* p = static_cast<const uint8_t*>(bytes);
  uint64_t crc = static_cast<uint32_t>(~initial);
  for (; size >= 3 * kStream; size -= 3 * kStream, p += 3 * kStream) {
    uint64_t second = 0;
    uint64_t third = 0;
    for (size_t i = 0; i < kStream; i += 8) {
      crc = _mm_crc32_u64(crc, Word(p + i));
      second = _mm_crc32_u64(second, Word(p + kStream + i));
      third = _mm_crc32_u64(third, Word(p + 2 * kStream + i));
    }
    crc = shift(static_cast<uint32_t>(crc)) ^ static_cast<uint32_t>(second);
    crc = shift(static_cast<uint32_t>(crc)) ^ static_cast<uint32_t>(third);
  }
  for (; size >= 8; size -= 8, p += 8) crc = _mm_crc32_u64(crc, Word(p));
  for (; size > 0; --size, ++p) crc = _mm_crc32_u8(static_cast<uint32_t>(crc), *p);
  return ~static_cast<uint32_t>(crc);
}

}  // namespace tablebay
#endif
