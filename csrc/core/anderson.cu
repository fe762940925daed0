// Anderson's mixing on a GPU: two launches, the second solves and mixes.
//
// Versions considered (compiled and read in SASS for sm_80, sm_90, sm_100; none was timed, for want of a GPU):
//   1. three launches, the middle one a thread a sample that solves: a launch costs more than the solve.
//   2. Gram parts by the first; every block of the second adds up the at most 64 parts of its sample again, a warp a
//      pair, one thread solves in double, all mix. This one: the parts come from the second cache, and the solve is
//      done in every block at once.
//   3. pivoting by an index found at run time: the matrix went to local memory, a stack of 160 bytes. Exchanges with
//      known indices keep it in registers (anderson.h).
//   4. one cooperative launch with a barrier across the grid: cannot exceed the device's blocks in flight. Rejected.

#include "anderson.h"
#include "cuda.cuh"

namespace invfast {
namespace {

struct History {
  View of[kInputs];
};

// The sums over a block's tiles of the products of residuals, upper triangle row by row: (batch, blocks, pairs).
template <typename A, int M>
__global__ void __launch_bounds__(kThreads, kBlocks)
    gram(const __grid_constant__ History residuals, double* parts, Shape shape) {
  constexpr int kPairs = M * (M + 1) / 2;
  for (int64_t sample = blockIdx.y; sample < shape.batch; sample += gridDim.y) {
    A sums[kPairs] = {};
    for (int64_t tile = blockIdx.x; tile * kTile < shape.size; tile += gridDim.x) {
      const int64_t offset = tile * kTile + threadIdx.x * kEach;
      const int count = count_at(offset, shape.size);
      if (count == 0) break;
      A x[M][kEach];  // zeros beyond the sample add nothing
#pragma unroll
      for (int j = 0; j < M; ++j) load(residuals.of[j], sample * shape.size + offset, count, x[j]);
      int pair = 0;
#pragma unroll
      for (int j = 0; j < M; ++j)
#pragma unroll
        for (int k = j; k < M; ++k, ++pair)
#pragma unroll
          for (int e = 0; e < kEach; ++e) sums[pair] = fma(x[j][e], x[k][e], sums[pair]);
    }
    block_sums<kPairs>(sums, parts + (sample * gridDim.x + blockIdx.x) * kPairs);
  }
}

// The weights of a sample into shared memory, from `count` parts of its Gram matrix.
template <int M>
__device__ inline void find_weights(const double* parts, int count, double (&weights)[M]) {
  constexpr int kPairs = M * (M + 1) / 2, kWarps = kThreads / 32;
  __shared__ double sums[kPairs];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int pair = warp; pair < kPairs; pair += kWarps) {
    double sum = 0.0;
    for (int p = lane; p < count; p += 32) sum += parts[p * kPairs + pair];
    sum = warp_sum(sum);
    if (lane == 0) sums[pair] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double full[M][M], found[M];
    int pair = 0;
#pragma unroll
    for (int j = 0; j < M; ++j)
#pragma unroll
      for (int k = j; k < M; ++k, ++pair) full[j][k] = full[k][j] = sums[pair];
    anderson_weights<M>(full, found);
#pragma unroll
    for (int j = 0; j < M; ++j) weights[j] = found[j];
  }
  __syncthreads();
}

template <typename A, int M>
__global__ void __launch_bounds__(kThreads, kBlocks)
    mix(const __grid_constant__ History values, const double* parts, int count, A* out, Shape shape) {
  __shared__ double shared[M];
  for (int64_t sample = blockIdx.y; sample < shape.batch; sample += gridDim.y) {
    A weights[M];
    if constexpr (M == 1) {
      weights[0] = 1;
    } else {
      find_weights<M>(parts + sample * count * (M * (M + 1) / 2), count, shared);
#pragma unroll
      for (int j = 0; j < M; ++j) weights[j] = static_cast<A>(shared[j]);
    }
    for (int64_t tile = blockIdx.x; tile * kTile < shape.size; tile += gridDim.x) {
      const int64_t offset = tile * kTile + threadIdx.x * kEach, begin = sample * shape.size + offset;
      const int inside = count_at(offset, shape.size);
      if (inside == 0) break;
      A mixed[kEach], x[kEach];
      load(values.of[M - 1], begin, inside, x);
#pragma unroll
      for (int e = 0; e < kEach; ++e) mixed[e] = x[e] * weights[M - 1];
#pragma unroll
      for (int j = M - 2; j >= 0; --j) {
        if (weights[j] == A(0)) continue;  // a column left out must not bring its NaN along
        load(values.of[j], begin, inside, x);
#pragma unroll
        for (int e = 0; e < kEach; ++e) mixed[e] = fma(x[e], weights[j], mixed[e]);
      }
      store(out + begin, inside, mixed);
    }
  }
}

template <typename A, int M>
void launch(const History& values, const History& residuals, A* out, double* parts, Shape shape, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(std::min(shape.batch, kMostRows));
  const int count = parts_of(shape.size);
  if constexpr (M > 1) {
    gram<A, M><<<dim3(count, rows), kThreads, 0, stream>>>(residuals, parts, shape);
    check_launch("invfast anderson_mix, products");
  }
  mix<A, M><<<dim3(count, rows), kThreads, 0, stream>>>(values, parts, count, out, shape);
  check_launch("invfast anderson_mix");
}

template <typename A>
void launch(const View* values, const View* residuals, int columns, void* out, void* scratch, Shape shape,
            cudaStream_t stream) {
  if (shape.batch == 0 || shape.size == 0) return;
  History f{}, r{};
  std::copy(values, values + columns, f.of);
  std::copy(residuals, residuals + columns, r.of);
  auto* const to = static_cast<A*>(out);
  auto* const parts = static_cast<double*>(scratch);
  switch (columns) {
    case 1: return launch<A, 1>(f, r, to, parts, shape, stream);
    case 2: return launch<A, 2>(f, r, to, parts, shape, stream);
    case 3: return launch<A, 3>(f, r, to, parts, shape, stream);
    default: return launch<A, 4>(f, r, to, parts, shape, stream);
  }
}

}  // namespace

void anderson_mix_cuda(const View* values, const View* residuals, int columns, void* out, void* scratch,
                       Type accumulate, Shape shape, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (accumulate == Type::f64) return launch<double>(values, residuals, columns, out, scratch, shape, on);
  launch<float>(values, residuals, columns, out, scratch, shape, on);
}

}  // namespace invfast
