// The arithmetic between two network evaluations, on raw pointers: no torch here.
//
// A tensor is `batch` samples of `size` contiguous elements. Inputs have any floating type; results, coefficients and sums
// are of the accumulation type, f32 or f64. invfast/ops holds the definition in plain torch.
#pragma once

#include <cstdint>

namespace invfast {

enum class Type : int32_t { f16, bf16, f32, f64 };

constexpr int kInputs = 4;   // most inputs of a combination, columns of Anderson's history
constexpr int kOutputs = 2;  // most outputs of a combination

struct View {
  const void* data;
  Type type;
};

// Coefficients (outputs, inputs); `stride` elements lie between those of two samples, 0 where all share them.
struct Rows {
  const void* data;
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

// out[m] = sum_n rows[m][n] * in[n].
void lincomb_cpu(const Combination& c, Type accumulate, Shape shape, int threads);

// The same, and per sample |f - y|^2 and |f|^2 of the first output f into sums, (batch, 2).
void lincomb_residual_cpu(const Combination& c, View y, void* sums, Type accumulate, Shape shape, int threads);

// Anderson's mixing of `columns` values f_j and residuals f_j - y_j, oldest first, into out.
void anderson_mix_cpu(const View* values, const View* residuals, int columns, void* out, Type accumulate, Shape shape,
                      int threads);

// The instructions in use: "avx512", "avx2" or "generic".
const char* cpu_level();

}  // namespace invfast
