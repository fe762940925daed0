// From torch's tensors to the core's arguments, the same for every device.
//
// LibTorch's stable ABI (2.11): one library serves many versions of torch. What a caller passes is checked in
// invfast/ops; here is checked only what could make the core read or write where it must not.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "buffers.h"
#include "core.h"

namespace invfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return Type::f16;
    case ScalarType::BFloat16: return Type::bf16;
    case ScalarType::Float: return Type::f32;
    case ScalarType::Double: return Type::f64;
    default: STD_TORCH_CHECK(false, "invfast computes with float16, bfloat16, float32 and float64 tensors only");
  }
}

inline View view(const Tensor& tensor) { return {tensor.const_data_ptr(), type_of(tensor)}; }

inline Shape shape_of(const Tensor& tensor) {
  const int64_t batch = tensor.dim() == 0 ? 1 : tensor.size(0);
  return {batch, batch == 0 ? 0 : tensor.numel() / batch};
}

inline void check_together(const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(),
                  "invfast computes with tensors on one device only");
}

// The dispatcher is left out where there is nothing to copy: it costs a microsecond a tensor.
inline Tensor packed(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A fresh contiguous tensor on the device of another, straight from the C shim for the same reason. On a CPU a large one
// takes its memory from the core.
inline Tensor fresh(const Tensor& like, const int64_t* sizes, int64_t dim, ScalarType type) {
  std::vector<int64_t> strides(dim, 1);
  for (int64_t d = dim - 1; d > 0; --d) strides[d - 1] = strides[d] * (sizes[d] > 1 ? sizes[d] : 1);
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made = nullptr;
  int64_t bytes = type == ScalarType::Double ? 8 : 4;
  for (int64_t d = 0; d < dim; ++d) bytes *= sizes[d];
  if (like.is_cpu() && bytes >= kLargeBuffer) {
    void* const data = take_buffer(bytes);
    const auto back = [](void* data, void* bytes) { give_buffer(data, reinterpret_cast<intptr_t>(bytes)); };
    TORCH_ERROR_CODE_CHECK(torch_from_blob(data, dim, sizes, strides.data(), 0, dtype, device_type, -1, &made,
                                                  aoti_torch_layout_strided(), nullptr, 0, back,
                                                  reinterpret_cast<void*>(static_cast<intptr_t>(bytes))));
    return Tensor(made);
  }
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides.data(), dtype, device_type,
                                                         like.get_device_index(), &made));
  return Tensor(made);
}

inline Tensor fresh_like(const Tensor& like, ScalarType type) {
  return fresh(like, like.sizes().data(), like.dim(), type);
}

// Tensors of one number of elements, contiguous: themselves, or copies that live as long as this does.
struct Tensors {
  explicit Tensors(const std::vector<Tensor>& given) {
    STD_TORCH_CHECK(!given.empty() && given.size() <= kInputs, "expected 1 to ", kInputs, " tensors, got ", given.size());
    kept.reserve(given.size());
    for (size_t n = 0; n < given.size(); ++n) {
      check_together(given[n], given[0]);
      kept.push_back(packed(given[n]));
      views[n] = view(kept[n]);
      STD_TORCH_CHECK(kept[n].numel() == kept[0].numel(), "tensor ", n, " has ", kept[n].numel(), " elements, the first ",
                      kept[0].numel());
    }
  }
  std::vector<Tensor> kept;
  View views[kInputs];
};

// A combination and all that it points to.
struct Update {
  Update(const std::vector<Tensor>& given, const Tensor& table_given, const Tensor& index_given)
      : inputs(given), table(packed(table_given)), index(packed(index_given)), shape(shape_of(inputs.kept[0])),
        accumulate(type_of(table)) {
    check_together(table, inputs.kept[0]);
    check_together(index, inputs.kept[0]);
    STD_TORCH_CHECK(table.dim() == 3 && table.size(1) >= 1 && table.size(1) <= kOutputs &&
                        table.size(2) == static_cast<int64_t>(given.size()),
                    "the table must be (steps, 1 or 2 outputs, ", given.size(), " inputs)");
    STD_TORCH_CHECK(accumulate == Type::f32 || accumulate == Type::f64, "the table must be float32 or float64");
    STD_TORCH_CHECK(index.scalar_type() == ScalarType::Long && (index.dim() == 0 || index.numel() == shape.batch),
                    "the step must be int64, one or one a sample");
    c.inputs = static_cast<int>(given.size());
    c.outputs = static_cast<int>(table.size(1));
    c.rows = {table.const_data_ptr(), table.size(0), static_cast<const int64_t*>(index.const_data_ptr()),
              index.dim() == 0 ? 0 : 1};
    for (int n = 0; n < c.inputs; ++n) c.in[n] = inputs.views[n];
    for (int m = 0; m < c.outputs; ++m) {
      results.push_back(fresh_like(inputs.kept[0], table.scalar_type()));
      c.out[m] = results.back().mutable_data_ptr();
    }
  }

  // The target of a residual, contiguous; (batch, kSums) for its sums, the last result.
  Tensor target(const Tensor& y) {
    check_together(y, table);
    STD_TORCH_CHECK(y.numel() == inputs.kept[0].numel(), "y has ", y.numel(), " elements, the inputs ",
                    inputs.kept[0].numel());
    const int64_t sizes[] = {shape.batch, kSums};
    results.push_back(fresh(y, sizes, 2, table.scalar_type()));
    return packed(y);
  }
  void* sums() const { return results.back().mutable_data_ptr(); }

  Tensors inputs;
  Tensor table, index;
  Shape shape;
  Type accumulate;
  Combination c{};
  std::vector<Tensor> results;
};

// Values and residuals of a mixing, and its result: in float32, or float64 where the values are.
struct Mixing {
  Mixing(const std::vector<Tensor>& f, const std::vector<Tensor>& r)
      : values(f), residuals(r), columns(static_cast<int>(f.size())), shape(shape_of(values.kept[0])),
        accumulate(values.views[0].type == Type::f64 ? Type::f64 : Type::f32) {
    check_together(residuals.kept[0], values.kept[0]);
    STD_TORCH_CHECK(r.size() == f.size() && residuals.kept[0].numel() == values.kept[0].numel(),
                    "residuals must be as many and as large as the values");
    result = fresh_like(values.kept[0], accumulate == Type::f64 ? ScalarType::Double : ScalarType::Float);
  }
  Tensors values, residuals;
  int columns;
  Shape shape;
  Type accumulate;
  Tensor result;
};

}  // namespace invfast
