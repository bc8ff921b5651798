// The native module: which instruction set is in use, and all that is bound elsewhere.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#ifdef UPSLOPE_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <stdexcept>
#include <string>

#include "binding.hpp"

using namespace upslope;

namespace {

// ---------------------------------------------------------------- instruction sets
std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found;
#ifdef UPSLOPE_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back(&avx512_kernels);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2_kernels);
#endif
  found.push_back(&portable_kernels);
  return found;
}

}  // namespace

const Kernels* upslope::kernels = available().front();

Products upslope::halves() {
  if (!kernels->halves) return Products::floats;
#ifdef UPSLOPE_BF16
  static const Products found = [] {
#ifdef UPSLOPE_AMX
    // Linux lets a process use tiles only after it was asked: they add eight kilobytes to what a switch of threads saves.
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    unsigned a, b, c, d;
    const bool tile = __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 24 & 1, bf16 = d >> 22 & 1;
    if (tile && bf16 && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0) return Products::tiles;
#endif
    return __builtin_cpu_supports("avx512bf16") ? Products::halves : Products::floats;
  }();
  return found;
#else
  return Products::floats;
#endif
}

namespace {

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* each : available()) names.push_back(each->name);
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const Kernels* each : available())
    if (each->name == name) {
      kernels = each;
      return;
    }
  throw std::invalid_argument("this processor has no " + name);
}

}  // namespace

NB_MODULE(_native, m) {
  bind_checks(m);
  bind_decoding(m);
  bind_network(m);
  bind_memory(m);
  bind_returns(m);
  m.def("instruction_sets", &instruction_sets);
  m.def("instruction_set", [] { return std::string(kernels->name); });
  m.def("use_instruction_set", &use_instruction_set);
  m.def("bfloat16", [] {
    const Products how = halves();
    return std::string(how == Products::tiles ? "AMX" : how == Products::halves ? "AVX-512" : "");
  });
}
