// Blocks to threads, block sums to sample sums, instruction set to the machine.

#include "cpu.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "anderson.h"

namespace invfast {
namespace {

enum class Level { generic, avx2, avx512 };

Level detect() {
#if defined(INVFAST_X86)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Level::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Level::avx2;
#endif
  return Level::generic;
}

Level level() {
  static const Level found = detect();
  return found;
}

#if defined(INVFAST_X86)
#define INVFAST_DISPATCH(CALL)                      \
  switch (level()) {                                \
    case Level::avx512: return avx512::CALL;        \
    case Level::avx2: return avx2::CALL;            \
    default: return generic::CALL;                  \
  }
#else
#define INVFAST_DISPATCH(CALL) return generic::CALL;
#endif

template <typename A>
void lincomb_block(const Combination& c, const A* rows, const View* y, int64_t begin, int64_t count,
                   double* sums) {
  INVFAST_DISPATCH(lincomb_block<A>(c, rows, y, begin, count, sums))
}

template <typename A>
void gram_block(const View* residuals, int columns, int64_t begin, int64_t count, double* pairs) {
  INVFAST_DISPATCH(gram_block<A>(residuals, columns, begin, count, pairs))
}

template <typename A>
void mix_block(const View* values, int columns, const double* weights, A* out, int64_t begin, int64_t count) {
  INVFAST_DISPATCH(mix_block<A>(values, columns, weights, out, begin, count))
}

int64_t blocks_of(Shape shape) { return (shape.size + kBlockSize - 1) / kBlockSize; }

// work(sample, block, begin, count) for every block of every sample. Which thread does which block changes nothing: a block
// writes what is its own, and sums are added in block order afterwards.
template <typename Each>
void for_blocks(Shape shape, Parallel parallel, const Each& each) {
  constexpr int64_t kGrain = 16;  // blocks of a thread: some 10 microseconds of work, as torch has it
  struct Context {
    Shape shape;
    const Each& each;
  } context{shape, each};
  const Work work = [](int64_t from, int64_t to, void* given) {
    const auto& [shape, each] = *static_cast<const Context*>(given);
    const int64_t per_sample = blocks_of(shape);
    for (int64_t b = from; b < to; ++b) {
      const int64_t sample = b / per_sample, offset = (b % per_sample) * kBlockSize;
      each(sample, b, sample * shape.size + offset, std::min(kBlockSize, shape.size - offset));
    }
  };
  const int64_t total = shape.batch * blocks_of(shape);
  if (parallel == nullptr || total <= kGrain) return work(0, total, &context);
  parallel(total, kGrain, work, &context);
}

// Per sample, the sums over its blocks of `width` partial sums each.
std::vector<double> gather(const std::vector<double>& parts, Shape shape, int width) {
  const int64_t per_sample = blocks_of(shape);
  std::vector<double> sums(shape.batch * width, 0.0);
  for (int64_t sample = 0; sample < shape.batch; ++sample)
    for (int64_t b = 0; b < per_sample; ++b)
      for (int k = 0; k < width; ++k) sums[sample * width + k] += parts[(sample * per_sample + b) * width + k];
  return sums;
}

// The coefficients of a sample; NaN where its step is outside the table.
template <typename A>
const A* rows_of(const Combination& c, int64_t sample) {
  static constexpr A kNan = std::numeric_limits<A>::quiet_NaN();
  static constexpr A kOutside[kInputs * kOutputs] = {kNan, kNan, kNan, kNan, kNan, kNan, kNan, kNan};
  const int64_t step = c.rows.index[sample * c.rows.stride];
  if (step < 0 || step >= c.rows.steps) return kOutside;
  return static_cast<const A*>(c.rows.table) + step * c.outputs * c.inputs;
}

template <typename A>
void lincomb(const Combination& c, const View* y, void* sums, Shape shape, Parallel parallel) {
  std::vector<double> parts(y != nullptr ? shape.batch * blocks_of(shape) * kSums : 0);
  for_blocks(shape, parallel, [&](int64_t sample, int64_t block, int64_t begin, int64_t count) {
    double* const own = y != nullptr ? parts.data() + kSums * block : nullptr;
    lincomb_block<A>(c, rows_of<A>(c, sample), y, begin, count, own);
  });
  if (y == nullptr) return;
  const std::vector<double> found = gather(parts, shape, kSums);
  for (int64_t k = 0; k < shape.batch * kSums; ++k) {
    const bool flag = k % kSums == kSums - 1;
    static_cast<A*>(sums)[k] = static_cast<A>(flag ? found[k] == 0.0 : found[k]);
  }
}

template <int M>
void solve(const double* gram, double* weights) {
  double full[M][M], found[M];
  for (int i = 0; i < M; ++i)
    for (int j = i; j < M; ++j) full[i][j] = full[j][i] = *gram++;
  anderson_weights<M>(full, found);
  std::copy(found, found + M, weights);
}

void solve(int columns, const double* gram, double* weights) {
  switch (columns) {
    case 1: weights[0] = 1.0; break;
    case 2: solve<2>(gram, weights); break;
    case 3: solve<3>(gram, weights); break;
    default: solve<4>(gram, weights); break;
  }
}

template <typename A>
void anderson_mix(const View* values, const View* residuals, int columns, void* out, Shape shape, Parallel parallel) {
  const int pairs = columns * (columns + 1) / 2;
  std::vector<double> parts(shape.batch * blocks_of(shape) * pairs);
  if (columns > 1)
    for_blocks(shape, parallel, [&](int64_t, int64_t block, int64_t begin, int64_t count) {
      gram_block<A>(residuals, columns, begin, count, parts.data() + pairs * block);
    });
  const std::vector<double> gram = gather(parts, shape, pairs);
  std::vector<double> weights(shape.batch * columns);
  for (int64_t sample = 0; sample < shape.batch; ++sample)
    solve(columns, gram.data() + sample * pairs, weights.data() + sample * columns);
  for_blocks(shape, parallel, [&](int64_t sample, int64_t, int64_t begin, int64_t count) {
    mix_block<A>(values, columns, weights.data() + sample * columns, static_cast<A*>(out), begin, count);
  });
}

}  // namespace

void lincomb_cpu(const Combination& c, Type accumulate, Shape shape, Parallel parallel) {
  if (accumulate == Type::f64) return lincomb<double>(c, nullptr, nullptr, shape, parallel);
  lincomb<float>(c, nullptr, nullptr, shape, parallel);
}

void lincomb_residual_cpu(const Combination& c, View y, void* sums, Type accumulate, Shape shape, Parallel parallel) {
  if (accumulate == Type::f64) return lincomb<double>(c, &y, sums, shape, parallel);
  lincomb<float>(c, &y, sums, shape, parallel);
}

void anderson_mix_cpu(const View* values, const View* residuals, int columns, void* out, Type accumulate, Shape shape,
                      Parallel parallel) {
  if (accumulate == Type::f64) return anderson_mix<double>(values, residuals, columns, out, shape, parallel);
  anderson_mix<float>(values, residuals, columns, out, shape, parallel);
}

const char* cpu_level() {
  switch (level()) {
    case Level::avx512: return "avx512";
    case Level::avx2: return "avx2";
    default: return "generic";
  }
}

}  // namespace invfast
