// Whether what environments gave is what they promised, as Python sees it.
#include <cfloat>

#include "binding.hpp"

namespace upslope {

using namespace nb::literals;

namespace {

// Whether all x [n][m] are finite and from low [m] to high [m].
bool inside(Rows<const float> x, Vector<const float> low, Vector<const float> high) {
  const size_t n = x.shape(0), m = x.shape(1);
  need(low.shape(0) == m && high.shape(0) == m, "bounds of another size");
  const float *at = x.data(), *least = low.data(), *most = high.data();
  bool fine = true;
  for (size_t i = 0; i < n; ++i, at += m)
    for (size_t j = 0; j < m; ++j)  // false of NaN
      fine &= at[j] >= least[j] & at[j] <= most[j] & at[j] >= -FLT_MAX & at[j] <= FLT_MAX;
  return fine;
}

}  // namespace

void bind_checks(nb::module_& m) { m.def("inside", &inside, "x"_a, "low"_a, "high"_a); }

}  // namespace upslope
