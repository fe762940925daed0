// The weights of Anderson's mixing from a Gram matrix: small, in double, the same on every device, for what is fused is
// written as fma.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define INVFAST_HD __host__ __device__
#define INVFAST_UNROLL _Pragma("unroll")
#else
#define INVFAST_HD
#define INVFAST_UNROLL
#endif

namespace invfast {

// argmin |sum a_j r_j|^2 with sum a_j = 1. The matrix is normalised by its diagonal and given a ridge; weights that are not
// finite, or large, become those of the plain update.
template <int M>
INVFAST_HD inline void anderson_weights(const double (&gram)[M][M], double (&weights)[M]) {
  constexpr double kRidge = 1e-10, kLimit = 1e3;
  double a[M][M + 1], scale[M];
  INVFAST_UNROLL
  for (int i = 0; i < M; ++i) scale[i] = sqrt(gram[i][i]);
  INVFAST_UNROLL
  for (int i = 0; i < M; ++i) {
    INVFAST_UNROLL
    for (int j = 0; j < M; ++j) a[i][j] = gram[i][j] / (scale[i] * scale[j]) + (i == j ? kRidge : 0.0);
    a[i][M] = 1.0 / scale[i];
  }
  INVFAST_UNROLL
  for (int k = 0; k < M; ++k) {
    // The largest comes up by exchanges with known indices: on a GPU an index found at run time would cost memory.
    INVFAST_UNROLL
    for (int i = k + 1; i < M; ++i) {
      const bool larger = fabs(a[i][k]) > fabs(a[k][k]);
      INVFAST_UNROLL
      for (int j = k; j <= M; ++j) {
        const double above = a[k][j], below = a[i][j];
        a[k][j] = larger ? below : above;
        a[i][j] = larger ? above : below;
      }
    }
    INVFAST_UNROLL
    for (int i = k + 1; i < M; ++i) {
      double factor = a[i][k] / a[k][k];
      INVFAST_UNROLL
      for (int j = k; j <= M; ++j) a[i][j] = fma(-factor, a[k][j], a[i][j]);
    }
  }
  double total = 0.0, magnitude = 0.0;
  INVFAST_UNROLL
  for (int i = M - 1; i >= 0; --i) {
    double x = a[i][M];
    INVFAST_UNROLL
    for (int j = i + 1; j < M; ++j) x = fma(-a[i][j], weights[j], x);
    weights[i] = x / a[i][i];
  }
  INVFAST_UNROLL
  for (int i = 0; i < M; ++i) {
    weights[i] /= scale[i];
    total += weights[i];
  }
  bool safe = true;
  INVFAST_UNROLL
  for (int i = 0; i < M; ++i) {
    weights[i] /= total;
    magnitude += fabs(weights[i]);
    safe = safe && weights[i] - weights[i] == 0.0;  // finite: no NaN, no infinity
  }
  if (!safe || !(magnitude <= kLimit))
    INVFAST_UNROLL
    for (int i = 0; i < M; ++i) weights[i] = i == M - 1 ? 1.0 : 0.0;
}

}  // namespace invfast
