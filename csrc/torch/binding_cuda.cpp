// The ops on CUDA devices: on the current stream, with scratch memory from torch's allocator. Nothing is read on the
// host, so a CUDA graph can capture a call.

#include <torch/csrc/stable/accelerator.h>

#include "arguments.h"

namespace invfast {
namespace {

// Makes a tensor's device current and finds torch's stream on it.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

Tensor scratch(const Tensor& like, Shape shape) {
  const int64_t doubles = scratch_cuda(shape) / static_cast<int64_t>(sizeof(double));
  return fresh(like, &doubles, 1, ScalarType::Double);
}

std::vector<Tensor> lincomb(std::vector<Tensor> inputs, Tensor table, Tensor index) {
  const OnDevice device(table);
  Update update(inputs, table, index);
  lincomb_cuda(update.c, update.accumulate, update.shape, device.stream());
  return std::move(update.results);
}

std::vector<Tensor> lincomb_residual(std::vector<Tensor> inputs, Tensor table, Tensor index, Tensor y) {
  const OnDevice device(table);
  Update update(inputs, table, index);
  const Tensor target = update.target(y), parts = scratch(table, update.shape);
  lincomb_residual_cuda(update.c, view(target), update.sums(), parts.mutable_data_ptr(), update.accumulate,
                        update.shape, device.stream());
  return std::move(update.results);
}

Tensor anderson_mix(std::vector<Tensor> values, std::vector<Tensor> residuals) {
  STD_TORCH_CHECK(!values.empty(), "anderson_mix needs 1 to ", kInputs, " values");
  const OnDevice device(values[0]);
  const Mixing mixing(values, residuals);
  const Tensor parts = scratch(values[0], mixing.shape);
  anderson_mix_cuda(mixing.values.views, mixing.residuals.views, mixing.columns, mixing.result.mutable_data_ptr(),
                    parts.mutable_data_ptr(), mixing.accumulate, mixing.shape, device.stream());
  return mixing.result;
}

}  // namespace
}  // namespace invfast

STABLE_TORCH_LIBRARY_IMPL(invfast_cpp, CUDA, m) {
  m.impl("lincomb", TORCH_BOX(&invfast::lincomb));
  m.impl("lincomb_residual", TORCH_BOX(&invfast::lincomb_residual));
  m.impl("anderson_mix", TORCH_BOX(&invfast::anderson_mix));
}
