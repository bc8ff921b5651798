// The kernels of one instruction set; the file that includes this names them with UPSLOPE_KERNELS.
#pragma once

#include "blocks.hpp"
#include "cells.hpp"
#include "decoding.hpp"
#include "shuffle.hpp"
#include "temporal.hpp"

namespace {

void gradient(const Plan& plan, const Loss& loss, const Weights& weights, const Batch& batch, const int64_t* index,
              int rows, int block, float* sums, double* metrics, float* scratch) {
#ifdef UPSLOPE_TILES
  if (weights.products == Products::tiles) begin_tiles();
#endif
  for (int b = 0; b < rows; b += block) {
    const int here = rows - b < block ? rows - b : block;  // the last block is no larger than it must be
    const int room = weights.products == Products::floats ? int(padded(here)) : (here + 31) / 32 * 32;
    gradient_of_block(plan, loss, weights, batch, index + b, here, room, sums, b > 0, metrics, Scratch{scratch});
  }
#ifdef UPSLOPE_TILES
  if (weights.products == Products::tiles) end_tiles();
#endif
}

void temporal(const Plan& plan, const TemporalLoss& loss, const Weights& weights, const Transitions& batch,
              const int64_t* index, int rows, int block, float* sums, double* metrics, float* scratch) {
  for (int b = 0; b < rows; b += block) {
    const int here = rows - b < block ? rows - b : block;
    temporal_of_block(plan, loss, weights, batch, index + b, here, int(padded(here)), sums, b > 0, metrics,
                      Scratch{scratch});
  }
}

void act(const Plan& plan, const Weights& weights, const float* observation, const double* uniform, const float* normal,
         const uint8_t* mask, int rows, int64_t* choice, float* action, float* log_prob, float* scratch_floats) {
  Scratch scratch{scratch_floats};
  Trace trace;
  const float* parameters = weights.parameters;
  const int block = int(padded(rows));
  const float* input = gather(plan, observation, nullptr, rows, block, scratch);
  const float* seen = forward(plan.trunk, weights, input, rows, block, trace, scratch);
  const float* numbers = forward(plan.actor, weights, seen, rows, block, trace, scratch);
  Sample sample{};
  sample.action = scratch.take(int64_t{plan.actions()} * block);
  const int64_t numbers_drawn = int64_t{plan.size} * block;
  float *drawn = scratch.take(numbers_drawn), *rest = scratch.take(numbers_drawn);  // the noise, [size][block]
  sample.allowed = mask ? scratch.take(int64_t{plan.size} * block) : nullptr;
  for (int a = 0; a < plan.size; ++a)
    for (int b = 0; b < block; ++b) {
      const int64_t at = int64_t{b} * plan.size + a;
      const double u = b < rows && uniform ? uniform[at] : 0.5;
      drawn[a * block + b] = b < rows && normal ? normal[at] : float(u);
      rest[a * block + b] = float(1 - u);
      if (mask) sample.allowed[a * block + b] = b < rows && !mask[at] ? 0.0f : 1.0f;
    }
  if (uniform)
    for (int64_t i = 0; i < numbers_drawn; i += W) store(drawn + i, wait(load(drawn + i), load(rest + i)));
  float* normalizer = scratch.take(int64_t{plan.actions()} * block);
  float* entropies = scratch.take(int64_t{plan.actions()} * block);
  float* found = scratch.take(block);
  const float* precision = plan.gaussian() ? precisions(plan, parameters, scratch) : nullptr;
  for (int c = 0; c < block; c += W) {
    if (plan.gaussian()) {
      for (int i = 0; i < plan.size; ++i) {
        const int64_t at = int64_t{i} * block + c;
        store(sample.action + at, load(numbers + at) + load(drawn + at) / load(precision + i * W));
      }
      store(found + c, judge_gaussian(plan, parameters, precision, numbers, sample, block, c).log_prob);
      continue;
    }
    int64_t from = c;  // the exponential race: argmax of p_a / E_a
    for (size_t k = 0; k < plan.choices.size(); from += int64_t{plan.choices[k]} * block, ++k) {
      const float* allowed = mask ? sample.allowed + from : nullptr;
      const vec lse = log_sum_exp(numbers + from, allowed, plan.choices[k], block);
      vec best = all(-1.0f), winner{};
      for (int a = 0; a < plan.choices[k]; ++a) {
        const int64_t at = int64_t{a} * block;
        const vec speed = exponential(allowed_logit(numbers + from, allowed, at) - lse) / load(drawn + from + at);
        winner = speed > best ? all(float(a)) : winner;
        best = larger(best, speed);
      }
      store(sample.action + int64_t(k) * block + c, winner);
    }
    store(found + c, judge_choices(plan, numbers, sample, block, c, normalizer, entropies).log_prob);
  }
  const int actions = plan.actions();
  for (int b = 0; b < rows; ++b) {
    log_prob[b] = found[b];
    for (int k = 0; k < actions; ++k) {
      const float taken = sample.action[k * block + b];
      if (plan.gaussian())
        action[int64_t{b} * actions + k] = taken;
      else
        choice[int64_t{b} * actions + k] = static_cast<int64_t>(taken);
    }
  }
}

// What a chain behind the trunk gives for rows of observations, [outputs][block].
inline const float* outputs(const Plan& plan, const Chain& chain, const Weights& weights, const float* observation,
                            int rows, int block, Scratch scratch) {
  Trace trace;
  const float* input = gather(plan, observation, nullptr, rows, block, scratch);
  const float* seen = forward(plan.trunk, weights, input, rows, block, trace, scratch);
  return forward(chain, weights, seen, rows, block, trace, scratch);
}

void values(const Plan& plan, const Weights& weights, const float* observation, int rows, float* value, float* scratch) {
  const float* found = outputs(plan, plan.critic, weights, observation, rows, int(padded(rows)), {scratch});
  for (int b = 0; b < rows; ++b) value[b] = found[b];
}

void numbers(const Plan& plan, const Weights& weights, const float* observation, int rows, float* out, float* scratch) {
  const int block = int(padded(rows));
  const float* found = outputs(plan, plan.actor, weights, observation, rows, block, {scratch});
  for (int b = 0; b < rows; ++b)
    for (int a = 0; a < plan.size; ++a) out[int64_t{b} * plan.size + a] = found[int64_t{a} * block + b];
}

void join(const float* const* slices, int count, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    vec total = load(slices[0] + i);
    for (int s = 1; s < count; ++s) total += load(slices[s] + i);
    store(out + i, total);
  }
  for (; i < n; ++i) {
    out[i] = slices[0][i];
    for (int s = 1; s < count; ++s) out[i] += slices[s][i];
  }
}

void join_turned(const float* const* slices, int count, int64_t rows, int64_t columns, int64_t row, float* out) {
  constexpr int64_t WIDE = 256;
  float sums[W * WIDE], rest[W];  // some lines' sums: memory is read along a line, where it is fast
  for (int64_t from = 0; from < columns; from += WIDE) {
    const int64_t here = columns - from < WIDE ? columns - from : WIDE;
    for (int64_t i = 0; i < rows; i += W) {
      const int64_t lines = rows - i < W ? rows - i : W;
      for (int64_t k = 0; k < lines; ++k)
        for (int64_t j = 0; j < here; j += W) {
          const int64_t at = (i + k) * row + from + j;
          vec total = load(slices[0] + at);
          for (int s = 1; s < count; ++s) total += load(slices[s] + at);
          store(sums + k * WIDE + j, total);
        }
      for (int64_t j = 0; j < here; j += W) {
        vec x[W];
        for (int64_t k = 0; k < W; ++k) x[k] = load(sums + k * WIDE + j);
        exchange_all<W / 2>(x);
        for (int64_t k = 0; k < W && j + k < here; ++k) {
          float* to = out + (from + j + k) * rows + i;
          if (lines == W) {
            store(to, x[k]);
            continue;
          }
          store(rest, x[k]);
          for (int64_t r = 0; r < lines; ++r) to[r] = rest[r];
        }
      }
    }
  }
}

template <class T, class I>  // I: an integer of T's size, so that what is found wrong fits the same vectors
bool inside(const T* x, int64_t n, const T* low, const T* high, int64_t some) {
  I wrong = 0;
  for (; n > 0; n -= some, x += some)
    for (int64_t i = 0, here = n < some ? n : some; i < here; ++i) wrong |= I(!(x[i] >= low[i])) | I(!(x[i] <= high[i]));
  return wrong == 0;
}

double square(const float* x, int64_t n) {
  vec total{};
  int64_t i = 0;
  for (; i + W <= n; i += W) total += load(x + i) * load(x + i);
  double found = sum(total);
  for (; i < n; ++i) found += x[i] * x[i];
  return found;
}

void adam(const Adam& settings, int64_t n, float* __restrict gradient, float* __restrict first, float* __restrict second,
          float* __restrict parameters) {
  const Adam a = settings;  // a copy, which nothing that is written can change
  for (int64_t i = 0; i < n; ++i) {
    const float g = gradient[i] = gradient[i] * a.scale;
    first[i] += (1 - a.beta_1) * (g - first[i]);
    second[i] = second[i] * a.beta_2 + (1 - a.beta_2) * (g * g);
    const float denominator = __builtin_sqrtf(second[i]) * a.root_correction + a.epsilon;
    parameters[i] -= a.learning_rate * (first[i] / denominator);
  }
}

}  // namespace

namespace upslope {
extern const Kernels UPSLOPE_KERNELS;
const Kernels UPSLOPE_KERNELS = {UPSLOPE_NAME,
#ifdef UPSLOPE_HALVES
                                 true,
#else
                                 false,
#endif
                                 pack_layer,
                                 gradient,
                                 act,
                                 values,
                                 temporal,
                                 numbers,
                                 join,
                                 join_turned,
                                 square,
                                 adam,
                                 inside<float, int32_t>,
                                 inside<double, int64_t>,
                                 shuffle,
                                 pack,
                                 lstm_forward,
                                 lstm_backward,
                                 gru_forward,
                                 gru_backward,
                                 PANEL,
                                 packed_floats,
                                 pack_panels,
                                 multiply_panel,
                                 attend};
}  // namespace upslope
