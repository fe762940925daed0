// The core on this machine's CPU. Exit code 1 names every check that failed.

#include <cstdlib>
#include <list>
#include <thread>

#include "buffers.h"
#include "checks.h"

namespace invfast::testing {
namespace {

// Uneven pieces on three threads.
void on_threads(int64_t count, int64_t, Work work, void* context) {
  std::thread first(work, 0, count / 5, context), second(work, count / 5, count / 2, context);
  work(count / 2, count, context);
  first.join();
  second.join();
}

struct Cpu : Device {
  explicit Cpu(Parallel parallel) : parallel(parallel) {}
  void* copy_in(const Bytes& bytes) override {
    memory.push_back(bytes);
    return memory.back().data();
  }
  void clear() override { memory.clear(); }
  void copy_out(const void* data, Bytes& bytes) override {
    if (!bytes.empty()) std::memcpy(bytes.data(), data, bytes.size());
  }
  void lincomb(const Combination& c, Type type, Shape shape) override { lincomb_cpu(c, type, shape, parallel); }
  void residual(const Combination& c, View y, void* sums, Type type, Shape shape) override {
    lincomb_residual_cpu(c, y, sums, type, shape, parallel);
  }
  void mix(const View* f, const View* r, int columns, void* out, Type type, Shape shape) override {
    anderson_mix_cpu(f, r, columns, out, type, shape, parallel);
  }
  std::list<Bytes> memory;
  Parallel parallel;
};

void check_weights() {
  double same[3][3], weights[3];
  for (auto& row : same)
    for (double& cell : row) cell = 2.0;
  anderson_weights<3>(same, weights);
  expect(std::abs(weights[0] + weights[1] + weights[2] - 1) < 1e-6, "identical residuals: weights sum to 1");
  double zero[2][2] = {}, plain[2];
  anderson_weights<2>(zero, plain);
  expect(plain[0] == 0.0 && plain[1] == 1.0, "converged residuals take the plain update");
  double broken[2][2] = {{NAN, 0}, {0, 1}};
  anderson_weights<2>(broken, plain);
  expect(plain[0] == 0.0 && plain[1] == 1.0, "non-finite residuals take the plain update");
}

void check_buffers() {
  void *a = take_buffer(kLargeBuffer), *b = take_buffer(kLargeBuffer), *c = take_buffer(2 * kLargeBuffer);
  expect(a != b && b != c, "buffers in use are distinct");
  give_buffer(a, kLargeBuffer);
  void* d = take_buffer(2 * kLargeBuffer);
  expect(d != a, "a buffer of another size is not reused");
  expect(take_buffer(kLargeBuffer) == a, "a buffer is reused");
  for (void* each : {a, b}) give_buffer(each, kLargeBuffer);
  for (void* each : {c, d}) give_buffer(each, 2 * kLargeBuffer);
  expect(take_buffer(2 * kLargeBuffer) == c, "where the shelf is full the oldest goes");
  give_buffer(c, 2 * kLargeBuffer);
}

}  // namespace
}  // namespace invfast::testing

int main() {
  using namespace invfast::testing;
  Cpu alone(nullptr), threaded(on_threads);
  check_all(threaded);
  check_lincomb(alone, invfast::Type::f32, invfast::Type::bf16, {3, 65537}, 4, 2, true);
  check_anderson(alone, invfast::Type::f32, {3, 65537}, 3);
  check_weights();
  check_buffers();
  std::printf("%s, %d failures\n", invfast::cpu_level(), failures);
  return failures != 0;
}
