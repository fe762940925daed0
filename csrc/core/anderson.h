// The weights of Anderson's mixing from a Gram matrix: small, in double, the same on every device.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define INVFAST_HD __host__ __device__
#else
#define INVFAST_HD
#endif

namespace invfast {

// argmin |sum a_j r_j|^2 with sum a_j = 1. The matrix is normalised by its diagonal and given a ridge; weights that are not
// finite, or large, become those of the plain update.
template <int M>
INVFAST_HD inline void anderson_weights(const double (&gram)[M][M], double (&weights)[M]) {
  constexpr double kRidge = 1e-10, kLimit = 1e3;
  double a[M][M + 1], scale[M];
  for (int i = 0; i < M; ++i) scale[i] = sqrt(gram[i][i]);
  for (int i = 0; i < M; ++i) {
    for (int j = 0; j < M; ++j) a[i][j] = gram[i][j] / (scale[i] * scale[j]) + (i == j ? kRidge : 0.0);
    a[i][M] = 1.0 / scale[i];
  }
  for (int k = 0; k < M; ++k) {
    int pivot = k;
    for (int i = k + 1; i < M; ++i)
      if (fabs(a[i][k]) > fabs(a[pivot][k])) pivot = i;
    for (int j = k; j <= M; ++j) {
      double swap = a[k][j];
      a[k][j] = a[pivot][j];
      a[pivot][j] = swap;
    }
    for (int i = k + 1; i < M; ++i) {
      double factor = a[i][k] / a[k][k];
      for (int j = k; j <= M; ++j) a[i][j] -= factor * a[k][j];
    }
  }
  double total = 0.0, magnitude = 0.0;
  for (int i = M - 1; i >= 0; --i) {
    double x = a[i][M];
    for (int j = i + 1; j < M; ++j) x -= a[i][j] * weights[j];
    weights[i] = x / a[i][i];
  }
  for (int i = 0; i < M; ++i) {
    weights[i] /= scale[i];
    total += weights[i];
  }
  bool safe = true;
  for (int i = 0; i < M; ++i) {
    weights[i] /= total;
    magnitude += fabs(weights[i]);
    safe = safe && weights[i] - weights[i] == 0.0;  // finite: no NaN, no infinity
  }
  if (!safe || !(magnitude <= kLimit))
    for (int i = 0; i < M; ++i) weights[i] = i == M - 1 ? 1.0 : 0.0;
}

}  // namespace invfast
