// Sums of gradients over slices of a minibatch, and what becomes of them: the whole gradient, its norm, Adam's step.
//
// A number that one core wrote travels to another slowly. So each thread sums into memory of its own, and the parameters
// are cut into pieces whose sum, norm and step one thread takes. Pieces do not depend on the number of threads, and their
// norms are added in order.
#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "binding.hpp"
#include "pool.hpp"

namespace upslope {

struct Descent {
  double learning_rate;
  int64_t step;     // the number of the first one, from 1
  double max_norm;
  double beta_1, beta_2, epsilon;

  Adam settings(int64_t number, double norm) const {
    return {float(learning_rate / (1 - std::pow(beta_1, double(number)))),
            float(beta_1),
            float(beta_2),
            float(1 / std::sqrt(1 - std::pow(beta_2, double(number)))),
            float(epsilon),
            norm > max_norm ? float(max_norm / norm) : 1.0f};
  }
};

struct Buffers {
  int64_t size;
  float *parameters, *gradient, *first, *second;
};

class Sums {
 public:
  explicit Sums(const Plan& plan) : floats_(plan.sums) {
    for (const Chain* chain : {&plan.trunk, &plan.actor, &plan.critic})
      for (const Layer& layer : *chain) {
        const int most = layer.few() ? layer.outputs : std::max<int>(8 * LINE, 4096 / layer.inputs / LINE * LINE);
        for (int from = 0; from < layer.outputs; from += most) {
          const int n = std::min(most, layer.outputs - from);
          const Range weight{layer.weight + int64_t{from} * layer.inputs, int64_t{n} * layer.inputs};
          add({layer, from, {weight, {layer.bias + from, n}}});
        }
      }
    if (plan.gaussian()) {
      Layer log_std{};
      log_std.sums = plan.log_std_sums;
      add({log_std, 0, {Range{plan.log_std, plan.size}, {}}});
    }
  }

  // Before gradients are summed over `slices` slices by `threads` threads.
  void begin(int slices, int threads) {
    of_.assign(slices, nullptr);
    if (int(own_.size()) < threads) own_.resize(threads);
    for (Own& own : own_) own.used = 0;
  }

  // Where a worker puts a slice's gradient.
  float* take(int slice, int worker) {
    Own& own = own_[worker];
    if (own.used == own.buffers.size()) own.buffers.push_back(zeros(floats_));
    return of_[slice] = own.buffers[own.used++].get();
  }

  // out = the sum of slices first .. first + count - 1; returns its squared norm.
  double join(int first, int count, float* out, int threads) {
    each(threads, [&](const Piece& piece) {
      const auto [weight, bias] = piece.ranges;
      const Layer& layer = piece.layer;
      const int64_t inputs = layer.inputs, row = layer.row();
      auto from = [&](int64_t begin) {
        std::vector<const float*> moved(count);
        for (int s = 0; s < count; ++s) moved[s] = of_[first + s] + layer.sums + begin;
        return moved;
      };
      if (inputs == 0) return kernels->join(from(0).data(), count, weight.size, out + weight.begin);
      if (!layer.few()) {
        kernels->join_turned(from(piece.from).data(), count, inputs, bias.size, row, out + weight.begin);
        return kernels->join(from(inputs * row + piece.from).data(), count, bias.size, out + bias.begin);
      }
      for (int64_t o = 0; o < layer.outputs; ++o) {
        kernels->join(from(o * row).data(), count, inputs, out + weight.begin + o * inputs);
        kernels->join(from(o * row + inputs).data(), count, 1, out + bias.begin + o);
      }
    }, out);
    return total();
  }

  // The squared norm of a gradient.
  double square(const float* gradient, int threads) {
    each(threads, [](const Piece&) {}, gradient);
    return total();
  }

  // Clips the gradient, of that norm, and takes Adam's step along it.
  void descend(const Adam& settings, const Buffers& b, int threads) {
    each(threads, [&](const Piece& piece) {
      for (const auto& [at, n] : piece.ranges)
        kernels->adam(settings, n, b.gradient + at, b.first + at, b.second + at, b.parameters + at);
    });
  }

 private:
  struct Range {
    int64_t begin, size;
  };
  struct Piece {  // lines of a weight and the numbers of the bias with them; or log sigma, as a layer without inputs
    Layer layer;
    int from;  // the first line
    std::array<Range, 2> ranges;
  };
  struct Own {
    std::vector<Floats> buffers;
    size_t used;
  };

  void add(const Piece& piece) {
    pieces_.push_back(piece);
    for (const Range& range : piece.ranges) parameters_ += range.size;
    until_.push_back(parameters_);
  }

  // Calls work for each piece, in as many groups of equal size as there are threads; where `gradient` is given, notes the
  // squares of each piece of it.
  template <class Work>
  void each(int threads, Work work, const float* gradient = nullptr) {
    squares_.resize(pieces_.size());
    const int groups = parameters_ > 4000 ? threads : 1;  // below, a thread is no sooner told than it is done
    auto group = [&](int number, int) {
      for (size_t p = 0; p < pieces_.size(); ++p) {
        if ((until_[p] - 1) * groups / parameters_ != number) continue;
        work(pieces_[p]);
        if (!gradient) continue;
        squares_[p] = 0;
        for (const auto& [at, n] : pieces_[p].ranges) squares_[p] += kernels->square(gradient + at, n);
      }
    };
    in_parallel(groups, threads, group);
  }

  double total() const {
    double sum = 0;
    for (const double square : squares_) sum += square;
    return sum;
  }

  int64_t floats_, parameters_ = 0;
  std::vector<Piece> pieces_;
  std::vector<int64_t> until_;  // parameters of the pieces up to each
  std::vector<double> squares_;
  std::vector<Own> own_;     // of each worker
  std::vector<float*> of_;  // of each slice
};

}  // namespace upslope
