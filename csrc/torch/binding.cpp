// The ops on a CPU. Implementations only: the schemas are in invfast/ops.

#include "arguments.h"

namespace invfast {
namespace {

// torch's own pool of threads: it is awake, as wide as torch.set_num_threads says, and gone inside a parallel region.
void on_torch_threads(int64_t count, int64_t grain, Work work, void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, work, context));
}

std::vector<Tensor> lincomb(std::vector<Tensor> inputs, Tensor table, Tensor index) {
  Update update(inputs, table, index);
  lincomb_cpu(update.c, update.accumulate, update.shape, on_torch_threads);
  return std::move(update.results);
}

std::vector<Tensor> lincomb_residual(std::vector<Tensor> inputs, Tensor table, Tensor index, Tensor y) {
  Update update(inputs, table, index);
  const Tensor target = update.target(y);
  lincomb_residual_cpu(update.c, view(target), update.sums(), update.accumulate, update.shape, on_torch_threads);
  return std::move(update.results);
}

Tensor anderson_mix(std::vector<Tensor> values, std::vector<Tensor> residuals) {
  const Mixing mixing(values, residuals);
  anderson_mix_cpu(mixing.values.views, mixing.residuals.views, mixing.columns, mixing.result.mutable_data_ptr(),
                   mixing.accumulate, mixing.shape, on_torch_threads);
  return mixing.result;
}

}  // namespace
}  // namespace invfast

STABLE_TORCH_LIBRARY_IMPL(invfast_cpp, CPU, m) {
  m.impl("lincomb", TORCH_BOX(&invfast::lincomb));
  m.impl("lincomb_residual", TORCH_BOX(&invfast::lincomb_residual));
  m.impl("anderson_mix", TORCH_BOX(&invfast::anderson_mix));
}
