// Weights of a rollout's steps as Python sees them: generalised advantages, and advantages standardised by minibatch.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "binding.hpp"

namespace upslope {

using namespace nb::literals;

namespace {

// A_t = delta_t + gamma lambda A_{t+1} (0 past an end), delta_t = r_t + gamma v(s_{t+1}) - v(s_t); [T][N], row by row.
void gae(Rows<const float> reward, Rows<const float> value, Rows<const float> next_value, Rows<const bool> terminated,
         Rows<const bool> truncated, Rows<float> advantage, float gamma, float decay) {
  const size_t steps = reward.shape(0), n = reward.shape(1);
  const auto alike = [&](const auto& x) { return x.shape(0) == steps && x.shape(1) == n; };
  need(alike(value) && alike(next_value) && alike(terminated) && alike(truncated) && alike(advantage),
       "arrays differ in shape");
  const nb::gil_scoped_release released;
  for (size_t t = steps; t-- > 0;) {
    const size_t row = t * n;
    const float *r = reward.data() + row, *v = value.data() + row, *next = next_value.data() + row;
    const bool *over = terminated.data() + row, *cut = truncated.data() + row;
    float *a = advantage.data() + row, *later = a + n;
    for (size_t i = 0; i < n; ++i) {
      const float delta = r[i] + gamma * (over[i] ? 0.0f : next[i]) - v[i];
      a[i] = t + 1 == steps || over[i] || cut[i] ? delta : delta + decay * later[i];
    }
  }
}

// The sum of f(i) over n numbers: four sums that need not wait for each other.
template <class F>
double total(int64_t n, F f) {
  double sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int k = 0; k < 4; ++k) sums[k] += f(i + k);
  for (; i < n; ++i) sums[0] += f(i);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// out = (A - mean) / (deviation + epsilon), mean and deviation over each of the parts of `index`, of `sizes`; 0 elsewhere.
void standardize(Vector<const float> advantage, Vector<const int64_t> index, Vector<const int64_t> sizes, double epsilon,
                 Vector<float> out) {
  const int64_t m = advantage.shape(0), rows = index.shape(0);
  need(int64_t(out.shape(0)) == m, "out is of another size");
  need(within(index, m), "index is out of range");
  const float* a = advantage.data();
  const int64_t *from = index.data(), *end = from + rows;
  std::vector<float> part;
  if (rows < m) std::fill_n(out.data(), m, 0.0f);
  for (size_t k = 0; k < sizes.shape(0); ++k) {
    const int64_t n = sizes.data()[k];
    need(n >= 0 && n <= end - from, "sizes do not fit the index");
    part.resize(n);
    // in single precision equal advantages give exactly 0
    const float mean = float(total(n, [&](int64_t i) { return double(part[i] = a[from[i]]); }) / double(n));
    const double squares = total(n, [&](int64_t i) {
      const float away = part[i] -= mean;
      return double(away) * away;
    });
    const float scale = float(1 / (std::sqrt(squares / double(n)) + epsilon));
    for (int64_t i = 0; i < n; ++i) out.data()[from[i]] = part[i] * scale;
    from += n;
  }
  need(from == end, "sizes do not fit the index");
}

// The variances of x and of x - y over the numbers that are `valid`; NaN if none is.
std::pair<double, double> variances(Rows<const float> x, Rows<const float> y, Rows<const bool> valid) {
  const int64_t n = valid.size();
  need(int64_t(x.size()) == n && int64_t(y.size()) == n, "arrays differ in size");
  const float *a = x.data(), *b = y.data();
  const bool* counts = valid.data();
  const double m = total(n, [&](int64_t i) { return double(counts[i]); });
  const auto variance = [&](auto number) {
    const double mean = total(n, [&](int64_t i) { return counts[i] ? number(i) : 0.0; }) / m;
    const auto square = [&](int64_t i) { return counts[i] ? (number(i) - mean) * (number(i) - mean) : 0.0; };
    return total(n, square) / m;
  };
  return {variance([&](int64_t i) { return double(a[i]); }), variance([&](int64_t i) { return double(a[i] - b[i]); })};
}

// Puts `rows` together by group, in their order; row r is in group r mod n_envs mod G, and `sizes` [G] is how many each has.
void group(Vector<const int64_t> rows, int64_t n_envs, Vector<int64_t> together, Vector<int64_t> sizes) {
  const size_t n = rows.shape(0), groups = sizes.shape(0);
  need(together.shape(0) == n && groups > 0 && n_envs > 0, "rows and groups differ in size");
  const auto of = [&](size_t i) { return uint32_t(rows.data()[i]) % uint32_t(n_envs) % uint32_t(groups); };
  need(within(rows, int64_t{1} << 32), "a row is out of range");
  std::fill_n(sizes.data(), groups, 0);
  for (size_t i = 0; i < n; ++i) ++sizes.data()[of(i)];
  std::vector<int64_t> next(groups, 0);
  for (size_t g = 1; g < groups; ++g) next[g] = next[g - 1] + sizes.data()[g - 1];
  for (size_t i = 0; i < n; ++i) together.data()[next[of(i)]++] = rows.data()[i];
}

// The numbers of the `valid`, shuffled as torch.randperm does with this seed; returns how many.
int64_t shuffle(Rows<const bool> valid, uint32_t seed, Vector<int64_t> rows) {
  need(rows.shape(0) >= valid.size(), "rows has no room");
  const nb::gil_scoped_release released;
  return kernels->shuffle(valid.data(), int64_t(valid.size()), seed, rows.data());
}

// |g_k|^2 of K vectors [K][P], and then that of their mean, each one weighted by its size.
std::vector<double> squares(Rows<const float> vectors, Vector<const int64_t> sizes) {
  const size_t k = vectors.shape(0), p = vectors.shape(1);
  need(sizes.shape(0) == k, "vectors and sizes differ in number");
  const double all = std::accumulate(sizes.data(), sizes.data() + k, 0.0);
  std::vector<float> mean(p, 0.0f);
  std::vector<double> found;
  for (size_t i = 0; i < k; ++i) {
    const float *each = vectors.data() + i * p, weight = float(double(sizes.data()[i]) / all);
    for (size_t j = 0; j < p; ++j) mean[j] += weight * each[j];
    found.push_back(kernels->square(each, int64_t(p)));
  }
  found.push_back(kernels->square(mean.data(), int64_t(p)));
  return found;
}

}  // namespace

void bind_returns(nb::module_& m) {
  m.def("gae", &gae, "reward"_a, "value"_a, "next_value"_a, "terminated"_a, "truncated"_a, "advantage"_out, "gamma"_a,
        "decay"_a);
  m.def("group", &group, "rows"_a, "n_envs"_a, "together"_out, "sizes"_out);
  m.def("shuffle", &shuffle, "valid"_a, "seed"_a, "rows"_out);
  m.def("squares", &squares, "vectors"_a, "sizes"_a);
  m.def("variances", &variances, "x"_a, "y"_a, "valid"_a);
  m.def("standardize", &standardize, "advantage"_a, "index"_a, "sizes"_a, "epsilon"_a, "out"_out);
}

}  // namespace upslope
