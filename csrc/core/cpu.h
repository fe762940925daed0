// What the three compilations of the CPU kernels offer to the code that picks among them.
#pragma once

#include "core.h"

namespace invfast {

constexpr int64_t kBlockSize = 2048;  // elements; a block of what is read and written fits a 48 KiB first cache

// begin and count: the block's elements, all of one sample.
#define INVFAST_DECLARE(LEVEL)                                                                                       \
  namespace LEVEL {                                                                                                  \
  template <typename A>                                                                                              \
  void lincomb_block(const Combination& c, const A* rows, const View* y, int64_t begin, int64_t count,               \
                     double* sums);                                                                                  \
  template <typename A>                                                                                              \
  void gram_block(const View* residuals, int columns, int64_t begin, int64_t count, double* pairs);                  \
  template <typename A>                                                                                              \
  void mix_block(const View* values, int columns, const double* weights, A* out, int64_t begin, int64_t count);      \
  }
INVFAST_DECLARE(generic)
#if defined(INVFAST_X86)
INVFAST_DECLARE(avx2)
INVFAST_DECLARE(avx512)
#endif
#undef INVFAST_DECLARE

}  // namespace invfast
