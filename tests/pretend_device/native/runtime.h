// What torch asks of a device: guards, streams, events, random generators, hooks.
#pragma once
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include "memory.h"

namespace pretend {

struct Event {
  Clock clock;
  bool asked = false;
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return DEVICE_TYPE; }
  c10::Device exchangeDevice(c10::Device d) const override {
    auto before = getDevice();
    setDevice(d);
    return before;
  }
  c10::Device getDevice() const override { return {DEVICE_TYPE, current.device}; }
  void setDevice(c10::Device d) const override { uncheckedSetDevice(d); }
  void uncheckedSetDevice(c10::Device d) const noexcept override {
    if (d.index() >= 0) current.device = d.index();
  }
  c10::DeviceIndex deviceCount() const noexcept override { return DEVICES; }

  static c10::DeviceIndex index_of(c10::Device d) { return d.index() < 0 ? current.device : d.index(); }
  static c10::Stream stream(c10::DeviceIndex i, int64_t id) {
    return c10::Stream(c10::Stream::UNSAFE, {DEVICE_TYPE, i}, id);
  }
  static int64_t key_of(const c10::Stream& s) { return key(s.device_index(), s.id()); }

  c10::Stream getStream(c10::Device d) const override { return stream(index_of(d), current.stream[index_of(d)]); }
  c10::Stream getDefaultStream(c10::Device d) const override { return stream(index_of(d), 0); }
  c10::Stream getNewStream(c10::Device d, int) const override {
    Locked locked(timeline().lock);
    return stream(index_of(d), ++timeline().streams);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device d, bool) const override { return getNewStream(d, 0); }
  c10::Stream exchangeStream(c10::Stream s) const override {
    auto before = getStream(s.device());
    current.stream[s.device_index()] = s.id();
    return before;
  }
  void synchronizeStream(const c10::Stream& s) const override { host_waits_for_stream(key_of(s)); }
  bool queryStream(const c10::Stream& s) const override {
    Locked locked(timeline().lock);
    return timeline().clocks[HOST][key_of(s)] >= timeline().clocks[key_of(s)][key_of(s)];
  }
  void synchronizeDevice(c10::DeviceIndex i) const override { host_waits_for_device(i); }
  void recordDataPtrOnStream(const c10::DataPtr& p, const c10::Stream& s) const override {
    Locked locked(timeline().lock);
    if (auto* a = allocation_of(p.get())) a->users.push_back(key_of(s));
  }

  void record(void** event, const c10::Stream& s, c10::DeviceIndex, c10::EventFlag) const override {
    Locked locked(timeline().lock);
    if (!*event) *event = new Event;
    *(Event*)*event = {timeline().clocks[key_of(s)]};
  }
  void block(void* event, const c10::Stream& s) const override {
    Locked locked(timeline().lock);
    if (event) merge(timeline().clocks[key_of(s)], ((Event*)event)->clock);
  }
  bool queryEvent(void* event) const override {  // not done when asked for the first time, which costs no wait
    auto* e = (Event*)event;
    if (!e) return true;
    if (e->asked) host_sees(e->clock);
    return std::exchange(e->asked, true);
  }
  void synchronizeEvent(void* event) const override {
    Locked locked(timeline().lock);
    ++timeline().waits;
    if (event) host_sees(((Event*)event)->clock);
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override { delete (Event*)event; }
};

// Draws as the CPU's generator of the same seed does, so that a training can be compared with one there.
struct Generator final : at::CPUGeneratorImpl {
  at::Generator inner = at::detail::createCPUGenerator();
  explicit Generator(c10::DeviceIndex i) {
    device_ = c10::Device(DEVICE_TYPE, i < 0 ? 0 : i);
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
  }
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return inner.unsafeGetGeneratorImpl()->get_state();
  }
};

inline at::Generator& default_generator(c10::DeviceIndex i) {
  static auto* all = [] {
    auto* made = new std::vector<at::Generator>;
    for (int k = 0; k < DEVICES; ++k) made->push_back(at::make_generator<Generator>(k));
    return made;
  }();
  return (*all)[i < 0 ? current.device : i];
}

inline at::Generator inner_generator(const at::Generator& g) {
  return static_cast<Generator*>(g.unsafeGetGeneratorImpl())->inner;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return DEVICES; }
  void setCurrentDevice(c10::DeviceIndex i) const override { current.device = i; }
  c10::DeviceIndex getCurrentDevice() const override { return current.device; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex i) const override { return std::exchange(current.device, i); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex i) const override { return exchangeDevice(i); }
  bool isPinnedPtr(const void* p) const override { return is_pinned(p); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  at::Device getDeviceFromPtr(void* p) const override {
    Locked locked(timeline().lock);
    auto* a = allocation_of(p);
    return {DEVICE_TYPE, (c10::DeviceIndex)(a && a->device > 0 ? a->device : 0)};
  }
  at::Generator getNewGenerator(c10::DeviceIndex i) const override { return at::make_generator<Generator>(i); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex i) const override { return default_generator(i); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t n) const override {
    c10::DeviceGuard on_its_device(storage.device());
    auto grown = device_allocator.allocate(n);
    std::memcpy(grown.mutable_get(), storage.data(), std::min(n, storage.nbytes()));
    auto& changed = const_cast<c10::Storage&>(storage);
    changed.set_data_ptr_noswap(std::move(grown));
    changed.set_nbytes(n);
  }
};

}  // namespace pretend
