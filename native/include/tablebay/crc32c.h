// CRC-32C (Castagnoli polynomial 0x1EDC6F41, reflected; RFC 3720 appendix B.4).
#pragma once

#include <cstddef>
#include <cstdint>

namespace tablebay {

// Extends `initial` (0 to begin) by `size` bytes, so that Crc32c(b, n, Crc32c(a, m)) is that of a then b.
uint32_t Crc32c(const void* bytes, size_t size, uint32_t initial = 0);

// Of bytes whose CRC is `first`, then `size` bytes whose CRC is `second`: in a time that does not depend on `size`.
uint32_t Crc32cOfBoth(uint32_t first, uint32_t second, size_t size);

// The two ways it is computed; the first choice is the one this CPU supports. Tests hold them against each other.
uint32_t Crc32cPortable(const void* bytes, size_t size, uint32_t initial);
uint32_t Crc32cSse42(const void* bytes, size_t size, uint32_t initial);

}  // namespace tablebay
