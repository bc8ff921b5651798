// The kernels compiled for avx512; CMakeLists.txt gives the flags.
#define UPSLOPE_NAME "avx512"
#define UPSLOPE_KERNELS avx512_kernels
#include "kernels.hpp"
