// The kernels compiled for avx2; CMakeLists.txt gives the flags.
#define UPSLOPE_NAME "avx2"
#define UPSLOPE_KERNELS avx2_kernels
#include "kernels.hpp"
