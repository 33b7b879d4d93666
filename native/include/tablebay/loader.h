// Tables read from a checkpoint's files, beside those of a store, until all of them take their place there at once.
//
// Thread safety: one thread at a time; parts of one file may each be fed by a thread of its own.
#pragma once

#include <array>
#include <atomic>
#include <bitset>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tablebay/blocks.h"
#include "tablebay/cut.h"
#include "tablebay/store.h"

namespace tablebay {

class Loader {
 public:
  // owned: shards whose rows and steps are taken; others are passed over.
  Loader(std::shared_ptr<Store> store, const std::vector<uint16_t>& owned);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  uint32_t CreateTable(const TableOptions& options);
  const RowLayout& LayoutOf(uint32_t table_id) const { return FindTable(table_id).layout(); }
  uint64_t rows() const;

  struct FileOptions {
    std::optional<uint32_t> table_id;  // none: a file of steps
    std::optional<RowLayout> layout;   // of its rows; none: the table's
    bool delta = false;
    bool weights_only = false;
    uint64_t start = 0;  // the first block's offset in the file, for errors
    uint64_t rows = 0;   // that the file is said to have: room is made for them at once
  };
  // The blocks of one file, as they come.
  class File {
   public:
    // Takes the whole blocks at the beginning of `bytes`; how many bytes those are.
    // Throws StatusError: CheckpointInvalid with the byte, CheckpointMismatch for another layout, ResourceExhausted.
    // After that nothing of the loader can be used.
    size_t Feed(std::string_view bytes);
    // The blocks from byte `start` on, to be taken by another thread meanwhile; then Join puts them behind these,
    // where they are next. Deletions and the rows after them must be in one part.
    std::unique_ptr<File> Rest(uint64_t start) const;
    void Join(const File& rest);
    bool ended() const { return ended_; }  // the footer has been seen, and, but for a Rest, agrees
    uint32_t crc() const { return footer_crc_; }
    uint64_t rows() const { return sums_.rows; }
    uint64_t deleted() const { return sums_.deleted; }

   private:
    friend class Loader;
    File(std::shared_ptr<Loader> loader, const FileOptions& options);
    struct Footer {
      uint64_t rows;
      uint64_t deleted;
      uint64_t blocks;
      uint32_t crc;
      uint32_t zero;
    };
    static_assert(sizeof(Footer) == kFooterPayload);
    size_t Take(std::string_view bytes);
    void CheckFooter(const Footer& footer) const;
    void TakeBlock(const Block& block, uint64_t place);
    void TakeFooter(const Block& block);
    void Count(const Block& block);

    const std::shared_ptr<Loader> loader_;
    const FileOptions options_;
    RowLayout layout_;
    BlockSums sums_;
    bool ended_ = false;
    Footer footer_{};
    uint32_t footer_crc_ = 0;
    // Of a part that is not the first.
    bool is_rest_ = false;
    std::vector<uint32_t> crcs_;  // of its blocks
    std::optional<uint64_t> footer_place_;
    uint64_t place_;
  };
  static std::unique_ptr<File> Begin(std::shared_ptr<Loader> loader, const FileOptions& options);

  // Puts all tables in the store. One that is there already, and has the same layout, changes all of its rows at
  // once. Throws StatusError(CheckpointInvalid) where a file has not ended.
  void Finish();

 private:
  Table& FindTable(uint32_t table_id) const;
  void TakeClient(const ClientImage& image);
  void RequireMemory(const Table& table, uint64_t rows) const;

  const std::shared_ptr<Store> store_;
  std::bitset<kShards> owned_;
  std::map<uint32_t, std::unique_ptr<Table>> tables_;
  std::unordered_map<Store::ClientKey, std::shared_ptr<ClientSteps>, Store::ClientKeyHash> clients_;
  std::array<std::mutex, kStripes> stripe_locks_;  // parts of a file are taken at once
  uint64_t rows_ = 0;                              // once finished
  uint32_t open_files_ = 0;
  std::atomic<bool> failed_{false};
  bool finished_ = false;
};

}  // namespace tablebay
