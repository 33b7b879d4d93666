#include "tablebay/crc32c.h"

#include <array>
#include <cstring>

namespace tablebay {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // 0x1EDC6F41 reflected

using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables MakeTables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (uint32_t byte = 0; byte < 256; ++byte) {
    for (size_t t = 1; t < 8; ++t) {
      tables[t][byte] = (tables[t - 1][byte] >> 8) ^ tables[0][tables[t - 1][byte] & 0xff];
    }
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

// Polynomials over GF(2) modulo the CRC's, the coefficient of x^0 in the highest bit.
constexpr uint32_t kOne = uint32_t{1} << 31;

constexpr uint32_t Times(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = kOne; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = (b >> 1) ^ ((b & 1) != 0 ? kPolynomial : 0);
  }
  return product;
}

// x^(8 * 2^i)
constexpr std::array<uint32_t, 64> PowersOfByte() {
  std::array<uint32_t, 64> powers{};
  powers[0] = kOne >> 8;
  for (size_t i = 1; i < powers.size(); ++i) powers[i] = Times(powers[i - 1], powers[i - 1]);
  return powers;
}

constexpr std::array<uint32_t, 64> kPowersOfByte = PowersOfByte();

}  // namespace

uint32_t Crc32cPortable(const void* bytes, size_t size, uint32_t initial) {
  const auto* p = static_cast<const uint8_t*>(bytes);
  uint32_t crc = ~initial;
  for (; size >= 8; size -= 8, p += 8) {
    uint64_t word;
    std::memcpy(&word, p, sizeof word);
    word ^= crc;
    crc = kTables[7][word & 0xff] ^ kTables[6][word >> 8 & 0xff] ^ kTables[5][word >> 16 & 0xff] ^
          kTables[4][word >> 24 & 0xff] ^ kTables[3][word >> 32 & 0xff] ^ kTables[2][word >> 40 & 0xff] ^
          kTables[1][word >> 48 & 0xff] ^ kTables[0][word >> 56];
  }
  for (; size > 0; --size, ++p) crc = (crc >> 8) ^ kTables[0][(crc ^ *p) & 0xff];
  return ~crc;
}

// A CRC is a remainder: the first's bytes are worth x^(8 size) times as much where `size` bytes follow. That each
// begins and ends inverted cancels out.
uint32_t Crc32cOfBoth(uint32_t first, uint32_t second, size_t size) {
  uint32_t factor = kOne;
  for (size_t i = 0; size != 0; ++i, size >>= 1) {
    if ((size & 1) != 0) factor = Times(factor, kPowersOfByte[i]);
  }
  return Times(factor, first) ^ second;
}

uint32_t Crc32c(const void* bytes, size_t size, uint32_t initial) {
#if defined(__x86_64__)
  static const bool has_sse42 = __builtin_cpu_supports("sse4.2") != 0;
  if (has_sse42) return Crc32cSse42(bytes, size, initial);
#endif
  return Crc32cPortable(bytes, size, initial);
}

}  // namespace tablebay
