// Header blocks of HTTP/2 (HPACK, RFC 7541): read whole, written without compression.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

namespace tablebay {

struct HeaderField {
  std::string name;
  std::string value;
};

// Reads the blocks of one connection, which build on each other: each must be given, in order.
class HpackDecoder {
 public:
  // Throws StatusError(Unavailable) for what is no header block, or is larger than kListBytesMax when read; the
  // connection is then of no use.
  std::vector<HeaderField> Decode(std::string_view block);

  // Of names and values together, each field with 32 bytes more.
  static constexpr size_t kListBytesMax = 64 * 1024;

 private:
  HeaderField At(uint64_t index) const;
  void Insert(HeaderField field);
  void Limit(uint64_t bytes);

  // As long as our SETTINGS say nothing else (RFC 7540, 6.5.2).
  static constexpr size_t kTableBytes = 4096;
  std::deque<HeaderField> table_;  // newest first
  size_t table_bytes_ = 0;
  size_t table_limit_ = kTableBytes;
};

// Decodes a Huffman-coded string (RFC 7541, 5.2). Throws StatusError(Unavailable).
std::string HuffmanDecode(std::string_view coded);

// Appends a field that no table keeps. index: of the field's name in the static table, 0 for a name of its own.
void AppendHeader(uint32_t index, std::string_view name, std::string_view value, std::string* block);
// Appends a field of the static table.
void AppendIndexed(uint32_t index, std::string* block);

}  // namespace tablebay
