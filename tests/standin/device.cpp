// A device for tests that stands in for a GPU. Its tensors lie in host memory of their own and CPU kernels do the work,
// so its results are those of the CPU, bit for bit; but it refuses operands of several devices, as a GPU does, and
// counts how often the host would wait for it.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <array>
#include <cstring>
#include <set>
#include <string>
#include <vector>

namespace {
using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
constexpr auto kDevice = c10::DeviceType::PrivateUse1;
int64_t waited = 0;  // how often the host has waited for a value

// --- memory, and what torch asks every device for

struct Memory final : c10::Allocator {
  static void release(void* data) {
    if (data != nullptr) c10::free_cpu(data);
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes > 0 ? c10::alloc_cpu(bytes) : nullptr;
    return {data, data, &release, c10::Device(kDevice, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(kDevice, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream only() { return c10::Stream(c10::Stream::DEFAULT, c10::Device(kDevice, 0)); }
  c10::DeviceType type() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device) const override { return {kDevice, 0}; }
  c10::Device getDevice() const override { return {kDevice, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return only(); }
  c10::Stream getDefaultStream(c10::Device) const override { return only(); }
  c10::Stream exchangeStream(c10::Stream) const override { return only(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto fresh = memory.allocate(bytes);
    std::memcpy(fresh.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.set_data_ptr_noswap(std::move(fresh));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};
struct RegisterHooks {
  RegisterHooks() { at::RegisterPrivateUse1HooksInterface(new Hooks()); }
} register_hooks;

// --- tensors from nothing, and between devices

bool is_here(const Tensor& x) { return x.device().type() == kDevice; }

Tensor on_host(const Tensor& x) {  // the same memory, as a tensor of the CPU
  if (!x.defined() || !is_here(x)) return x;
  auto options = x.options().device(at::kCPU).requires_grad(false);
  if (x.numel() == 0) return at::empty_strided(x.sizes(), x.strides(), options);
  return at::from_blob(x.data_ptr(), x.sizes(), x.strides(), [x](void*) {}, options);
}

MaybeTensor on_host(const MaybeTensor& x) { return x ? MaybeTensor(on_host(*x)) : x; }

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &memory, keys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &memory, keys, c10::dtype_or_default(dtype));
}

Tensor here(const Tensor& x) {  // copied, without anybody waiting
  if (!x.defined() || is_here(x)) return x;
  auto found = at::empty_strided(x.sizes(), x.strides(), x.options().device(c10::Device(kDevice, 0)));
  on_host(found).copy_(x);
  return found;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  if (is_here(from) != is_here(to) && !non_blocking) ++waited;
  on_host(to).copy_(on_host(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar item(const Tensor& x) {
  ++waited;
  return on_host(x).item();
}

// --- operations that the fallback cannot do

void check_here(const Tensor& x, const std::string& operation) {
  TORCH_CHECK(!x.defined() || is_here(x), operation, ": expected all tensors on one device, got one on ", x.device());
}

Tensor convolution(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, c10::SymIntArrayRef stride,
                   c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
                   c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  for (const auto& t : {x, weight, bias.value_or(Tensor())}) check_here(t, "convolution");
  return here(at::convolution_symint(on_host(x), on_host(weight), on_host(bias), stride, padding, dilation, transposed,
                                     output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
    c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups,
    std::array<bool, 3> mask) {
  for (const auto& t : {grad, x, weight}) check_here(t, "convolution backward");
  std::vector<c10::SymInt> bias{grad.sym_size(1)};
  auto [a, b, c] = at::convolution_backward_symint(on_host(grad), on_host(x), on_host(weight), c10::SymIntArrayRef(bias),
                                                   stride, padding, dilation, transposed, output_padding, groups, mask);
  return {here(a), here(b), here(c)};
}

// It writes into its running statistics, which its schema does not say.
std::tuple<Tensor, Tensor, Tensor> batch_norm(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                                              const MaybeTensor& mean, const MaybeTensor& var, bool training,
                                              double momentum, double eps) {
  check_here(x, "batch norm");
  for (const auto* t : {&weight, &bias, &mean, &var}) check_here(t->value_or(Tensor()), "batch norm");
  auto [a, b, c] = at::native_batch_norm(on_host(x), on_host(weight), on_host(bias), on_host(mean), on_host(var),
                                         training, momentum, eps);
  return {here(a), here(b), here(c)};
}

// The CPU has no fused cell of an LSTM. Gates are in the order input, forget, cell, output.
std::tuple<Tensor, Tensor, Tensor> lstm_cell(const Tensor& from_input, const Tensor& from_hidden, const Tensor& cell,
                                             const MaybeTensor& input_bias, const MaybeTensor& hidden_bias) {
  auto gates = from_input + from_hidden;
  if (input_bias && input_bias->defined()) gates = gates + *input_bias + *hidden_bias;
  auto parts = gates.chunk(4, 1);
  auto i = parts[0].sigmoid(), f = parts[1].sigmoid(), g = parts[2].tanh(), o = parts[3].sigmoid();
  auto next = f * cell + i * g;
  return {o * next.tanh(), next, at::cat({i, f, g, o}, 1)};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell_backward(const MaybeTensor& grad_hidden, const MaybeTensor& grad_cell,
                                                      const Tensor& cell, const Tensor& next, const Tensor& gates,
                                                      bool has_bias) {
  auto or_zero = [&](const MaybeTensor& x) { return x && x->defined() ? *x : at::zeros_like(next); };
  auto parts = gates.chunk(4, 1);
  const auto &i = parts[0], &f = parts[1], &g = parts[2], &o = parts[3];
  auto t = next.tanh(), hidden = or_zero(grad_hidden);
  auto grad = hidden * o * (1 - t * t) + or_zero(grad_cell);
  auto of_gates = at::cat({grad * g * i * (1 - i), grad * cell * f * (1 - f), grad * i * (1 - g * g),
                           hidden * t * o * (1 - o)}, 1);
  return {of_gates, grad * f, has_bias ? of_gates.sum(0) : Tensor()};
}

int64_t attention_by_matrix_products(const Tensor&, const Tensor&, const Tensor&, const MaybeTensor&, double, bool,
                                     std::optional<double>, bool) {
  return 0;
}

// --- all others: on copies of their operands on the CPU

const std::set<std::string> kWait = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal",
                                     "aten::bincount", "aten::unique_consecutive", "aten::repeat_interleave.Tensor"};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto name = c10::toString(op.operator_name());
  // x[...] takes indices of the host, too, and copies them; index_select and the like do not
  const bool indexing = name.rfind("aten::index.", 0) == 0 || name.rfind("aten::index_put", 0) == 0 ||
                        name.rfind("aten::_index_put_impl_", 0) == 0;
  bool wait = kWait.count(name) > 0;
  auto look = [&](const Tensor& x, bool listed) {
    if (!x.defined()) return;
    const bool index = indexing && listed;
    // how many are true decides a shape
    if (index && (x.scalar_type() == at::kBool || !is_here(x))) wait = true;
    if (x.dim() > 0 && !index) check_here(x, name);  // numbers may lie anywhere
  };
  for (const auto& value : torch::jit::last(stack, op.schema().arguments().size())) {
    if (value.isTensor()) look(value.toTensor(), false);
    else if (value.isList())
      for (const auto& x : value.toListRef())
        if (x.isTensor()) look(x.toTensor(), true);
  }
  const auto before = waited + (wait ? 1 : 0);
  at::native::cpu_fallback(op, stack);
  waited = before;
}
}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("resize_", at::native::resize_);
  m.impl("set_.source_Storage", at::native::set_);
  m.impl("set_.source_Tensor", at::native::set_tensor_);
  m.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", item);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  m.impl("native_batch_norm", batch_norm);
  m.impl("_thnn_fused_lstm_cell", lstm_cell);
  m.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward);
  m.impl("_fused_sdp_choice", attention_by_matrix_products);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY(standin, m) {
  m.def("waited() -> int", []() { return waited; });
}
