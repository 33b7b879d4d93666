// One call of a client to all servers: its requests, its answers, and the rows gathered from them.
//
// A server's share is one request, or several, cut at shard borders, where request or answer would pass the message
// limit or 8 MiB, or where one is to be worked on while the next is on its way; so a step stays whole on each shard.
// Not thread-safe: a call belongs to the thread that makes it.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tablebay/eviction.h"
#include "tablebay/plan.h"
#include "tablebay/wire.h"

namespace tablebay {

class KeptRequest;

class Call {
 public:
  struct Pull {
    uint32_t table_id;
    uint32_t dim;
    uint32_t row_bytes;  // of a key's answer
    uint32_t flags;
    std::shared_ptr<const Plan> plan;
    char* out;  // plan->count() rows
  };
  struct Push {
    uint32_t table_id;
    uint32_t dim;
    uint32_t row_bytes;
    uint32_t flags;
    std::shared_ptr<const Plan> plan;
    const char* rows;  // plan->count() rows; null for a deletion
    bool is_int64;
    const char* counts = nullptr;  // of each key shows and clicks, float32; or none
    uint32_t counts_bytes() const { return counts == nullptr ? 0 : kCountsBytes; }
  };

  // pieces: into how many messages a server's share is cut at least, where each is large enough to be worth it.
  Call(Method method, std::vector<Pull> pulls, std::vector<Push> pushes, uint64_t message_bytes_max,
       uint32_t pieces = 1);
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Those to which a key goes.
  std::vector<uint32_t> Servers() const;

  struct Header {
    Sender sender;
    uint64_t step;
    uint64_t oldest_step;
    std::string_view cursor;
  };
  // At least one, empty of keys where none goes to the server. They may be sent in any order, and side by side.
  size_t Pieces(uint32_t server) const { return servers_[server].size(); }
  size_t RequestSize(uint32_t server, size_t piece, size_t cursor_bytes) const;
  // keep: where the same bytes are kept, or null.
  void WriteRequest(uint32_t server, size_t piece, const Header& header, char* out, KeptRequest* keep);

  // The bytes must stay until Finish. Throws StatusError(CorruptMessage) where they do not answer the request.
  Response Accept(uint32_t server, size_t piece, std::string_view message);
  // REQUIRES every piece of every server in Servers() accepted.
  void Finish();

 private:
  struct Piece {
    uint32_t begin;  // places of the router
    uint32_t end;
    std::vector<std::string_view> pulled;
  };
  std::vector<size_t> PartSizes(const Piece& piece) const;
  void Cut(uint32_t server, uint64_t message_bytes_max, uint32_t pieces);
  const char* SummedRows(size_t push);

  const Method method_;
  const std::vector<Pull> pulls_;
  const std::vector<Push> pushes_;
  std::shared_ptr<const Router> router_;
  std::vector<std::vector<Piece>> servers_;
  std::vector<std::string> summed_;  // rows of a push in plan order, where they are not written in place
};

}  // namespace tablebay
