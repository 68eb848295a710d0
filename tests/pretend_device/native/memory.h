// Allocators: memory of the devices, which is the host's, and pinned memory of the host.
#pragma once
#include <c10/core/Allocator.h>
#include <cstdlib>
#include "timeline.h"

namespace pretend {

constexpr auto DEVICE_TYPE = c10::DeviceType::PrivateUse1;

struct Current {  // of a thread, as CUDA has it
  c10::DeviceIndex device = 0;
  int64_t stream[DEVICES] = {};
};
inline thread_local Current current;

inline int64_t key(c10::DeviceIndex device, int64_t stream) {
  return device * STREAMS_OF_A_DEVICE + stream;
}
inline int64_t current_stream(c10::DeviceIndex device) {
  return key(device, current.stream[device]);
}

inline c10::DataPtr new_memory(size_t size, int device, void (*release)(void*), c10::Device where) {
  Locked locked(timeline().lock);
  void* p = std::aligned_alloc(64, size / 64 * 64 + 64);
  timeline().memory[(char*)p] = {size, device, device < 0 ? 0 : current_stream(device), {}, {}};
  return {p, p, release, where};
}

inline void free_device_memory(void* p) {
  Locked locked(timeline().lock);
  Allocation& a = timeline().memory[(char*)p];
  Clock seen = timeline().clocks[a.stream];
  merge(seen, timeline().clocks[HOST]);
  for (auto& use : a.accesses) {
    bool told = std::count(a.users.begin(), a.users.end(), use.stream);
    if (use.stream != a.stream && !told && seen[use.stream] < use.tick)
      race("memory is freed, and may be given to others, while another stream may still use it");
  }
  timeline().memory.erase((char*)p);
  std::free(p);
}

inline void free_pinned_memory(void* p) {  // its allocator waits for copies before it gives it to others
  Locked locked(timeline().lock);
  forget_queued((char*)p, timeline().memory[(char*)p].size + 1);
  timeline().memory.erase((char*)p);
  std::free(p);
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    c10::Device where(DEVICE_TYPE, current.device);
    return n ? new_memory(n, current.device, &free_device_memory, where)
             : c10::DataPtr(nullptr, nullptr, &free_device_memory_of_nothing, where);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_device_memory; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
  static void free_device_memory_of_nothing(void*) {}
};

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override { return new_memory(n, -1, &free_pinned_memory, c10::Device(c10::kCPU)); }
  c10::DeleterFnPtr raw_deleter() const override { return &free_pinned_memory; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
};

inline DeviceAllocator device_allocator;
inline PinnedAllocator pinned_allocator;

inline bool is_pinned(const void* p) {
  Locked locked(timeline().lock);
  Allocation* found = allocation_of(p);
  return found && found->device < 0;
}

inline int64_t bytes_allocated(c10::DeviceIndex device) {
  Locked locked(timeline().lock);
  int64_t sum = 0;
  for (auto& [p, a] : timeline().memory) sum += a.device == device ? a.size : 0;
  return sum;
}

}  // namespace pretend
