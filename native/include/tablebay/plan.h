// The client's side of a call: unique keys in order of (server, shard), and where each given key went.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <string_view>
#include <vector>

#include "tablebay/hash.h"

namespace tablebay {

class Router {
 public:
  // owners[shard] is the index of its server. Throws StatusError(BadRequest) for an index past `servers`.
  Router(const std::vector<uint16_t>& owners, uint32_t servers);

  uint32_t servers() const { return static_cast<uint32_t>(server_begin_.size() - 1); }
  // Shards in order of (server, shard): the place of each, and the places of a server.
  uint32_t PlaceOf(uint32_t shard) const { return place_[shard]; }
  uint32_t ServerBegin(uint32_t server) const { return server_begin_[server]; }
  uint32_t ServerEnd(uint32_t server) const { return server_begin_[server + 1]; }

 private:
  std::array<uint16_t, kShards> place_;
  std::vector<uint32_t> server_begin_;
};

// Of numbers that are all written before they are read: one that is made larger is not filled with zeros.
template <class T>
struct Unfilled : std::allocator<T> {
  template <class Other>
  struct rebind {
    using other = Unfilled<Other>;
  };
  template <class Other>
  void construct(Other* at) {
    ::new (static_cast<void*>(at)) Other;
  }
};
template <class T>
using Numbers = std::vector<T, Unfilled<T>>;

struct Plan {
  std::shared_ptr<const Router> router;
  Numbers<uint64_t> keys;                         // unique, in plan order
  Numbers<uint32_t> inverse;                      // plan position of each given key
  Numbers<uint32_t> first;                        // index of the first occurrence of each unique key
  std::array<uint32_t, kShards + 1> place_begin;  // plan positions of each place

  size_t count() const { return inverse.size(); }
  size_t unique() const { return keys.size(); }
  bool repeats() const { return count() != unique(); }
  // Whether it was made of these keys, in this order.
  bool IsOf(std::string_view given) const;
};

// By hashing, with memory kept for each thread. Throws StatusError(ResourceExhausted) for 2^32 - 1 keys and more.
Plan MakePlan(std::shared_ptr<const Router> router, std::string_view keys);

// Plan positions whose key is among `keys`, each once, ascending.
std::vector<uint32_t> Intersect(const Plan& plan, std::string_view keys);

// Sums the rows of repeated keys in order of occurrence: out has a row for each unique key, in plan order.
void SumRows(const Plan& plan, const char* rows, uint32_t dim, bool is_int64, char* out);
// For an assignment: the row of the last occurrence.
void LastRows(const Plan& plan, const char* rows, uint32_t row_bytes, char* out);

}  // namespace tablebay
