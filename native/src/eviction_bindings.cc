// Eviction, its feed and its days as Python sees them: methods of Store.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "tablebay/store.h"

namespace py = pybind11;

namespace tablebay {

void BindEviction(py::class_<Store, std::shared_ptr<Store>>& store);

void BindEviction(py::class_<Store, std::shared_ptr<Store>>& bound) {
  bound
      .def(
          "evict",
          [](Store& store, uint32_t table_id, uint32_t stripe, double seconds) {
            const py::gil_scoped_release release;
            const Store::Swept swept = store.Evict(store.FindTable(table_id), stripe, seconds);
            return std::tuple<uint64_t, uint64_t, uint32_t>(swept.looked_at, swept.evicted, swept.next_stripe);
          },
          py::arg("table_id"), py::arg("stripe"), py::arg("seconds"),
          "Removes the rows that leave, from that stripe on, for about so many seconds: (rows looked at, rows evicted, "
          "the stripe to go on from; 64 is the end).")
      .def(
          "evicted",
          [](const Store& store, uint32_t table_id, uint64_t position, uint64_t most) {
            std::vector<Events::Event> events;
            uint64_t first;
            {
              const py::gil_scoped_release release;
              first = store.FindTable(table_id).events().Read(position, most, &events);
            }
            std::string keys, times, reasons;
            for (const Events::Event& event : events) {
              keys.append(reinterpret_cast<const char*>(&event.key), sizeof event.key);
              times.append(reinterpret_cast<const char*>(&event.time), sizeof event.time);
              reasons.push_back(static_cast<char>(event.reason));
            }
            return std::tuple<uint64_t, py::bytes, py::bytes, py::bytes>(first, keys, times, reasons);
          },
          py::arg("table_id"), py::arg("position"), py::arg("most"),
          "The rows that left, by number, from that one or the oldest that is kept on: (number of the first, keys u64, "
          "Unix times u32, reasons u8: places in EVICTION_REASONS).")
      .def("set_now", &Store::SetNow, py::arg("seconds"),
           "Unix time that eviction goes by from now on, 0 for the system's.")
      .def("now", &Store::Now, "Unix time that eviction goes by.")
      .def(
          "decay",
          [](Store& store, uint32_t table_id, uint32_t epoch) {
            const py::gil_scoped_release release;
            return store.Decay(store.FindTable(table_id), epoch);
          },
          py::arg("table_id"), py::arg("epoch"),
          "Days end until that epoch, on the shards of this server: whether any did.")
      .def(
          "shows",
          [](Store& store, uint32_t table_id, const py::array_t<uint64_t, py::array::c_style>& keys) {
            Table& table = store.FindTable(table_id);
            const std::string_view key_bytes(reinterpret_cast<const char*>(keys.data()),
                                             static_cast<size_t>(keys.nbytes()));
            py::array_t<float> shows({keys.size(), py::ssize_t{2}});
            char* data = reinterpret_cast<char*>(shows.mutable_data());
            {
              const py::gil_scoped_release release;
              store.Pull(table, key_bytes, kShows, data);
            }
            return shows;
          },
          py::arg("table_id"), py::arg("keys").noconvert(), "Shows and clicks of each key, float32 (n, 2).");
}

}  // namespace tablebay
