// The protobuf wire form of the data port's messages (client/proto/tablebay.proto), read and written in place.
//
// The reader takes any legal encoding: fields in any order, unknown fields skipped, the last of a repeated scalar.
// It never reads past the end, never allocates by a length it has not checked, and has no recursion. What it
// refuses, it refuses by StatusError(BadRequest) with the offset.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace tablebay {

enum PartFlags : uint32_t {
  kUnique = 1,
  kReadOnly = 2,
  kAssign = 4,
  kDelete = 8,
  kState = 16,
  kContains = 32,
  kShows = 64,
};

struct Part {
  uint32_t table_id = 0;
  uint32_t dim = 0;
  uint32_t flags = 0;
  bool has_crc32c = false;
  uint32_t crc32c = 0;
  std::string_view keys;
  std::string_view rows;
  std::string_view counts;
};

struct Sender {
  uint64_t client_high = 0;
  uint64_t client_low = 0;
  uint32_t incarnation = 0;
  uint32_t shard_map_version = 0;
  uint64_t epoch = 0;
};

// Requests of one step for one server: a bit for each.
inline constexpr size_t kPiecesMax = 64;

enum class Method { kPull, kPush, kStep };

// PullRequest, PushRequest and StepRequest share field numbers, so that one reader serves all three.
struct Request {
  bool has_sender = false;
  Sender sender;
  uint64_t step = 0;
  uint64_t oldest_step = 0;
  uint32_t pieces = 1;
  uint32_t piece = 0;
  std::string_view cursor;
  std::vector<Part> pushes;
  std::vector<Part> pulls;
};
Request ReadRequest(Method method, std::string_view message);

// Writes another epoch of the server into a request that RequestWriter wrote, in place. Throws
// StatusError(BadRequest) for other bytes.
void Readdress(char* message, size_t size, uint64_t epoch);

struct Response {
  uint64_t epoch = 0;
  uint32_t shard_map_version = 0;
  uint64_t step = 0;
  uint32_t applied_shards = 0;
  uint32_t duplicate_shards = 0;
  uint64_t durable_next = 0;
  std::vector<std::string_view> pulled;
};
Response ReadResponse(std::string_view message);

// Writing: sizes first, since the message is made at its final size and filled in place.
// Scalars are written at fixed width and even when zero, so that a size depends on the bulk alone.
size_t PartBytes(size_t keys_bytes, size_t rows_bytes, size_t counts_bytes = 0);
size_t RequestBytes(Method method, size_t cursor_bytes, const std::vector<size_t>& part_bytes);
size_t ResponseBytes(Method method, const std::vector<size_t>& pulled_bytes);

// Where a part's bulk is to be filled in, and its checksum once it is.
struct PartSpace {
  char* keys;
  char* rows;
  char* counts;
  char* crc32c;
};

class RequestWriter {
 public:
  // `piece` of `pieces`, at most kPiecesMax, that the step is for a server.
  RequestWriter(Method method, char* out, const Sender& sender, uint64_t step, uint64_t oldest_step, size_t piece,
                size_t pieces, std::string_view cursor);
  // Pushes before pulls.
  PartSpace AddPush(uint32_t table_id, uint32_t dim, uint32_t flags, size_t keys_bytes, size_t rows_bytes,
                    size_t counts_bytes = 0);
  PartSpace AddPull(uint32_t table_id, uint32_t dim, uint32_t flags, size_t keys_bytes);

 private:
  PartSpace Add(uint32_t field, uint32_t table_id, uint32_t dim, uint32_t flags, size_t keys_bytes, size_t rows_bytes,
                size_t counts_bytes);
  char* out_;
};

// Writes the head and the fields of the answer; returns where each pulled part's bytes are to be filled in.
std::vector<char*> WriteResponse(Method method, char* out, const Response& response,
                                 const std::vector<size_t>& pulled_bytes);

}  // namespace tablebay
