#define INVFAST_LEVEL avx512
#include "cpu_kernels.inc"
