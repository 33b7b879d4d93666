#include "tablebay/hpack.h"

#include <array>

#include "tablebay/status.h"

namespace tablebay {
namespace {

struct StaticField {
  const char* name;
  const char* value;
};

// RFC 7541, Appendix A; the first has index 1.
constexpr StaticField kStatic[] = {
    {":authority", ""},
    {":method", "GET"},
    {":method", "POST"},
    {":path", "/"},
    {":path", "/index.html"},
    {":scheme", "http"},
    {":scheme", "https"},
    {":status", "200"},
    {":status", "204"},
    {":status", "206"},
    {":status", "304"},
    {":status", "400"},
    {":status", "404"},
    {":status", "500"},
    {"accept-charset", ""},
    {"accept-encoding", "gzip, deflate"},
    {"accept-language", ""},
    {"accept-ranges", ""},
    {"accept", ""},
    {"access-control-allow-origin", ""},
    {"age", ""},
    {"allow", ""},
    {"authorization", ""},
    {"cache-control", ""},
    {"content-disposition", ""},
    {"content-encoding", ""},
    {"content-language", ""},
    {"content-length", ""},
    {"content-location", ""},
    {"content-range", ""},
    {"content-type", ""},
    {"cookie", ""},
    {"date", ""},
    {"etag", ""},
    {"expect", ""},
    {"expires", ""},
    {"from", ""},
    {"host", ""},
    {"if-match", ""},
    {"if-modified-since", ""},
    {"if-none-match", ""},
    {"if-range", ""},
    {"if-unmodified-since", ""},
    {"last-modified", ""},
    {"link", ""},
    {"location", ""},
    {"max-forwards", ""},
    {"proxy-authenticate", ""},
    {"proxy-authorization", ""},
    {"range", ""},
    {"referer", ""},
    {"refresh", ""},
    {"retry-after", ""},
    {"server", ""},
    {"set-cookie", ""},
    {"strict-transport-security", ""},
    {"transfer-encoding", ""},
    {"user-agent", ""},
    {"vary", ""},
    {"via", ""},
    {"www-authenticate", ""},
};
constexpr size_t kStaticCount = std::size(kStatic);

// RFC 7541, Appendix B: the bits of each byte's code, and of the end's. The codes follow from their lengths: they are
// given out in order of length, then of byte.
constexpr size_t kSymbols = 257;
constexpr size_t kCodeBitsMax = 30;
constexpr std::array<uint8_t, kSymbols> kCodeBits = {
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6,  10, 10, 12, 13, 6,  8,  11, 10, 10, 8,  11, 8,  6,  6,  6,  5,  5,  5,  6,  6,  6,  6,  6,  6,  6,
    7,  8,  15, 6,  12, 10, 13, 6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,
    7,  8,  7,  8,  13, 19, 13, 14, 6,  15, 5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,  6,  7,  6,  5,
    5,  6,  7,  7,  7,  7,  7,  15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24,
    24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22,
    23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26,
    27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23,
    22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30};

struct Huffman {
  // Of the codes of each length: the first one, how many, and where their symbols begin.
  std::array<uint32_t, kCodeBitsMax + 1> first{};
  std::array<uint32_t, kCodeBitsMax + 1> count{};
  std::array<uint32_t, kCodeBitsMax + 1> begin{};
  std::array<uint16_t, kSymbols> symbols{};
};

constexpr Huffman MakeHuffman() {
  Huffman table;
  uint32_t code = 0;
  uint32_t place = 0;
  for (size_t bits = 1; bits <= kCodeBitsMax; ++bits) {
    code <<= 1;
    table.first[bits] = code;
    table.begin[bits] = place;
    for (size_t symbol = 0; symbol < kSymbols; ++symbol) {
      if (kCodeBits[symbol] != bits) continue;
      table.symbols[place++] = static_cast<uint16_t>(symbol);
      ++table.count[bits];
      ++code;
    }
  }
  return table;
}

constexpr Huffman kHuffman = MakeHuffman();

[[noreturn]] void Refuse(const char* what) {
  throw StatusError("Unavailable", Format("headers cannot be read: %s", what));
}

// What is left of a block.
class Reader {
 public:
  explicit Reader(std::string_view left) : left_(left) {}

  bool done() const { return left_.empty(); }
  uint8_t Peek() const { return static_cast<uint8_t>(left_.front()); }

  // An integer in the low `bits` of the next byte and what follows it (5.1).
  uint64_t Integer(uint32_t bits) {
    if (left_.empty()) Refuse("a number is missing");
    const uint64_t most = (1u << bits) - 1;
    uint64_t value = Byte() & most;
    if (value < most) return value;
    for (uint32_t shift = 0; shift <= 28; shift += 7) {
      if (left_.empty()) Refuse("a number ends early");
      const uint8_t byte = Byte();
      value += uint64_t{byte & 0x7fu} << shift;
      if ((byte & 0x80) == 0) return value;
    }
    Refuse("a number has more than 35 bits");
  }

  std::string String() {
    if (left_.empty()) Refuse("a string is missing");
    const bool huffman = (Peek() & 0x80) != 0;
    const uint64_t bytes = Integer(7);
    if (bytes > left_.size()) Refuse("a string ends early");
    const std::string_view found = left_.substr(0, bytes);
    left_.remove_prefix(bytes);
    return huffman ? HuffmanDecode(found) : std::string(found);
  }

 private:
  uint8_t Byte() {
    const uint8_t byte = Peek();
    left_.remove_prefix(1);
    return byte;
  }
  std::string_view left_;
};

size_t SizeOf(const HeaderField& field) { return field.name.size() + field.value.size() + 32; }

void AppendInteger(uint8_t first, uint32_t bits, uint64_t value, std::string* out) {
  const uint64_t most = (1u << bits) - 1;
  if (value < most) {
    out->push_back(static_cast<char>(first | value));
    return;
  }
  out->push_back(static_cast<char>(first | most));
  for (value -= most; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(0x80 | (value & 0x7f)));
  out->push_back(static_cast<char>(value));
}

void AppendString(std::string_view text, std::string* out) {
  AppendInteger(0, 7, text.size(), out);
  out->append(text);
}

}  // namespace

std::string HuffmanDecode(std::string_view coded) {
  std::string decoded;
  uint32_t code = 0;
  uint32_t bits = 0;
  for (const char c : coded) {
    for (int bit = 7; bit >= 0; --bit) {
      code = code << 1 | (static_cast<uint8_t>(c) >> bit & 1u);
      ++bits;
      if (bits > kCodeBitsMax) Refuse("no Huffman code");
      const uint32_t place = code - kHuffman.first[bits];
      if (code < kHuffman.first[bits] || place >= kHuffman.count[bits]) continue;
      const uint16_t symbol = kHuffman.symbols[kHuffman.begin[bits] + place];
      if (symbol == kSymbols - 1) Refuse("a Huffman string has its end inside");
      decoded.push_back(static_cast<char>(symbol));
      code = 0;
      bits = 0;
    }
  }
  // What is left are the first bits of the end's code, which are ones.
  if (bits > 7 || code != (1u << bits) - 1) Refuse("a Huffman string is padded wrongly");
  return decoded;
}

HeaderField HpackDecoder::At(uint64_t index) const {
  if (index == 0) Refuse("index 0");
  if (index <= kStaticCount) return {kStatic[index - 1].name, kStatic[index - 1].value};
  if (index - kStaticCount > table_.size()) Refuse("an index past the table");
  return table_[index - kStaticCount - 1];
}

void HpackDecoder::Limit(uint64_t bytes) {
  table_limit_ = bytes;
  while (table_bytes_ > table_limit_) {
    table_bytes_ -= SizeOf(table_.back());
    table_.pop_back();
  }
}

void HpackDecoder::Insert(HeaderField field) {
  table_bytes_ += SizeOf(field);
  table_.push_front(std::move(field));
  Limit(table_limit_);
}

std::vector<HeaderField> HpackDecoder::Decode(std::string_view block) {
  std::vector<HeaderField> fields;
  size_t list_bytes = 0;
  Reader reader(block);
  const auto literal = [&](uint32_t bits) {
    const uint64_t index = reader.Integer(bits);
    std::string name = index == 0 ? reader.String() : At(index).name;
    return HeaderField{std::move(name), reader.String()};
  };
  while (!reader.done()) {
    const uint8_t first = reader.Peek();
    if ((first & 0xe0) == 0x20) {
      if (!fields.empty()) Refuse("the table's size changes behind a field");
      const uint64_t limit = reader.Integer(5);
      if (limit > kTableBytes) Refuse("a larger table than was allowed");
      Limit(limit);
      continue;
    }
    if ((first & 0x80) != 0) {
      fields.push_back(At(reader.Integer(7)));
    } else if ((first & 0x40) != 0) {
      fields.push_back(literal(6));
      Insert(fields.back());
    } else {
      fields.push_back(literal(4));
    }
    list_bytes += SizeOf(fields.back());
    if (list_bytes > kListBytesMax) Refuse("they are too large");
  }
  return fields;
}

void AppendHeader(uint32_t index, std::string_view name, std::string_view value, std::string* block) {
  AppendInteger(0, 4, index, block);
  if (index == 0) AppendString(name, block);
  AppendString(value, block);
}

void AppendIndexed(uint32_t index, std::string* block) { AppendInteger(0x80, 7, index, block); }

}  // namespace tablebay
