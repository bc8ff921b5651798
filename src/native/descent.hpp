// Adam's step along a clipped gradient, on flat buffers.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "binding.hpp"
#include "pool.hpp"

namespace upslope {

struct Descent {
  double learning_rate;
  int64_t step;     // the number of the first one, from 1
  double max_norm;  // 0: never clipped
  double beta_1, beta_2, epsilon;
};

struct Buffers {
  int64_t size;
  float *parameters, *gradient, *first, *second;
};

// Clips the gradient and takes step number `step`; returns the norm before clipping. A norm that is not finite changes
// nothing.
inline double descend(const Descent& descent, int64_t step, const Buffers& b, int threads) {
  constexpr int64_t piece = 1 << 14;
  const int pieces = int((b.size + piece - 1) / piece);
  std::vector<double> squares(pieces);
  auto measure = [&](int p, int) {
    squares[p] = kernels->square(b.gradient + p * piece, std::min(piece, b.size - p * piece));
  };
  in_parallel(pieces, threads, measure);
  double norm = 0;
  for (const double each : squares) norm += each;
  norm = std::sqrt(norm);
  if (!std::isfinite(norm)) return norm;
  const Adam settings{float(descent.learning_rate / (1 - std::pow(descent.beta_1, double(step)))),
                      float(descent.beta_1),
                      float(descent.beta_2),
                      float(1 / std::sqrt(1 - std::pow(descent.beta_2, double(step)))),
                      float(descent.epsilon),
                      descent.max_norm > 0 && norm > descent.max_norm ? float(descent.max_norm / norm) : 1.0f};
  auto move = [&](int p, int) {
    const int64_t at = p * piece;
    kernels->adam(settings, std::min(piece, b.size - at), b.gradient + at, b.first + at, b.second + at,
                  b.parameters + at);
  };
  in_parallel(pieces, threads, move);
  return norm;
}

}  // namespace upslope
