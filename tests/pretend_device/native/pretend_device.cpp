// A pretend accelerator ("PrivateUse1"): two devices whose memory is the host's and whose kernels are the CPU's, but
// which refuse tensors of two devices, count how often the host waits, and find races between streams.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>
#include <set>
#include "runtime.h"

namespace pretend {
namespace {

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)
REGISTER_ALLOCATOR(DEVICE_TYPE, &device_allocator)
struct AtLoad {
  AtLoad() { at::RegisterPrivateUse1HooksInterface(new Hooks()); }
} at_load;

bool is_here(const at::Tensor& t) {
  return t.defined() && t.device().type() == DEVICE_TYPE;
}

size_t extent(const at::Tensor& t) {  // bytes from its first element to its last
  if (!t.numel()) return 0;
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  return (last + 1) * t.element_size();
}

void touch(const at::Tensor& t, int64_t stream, bool writes, const char* operation) {
  if (t.defined() && t.layout() == c10::kStrided) access(stream, (char*)t.data_ptr(), extent(t), writes, operation);
}

at::Tensor on_host(const at::Tensor& t) {  // the same memory as a tensor of the CPU
  if (!is_here(t)) return t.detach();
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), [t](void*) {}, at::TensorOptions().dtype(t.scalar_type()));
}

thread_local int inside_a_kernel = 0;  // copies that a fallback makes are none of the user's
struct Inside {
  Inside() { ++inside_a_kernel; }
  ~Inside() { --inside_a_kernel; }
};

// -- memory ----------------------------------------------------------------------------------------------------

c10::Device resolved(std::optional<c10::Device> d) {
  return {DEVICE_TYPE, !d || d->index() < 0 ? current.device : d->index()};
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<c10::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::DeviceGuard guard(resolved(device));
  return at::detail::empty_generic(size, &device_allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<c10::Device> device, std::optional<bool>) {
  c10::DeviceGuard guard(resolved(device));
  return at::detail::empty_strided_generic(size, stride, &device_allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

at::Tensor& set_storage(at::Tensor& self, c10::Storage storage, int64_t offset, at::IntArrayRef size,
                        at::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(offset);
  std::vector<int64_t> strides(stride.begin(), stride.end());
  if (strides.size() != size.size()) {
    strides.assign(size.size(), 1);
    for (int d = (int)size.size() - 2; d >= 0; --d) strides[d] = strides[d + 1] * std::max<int64_t>(size[d + 1], 1);
  }
  impl->set_sizes_and_strides(size, strides);
  return self;
}
at::Tensor& set_whole_storage(at::Tensor& self, c10::Storage storage) {
  int64_t elements = storage.nbytes() / self.element_size();
  return set_storage(self, std::move(storage), 0, {elements}, {1});
}
at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& other) {
  return set_storage(self, other.storage(), other.storage_offset(), other.sizes(), other.strides());
}

// -- copies ----------------------------------------------------------------------------------------------------

bool one_piece(const at::Tensor& a, const at::Tensor& b) {  // copied byte by byte, without a temporary tensor
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.strides() == b.strides() &&
         a.is_non_overlapping_and_dense();
}

void to_host(const at::Tensor& from, const at::Tensor& to, bool non_blocking, int64_t stream) {
  touch(from, stream, false, "a copy to the host");
  if (non_blocking && is_pinned(to.data_ptr()) && one_piece(from, to)) {
    touch(to, stream, true, "a copy to pinned memory");
    queue_copy_to_host(stream, (char*)to.data_ptr(), (char*)from.data_ptr(), from.nbytes());
    return;
  }
  host_waits_for_stream(stream);
  on_host(to).copy_(on_host(from));
}

void to_device(const at::Tensor& from, const at::Tensor& to, bool non_blocking, int64_t stream) {
  touch(to, stream, true, "a copy to the device");
  if (is_pinned(from.data_ptr()) && one_piece(from, to)) {
    touch(from, stream, false, "a copy from pinned memory");
    auto bytes = queue_copy_from_host(stream, (char*)from.data_ptr(), from.nbytes());
    std::memcpy(to.data_ptr(), bytes.data(), bytes.size());
    if (!non_blocking) host_waits_for_stream(stream);
    return;
  }
  if (!non_blocking) host_waits_for_stream(stream);  // pageable memory: staged at once
  on_host(to).copy_(from);
}

void between_devices(const at::Tensor& from, const at::Tensor& to) {  // on the source's stream; each waits, as in CUDA
  int64_t a = current_stream(from.device().index()), b = current_stream(to.device().index());
  Locked locked(timeline().lock);
  if (a != b) merge(timeline().clocks[a], timeline().clocks[b]);
  next_tick(a);
  touch(from, a, false, "a copy");
  touch(to, a, true, "a copy");
  if (a != b) merge(timeline().clocks[b], timeline().clocks[a]);
  on_host(to).copy_(on_host(from));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  c10::NoGradGuard no_grad;
  if (inside_a_kernel) {
    on_host(to).copy_(on_host(from));
  } else if (to.numel()) {
    c10::DeviceIndex device = is_here(to) ? to.device().index() : from.device().index();
    int64_t stream = current_stream(device);
    next_tick(stream);
    at::Tensor source = is_here(from) && is_here(to) ? from : from.expand_as(to);
    if (!is_here(to)) to_host(source, to, non_blocking, stream);
    else if (!is_here(from)) to_device(source, to, non_blocking, stream);
    else between_devices(source, to);
  }
  return to;
}
at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar number_of(const at::Tensor& t) {
  int64_t stream = current_stream(t.device().index());
  next_tick(stream);
  touch(t, stream, false, "item");
  host_waits_for_stream(stream);
  return at::_local_scalar_dense(on_host(t));
}

// -- every other operation: the CPU's kernel ---------------------------------------------------------------------

// Their results have a size that depends on values, or LAPACK's report is read: the host waits.
const std::set<std::string> WAITING{
    "aten::nonzero",      "aten::_unique2",        "aten::unique_dim",          "aten::unique_consecutive",
    "aten::masked_select", "aten::equal",          "aten::is_nonzero",          "aten::linalg_eig",
    "aten::_linalg_eigh", "aten::linalg_eigvals",  "aten::_linalg_svd",         "aten::_linalg_slogdet",
    "aten::bincount",     "aten::repeat_interleave.Tensor", "aten::multinomial", "aten::histc",
    "aten::linalg_lstsq", "aten::_linalg_check_errors"};
// They take indices of the CPU beside tensors of the device.
const std::set<std::string> INDEXING{"aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"};

struct Arguments {
  std::optional<c10::Device> device;
  bool of_the_host = false, masked = false;
};

void visit_tensors(const c10::IValue& value, const std::function<void(const at::Tensor&)>& visit) {
  if (value.isTensor()) visit(value.toTensor());
  else if (value.isTensorList()) for (const at::Tensor& t : value.toTensorVector()) visit(t);
  else if (value.isOptionalTensorList()) for (const auto& t : value.toOptionalTensorVector()) { if (t) visit(*t); }
}

Arguments checked(const std::string& name, torch::jit::Stack* stack, size_t n) {
  Arguments found;
  auto two = [&](const std::string& other) {
    return c10::str("Expected all tensors to be on the same device, but found at least two devices, ",
                    found.device.value_or(c10::Device(DEVICE_TYPE, 0)), " and ", other, "! (", name, ")");
  };
  for (size_t i = 0; i < n; ++i)
    visit_tensors(torch::jit::peek(*stack, i, n), [&](const at::Tensor& t) {
      if (is_here(t)) {
        TORCH_CHECK(!found.device || *found.device == t.device(), two(t.device().str()));
        found.device = t.device();
      } else if (t.defined() && t.dim() > 0) {
        found.of_the_host = true;
      }
      if (t.defined() && (t.scalar_type() == at::kBool || t.scalar_type() == at::kByte)) found.masked = true;
    });
  TORCH_CHECK(!(found.device && found.of_the_host && !INDEXING.count(name)), two("cpu"));
  return found;
}

void run_on_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  size_t n = schema.arguments().size();
  Arguments given = checked(schema.name(), stack, n);
  c10::DeviceIndex device = given.device ? given.device->index() : current.device;
  int64_t stream = current_stream(device);
  next_tick(stream);
  std::string whole = schema.name() + (schema.overload_name().empty() ? "" : "." + schema.overload_name());
  bool waits = WAITING.count(schema.name()) || WAITING.count(whole) || (INDEXING.count(schema.name()) && given.masked);
  for (size_t i = 0; i < n; ++i) {
    auto* alias = schema.arguments()[i].alias_info();
    auto& value = torch::jit::peek(*stack, i, n);
    visit_tensors(value, [&](const at::Tensor& t) {
      if (is_here(t)) touch(t, stream, alias && alias->isWrite(), schema.name().c_str());
    });
    if (schema.arguments()[i].name() == "generator") {
      auto own = value.toOptional<at::Generator>().value_or(default_generator(device));
      TORCH_CHECK(own.device().type() == DEVICE_TYPE, "Expected a '", c10::DeviceTypeName(DEVICE_TYPE, true),
                  "' device type for generator but found '", own.device().str(), "'");
      value = inner_generator(own);
    }
  }
  if (waits) host_waits_for_stream(stream);
  {
    Inside inside;
    at::native::cpu_fallback(op, stack);
  }
  for (auto& value : torch::jit::last(*stack, schema.returns().size()))
    visit_tensors(value, [&](const at::Tensor& t) { if (is_here(t)) touch(t, stream, true, schema.name().c_str()); });
}

// The schema of native_batch_norm does not say that it changes the running statistics, so the fallback loses that.
std::optional<at::Tensor> on_host(const std::optional<at::Tensor>& t) {
  return t && t->defined() ? std::optional<at::Tensor>(on_host(*t)) : std::nullopt;
}
at::Tensor brought(const at::Tensor& t, c10::Device device) {
  Inside inside;  // no copy of the user's
  return t.to(device);
}
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm(
    const at::Tensor& x, const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& mean, const std::optional<at::Tensor>& variance, bool training, double momentum,
    double eps) {
  auto [y, m, s] = at::native_batch_norm(on_host(x), on_host(weight), on_host(bias), on_host(mean), on_host(variance),
                                         training, momentum, eps);
  return {brought(y, x.device()), brought(m, x.device()), brought(s, x.device())};
}

// A convolution of a device that is not the CPU is looked up under another name.
at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
  return brought(at::convolution(on_host(x), on_host(weight), on_host(bias), stride, padding, dilation, transposed,
                                 output_padding, groups),
                 x.device());
}
std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> wanted) {
  int64_t outputs = transposed ? weight.size(1) * groups : weight.size(0);
  auto [a, b, c] = at::convolution_backward(on_host(grad), on_host(x), on_host(weight), {{outputs}}, stride, padding,
                                            dilation, transposed, output_padding, groups, wanted);
  auto back = [&](const at::Tensor& t) { return t.defined() ? brought(t, x.device()) : t; };
  return {back(a), back(b), back(c)};
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_the_cpu>());
}
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &number_of);
  m.impl("native_batch_norm", &batch_norm);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("record_stream", [](at::Tensor& t, c10::Stream s) { Guard().recordDataPtrOnStream(t.storage().data_ptr(), s); });
  m.impl("as_strided", [](const at::Tensor& t, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> o) {
    return at::native::as_strided_tensorimpl(t, size, stride, o);
  });
  m.impl("view", [](const at::Tensor& t, at::IntArrayRef size) { return at::native::view(t, size); });
  m.impl("_reshape_alias", [](const at::Tensor& t, at::IntArrayRef size, at::IntArrayRef stride) {
    return at::native::_reshape_alias(t, size, stride);
  });
  m.impl("unfold", [](const at::Tensor& t, int64_t d, int64_t size, int64_t step) {
    return at::native::unfold(t, d, size, step);
  });
  m.impl("resize_", [](const at::Tensor& t, at::IntArrayRef size, std::optional<at::MemoryFormat> format)
                        -> const at::Tensor& {
    c10::DeviceGuard guard(t.device());  // its memory is of the stream of its device
    return at::native::resize_(t, size, format);
  });
}

TORCH_LIBRARY(pretend, m) {
  m.def("waits() -> int", []() { return timeline().waits.load(); });
  m.def("races() -> str[]", []() {
    Locked locked(timeline().lock);
    return std::exchange(timeline().races, {});
  });
  m.def("device() -> int", []() { return (int64_t)current.device; });
  m.def("set_device(int index) -> ()", [](int64_t index) { current.device = index; });
  m.def("bytes_allocated(int index) -> int", [](int64_t index) { return bytes_allocated(index); });
  m.def("rng_state(int index) -> Tensor", [](int64_t index) { return default_generator(index).get_state(); });
  m.def("set_rng_state(Tensor state, int index) -> ()",
        [](const at::Tensor& state, int64_t index) { default_generator(index).set_state(state); });
  m.def("seed(int seed, int index) -> ()",
        [](int64_t seed, int64_t index) { default_generator(index).set_current_seed(seed); });
  m.def("on_host(Tensor t) -> Tensor", [](const at::Tensor& t) { return on_host(t); });
}

}  // namespace pretend
