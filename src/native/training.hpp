// Steps of Adam on minibatches, whatever the loss.
//
// Rows are cut into blocks, blocks into slices; a slice adds its blocks in order into its own sums, and the slices are
// added in order. Neither cut depends on the number of threads, so the result does not either.
#pragma once

#include <chrono>
#include <cmath>
#include <vector>

#include "binding.hpp"
#include "pool.hpp"
#include "sums.hpp"

namespace upslope {

struct Chunks {
  std::vector<int64_t> rows;  // of each; none: the gradient of each is not asked for
  float* gradients = nullptr;
  int64_t kept = 0;          // of the parameters
  std::vector<float> total;  // of one chunk after the first
};

struct Minibatches {
  const int64_t* index;        // they follow one another in it
  std::vector<int64_t> sizes;  // [K]
  double* metrics;             // [K][METRICS + 1]: means of what is logged, and the gradient's norm
};

inline int64_t total_of(const Vector<const int64_t>& sizes) {
  int64_t total = 0;
  for (size_t i = 0; i < sizes.shape(0); ++i) need(sizes.data()[i] > 0, "a part without rows"), total += sizes.data()[i];
  return total;
}

inline Buffers buffers_of(Vector<float>& parameters, Vector<float>& gradient, Vector<float>& first,
                          Vector<float>& second) {
  const size_t n = parameters.shape(0);
  for (const auto* each : {&gradient, &first, &second}) need(each->shape(0) == n, "buffers differ in size");
  return {int64_t(n), parameters.data(), gradient.data(), first.data(), second.data()};
}

inline Minibatches minibatches_of(const Vector<const int64_t>& index, int64_t rows, const Vector<const int64_t>& sizes,
                                  Rows<double>& metrics) {
  need(metrics.shape(0) == sizes.shape(0) && metrics.shape(1) == METRICS + 1, "metrics of another size");
  need(within(index, rows), "index is out of range");
  need(total_of(sizes) == int64_t(index.shape(0)), "minibatches do not fit the index");
  return {index.data(), {sizes.data(), sizes.data() + sizes.shape(0)}, metrics.data()};
}

// How many threads take the steps of a call. Of small minibatches what one core wrote travels to the other for as long as
// the work itself takes, or longer, as processors and their neighbours have it. So where there are steps enough, the first
// ones are taken by 1, 2, 4 ... threads in turn, and the others by as many as were fastest. Bits do not depend on it.
class Pace {
 public:
  Pace(int64_t steps, int threads) : best_(threads) {
    for (int n = 1; n < threads; n *= 2) options_.push_back(n);
    options_.push_back(threads);
    if (steps < 8 * TRIALS * int64_t(options_.size() - 1)) options_.clear();
  }

  int threads() const { return trying() ? options_[tried_ / TRIALS] : best_; }

  void begin() {
    if (trying()) began_ = std::chrono::steady_clock::now();
  }

  void end() {
    if (!trying()) return;
    const auto took = std::chrono::steady_clock::now() - began_;
    if (took < shortest_) shortest_ = took, best_ = threads();
    ++tried_;
  }

 private:
  static constexpr int TRIALS = 4;  // the first has others' numbers in its cache

  bool trying() const { return tried_ < TRIALS * options_.size(); }

  std::vector<int> options_;
  size_t tried_ = 0;
  int best_;
  std::chrono::steady_clock::time_point began_;
  std::chrono::steady_clock::duration shortest_ = std::chrono::steady_clock::duration::max();
};

class Training {
 public:
  explicit Training(const Plan& plan) : plan_(plan), sums_(plan) {}

  void prepare(int threads) {
    while (int(scratch_.size()) < std::max(threads, 1)) {
      scratch_.push_back(zeros(scratch_floats(plan_)));
      packed_.emplace_back();
      packed_now_.push_back(false);
    }
  }

  float* scratch(int worker) const { return scratch_[worker].get(); }

  // Takes a step on each minibatch in turn and returns how many were taken: fewer where a gradient was not finite, which
  // changes nothing. `chunks` are the first minibatch's. gradient(weights, sample_weight, index, rows, block, sums,
  // metrics, scratch) is a kernel of this plan.
  template <class Gradient>
  int64_t steps(const Gradient& gradient, const Minibatches& minibatches, const Buffers& buffers, const Descent& descent,
                Products products, Chunks chunks, int threads) {
    const int64_t* index = minibatches.index;
    const int64_t steps = minibatches.sizes.size();
    Pace pace(steps, std::max(threads, 1));
    for (int64_t k = 0; k < steps; index += minibatches.sizes[k], ++k) {
      const int64_t rows = minibatches.sizes[k];
      double* metrics = minibatches.metrics + k * (METRICS + 1);
      std::fill_n(metrics, METRICS, 0.0);
      pace.begin();
      const float weight = float(1.0 / double(rows));
      std::fill(packed_now_.begin(), packed_now_.end(), false);
      auto kernel = [&](int worker, auto... rest) {
        gradient(packed(buffers.parameters, products, worker), weight, rest..., scratch(worker));
      };
      const double norm = std::sqrt(run(kernel, index, rows, buffers.gradient, metrics, chunks, pace.threads()));
      chunks = {};
      const bool finite = std::isfinite(norm);
      if (finite) sums_.descend(descent.settings(descent.step + k, norm), buffers, pace.threads());
      metrics[METRICS] = norm;  // last: a norm that is there, and finite, is that of a step that was taken
      if (!finite) return k;
      pace.end();
    }
    return steps;
  }

 private:
  // The weights as a worker's products read them. Each packs them for itself, once a step: what another core packs would
  // travel for as long.
  Weights packed(const float* parameters, Products products, int worker) {
    if (!packed_[worker]) packed_[worker] = zeros(plan_.packed);
    const Weights weights{parameters, packed_[worker].get(), products};
    for (const Chain* chain : {&plan_.trunk, &plan_.actor, &plan_.critic})
      for (size_t l = 0; l < chain->size() && !packed_now_[worker]; ++l) {
        const bool further = l > 0 || !(plan_.trunk.empty() || chain == &plan_.trunk);
        kernels->pack_layer((*chain)[l], parameters, further, weights.halved((*chain)[l]), packed_[worker].get());
      }
    packed_now_[worker] = true;
    return weights;
  }

  // Puts the gradient of the rows `index` into `total`, adds to the metrics, and returns the gradient's squared norm. No
  // slice is of two chunks.
  template <class Gradient>
  double run(const Gradient& gradient, const int64_t* index, int64_t rows, float* total, double* metrics, Chunks& chunks,
             int threads) {
    const int block = rows >= 4 * BLOCK ? BLOCK : (rows >= 2 * BLOCK ? BLOCK / 2 : (rows >= BLOCK / 2 ? BLOCK / 4 : LINE));
    const int64_t fit = std::max<int64_t>(4, (int64_t{1} << 24) / plan_.sums);  // 64 MiB of sums, or four
    const std::vector<int64_t> whole{rows}, &parts = chunks.rows.empty() ? whole : chunks.rows;
    std::vector<int64_t> begins{0}, slices;  // where each slice begins; how many each part has
    for (const int64_t part : parts) {
      const int64_t blocks = (part + block - 1) / block, first = begins.back();
      const int64_t room = std::max<int64_t>(1, fit / int64_t(parts.size()));
      int64_t n = std::min({blocks, std::max<int64_t>(4, blocks / 2), int64_t{64}, room});
      if (n > 4) n -= n % 4;  // as many for each of two or four threads
      for (int64_t s = 1; s <= n; ++s) begins.push_back(first + std::min(blocks * s / n * block, part));
      slices.push_back(n);
    }
    const int count = int(begins.size()) - 1;
    prepare(threads);
    sums_.begin(count, std::max(threads, 1));
    std::vector<double> found(count * METRICS, 0.0);
    auto work = [&](int slice, int worker) {
      gradient(worker, index + begins[slice], int(begins[slice + 1] - begins[slice]), block, sums_.take(slice, worker),
               &found[slice * METRICS]);
    };
    in_parallel(count, threads, work);
    for (int i = 0; i < count * METRICS; ++i) metrics[i % METRICS] += found[i];
    if (chunks.rows.empty()) return sums_.join(0, count, total, threads);
    std::vector<float>& other = chunks.total;
    const int64_t n = other.size();
    for (int k = 0, first = 0; k < int(parts.size()); first += int(slices[k]), ++k) {
      float* own = k == 0 ? total : other.data();
      sums_.join(first, int(slices[k]), own, threads);
      const float share = float(double(rows) / double(parts[k]));
      for (int64_t i = 0; i < chunks.kept; ++i) chunks.gradients[k * chunks.kept + i] = own[i] * share;
      for (int64_t i = 0; k > 0 && i < n; ++i) total[i] += own[i];
    }
    return sums_.square(total, threads);
  }

  const Plan& plan_;
  Sums sums_;
  std::vector<Floats> scratch_;  // of each worker
  std::vector<Floats> packed_;   // the weights of each
  std::vector<char> packed_now_;  // whether they are this step's
};

}  // namespace upslope
