// Tensor -> core. Implementations only: the schemas are in invfast/ops, which also checks what a caller passes.
//
// LibTorch's stable ABI (2.11): one library serves many versions of torch.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "core.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
namespace core = invfast;

core::Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return core::Type::f16;
    case ScalarType::BFloat16: return core::Type::bf16;
    case ScalarType::Float: return core::Type::f32;
    case ScalarType::Double: return core::Type::f64;
    default: STD_TORCH_CHECK(false, "invfast computes with float16, bfloat16, float32 and float64 tensors only");
  }
}

core::View view(const Tensor& tensor) { return {tensor.const_data_ptr(), type_of(tensor)}; }

core::Shape shape_of(const Tensor& tensor) {
  const int64_t batch = tensor.dim() == 0 ? 1 : tensor.size(0);
  return {batch, batch == 0 ? 0 : tensor.numel() / batch};
}

// Contiguous copies where the inputs are not; they live as long as this does.
struct Inputs {
  explicit Inputs(const std::vector<Tensor>& given) {
    for (const Tensor& each : given) kept.push_back(torch::stable::contiguous(each));
  }
  std::vector<Tensor> kept;
};

struct Update {
  Update(const std::vector<Tensor>& given, const Tensor& table, const Tensor& index)
      : inputs(given), rows(torch::stable::contiguous(table)), shape(shape_of(given[0])), accumulate(type_of(table)) {
    const int64_t step = *static_cast<const int64_t*>(index.const_data_ptr());
    const int64_t row = rows.size(1) * rows.size(2);
    STD_TORCH_CHECK(step >= 0 && step < rows.size(0), "step ", step, " is outside the table of ", rows.size(0), " steps");
    c.inputs = static_cast<int>(rows.size(2));
    c.outputs = static_cast<int>(rows.size(1));
    c.rows = {static_cast<const char*>(rows.const_data_ptr()) + step * row * rows.element_size(), 0};
    for (int n = 0; n < c.inputs; ++n) c.in[n] = view(inputs.kept[n]);
    for (int m = 0; m < c.outputs; ++m) {
      outputs.push_back(torch::stable::new_empty(inputs.kept[0], inputs.kept[0].sizes(), rows.scalar_type()));
      c.out[m] = outputs.back().mutable_data_ptr();
    }
  }
  Inputs inputs;
  Tensor rows;
  core::Shape shape;
  core::Type accumulate;
  core::Combination c{};
  std::vector<Tensor> outputs;
};

int threads() { return static_cast<int>(torch::stable::get_num_threads()); }

std::vector<Tensor> lincomb(std::vector<Tensor> inputs, Tensor table, Tensor index) {
  Update update(inputs, table, index);
  core::lincomb_cpu(update.c, update.accumulate, update.shape, threads());
  return update.outputs;
}

std::vector<Tensor> lincomb_residual(std::vector<Tensor> inputs, Tensor table, Tensor index, Tensor y) {
  Update update(inputs, table, index);
  const Tensor target = torch::stable::contiguous(y);
  const int64_t size[] = {update.shape.batch, 2};
  Tensor sums = torch::stable::new_empty(target, {size, 2}, table.scalar_type());
  core::lincomb_residual_cpu(update.c, view(target), sums.mutable_data_ptr(), update.accumulate, update.shape, threads());
  update.outputs.push_back(sums);
  return update.outputs;
}

Tensor anderson_mix(std::vector<Tensor> values, std::vector<Tensor> residuals) {
  const Inputs f(values), r(residuals);
  core::View value_views[core::kInputs], residual_views[core::kInputs];
  const int columns = static_cast<int>(values.size());
  for (int j = 0; j < columns; ++j) {
    value_views[j] = view(f.kept[j]);
    residual_views[j] = view(r.kept[j]);
  }
  Tensor out = torch::stable::new_empty(f.kept[0], f.kept[0].sizes());
  core::anderson_mix_cpu(value_views, residual_views, columns, out.mutable_data_ptr(), type_of(out), shape_of(out),
                         threads());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(invfast_cpp, CPU, m) {
  m.impl("lincomb", TORCH_BOX(&lincomb));
  m.impl("lincomb_residual", TORCH_BOX(&lincomb_residual));
  m.impl("anderson_mix", TORCH_BOX(&anderson_mix));
}
