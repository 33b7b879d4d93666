#include "tablebay/call.h"

#include <algorithm>
#include <cstring>

#include "tablebay/bulk.h"
#include "tablebay/crc32c.h"
#include "tablebay/crew.h"
#include "tablebay/kernels.h"
#include "tablebay/replay_memory.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

// What a message has beside the bulk: the sender, steps, the cursor; and for each part its scalars.
constexpr uint64_t kHeadBytes = 2048;
constexpr uint64_t kPartHeadBytes = 64;
// A message costs as much as the sending of this.
constexpr uint64_t kPieceBytesMin = 1 << 20;
// The allocator takes a message of 32 MiB and more from the system each time, and new memory costs more than all else
// that is done with it. Of smaller ones the next is on its way while one is worked on.
constexpr uint64_t kPieceBytesMax = 8 << 20;
// What the first-level cache holds beside what else is at work: a multiple of what Crc32c takes at once.
constexpr size_t kNearBytes = 12 * 1024;

struct Span {
  uint32_t begin;
  uint32_t end;
  size_t size() const { return end - begin; }
};

Span PositionsOf(const Plan& plan, uint32_t begin_place, uint32_t end_place) {
  return {plan.place_begin[begin_place], plan.place_begin[end_place]};
}

// `which` of a push's rows to `out`; the CRC of all that goes before them extended by theirs. kept: where they are kept
// too, or null.
uint32_t GatherRows(const Call::Push& push, const uint32_t* which, size_t count, char* out, uint32_t crc,
                    KeepingCopy* kept) {
  const size_t row_bytes = push.row_bytes;
  // The checksum of each few rows while they are in the nearest cache.
  const size_t some = std::max<size_t>(1, kNearBytes / row_bytes);
  // Extends a CRC by rows `begin` to `end`. With a window each few rows go there as well.
  const auto gather = [&](size_t begin, size_t end, bool windows, uint32_t extended, const auto& made) {
    for (size_t first = begin; first < end; first += some) {
      const size_t n = std::min(some, end - first);
      char* const rows = out + first * row_bytes;
      char* const window = windows ? kept->Window(rows, n * row_bytes) : nullptr;
      if (window != nullptr) {
        ActiveKernels().gather_twice(push.rows, which + first, n, push.row_bytes, rows, window);
      } else {
        ActiveKernels().gather(push.rows, which + first, n, push.row_bytes, rows);
      }
      extended = Crc32c(rows, n * row_bytes, extended);
      made(first, rows, n * row_bytes, window != nullptr);
    }
    if (windows) KeptRequest::Fence();
    return extended;
  };
  const auto note = [&](size_t, const char* rows, size_t bytes, bool copied) {
    if (kept != nullptr) copied ? kept->Copied(rows, bytes) : kept->Made(rows, bytes);
  };
  const bool windows = kept != nullptr && row_bytes % KeptRequest::kLine == 0;
  // Rows that are kept without windows are copied one after the other.
  if (count < Crew::kKeysLarge || (kept != nullptr && !windows)) {
    return gather(0, count, windows, crc, note);
  }
  const Crew::Ranges ranges = Crew::RangesOf(count);
  std::vector<uint32_t> crcs(ranges.count);
  std::vector<char> copied(count / some + ranges.count + 1);
  // Windows are asked for while nothing is noted, and noted in order when all are filled.
  Crew::OfProcess().ShareRanges(count, [&](size_t begin, size_t end) {
    const size_t number = begin / ranges.each;
    crcs[number] = gather(begin, end, windows, 0, [&](size_t first, const char*, size_t, bool is_copied) {
      copied[begin / some + number + (first - begin) / some] = is_copied;
    });
  });
  for (size_t number = 0; number < ranges.count; ++number) {
    const size_t begin = number * ranges.each;
    const size_t end = std::min(count, begin + ranges.each);
    crc = Crc32cOfBoth(crc, crcs[number], (end - begin) * row_bytes);
    for (size_t first = begin; windows && first < end; first += some) {
      note(first, out + first * row_bytes, std::min(some, end - first) * row_bytes,
           copied[begin / some + number + (first - begin) / some]);
    }
  }
  return crc;
}

}  // namespace

Call::Call(Method method, std::vector<Pull> pulls, std::vector<Push> pushes, uint64_t message_bytes_max,
           uint32_t pieces)
    : method_(method), pulls_(std::move(pulls)), pushes_(std::move(pushes)), summed_(pushes_.size()) {
  for (const Pull& pull : pulls_) router_ = pull.plan->router;
  for (const Push& push : pushes_) router_ = push.plan->router;
  if (router_ == nullptr) throw StatusError("BadRequest", "a call wants at least one pull or push; found none");
  for (const Pull& pull : pulls_) {
    if (pull.plan->router != router_) throw StatusError("BadRequest", "the plans of a call come of different routers");
  }
  for (const Push& push : pushes_) {
    if (push.plan->router != router_) throw StatusError("BadRequest", "the plans of a call come of different routers");
  }
  servers_.resize(router_->servers());
  for (uint32_t server = 0; server < router_->servers(); ++server) Cut(server, message_bytes_max, pieces);
}

void Call::Cut(uint32_t server, uint64_t message_bytes_max, uint32_t pieces) {
  const uint64_t head = kHeadBytes + kPartHeadBytes * (pulls_.size() + pushes_.size());
  // The larger of request and answer.
  const auto size = [&](uint32_t begin, uint32_t end) {
    uint64_t request = head;
    uint64_t answer = head;
    for (const Pull& pull : pulls_) {
      const uint64_t keys = PositionsOf(*pull.plan, begin, end).size();
      request += keys * sizeof(uint64_t);
      answer += keys * pull.row_bytes;
    }
    for (const Push& push : pushes_) {
      request += PositionsOf(*push.plan, begin, end).size() * (sizeof(uint64_t) + push.row_bytes + push.counts_bytes());
    }
    return std::max(request, answer);
  };
  const uint32_t last = router_->ServerEnd(server);
  uint32_t begin = router_->ServerBegin(server);
  const uint64_t whole = size(begin, last);
  // Few enough of them, whatever the limit is.
  uint64_t bytes_max = std::min(message_bytes_max, std::max(kPieceBytesMax, 3 * whole / kPiecesMax));
  // A little more than its part, so that borders between shards do not make one piece more of it.
  const uint64_t part = whole / pieces;
  if (pieces > 1 && part >= kPieceBytesMin) bytes_max = std::min(bytes_max, part + part / 16);
  const auto fits = [&](uint32_t from, uint32_t to) { return size(from, to) <= bytes_max; };
  while (begin < last) {
    // The most places that fit: sizes grow with `end`, so bisection finds it.
    uint32_t end = last;
    if (!fits(begin, last)) {
      uint32_t low = begin;
      uint32_t high = last;
      while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        (fits(begin, middle) ? low : high) = middle;
      }
      end = low;
    }
    // Places without keys alone: with the shard behind them, whose share stays whole.
    if (size(begin, end) == head && end < last && size(begin, ++end) > message_bytes_max) {
      throw StatusError("ResourceExhausted", Format("one shard's keys of this call do not fit in a message of %llu "
                                                    "bytes; give fewer keys at once",
                                                    static_cast<unsigned long long>(message_bytes_max)));
    }
    if (size(end, last) == head) end = last;
    servers_[server].push_back(Piece{begin, end, {}});
    begin = end;
  }
  if (servers_[server].empty()) servers_[server].push_back(Piece{last, last, {}});
  if (servers_[server].size() > kPiecesMax) {
    throw StatusError("ResourceExhausted",
                      Format("%zu messages of %llu bytes to one server, wanted at most %zu; give "
                             "fewer keys at once",
                             servers_[server].size(), static_cast<unsigned long long>(message_bytes_max), kPiecesMax));
  }
}

std::vector<uint32_t> Call::Servers() const {
  std::vector<uint32_t> servers;
  for (uint32_t server = 0; server < router_->servers(); ++server) {
    const uint32_t begin = router_->ServerBegin(server);
    const uint32_t end = router_->ServerEnd(server);
    bool any = false;
    for (const Pull& pull : pulls_) any = any || PositionsOf(*pull.plan, begin, end).size() > 0;
    for (const Push& push : pushes_) any = any || PositionsOf(*push.plan, begin, end).size() > 0;
    if (any) servers.push_back(server);
  }
  return servers;
}

std::vector<size_t> Call::PartSizes(const Piece& piece) const {
  std::vector<size_t> sizes;
  for (const Push& push : pushes_) {
    const size_t keys = PositionsOf(*push.plan, piece.begin, piece.end).size();
    sizes.push_back(PartBytes(keys * sizeof(uint64_t), keys * push.row_bytes, keys * push.counts_bytes()));
  }
  for (const Pull& pull : pulls_) {
    const size_t keys = PositionsOf(*pull.plan, piece.begin, piece.end).size();
    sizes.push_back(PartBytes(keys * sizeof(uint64_t), 0));
  }
  return sizes;
}

size_t Call::RequestSize(uint32_t server, size_t piece, size_t cursor_bytes) const {
  return RequestBytes(method_, cursor_bytes, PartSizes(servers_[server][piece]));
}

const char* Call::SummedRows(size_t i) {
  const Push& push = pushes_[i];
  if (summed_[i].empty()) {
    summed_[i].resize(push.plan->unique() * push.row_bytes);
    if ((push.flags & kAssign) != 0) {
      LastRows(*push.plan, push.rows, push.row_bytes, summed_[i].data());
    } else {
      SumRows(*push.plan, push.rows, push.dim, push.is_int64, summed_[i].data());
    }
  }
  return summed_[i].data();
}

void Call::WriteRequest(uint32_t server, size_t index, const Header& header, char* out, KeptRequest* keep) {
  const Piece& piece = servers_[server][index];
  const size_t size = RequestSize(server, index, header.cursor.size());
  if (keep != nullptr) keep->Resize(size);
  KeepingCopy kept(out, keep);
  RequestWriter writer(method_, out, header.sender, header.step, header.oldest_step, index, servers_[server].size(),
                       header.cursor);
  // Writes the keys; their CRC-32C.
  const auto put_keys = [](const PartSpace& space, const Plan& plan, Span span) {
    const size_t keys_bytes = span.size() * sizeof(uint64_t);
    if (keys_bytes > 0) std::memcpy(space.keys, plan.keys.data() + span.begin, keys_bytes);
    return Crc32c(space.keys, keys_bytes);
  };
  for (size_t i = 0; i < pushes_.size(); ++i) {
    const Push& push = pushes_[i];
    const Plan& plan = *push.plan;
    const Span span = PositionsOf(plan, piece.begin, piece.end);
    const size_t rows_bytes = span.size() * push.row_bytes;
    const PartSpace space =
        writer.AddPush(push.table_id, push.dim, push.flags | kUnique, span.size() * sizeof(uint64_t), rows_bytes,
                       span.size() * push.counts_bytes());
    // So that its rows, where they are lines, are lines there too.
    if (keep != nullptr && i == 0) keep->Resize(size, static_cast<size_t>(space.rows - out));
    uint32_t crc = put_keys(space, plan, span);
    if (rows_bytes > 0 && !plan.repeats()) {
      crc = GatherRows(push, plan.first.data() + span.begin, span.size(), space.rows, crc,
                       keep != nullptr ? &kept : nullptr);
    } else if (rows_bytes > 0) {
      if (span.size() == plan.unique() && (push.flags & kAssign) == 0) {
        SumRows(plan, push.rows, push.dim, push.is_int64, space.rows);
      } else {
        std::memcpy(space.rows, SummedRows(i) + uint64_t{span.begin} * push.row_bytes, rows_bytes);
      }
      crc = BulkCrc32c(space.rows, rows_bytes, crc);
    }
    if (push.counts != nullptr && span.size() > 0) {
      std::string summed(plan.unique() * kCountsBytes, 0);
      SumRows(plan, push.counts, kCountsBytes / sizeof(float), false, summed.data());
      std::memcpy(space.counts, summed.data() + uint64_t{span.begin} * kCountsBytes, span.size() * kCountsBytes);
      crc = Crc32c(space.counts, span.size() * kCountsBytes, crc);
    }
    std::memcpy(space.crc32c, &crc, sizeof crc);
  }
  for (const Pull& pull : pulls_) {
    const Span span = PositionsOf(*pull.plan, piece.begin, piece.end);
    const PartSpace space =
        writer.AddPull(pull.table_id, pull.dim, pull.flags | kUnique, span.size() * sizeof(uint64_t));
    const uint32_t crc = put_keys(space, *pull.plan, span);
    std::memcpy(space.crc32c, &crc, sizeof crc);
  }
  kept.Finish();
}

Response Call::Accept(uint32_t server, size_t index, std::string_view message) {
  Response response;
  try {
    response = ReadResponse(message);
  } catch (const StatusError& error) {
    throw StatusError("CorruptMessage", Format("server %u answered what cannot be read: %s", server, error.what()));
  }
  Piece& piece = servers_[server][index];
  if (response.pulled.size() != pulls_.size()) {
    throw StatusError("CorruptMessage", Format("server %u answered %zu pulls, wanted %zu", server,
                                               response.pulled.size(), pulls_.size()));
  }
  for (size_t i = 0; i < pulls_.size(); ++i) {
    const size_t wanted = PositionsOf(*pulls_[i].plan, piece.begin, piece.end).size() * pulls_[i].row_bytes;
    if (response.pulled[i].size() != wanted) {
      throw StatusError("CorruptMessage", Format("server %u answered %zu bytes of rows, wanted %zu", server,
                                                 response.pulled[i].size(), wanted));
    }
  }
  piece.pulled = response.pulled;
  return response;
}

void Call::Finish() {
  for (size_t i = 0; i < pulls_.size(); ++i) {
    const Pull& pull = pulls_[i];
    const Plan& plan = *pull.plan;
    if (plan.unique() == 0) continue;
    std::vector<const char*> rows;
    const char* whole = nullptr;
    for (const std::vector<Piece>& pieces : servers_) {
      for (const Piece& piece : pieces) {
        const Span span = PositionsOf(plan, piece.begin, piece.end);
        if (span.size() == 0) continue;
        const char* at = piece.pulled.at(i).data();
        if (span.size() == plan.unique()) {
          whole = at;
          break;
        }
        if (rows.empty()) rows.resize(plan.unique());
        for (uint32_t p = span.begin; p < span.end; ++p, at += pull.row_bytes) rows[p] = at;
      }
    }
    if (whole != nullptr) {
      BulkGather(whole, plan.inverse.data(), plan.count(), pull.row_bytes, pull.out);
    } else {
      BulkGatherPointers(rows.data(), plan.inverse.data(), plan.count(), pull.row_bytes, pull.out);
    }
  }
}

}  // namespace tablebay
