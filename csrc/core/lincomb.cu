// The combination and its residual on a GPU.
//
// Versions considered. The last was compiled for sm_80, sm_90 and sm_100 and read in SASS (benchmarks/cuda_kernels.py);
// none was timed, for want of a GPU.
//   1. a thread takes one element, a kernel for each list of dtypes: 2- and 4-byte accesses, and 4^4 lists.
//   2. four elements a thread: one 16-byte access of float32, but 8-byte ones of float16.
//   3. eight elements a thread, the type of each input looked up at run time (all threads agree): 16-byte accesses of
//      every type, one kernel for all dtypes. A tensor that is not aligned goes element by element, decided on the spot.
//   Sums by atomics would save the second launch, but add in an order that changes from run to run; the last block of a
//   sample could add up the parts, but counts on counters that someone has to clear, which is a launch too.

#include "cuda.cuh"

namespace invfast {
namespace {

struct Residual {
  View y;
  double* parts;  // (batch, blocks of a sample, kSums)
};

// Block (x, y) walks the tiles x, x + gridDim.x, ... of the samples y, y + gridDim.y, ...
template <typename A, int N, int M, bool kResidual>
__global__ void __launch_bounds__(kThreads, kBlocks)
    combine(const __grid_constant__ Combination c, const __grid_constant__ Residual residual, Shape shape) {
  for (int64_t sample = blockIdx.y; sample < shape.batch; sample += gridDim.y) {
    const int64_t step = c.rows.index[sample * c.rows.stride];
    const bool inside = step >= 0 && step < c.rows.steps;
    const A* const row = static_cast<const A*>(c.rows.table) + (inside ? step : 0) * (M * N);
    A coefficients[M][N];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n) coefficients[m][n] = inside ? __ldg(row + m * N + n) : static_cast<A>(NAN);
    A sums[kSums] = {};
    for (int64_t tile = blockIdx.x; tile * kTile < shape.size; tile += gridDim.x) {
      const int64_t offset = tile * kTile + threadIdx.x * kEach, begin = sample * shape.size + offset;
      const int count = count_at(offset, shape.size);
      if (count == 0) break;
      A out[M][kEach];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        A x[kEach];
        load(c.in[n], begin, count, x);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int e = 0; e < kEach; ++e)
            out[m][e] = n == 0 ? x[e] * coefficients[m][n] : fma(x[e], coefficients[m][n], out[m][e]);
      }
#pragma unroll
      for (int m = 0; m < M; ++m) store(static_cast<A*>(c.out[m]) + begin, count, out[m]);
      if constexpr (kResidual) {
        A y[kEach];
        load(residual.y, begin, count, y);
#pragma unroll
        for (int e = 0; e < kEach; ++e) {
          if (e >= count) break;  // beyond the sample an infinite coefficient would make NaN of the zeros
          const A f = out[0][e], gap = f - y[e];
          sums[0] = fma(gap, gap, sums[0]);
          sums[1] = fma(f, f, sums[1]);
          sums[2] += f - f;  // 0 only where f is finite
        }
      }
    }
    if constexpr (kResidual) block_sums<kSums>(sums, residual.parts + (sample * gridDim.x + blockIdx.x) * kSums);
  }
}

// A warp a sample: its parts into its sums.
template <typename A>
__global__ void __launch_bounds__(kThreads, kBlocks) finish(const double* parts, int count, A* sums, int64_t batch) {
  const int64_t sample = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  if (sample >= batch) return;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    double sum = 0.0;
    for (int p = lane; p < count; p += 32) sum += parts[(sample * count + p) * kSums + k];
    sum = warp_sum(sum);
    if (lane == 0) sums[sample * kSums + k] = static_cast<A>(k == kSums - 1 ? (sum == 0.0 ? 1.0 : 0.0) : sum);
  }
}

template <typename A, int N, int M>
void launch(const Combination& c, const Residual* residual, Shape shape, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(std::min(shape.batch, kMostRows));
  if (residual != nullptr) {
    combine<A, N, M, true><<<dim3(parts_of(shape.size), rows), kThreads, 0, stream>>>(c, *residual, shape);
    return check_launch("invfast lincomb_residual");
  }
  const auto tiles = static_cast<unsigned>(std::min<int64_t>(tiles_of(shape.size), INT32_MAX));
  combine<A, N, M, false><<<dim3(tiles, rows), kThreads, 0, stream>>>(c, Residual{}, shape);
  check_launch("invfast lincomb");
}

template <typename A, int N>
void launch(const Combination& c, const Residual* residual, Shape shape, cudaStream_t stream) {
  if (c.outputs == 1) return launch<A, N, 1>(c, residual, shape, stream);
  launch<A, N, 2>(c, residual, shape, stream);
}

template <typename A>
void launch(const Combination& c, const Residual* residual, Shape shape, cudaStream_t stream) {
  if (shape.batch == 0 || shape.size == 0) return;
  switch (c.inputs) {
    case 1: return launch<A, 1>(c, residual, shape, stream);
    case 2: return launch<A, 2>(c, residual, shape, stream);
    case 3: return launch<A, 3>(c, residual, shape, stream);
    default: return launch<A, 4>(c, residual, shape, stream);
  }
}

template <typename A>
void with_sums(const Combination& c, View y, void* sums, void* scratch, Shape shape, cudaStream_t stream) {
  const Residual residual{y, static_cast<double*>(scratch)};
  launch<A>(c, &residual, shape, stream);
  if (shape.batch == 0) return;
  const auto blocks = static_cast<unsigned>((shape.batch * 32 + kThreads - 1) / kThreads);
  finish<A><<<blocks, kThreads, 0, stream>>>(residual.parts, parts_of(shape.size), static_cast<A*>(sums), shape.batch);
  check_launch("invfast lincomb_residual, sums");
}

}  // namespace

int64_t scratch_cuda(Shape shape) {
  return shape.batch * parts_of(shape.size) * kMostPairs * static_cast<int64_t>(sizeof(double));
}

void lincomb_cuda(const Combination& c, Type accumulate, Shape shape, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (accumulate == Type::f64) return launch<double>(c, nullptr, shape, on);
  launch<float>(c, nullptr, shape, on);
}

void lincomb_residual_cuda(const Combination& c, View y, void* sums, void* scratch, Type accumulate, Shape shape,
                           void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (accumulate == Type::f64) return with_sums<double>(c, y, sums, scratch, shape, on);
  with_sums<float>(c, y, sums, scratch, shape, on);
}

}  // namespace invfast
