#include "tablebay/wire.h"

#include <cstring>

#include "tablebay/status.h"

namespace tablebay {
namespace {

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

uint32_t Clamped(uint64_t value) { return static_cast<uint32_t>(std::min<uint64_t>(value, 0xffffffffu)); }

constexpr size_t kParts = 4096;  // of one message; more is nonsense, and each costs memory

class Reader {
 public:
  Reader(const char* message, std::string_view bytes)
      : message_(message), begin_(bytes.data()), at_(begin_), end_(begin_ + bytes.size()) {}

  bool Done() const { return at_ == end_; }
  size_t Offset() const { return static_cast<size_t>(at_ - message_); }

  uint32_t Tag() {
    const uint64_t tag = Varint();
    if (tag > 0xffffffffu || tag >> 3 == 0) Refuse("a field number of zero or too large");
    return static_cast<uint32_t>(tag);
  }

  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (at_ == end_) Refuse("a number cut off");
      const auto byte = static_cast<uint8_t>(*at_++);
      if (shift == 63 && byte > 1) Refuse("a number of more than 64 bits");
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) return value;
    }
    Refuse("a number of more than 64 bits");
  }

  template <class Number>
  Number Fixed() {
    if (static_cast<size_t>(end_ - at_) < sizeof(Number)) Refuse("a number cut off");
    Number value;
    std::memcpy(&value, at_, sizeof value);
    at_ += sizeof value;
    return value;
  }

  std::string_view Bytes() {
    const uint64_t size = Varint();
    if (size > static_cast<uint64_t>(end_ - at_)) Refuse("a length past the end of the message");
    const std::string_view bytes(at_, size);
    at_ += size;
    return bytes;
  }

  void Skip(uint32_t wire_type) {
    switch (wire_type) {
      case kVarint:
        Varint();
        return;
      case kFixed64:
        Fixed<uint64_t>();
        return;
      case kBytes:
        Bytes();
        return;
      case kFixed32:
        Fixed<uint32_t>();
        return;
      default:
        Refuse("a wire type that does not exist or is not used (a group)");
    }
  }

  [[noreturn]] void Refuse(const char* what) const {
    throw StatusError("BadRequest", Format("the message is not what the .proto says: %s at byte %zu", what,
                                           static_cast<size_t>(at_ - message_)));
  }

 private:
  const char* message_;  // of the outermost message, for offsets
  const char* begin_;
  const char* at_;
  const char* end_;
};

constexpr uint32_t Tag(uint32_t field, WireType type) { return field << 3 | type; }

Part ReadPart(const char* message, std::string_view bytes) {
  Part part;
  Reader reader(message, bytes);
  while (!reader.Done()) {
    const uint32_t tag = reader.Tag();
    switch (tag) {
      case Tag(1, kFixed32):
        part.table_id = reader.Fixed<uint32_t>();
        break;
      case Tag(2, kFixed32):
        part.dim = reader.Fixed<uint32_t>();
        break;
      case Tag(3, kFixed32):
        part.flags = reader.Fixed<uint32_t>();
        break;
      case Tag(4, kFixed32):
        part.crc32c = reader.Fixed<uint32_t>();
        part.has_crc32c = true;
        break;
      case Tag(5, kBytes):
        part.keys = reader.Bytes();
        break;
      case Tag(6, kBytes):
        part.rows = reader.Bytes();
        break;
      case Tag(7, kBytes):
        part.counts = reader.Bytes();
        break;
      default:
        reader.Skip(tag & 7);
    }
  }
  return part;
}

Sender ReadSender(const char* message, std::string_view bytes) {
  Sender sender;
  Reader reader(message, bytes);
  while (!reader.Done()) {
    const uint32_t tag = reader.Tag();
    switch (tag) {
      case Tag(1, kFixed64):
        sender.client_high = reader.Fixed<uint64_t>();
        break;
      case Tag(2, kFixed64):
        sender.client_low = reader.Fixed<uint64_t>();
        break;
      case Tag(3, kFixed32):
        sender.incarnation = reader.Fixed<uint32_t>();
        break;
      case Tag(4, kFixed32):
        sender.shard_map_version = reader.Fixed<uint32_t>();
        break;
      case Tag(5, kFixed64):
        sender.epoch = reader.Fixed<uint64_t>();
        break;
      default:
        reader.Skip(tag & 7);
    }
  }
  return sender;
}

char* PutVarint(char* out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) *out++ = static_cast<char>(value | 0x80);
  *out++ = static_cast<char>(value);
  return out;
}

size_t VarintBytes(uint64_t value) {
  size_t bytes = 1;
  for (; value >= 0x80; value >>= 7) ++bytes;
  return bytes;
}

template <class Number>
char* PutFixed(char* out, uint32_t field, Number value) {
  *out++ = static_cast<char>(Tag(field, sizeof value == 8 ? kFixed64 : kFixed32));
  std::memcpy(out, &value, sizeof value);
  return out + sizeof value;
}

char* PutBytesHead(char* out, uint32_t field, size_t size) {
  *out++ = static_cast<char>(Tag(field, kBytes));
  return PutVarint(out, size);
}

constexpr size_t kFixed32Bytes = 1 + 4;  // all field numbers are below 16: a tag of one byte
constexpr size_t kFixed64Bytes = 1 + 8;
constexpr size_t kSenderBody = 3 * kFixed64Bytes + 2 * kFixed32Bytes;

size_t BytesField(size_t size) { return 1 + VarintBytes(size) + size; }

size_t PartBody(size_t keys_bytes, size_t rows_bytes, size_t counts_bytes) {
  return 4 * kFixed32Bytes + BytesField(keys_bytes) + (rows_bytes > 0 ? BytesField(rows_bytes) : 0) +
         (counts_bytes > 0 ? BytesField(counts_bytes) : 0);
}

constexpr uint32_t kPushField = 6;
constexpr uint32_t kPullField = 7;

}  // namespace

Request ReadRequest(Method method, std::string_view message) {
  Request request;
  Reader reader(message.data(), message);
  while (!reader.Done()) {
    const uint32_t tag = reader.Tag();
    switch (tag) {
      case Tag(1, kBytes):
        request.sender = ReadSender(message.data(), reader.Bytes());
        request.has_sender = true;
        break;
      case Tag(2, kFixed64):
        request.step = reader.Fixed<uint64_t>();
        break;
      case Tag(3, kFixed64):
        request.oldest_step = reader.Fixed<uint64_t>();
        break;
      case Tag(4, kVarint):
        request.pieces = std::max(1u, Clamped(reader.Varint()));
        break;
      case Tag(5, kBytes):
        request.cursor = reader.Bytes();
        break;
      case Tag(8, kVarint):
        request.piece = Clamped(reader.Varint());
        break;
      case Tag(kPushField, kBytes):
        request.pushes.push_back(ReadPart(message.data(), reader.Bytes()));
        break;
      case Tag(kPullField, kBytes):
        request.pulls.push_back(ReadPart(message.data(), reader.Bytes()));
        break;
      default:
        reader.Skip(tag & 7);
    }
    if (request.pushes.size() + request.pulls.size() > kParts) reader.Refuse("more than 4096 parts");
  }
  const size_t pulls = request.pulls.size();
  const size_t pushes = request.pushes.size();
  if (method == Method::kPull && (pulls != 1 || pushes != 0)) {
    throw StatusError("BadRequest", Format("a PullRequest has one part; found %zu", pulls + pushes));
  }
  if (method == Method::kPush && (pushes != 1 || pulls != 0)) {
    throw StatusError("BadRequest", Format("a PushRequest has one part; found %zu", pulls + pushes));
  }
  return request;
}

void Readdress(char* message, size_t size, uint64_t epoch) {
  Reader reader(message, {message, size});
  while (!reader.Done()) {
    const uint32_t tag = reader.Tag();
    if (tag != Tag(1, kBytes)) {
      reader.Skip(tag & 7);
      continue;
    }
    Reader sender(message, reader.Bytes());
    while (!sender.Done()) {
      const uint32_t field = sender.Tag();
      const size_t offset = sender.Offset();
      sender.Skip(field & 7);
      if (field != Tag(5, kFixed64)) continue;
      std::memcpy(message + offset, &epoch, sizeof epoch);
      return;
    }
  }
  throw StatusError("BadRequest", "the message names no epoch that could be replaced");
}

Response ReadResponse(std::string_view message) {
  Response response;
  Reader reader(message.data(), message);
  while (!reader.Done()) {
    const uint32_t tag = reader.Tag();
    switch (tag) {
      case Tag(1, kFixed64):
        response.epoch = reader.Fixed<uint64_t>();
        break;
      case Tag(2, kFixed32):
        response.shard_map_version = reader.Fixed<uint32_t>();
        break;
      case Tag(3, kFixed64):
        response.step = reader.Fixed<uint64_t>();
        break;
      case Tag(4, kFixed32):
        response.applied_shards = reader.Fixed<uint32_t>();
        break;
      case Tag(5, kFixed32):
        response.duplicate_shards = reader.Fixed<uint32_t>();
        break;
      case Tag(6, kFixed64):
        response.durable_next = reader.Fixed<uint64_t>();
        break;
      case Tag(kPullField, kBytes):
        response.pulled.push_back(reader.Bytes());
        break;
      default:
        reader.Skip(tag & 7);
    }
  }
  return response;
}

size_t PartBytes(size_t keys_bytes, size_t rows_bytes, size_t counts_bytes) {
  return BytesField(PartBody(keys_bytes, rows_bytes, counts_bytes));
}

size_t RequestBytes(Method method, size_t cursor_bytes, const std::vector<size_t>& part_bytes) {
  size_t bytes = BytesField(kSenderBody);
  if (method != Method::kPull) {
    bytes += 2 * kFixed64Bytes + 4;  // steps, pieces
    if (cursor_bytes > 0) bytes += BytesField(cursor_bytes);
  }
  for (const size_t part : part_bytes) bytes += part;
  return bytes;
}

RequestWriter::RequestWriter(Method method, char* out, const Sender& sender, uint64_t step, uint64_t oldest_step,
                             size_t piece, size_t pieces, std::string_view cursor)
    : out_(out) {
  out_ = PutBytesHead(out_, 1, kSenderBody);
  out_ = PutFixed(out_, 1, sender.client_high);
  out_ = PutFixed(out_, 2, sender.client_low);
  out_ = PutFixed(out_, 3, sender.incarnation);
  out_ = PutFixed(out_, 4, sender.shard_map_version);
  out_ = PutFixed(out_, 5, sender.epoch);
  if (method == Method::kPull) return;
  out_ = PutFixed(out_, 2, step);
  out_ = PutFixed(out_, 3, oldest_step);
  *out_++ = static_cast<char>(Tag(4, kVarint));
  *out_++ = static_cast<char>(pieces);
  *out_++ = static_cast<char>(Tag(8, kVarint));
  *out_++ = static_cast<char>(piece);
  if (cursor.empty()) return;
  out_ = PutBytesHead(out_, 5, cursor.size());
  std::memcpy(out_, cursor.data(), cursor.size());
  out_ += cursor.size();
}

PartSpace RequestWriter::Add(uint32_t field, uint32_t table_id, uint32_t dim, uint32_t flags, size_t keys_bytes,
                             size_t rows_bytes, size_t counts_bytes) {
  PartSpace space{};
  out_ = PutBytesHead(out_, field, PartBody(keys_bytes, rows_bytes, counts_bytes));
  out_ = PutFixed(out_, 1, table_id);
  out_ = PutFixed(out_, 2, dim);
  out_ = PutFixed(out_, 3, flags);
  out_ = PutFixed(out_, 4, uint32_t{0});
  space.crc32c = out_ - 4;
  out_ = PutBytesHead(out_, 5, keys_bytes);
  space.keys = out_;
  out_ += keys_bytes;
  if (rows_bytes > 0) {
    out_ = PutBytesHead(out_, 6, rows_bytes);
    space.rows = out_;
    out_ += rows_bytes;
  }
  if (counts_bytes > 0) {
    out_ = PutBytesHead(out_, 7, counts_bytes);
    space.counts = out_;
    out_ += counts_bytes;
  }
  return space;
}

PartSpace RequestWriter::AddPush(uint32_t table_id, uint32_t dim, uint32_t flags, size_t keys_bytes, size_t rows_bytes,
                                 size_t counts_bytes) {
  return Add(kPushField, table_id, dim, flags, keys_bytes, rows_bytes, counts_bytes);
}

PartSpace RequestWriter::AddPull(uint32_t table_id, uint32_t dim, uint32_t flags, size_t keys_bytes) {
  return Add(kPullField, table_id, dim, flags, keys_bytes, 0, 0);
}

size_t ResponseBytes(Method method, const std::vector<size_t>& pulled_bytes) {
  size_t bytes = kFixed64Bytes + kFixed32Bytes;
  if (method != Method::kPull) bytes += 2 * kFixed64Bytes + 2 * kFixed32Bytes;
  for (const size_t pulled : pulled_bytes) bytes += BytesField(pulled);
  return bytes;
}

std::vector<char*> WriteResponse(Method method, char* out, const Response& response,
                                 const std::vector<size_t>& pulled_bytes) {
  out = PutFixed(out, 1, response.epoch);
  out = PutFixed(out, 2, response.shard_map_version);
  if (method != Method::kPull) {
    out = PutFixed(out, 3, response.step);
    out = PutFixed(out, 4, response.applied_shards);
    out = PutFixed(out, 5, response.duplicate_shards);
    out = PutFixed(out, 6, response.durable_next);
  }
  std::vector<char*> spaces;
  spaces.reserve(pulled_bytes.size());
  for (const size_t pulled : pulled_bytes) {
    out = PutBytesHead(out, kPullField, pulled);
    spaces.push_back(out);
    out += pulled;
  }
  return spaces;
}

}  // namespace tablebay
