// Requests that are kept to be sent again, in memory that is used over and over.
//
// A worker may push hundreds of megabytes a second, and keeps them until a checkpoint has them. Memory that is new to
// the process costs more than everything else that is done with a push, and what is written through the caches takes
// from them what the next push needs. So pages that are let go of are filled again, and are written past the caches:
// nobody reads them unless a server comes back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

namespace tablebay {

// Thread-safe.
class ReplayMemory {
 public:
  // What is beyond `bytes_max` goes back to the system as soon as nothing is kept in it; the rest at the end.
  explicit ReplayMemory(uint64_t bytes_max);
  ~ReplayMemory();
  ReplayMemory(const ReplayMemory&) = delete;
  ReplayMemory& operator=(const ReplayMemory&) = delete;

  // Taken from the system.
  uint64_t bytes() const;

 private:
  friend class KeptRequest;
  struct Page {
    char* memory;
    uint32_t users = 0;
  };
  struct Extent {
    Page* page;
    char* begin;
    size_t bytes;
  };

  std::vector<Extent> Take(size_t bytes);
  void GiveBack(const std::vector<Extent>& extents);
  // REQUIRES mutex_:
  void GiveBackLocked(const std::vector<Extent>& extents);
  Page* NewPage();
  void Unused(Page* page);
  void Release(const Page* page);

  const uint64_t pages_max_;
  mutable std::mutex mutex_;
  std::vector<Page*> free_;
  Page* open_ = nullptr;  // which is being filled
  size_t filled_ = 0;     // of it
  uint64_t pages_ = 0;
};

// One request. Thread-compatible; gives its memory back at its end.
class KeptRequest {
 public:
  // What is written around the caches at once.
  static constexpr size_t kLine = 64;

  explicit KeptRequest(std::shared_ptr<ReplayMemory> memory) : memory_(std::move(memory)) {}
  ~KeptRequest() { memory_->GiveBack(extents_); }
  KeptRequest(const KeptRequest&) = delete;
  KeptRequest& operator=(const KeptRequest&) = delete;

  // Room for so many bytes, in place of what was here; the byte at `aligned` lies at a line's border. Throws
  // std::bad_alloc.
  void Resize(size_t bytes, size_t aligned = 0);
  size_t size() const { return size_; }
  // REQUIRES what is written to lie in [0, size()).
  void Write(size_t offset, std::string_view bytes);
  // Where these bytes are, if they lie one after the other; else null.
  char* Window(size_t offset, size_t bytes);
  // What this thread wrote to windows around the caches is seen by other threads like any other write.
  static void Fence();
  // How many bytes lie in a line before the first.
  size_t lead() const { return lead_; }
  void CopyTo(char* out) const;

 private:
  const std::shared_ptr<ReplayMemory> memory_;
  size_t size_ = 0;
  size_t lead_ = 0;
  std::vector<ReplayMemory::Extent> extents_;
};

// Copies a message to where it is kept while it is made, each part when it is still in the nearest cache.
class KeepingCopy {
 public:
  // to: null where nothing is kept. `message` has `to->size()` bytes.
  KeepingCopy(const char* message, KeptRequest* to) : message_(message), to_(to) {}

  // These bytes of the message are as they will be sent. In ascending order.
  void Made(const char* begin, size_t bytes);
  // Where bytes that come next, whole lines, may be copied to by who makes them, who then says Copied and not Made;
  // null where they may not.
  char* Window(const char* begin, size_t bytes) const;
  void Copied(const char* begin, size_t bytes);
  // All are.
  void Finish();

 private:
  struct Span {
    size_t begin;
    size_t end;
  };
  const char* const message_;
  KeptRequest* const to_;
  size_t Up(size_t offset) const;
  size_t Down(size_t offset) const;
  std::vector<Span> copied_;  // whole lines
  size_t made_ = 0;           // end of what Made was told last
};

}  // namespace tablebay
