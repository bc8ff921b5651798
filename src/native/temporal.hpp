// Temporal differences of action-values, which are the numbers of the head: see losses/bellman.py.
#pragma once

#include "blocks.hpp"

namespace {

using namespace upslope;

// y = R + D max_a q_next(s', a) over legal actions, or with the action that the network itself would take there, [block].
inline const float* temporal_target(const Plan& plan, const Weights& weights, const Transitions& batch,
                                    const int64_t* index, int rows, int block, Scratch& scratch) {
  float* target = scratch.take(block);
  Scratch own = scratch;
  const int64_t size = plan.size;
  float *legal = own.take(size * block), *next = own.take(size * block);
  for (int a = 0; a < size; ++a)
    for (int b = 0; b < block; ++b) {
      const int64_t at = b < rows ? index[b] * size + a : 0;
      legal[a * block + b] = b < rows && !batch.next_legal[at] ? 0.0f : 1.0f;
      next[a * block + b] = b < rows ? batch.next_q[at] : 0.0f;
    }
  const float* chooser = next;
  if (batch.next_observation) {
    Trace trace;
    const float* seen = gather(plan, batch.next_observation, index, rows, block, own);
    chooser = forward(plan.actor, weights, seen, rows, block, trace, own);
  }
  const float *reward = column_of(batch.reward, index, rows, block, own);
  const float *discount = column_of(batch.discount, index, rows, block, own);
  for (int c = 0; c < block; c += W) {
    vec best = allowed_logit(chooser + c, legal + c, 0), value = load(next + c);
    if (!batch.next_observation) value = best;
    for (int a = 1; a < size; ++a) {
      const int64_t at = int64_t{a} * block;
      const vec other = allowed_logit(chooser + c, legal + c, at);
      const ints better = (other > best) | (other != other);  // NaN is the largest, as torch has it
      best = better ? other : best;
      value = better ? (batch.next_observation ? load(next + c + at) : other) : value;
    }
    const vec share = load(discount + c);
    store(target + c, load(reward + c) + (share == 0.0f ? vec{} : share * value));
  }
  return target;
}

// Puts the gradient of the rows `index` into `sums` (padded), or adds it, and adds their metrics.
inline void temporal_of_block(const Plan& plan, const TemporalLoss& loss, const Weights& weights,
                              const Transitions& batch, const int64_t* index, int rows, int block, float* sums, bool add,
                              double* metrics, Scratch scratch) {
  const float* target = temporal_target(plan, weights, batch, index, rows, block, scratch);
  const float* input = gather(plan, batch.observation, index, rows, block, scratch);
  float* choice = scratch.take(block);
  for (int b = 0; b < block; ++b) choice[b] = b < rows ? static_cast<float>(batch.choice[index[b]]) : -1.0f;
  Trace trace;
  const float* q = forward(plan.actor, weights, input, rows, block, trace, scratch);
  float* delta = take_delta(plan.size, block, scratch);
  vec totals[METRICS] = {};
  for (int c = 0; c < block; c += W) {
    const vec taken = load(choice + c), weight = taken < 0.0f ? vec{} : all(loss.sample_weight);
    vec value{};
    for (int a = 0; a < plan.size; ++a) value += taken == float(a) ? load(q + int64_t{a} * block + c) : vec{};
    const vec error = value - load(target + c), distance = error < 0.0f ? -error : error;
    vec slope = error, lost = 0.5f * error * error;
    if (loss.huber) {
      slope = within(error, -1.0f, 1.0f);
      lost = distance > 1.0f ? distance - 0.5f : lost;
    }
    totals[TD_LOSS] += weight > 0.0f ? weight * lost : vec{};
    totals[TD_ERROR] += weight > 0.0f ? weight * distance : vec{};
    totals[Q] += weight * value;
    for (int a = 0; a < plan.size; ++a)
      store(delta + int64_t{a} * block + c, taken == float(a) ? weight * slope : vec{});
  }
  backward(plan.actor, weights, input, trace, delta, nullptr, false, rows, block, padded(plan.widest), sums, add, scratch);
  for (int m = 0; m < METRICS; ++m) metrics[m] += sum(totals[m]);
}

}  // namespace
