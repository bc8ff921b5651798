// The kernels compiled for portable; CMakeLists.txt gives the flags.
#define UPSLOPE_NAME "portable"
#define UPSLOPE_KERNELS portable_kernels
#include "kernels.hpp"
