#define INVFAST_LEVEL generic
#include "cpu_kernels.inc"
