// What the CUDA kernels share: reading any floating type, sums over a block, and errors with a name.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "core.h"

namespace invfast {

constexpr int kThreads = 256;      // of a block
constexpr int kBlocks = 2;         // in flight on a multiprocessor at least: what bounds the registers, at 128
constexpr int kEach = 8;           // neighbouring elements of a thread: 16 bytes of the narrowest type
constexpr int64_t kTile = kThreads * kEach;
constexpr int kMostParts = 64;  // blocks that add up one sample: few enough for every block of the next kernel to reread
constexpr int kMostPairs = kInputs * (kInputs + 1) / 2;
constexpr int64_t kMostRows = 65535;  // blocks in y

inline int64_t tiles_of(int64_t size) { return (size + kTile - 1) / kTile; }

// How many blocks share a sample's sums; from `size` alone, as the order of additions must be.
inline int parts_of(int64_t size) { return static_cast<int>(std::min<int64_t>(tiles_of(size), kMostParts)); }

inline void check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorName(code) + ", " + cudaGetErrorString(code));
}

// After a launch: what was wrong with it. Errors of earlier work that is still running come with a later call.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

__device__ inline float as_float(uint16_t bits, Type type) {
  return type == Type::f16 ? __half2float(__ushort_as_half(bits)) : __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

__device__ inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// kEach elements as they lie in memory: 16 bytes at a time where all are there and aligned, else one by one and zeros.
template <typename T>
__device__ inline void fetch(const T* from, int count, T (&raw)[kEach]) {
  constexpr int kWords = kEach * sizeof(T) / 16;
  if (count == kEach && aligned(from)) {
    union {
      uint4 words[kWords];
      T elements[kEach];
    } line;
#pragma unroll
    for (int w = 0; w < kWords; ++w) line.words[w] = __ldg(reinterpret_cast<const uint4*>(from) + w);
#pragma unroll
    for (int e = 0; e < kEach; ++e) raw[e] = line.elements[e];
  } else {
#pragma unroll
    for (int e = 0; e < kEach; ++e) raw[e] = e < count ? __ldg(from + e) : T(0);
  }
}

// Elements begin .. begin + count - 1 of a tensor as the accumulation type. The type is the same for all threads.
template <typename A>
__device__ inline void load(const View& view, int64_t begin, int count, A (&x)[kEach]) {
  switch (view.type) {
    case Type::f32: {
      float raw[kEach];
      fetch(static_cast<const float*>(view.data) + begin, count, raw);
#pragma unroll
      for (int e = 0; e < kEach; ++e) x[e] = static_cast<A>(raw[e]);
      break;
    }
    case Type::f64: {
      double raw[kEach];
      fetch(static_cast<const double*>(view.data) + begin, count, raw);
#pragma unroll
      for (int e = 0; e < kEach; ++e) x[e] = static_cast<A>(raw[e]);
      break;
    }
    default: {
      uint16_t raw[kEach];
      fetch(static_cast<const uint16_t*>(view.data) + begin, count, raw);
#pragma unroll
      for (int e = 0; e < kEach; ++e) x[e] = static_cast<A>(as_float(raw[e], view.type));
    }
  }
}

template <typename A>
__device__ inline void store(A* to, int count, const A (&x)[kEach]) {
  constexpr int kWords = kEach * sizeof(A) / 16;
  if (count == kEach && aligned(to)) {
    union {
      uint4 words[kWords];
      A elements[kEach];
    } line;
#pragma unroll
    for (int e = 0; e < kEach; ++e) line.elements[e] = x[e];
    // In assembler: nvcc 13.0 shares the stores of a plain assignment with the other branch, four bytes at a time.
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const uint4 v = line.words[w];
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(reinterpret_cast<uint4*>(to) + w), "r"(v.x),
                   "r"(v.y), "r"(v.z), "r"(v.w)
                   : "memory");
    }
  } else {
#pragma unroll
    for (int e = 0; e < kEach; ++e)
      if (e < count) to[e] = x[e];
  }
}

// How many of a thread's elements from `offset` on lie in a sample.
__device__ inline int count_at(int64_t offset, int64_t size) {
  const int64_t left = size - offset;
  return left >= kEach ? kEach : left > 0 ? static_cast<int>(left) : 0;
}

__device__ inline double warp_sum(double value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  return value;
}

// Sums of kCount values over the block, in an order that is always the same; thread k < kCount writes the k-th.
template <int kCount, typename A>
__device__ inline void block_sums(const A (&values)[kCount], double* to) {
  constexpr int kWarps = kThreads / 32;
  static_assert(kCount <= kThreads);
  __shared__ double of_warps[kCount][kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const double sum = warp_sum(values[k]);
    if (lane == 0) of_warps[k][warp] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kCount) {
    double total = 0.0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += of_warps[threadIdx.x][w];
    to[threadIdx.x] = total;
  }
  __syncthreads();  // the next sample uses the same memory
}

}  // namespace invfast
