// The arithmetic between two network evaluations, on raw pointers: no torch here.
//
// A tensor is `batch` samples of `size` contiguous elements. Inputs have any floating type, each its own; results,
// coefficients and sums are of the accumulation type, f32 or f64. invfast/ops holds the definition in plain torch.
// Sums are added in an order that depends on `size` alone: a batch is bit-equal to its images.
#pragma once

#include <cstdint>

namespace invfast {

enum class Type : int32_t { f16, bf16, f32, f64 };

constexpr int kInputs = 4;   // most inputs of a combination, columns of Anderson's history
constexpr int kOutputs = 2;  // most outputs of a combination
constexpr int kSums = 3;     // of a sample: |f - y|^2, |f|^2, and 1 where all of f is finite, else 0

struct View {
  const void* data;
  Type type;
};

// A table (steps, outputs, inputs) and the step of each sample: index[sample * stride], stride 0 where all share one.
// A step outside the table makes its samples NaN. On a GPU the index is read there: no host waits for it.
struct Rows {
  const void* table;
  int64_t steps;
  const int64_t* index;
  int64_t stride;
};

struct Shape {
  int64_t batch;
  int64_t size;
};

struct Combination {
  View in[kInputs];
  int inputs;
  void* out[kOutputs];
  int outputs;
  Rows rows;
};

// Runs work(begin, end, context) over pieces of [0, count), none shorter than `grain` but the last, on threads of the
// caller's; nullptr runs it here.
using Work = void (*)(int64_t begin, int64_t end, void* context);
using Parallel = void (*)(int64_t count, int64_t grain, Work work, void* context);

// out[m] = sum_k table[step][m][k] * in[k].
void lincomb_cpu(const Combination& c, Type accumulate, Shape shape, Parallel parallel);

// The same, and the sums of the first output f into `sums`, (batch, kSums).
void lincomb_residual_cpu(const Combination& c, View y, void* sums, Type accumulate, Shape shape, Parallel parallel);

// Anderson's mixing of `columns` values f_j and residuals f_j - y_j, oldest first, into out.
void anderson_mix_cpu(const View* values, const View* residuals, int columns, void* out, Type accumulate, Shape shape,
                      Parallel parallel);

// The instructions in use: "avx512", "avx2" or "generic".
const char* cpu_level();

// On a GPU: device pointers, `stream` a cudaStream_t, `scratch` device memory of scratch_cuda() bytes that no other
// stream uses. Nothing is allocated and nothing waited for, so a CUDA graph can capture the calls. They throw
// std::runtime_error with the name of the CUDA call that failed.
int64_t scratch_cuda(Shape shape);
void lincomb_cuda(const Combination& c, Type accumulate, Shape shape, void* stream);
void lincomb_residual_cuda(const Combination& c, View y, void* sums, void* scratch, Type accumulate, Shape shape,
                           void* stream);
void anderson_mix_cuda(const View* values, const View* residuals, int columns, void* out, void* scratch,
                       Type accumulate, Shape shape, void* stream);

}  // namespace invfast
