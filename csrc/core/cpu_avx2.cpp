#define INVFAST_LEVEL avx2
#include "cpu_kernels.inc"
