#include "tablebay/figures.h"

#include <algorithm>

namespace tablebay {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

}  // namespace

void Figures::Begin(uint32_t method, uint64_t received_bytes) {
  OfMethod& of = methods_[method];
  of.in_flight.fetch_add(1, kRelaxed);
  of.received_bytes.fetch_add(received_bytes, kRelaxed);
}

void Figures::End(uint32_t method, uint64_t nanoseconds, StatusCode code, uint64_t sent_bytes) {
  OfMethod& of = methods_[method];
  const auto bucket = std::lower_bound(kBounds.begin(), kBounds.end(), nanoseconds) - kBounds.begin();
  of.codes[static_cast<size_t>(code)].fetch_add(1, kRelaxed);
  of.buckets[static_cast<size_t>(bucket)].fetch_add(1, kRelaxed);
  of.nanoseconds.fetch_add(nanoseconds, kRelaxed);
  of.sent_bytes.fetch_add(sent_bytes, kRelaxed);
  of.in_flight.fetch_sub(1, kRelaxed);
}

Figures::Counted Figures::Read(uint32_t method) const {
  const OfMethod& of = methods_[method];
  Counted counted{};
  counted.in_flight = of.in_flight.load(kRelaxed);
  for (size_t i = 0; i < of.codes.size(); ++i) counted.codes[i] = of.codes[i].load(kRelaxed);
  for (size_t i = 0; i < of.buckets.size(); ++i) counted.buckets[i] = of.buckets[i].load(kRelaxed);
  counted.nanoseconds = of.nanoseconds.load(kRelaxed);
  counted.received_bytes = of.received_bytes.load(kRelaxed);
  counted.sent_bytes = of.sent_bytes.load(kRelaxed);
  return counted;
}

Figures::Call::Call(Figures& figures, uint32_t method, uint64_t received_bytes) : figures_(figures), method_(method) {
  figures_.Begin(method_, received_bytes);
}

Figures::Call::~Call() {
  const auto took = std::chrono::steady_clock::now() - began_;
  const auto nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(took).count();
  figures_.End(method_, static_cast<uint64_t>(nanoseconds), code_, sent_bytes_);
}

void Figures::Call::Answered(uint64_t sent_bytes) {
  code_ = StatusCode::kOk;
  sent_bytes_ = sent_bytes;
}

}  // namespace tablebay
