// The core on the first GPU, held to the same checks as on a CPU. Exit code 77, a skip for ctest, where there is none.

#include <cuda_runtime.h>

#include <cstdio>
#include <vector>

#include "checks.h"

namespace invfast::testing {
namespace {

void need(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  std::printf("%s: %s\n", call, cudaGetErrorString(code));
  std::exit(1);
}

struct Gpu : Device {
  Gpu() { need(cudaStreamCreate(&stream), "cudaStreamCreate"); }
  ~Gpu() override { clear(); }
  void* copy_in(const Bytes& bytes) override {
    void* data = nullptr;
    need(cudaMalloc(&data, bytes.size() + 1), "cudaMalloc");
    need(cudaMemcpy(data, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
    memory.push_back(data);
    return data;
  }
  void clear() override {
    for (void* data : memory) need(cudaFree(data), "cudaFree");
    memory.clear();
  }
  void copy_out(const void* data, Bytes& bytes) override {
    need(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    need(cudaMemcpy(bytes.data(), data, bytes.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
  }
  void* scratch(Shape shape) { return copy_in(Bytes(scratch_cuda(shape), 0xff)); }
  void lincomb(const Combination& c, Type type, Shape shape) override { lincomb_cuda(c, type, shape, stream); }
  void residual(const Combination& c, View y, void* sums, Type type, Shape shape) override {
    lincomb_residual_cuda(c, y, sums, scratch(shape), type, shape, stream);
  }
  void mix(const View* f, const View* r, int columns, void* out, Type type, Shape shape) override {
    anderson_mix_cuda(f, r, columns, out, scratch(shape), type, shape, stream);
  }
  std::vector<void*> memory;
  cudaStream_t stream = nullptr;
};

// A graph captured at one step and replayed at another: the step is read when it runs.
void check_capture(Gpu& gpu) {
  const float table[] = {1, 2, 3}, x[] = {5, 7};
  int64_t step = 0;
  const auto put = [&](const void* from, size_t size) {
    const auto* bytes = static_cast<const unsigned char*>(from);
    return gpu.copy_in(Bytes(bytes, bytes + size));
  };
  Combination c{};
  void* const index = put(&step, sizeof step);
  c.in[0] = {put(x, sizeof x), Type::f32};
  c.inputs = c.outputs = 1;
  c.out[0] = put(x, sizeof x);
  c.rows = {put(table, sizeof table), 3, static_cast<const int64_t*>(index), 0};
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  need(cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  gpu.lincomb(c, Type::f32, {1, 2});
  need(cudaStreamEndCapture(gpu.stream, &graph), "cudaStreamEndCapture");
  need(cudaGraphInstantiate(&ready, graph, 0), "cudaGraphInstantiate");
  step = 2;
  need(cudaMemcpy(index, &step, sizeof step, cudaMemcpyHostToDevice), "cudaMemcpy");
  need(cudaGraphLaunch(ready, gpu.stream), "cudaGraphLaunch");
  const Bytes got = result(gpu, c.out[0], Type::f32, 2);
  expect(at(got, Type::f32, 0) == 15 && at(got, Type::f32, 1) == 21, "a captured graph reads the step when it runs");
}

}  // namespace
}  // namespace invfast::testing

int main() {
  using namespace invfast::testing;
  int devices = 0;
  const cudaError_t code = cudaGetDeviceCount(&devices);
  if (code != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device here (%s)\n", cudaGetErrorString(code));
    return 77;
  }
  Gpu gpu;
  check_all(gpu);
  check_capture(gpu);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
