// What the files that speak with Python share: arrays, checks, memory, and which kernels are in use.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>

#include "plan.hpp"

namespace upslope {

namespace nb = nanobind;

template <class T, class... Rest>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu, Rest...>;
template <class T>
using Vector = Array<T, nb::ndim<1>>;
template <class T>
using Rows = Array<T, nb::ndim<2>>;
template <class T>
using Given = std::optional<Array<T>>;  // actions are int64 for choices, float32 for numbers; masks may be absent

// An array that is written to: another type's or layout's is refused, since only its copy would be written.
inline auto operator""_out(const char* name, size_t) { return nb::arg(name).noconvert(); }

extern const Kernels* kernels;  // those of the instruction set in use
Products halves();              // how this process may take products in bfloat16; floats: not at all

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float[], Free>;

inline Floats zeros(int64_t n) {
  const size_t bytes = padded(std::max<int64_t>(n, 1)) * sizeof(float);
  auto* p = static_cast<float*>(std::aligned_alloc(64, bytes));
  if (p == nullptr) throw std::bad_alloc();
  std::fill_n(p, bytes / sizeof(float), 0.0f);
  return Floats(p);
}

inline void need(bool fine, const char* what) {
  if (!fine) throw std::invalid_argument(what);
}

inline bool within(const Vector<const int64_t>& index, int64_t rows) {  // whether all are from 0 to rows - 1
  bool fine = true;
  for (size_t i = 0; i < index.shape(0); ++i) fine &= uint64_t(index.data()[i]) < uint64_t(rows);
  return fine;
}

void bind_checks(nb::module_& m);
void bind_decoding(nb::module_& m);
void bind_memory(nb::module_& m);
void bind_network(nb::module_& m);
void bind_returns(nb::module_& m);

}  // namespace upslope
