// What is done to all keys or rows of a call, with helpers where there are many (crew.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace tablebay {

// As Crc32c.
uint32_t BulkCrc32c(const char* bytes, size_t size, uint32_t initial = 0);
// As the kernels of these names.
size_t BulkFirstNonFinite(const char* rows, size_t count, uint32_t dim);
void BulkGather(const char* base, const uint32_t* index, size_t count, uint32_t row_bytes, char* out);
void BulkGatherPointers(const char* const* rows, const uint32_t* index, size_t count, uint32_t row_bytes, char* out);

}  // namespace tablebay
