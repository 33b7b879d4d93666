#include "tablebay/replay_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "tablebay/huge_pages.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace tablebay {
namespace {

constexpr size_t kLine = KeptRequest::kLine;

// Whole lines go around the caches.
void WriteAround(char* to, const char* from, size_t bytes) {
  const size_t head = std::min(bytes, (kLine - reinterpret_cast<uintptr_t>(to) % kLine) % kLine);
  std::memcpy(to, from, head);
  to += head;
  from += head;
  bytes -= head;
#if defined(__SSE2__)
  for (; bytes >= kLine; bytes -= kLine, to += kLine, from += kLine) {
    for (size_t at = 0; at < kLine; at += sizeof(__m128i)) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + at),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at)));
    }
  }
#endif
  std::memcpy(to, from, bytes);
}

size_t LinesUp(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }
size_t LinesDown(size_t bytes) { return bytes / kLine * kLine; }

}  // namespace

ReplayMemory::ReplayMemory(uint64_t bytes_max) : pages_max_((bytes_max + kHugePage - 1) / kHugePage) {}

// Requests hold it, so that none has anything here any more.
ReplayMemory::~ReplayMemory() {
  if (open_ != nullptr) Release(open_);
  for (const Page* page : free_) Release(page);
}

uint64_t ReplayMemory::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return pages_ * kHugePage;
}

ReplayMemory::Page* ReplayMemory::NewPage() {
  if (!free_.empty()) {
    Page* const page = free_.back();
    free_.pop_back();
    return page;
  }
  auto page = std::make_unique<Page>();
  free_.reserve(pages_ + 1);  // so that Unused cannot fail
  page->memory = TakeHugePage();
  if (page->memory == nullptr) throw std::bad_alloc();
  ++pages_;
  return page.release();
}

void ReplayMemory::Unused(Page* page) {
  if (pages_ > pages_max_) {
    Release(page);
  } else {
    free_.push_back(page);
  }
}

void ReplayMemory::Release(const Page* page) {
  GiveHugePageBack(page->memory);
  --pages_;
  delete page;
}

std::vector<ReplayMemory::Extent> ReplayMemory::Take(size_t bytes) {
  std::vector<Extent> extents;
  extents.reserve(bytes / kHugePage + 2);
  const std::lock_guard<std::mutex> lock(mutex_);
  try {
    while (bytes > 0) {
      if (open_ == nullptr) {
        open_ = NewPage();
        filled_ = 0;
      }
      const size_t some = std::min(bytes, kHugePage - filled_);
      extents.push_back({open_, open_->memory + filled_, some});
      ++open_->users;
      filled_ += LinesUp(some);
      bytes -= some;
      if (filled_ == kHugePage) open_ = nullptr;
    }
  } catch (...) {
    GiveBackLocked(extents);
    throw;
  }
  return extents;
}

void ReplayMemory::GiveBack(const std::vector<Extent>& extents) {
  const std::lock_guard<std::mutex> lock(mutex_);
  GiveBackLocked(extents);
}

void ReplayMemory::GiveBackLocked(const std::vector<Extent>& extents) {
  for (const Extent& extent : extents) {
    if (--extent.page->users > 0) continue;
    if (extent.page == open_) {
      filled_ = 0;
    } else {
      Unused(extent.page);
    }
  }
}

void KeptRequest::Resize(size_t bytes, size_t aligned) {
  memory_->GiveBack(extents_);
  extents_.clear();
  size_ = lead_ = 0;
  const size_t lead = (kLine - aligned % kLine) % kLine;
  extents_ = memory_->Take(bytes == 0 ? 0 : bytes + lead);
  size_ = bytes;
  lead_ = lead;
}

void KeptRequest::Write(size_t offset, std::string_view bytes) {
  size_t at = offset + lead_;
  size_t begin = 0;  // of the extent
  for (const ReplayMemory::Extent& extent : extents_) {
    if (bytes.empty()) break;
    if (at < begin + extent.bytes) {
      const size_t some = std::min(bytes.size(), begin + extent.bytes - at);
      WriteAround(extent.begin + (at - begin), bytes.data(), some);
      bytes.remove_prefix(some);
      at += some;
    }
    begin += extent.bytes;
  }
}

char* KeptRequest::Window(size_t offset, size_t bytes) {
  const size_t at = offset + lead_;
  size_t begin = 0;
  for (const ReplayMemory::Extent& extent : extents_) {
    if (at < begin + extent.bytes) {
      return at + bytes <= begin + extent.bytes ? extent.begin + (at - begin) : nullptr;
    }
    begin += extent.bytes;
  }
  return nullptr;
}

void KeptRequest::Fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

void KeptRequest::CopyTo(char* out) const {
  size_t skip = lead_;
  for (const ReplayMemory::Extent& extent : extents_) {
    const size_t from = std::min(skip, extent.bytes);
    std::memcpy(out, extent.begin + from, extent.bytes - from);
    out += extent.bytes - from;
    skip -= from;
  }
}

// The line's border at or after a place of the message, and at or before it.
size_t KeepingCopy::Up(size_t offset) const { return LinesUp(offset + to_->lead()) - to_->lead(); }
size_t KeepingCopy::Down(size_t offset) const {
  const size_t at = LinesDown(offset + to_->lead());
  return at < to_->lead() ? 0 : at - to_->lead();
}

void KeepingCopy::Made(const char* begin, size_t bytes) {
  if (to_ == nullptr || bytes == 0) return;
  const auto from = static_cast<size_t>(begin - message_);
  // Even where it has no whole line yet, so that what follows it is known to.
  if (copied_.empty() || from != made_) copied_.push_back({Up(from), Up(from)});
  made_ = from + bytes;
  const size_t first = copied_.back().end;
  const size_t last = Down(made_);
  if (last <= first) return;
  to_->Write(first, {message_ + first, last - first});
  copied_.back().end = last;
}

char* KeepingCopy::Window(const char* begin, size_t bytes) const {
  if (to_ == nullptr || bytes % kLine != 0) return nullptr;
  const auto from = static_cast<size_t>(begin - message_);
  // Bytes of a line that was begun wait for its end.
  if (Up(from) != from || (!copied_.empty() && from == made_ && copied_.back().end != from)) return nullptr;
  return to_->Window(from, bytes);
}

void KeepingCopy::Copied(const char* begin, size_t bytes) {
  const auto from = static_cast<size_t>(begin - message_);
  if (!copied_.empty() && copied_.back().end == from) {
    copied_.back().end = from + bytes;
  } else {
    copied_.push_back({from, from + bytes});
  }
  made_ = from + bytes;
}

void KeepingCopy::Finish() {
  if (to_ == nullptr) return;
  size_t at = 0;
  const size_t size = to_->size();
  copied_.push_back({size, size});
  for (const Span& span : copied_) {
    const size_t end = std::min(span.begin, size);
    if (end > at) to_->Write(at, {message_ + at, end - at});
    at = std::max(at, span.end);
  }
  KeptRequest::Fence();
}

}  // namespace tablebay
