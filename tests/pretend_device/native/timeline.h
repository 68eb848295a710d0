// Who may see what: streams, events, the host, and the memory that they read and write.
//
// Kernels run at once, on the host. What a real device would allow to go wrong is found from clocks instead: each
// stream counts its operations and remembers up to which count it has waited for every other stream. An operation
// on memory that another stream has written (or, to write, has read) without a wait between them is a race. The
// host is a stream of its own: it has seen only what it has waited for.
#pragma once
#include <c10/util/Exception.h>
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace pretend {

constexpr int DEVICES = 2;
constexpr int64_t STREAMS_OF_A_DEVICE = 1 << 20;
constexpr int64_t HOST = -1;

using Clock = std::map<int64_t, int64_t>;  // by stream, how many of its operations are known to be done

struct Access {
  char *begin, *end;
  int64_t stream, tick;
  bool writes;
};

struct Allocation {
  size_t size = 0;
  int device = -1;      // -1: pinned memory of the host
  int64_t stream = 0;   // in whose order it is reused after it is freed
  std::vector<int64_t> users;  // streams of which the allocator was told (Tensor.record_stream)
  std::vector<Access> accesses;
};

// A copy between the device and pinned memory that the host has not waited for.
struct Queued {
  char* pinned;
  std::vector<char> bytes;
  int64_t stream, tick;
  bool to_host;
};

struct Timeline {
  std::recursive_mutex lock;
  std::map<int64_t, Clock> clocks;
  std::map<char*, Allocation> memory;
  std::vector<Queued> queued;
  std::vector<std::string> races;
  std::atomic<int64_t> waits{0};
  int64_t streams = 0;
};

inline Timeline& timeline() {
  static auto* forever = new Timeline;  // never destroyed: tensors may outlive everything else
  return *forever;
}
using Locked = std::lock_guard<std::recursive_mutex>;

inline void merge(Clock& into, const Clock& other) {
  for (auto& [stream, tick] : other) into[stream] = std::max(into[stream], tick);
}

inline void race(const std::string& what) {
  timeline().races.push_back(what);
}

inline Allocation* allocation_of(const void* pointer) {
  auto& memory = timeline().memory;
  auto found = memory.upper_bound((char*)pointer);
  if (found == memory.begin()) return nullptr;
  --found;
  bool within = (char*)pointer < found->first + std::max<size_t>(found->second.size, 1);
  return within ? &found->second : nullptr;
}

// The next operation of a stream reads or writes some memory.
inline void access(int64_t stream, char* begin, size_t bytes, bool writes, const char* operation) {
  Locked locked(timeline().lock);
  Allocation* found = bytes ? allocation_of(begin) : nullptr;
  if (!found) return;
  Clock& seen = timeline().clocks[stream];
  char* end = begin + bytes;
  bool ordered = true;
  for (auto& a : found->accesses) {
    bool conflict = a.begin < end && begin < a.end && (a.writes || writes);
    if (conflict && a.stream != stream && seen[a.stream] < a.tick) ordered = false;
  }
  if (!ordered)
    race(std::string(operation) + (writes ? " writes" : " reads") + " memory that another stream may still use");
  std::erase_if(found->accesses, [&](const Access& a) {
    bool covered = begin <= a.begin && a.end <= end;
    return covered && (writes || (a.stream == stream && !a.writes));
  });
  found->accesses.push_back({begin, end, stream, seen[stream], writes});
}

inline int64_t next_tick(int64_t stream) {
  Locked locked(timeline().lock);
  merge(timeline().clocks[stream], timeline().clocks[HOST]);  // what is called after the host has waited comes later
  return ++timeline().clocks[stream][stream];
}

constexpr char POISON = (char)0xff;  // a NaN in every floating type

inline void poison(char* begin, char* end) {
  if (begin < end) std::memset(begin, POISON, end - begin);
}

// Copies that the host now knows to be done leave the queue.
inline void complete_queued() {
  auto& line = timeline();
  Clock& seen = line.clocks[HOST];
  std::vector<Queued> remaining;
  for (size_t i = 0; i < line.queued.size(); ++i) {
    Queued& q = line.queued[i];
    size_t n = q.bytes.size();
    if (seen[q.stream] < q.tick) {
      remaining.push_back(q);
    } else if (q.to_host) {
      if (!std::all_of(q.pinned, q.pinned + n, [](char c) { return c == POISON; }))
        race("the host wrote into pinned memory while a copy to it was queued");
      std::memcpy(q.pinned, q.bytes.data(), n);
      for (size_t j = i + 1; j < line.queued.size(); ++j) {  // a later copy to a part of it is still to come
        Queued& next = line.queued[j];
        if (next.to_host) poison(std::max(q.pinned, next.pinned), std::min(q.pinned + n, next.pinned + next.bytes.size()));
      }
    } else if (std::memcmp(q.pinned, q.bytes.data(), n) != 0) {
      race("the host wrote into pinned memory while a copy from it was queued");
    }
  }
  line.queued = std::move(remaining);
}

inline void host_sees(const Clock& clock) {
  Locked locked(timeline().lock);
  merge(timeline().clocks[HOST], clock);
  complete_queued();
}

inline void host_waits_for_stream(int64_t stream) {
  Locked locked(timeline().lock);
  ++timeline().waits;
  host_sees(timeline().clocks[stream]);
}

inline void host_waits_for_device(int device) {
  Locked locked(timeline().lock);
  ++timeline().waits;
  for (auto& [stream, clock] : std::map<int64_t, Clock>(timeline().clocks))
    if (stream / STREAMS_OF_A_DEVICE == device) host_sees(clock);
}

// What pinned memory will hold when the copies that are queued before are done.
inline std::vector<char> bytes_to_come(char* pinned, size_t n) {
  std::vector<char> value(pinned, pinned + n);
  for (auto& q : timeline().queued) {
    char *begin = std::max(q.pinned, pinned), *end = std::min(q.pinned + q.bytes.size(), pinned + n);
    if (q.to_host && begin < end)
      std::memcpy(value.data() + (begin - pinned), q.bytes.data() + (begin - q.pinned), end - begin);
  }
  return value;
}

inline void queue_copy_to_host(int64_t stream, char* pinned, const char* device, size_t n) {
  auto& line = timeline();
  std::erase_if(line.queued, [&](Queued& q) {  // this one comes later, so earlier ones are done by then
    char* end = q.pinned + q.bytes.size();
    if (q.to_host) return pinned <= q.pinned && end <= pinned + n;
    if (pinned + n <= q.pinned || end <= pinned) return false;
    if (std::memcmp(q.pinned, q.bytes.data(), q.bytes.size()) != 0)
      race("the host wrote into pinned memory while a copy from it was queued");
    return true;
  });
  line.queued.push_back({pinned, std::vector<char>(device, device + n), stream, line.clocks[stream][stream], true});
  std::memset(pinned, POISON, n);
}

inline std::vector<char> queue_copy_from_host(int64_t stream, char* pinned, size_t n) {
  auto& line = timeline();
  auto value = bytes_to_come(pinned, n);
  bool filled_by_copies = std::memcmp(pinned, value.data(), n) != 0;
  if (!filled_by_copies) line.queued.push_back({pinned, value, stream, line.clocks[stream][stream], false});
  return value;
}

inline void forget_queued(char* begin, size_t n) {
  std::erase_if(timeline().queued, [&](Queued& q) { return begin <= q.pinned && q.pinned < begin + n; });
}

}  // namespace pretend
