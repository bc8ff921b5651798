// A block of samples through the networks, forward, into the loss, and back. See plan.hpp for the layout.
#pragma once

#include "layers.hpp"

namespace {

using namespace upslope;

// ---------------------------------------------------------------- a chain of layers
struct Trace {  // outputs of each layer, inputs of each silu: [rows][padded(features)], of a head [numbers][block]
  float* output[64];
  float* before[64];
};

inline void activate(Activation activation, float* x, float* before, int64_t n) {
  if (activation == Activation::tanh) apply([](const auto& y) { return hyperbolic_tangent(y); }, x, n);
  if (activation == Activation::relu)
    for (int64_t i = 0; i < n; i += W) store(x + i, larger(load(x + i), vec{}));
  if (activation == Activation::silu) {
    for (int64_t i = 0; i < n; i += W) store(before + i, load(x + i));
    apply([](const auto& y) { return y * sigmoid(y); }, x, n);
  }
}

// Calls f(local), where local(d, i) is dL/d(what the activation was given) of W numbers from the i-th on, d = dL/doutput.
template <class F>
inline void with_slope(Activation activation, const float* output, const float* before, F f) {
  if (activation == Activation::none) f([](vec d, int64_t) { return d; });
  if (activation == Activation::tanh)
    f([=](vec d, int64_t i) {
      const vec y = load(output + i);
      return d - d * y * y;
    });
  if (activation == Activation::relu) f([=](vec d, int64_t i) { return load(output + i) > 0.0f ? d : vec{}; });
  if (activation == Activation::silu)
    f([=](vec d, int64_t i) {
      const vec s = sigmoid(load(before + i));
      return d * (s + load(output + i) * (1.0f - s));
    });
}

// Takes a gradient of outputs, source(b, c) of W numbers of row b from the c-th on, through the slope into delta [rows][row],
// and puts its sum over rows, the bias's gradient, into `sums` [row], or adds it.
template <int C, class Source, class Local>
inline void slope_columns(Source source, Local local, int64_t from, float* delta, int64_t row, int rows, float* sums,
                          bool add) {
  vec total[C];
  for (int q = 0; q < C; ++q) total[q] = add ? load(sums + from + q * W) : vec{};
  for (int b = 0; b < rows; ++b)
    for (int q = 0; q < C; ++q) {
      const int64_t column = from + q * W, at = b * row + column;
      const vec d = local(source(b, column), at);
      store(delta + at, d);
      total[q] += d;
    }
  for (int q = 0; q < C; ++q) store(sums + from + q * W, total[q]);
}

template <class Source>
inline void slope(Source source, Activation activation, const float* output, const float* before, float* delta,
                  int64_t row, int rows, float* sums, bool add) {
  with_slope(activation, output, before, [&](auto local) {
    int64_t c = 0;
    for (; c + N * W <= row; c += N * W) slope_columns<N>(source, local, c, delta, row, rows, sums, add);
    for (; c < row; c += W) slope_columns<1>(source, local, c, delta, row, rows, sums, add);
  });
}

// x [rows][padded(inputs)] through a chain of layers.
inline const float* forward(const Chain& chain, const Weights& weights, const float* x, int rows, int block, Trace& trace,
                            Scratch& scratch) {
  for (size_t l = 0; l < chain.size(); ++l) {
    const Layer& layer = chain[l];
    const int64_t wide = padded(layer.outputs), size = layer.head ? int64_t{layer.outputs} * block : rows * wide;
    float* output = trace.output[l] = scratch.take(wide * block);
    trace.before[l] = layer.activation == Activation::silu ? scratch.take(wide * block) : nullptr;
    if (layer.head)
      head_outputs(layer, weights, x, rows, block, output, scratch);
    else
      outputs_of(layer, weights, x, rows, output, scratch);
    activate(layer.activation, output, trace.before[l], size);
    x = output;
  }
  return x;
}

// Puts the gradients of a chain's parameters into `sums`, or adds them, given `delta`, that of its output, which is
// overwritten; a head's delta is [padded(outputs)][block], with zeros past the last output. Where `input_delta` is given,
// the gradient of the chain's input is put there, or added.
inline void backward(const Chain& chain, const Weights& weights, const float* input, const Trace& trace, float* delta,
                     float* input_delta, bool add_delta, int rows, int block, int64_t widest, float* sums, bool add,
                     Scratch scratch) {
  float* const spare[2] = {scratch.take(widest * block), scratch.take(widest * block)};
  const float *few = nullptr, *few_weight = nullptr;  // of the head above, whose product is taken with the slope
  int outputs = 0;
  for (int l = static_cast<int>(chain.size()) - 1; l >= 0; --l) {
    const Layer& layer = chain[l];
    const float* x = l == 0 ? input : trace.output[l - 1];
    float *const own = sums + layer.sums, *const below = l == 0 ? input_delta : spare[l % 2];
    const bool add_below = l == 0 && add_delta;
    const int64_t row = layer.row();
    float* const bias = own + layer.inputs * row;
    if (layer.head)
      with_slope(layer.activation, trace.output[l], trace.before[l], [&](auto local) {
        for (int64_t i = 0; i < int64_t{layer.outputs} * block; i += W) store(delta + i, local(load(delta + i), i));
      });
    if (layer.few()) {
      few_gradient(layer, x, delta, rows, block, own, add);
      if (l == 0 && below) few_input_gradient(layer, weights, delta, rows, block, below, add_below);
      few = delta, few_weight = weights.packed + layer.packed, outputs = layer.outputs;
      delta = below;
      continue;
    }
    auto through = [&](auto source, Activation activation) {
      slope(source, activation, trace.output[l], trace.before[l], delta, row, rows, bias, add);
    };
    if (layer.head) {
      const float* by_output = delta;
      delta = spare[(l + 1) % 2];
      turn([=](int64_t o, int64_t b) { return load(by_output + o * block + b); }, row, block, delta, row);
    }
    const Activation rest = layer.head ? Activation::none : layer.activation;  // a head's is done
    if (few == nullptr)
      through([=](int b, int64_t c) { return load(delta + b * row + c); }, rest);
    else
      through([=](int b, int64_t c) {
        vec d = few[b] * load(few_weight + c);
        for (int o = 1; o < outputs; ++o) d += few[o * block + b] * load(few_weight + o * row + c);
        return d;
      }, rest);
    few = nullptr;
    weight_gradient(layer, weights, x, delta, rows, own, add, scratch);
    if (below) input_gradient(layer, weights, delta, rows, below, add_below, scratch);
    delta = below;
  }
}

// ---------------------------------------------------------------- the head: log-probability, entropy, their gradients
struct Sample {     // one block of what a loss reads besides the head's numbers, [.][block]
  float *weight;    // 1 / rows, or 0 past the last row
  float *action;    // [actions][block], a choice as a number
  float *allowed;   // [size][block], 1 or 0; null without masks
  float *old_log_prob, *old_value, *advantage, *target;
};

inline vec allowed_logit(const float* logit, const float* allowed, int64_t at) {
  const vec z = load(logit + at);
  return allowed == nullptr ? z : (load(allowed + at) > 0.0f ? z : all(-__builtin_inff()));
}

// ln of the sum of e^z over one categorical's n logits, of W samples
inline vec log_sum_exp(const float* logit, const float* allowed, int n, int block) {
  vec top = allowed_logit(logit, allowed, 0), total{};
  for (int a = 1; a < n; ++a) top = larger(top, allowed_logit(logit, allowed, int64_t{a} * block));
  for (int a = 0; a < n; ++a) total += exponential(allowed_logit(logit, allowed, int64_t{a} * block) - top);
  return top + logarithm(total);
}

struct Judged {
  vec log_prob, entropy;
};

inline Judged judge_choices(const Plan& plan, const float* logit, const Sample& sample, int block, int column,
                            float* normalizer, float* entropies) {
  Judged found{};
  int64_t from = column;
  for (size_t k = 0; k < plan.choices.size(); from += int64_t{plan.choices[k]} * block, ++k) {
    const float* allowed = sample.allowed ? sample.allowed + from : nullptr;
    const vec choice = load(sample.action + int64_t(k) * block + column);
    const vec lse = log_sum_exp(logit + from, allowed, plan.choices[k], block);
    vec entropy{};
    for (int a = 0; a < plan.choices[k]; ++a) {
      const vec log_prob = allowed_logit(logit + from, allowed, int64_t{a} * block) - lse;
      const vec term = exponential(log_prob) * log_prob;
      entropy -= log_prob > -1e30f ? term : (log_prob != log_prob ? term : vec{});
      found.log_prob += choice == float(a) ? log_prob : vec{};
    }
    found.entropy += entropy;
    store(normalizer + k * block + column, lse);
    store(entropies + k * block + column, entropy);
  }
  return found;
}

// d/dlogit of (slope ln pi(a) - weight H), each sample's; entropy_slope = -weight
inline void back_choices(const Plan& plan, const float* logit, const Sample& sample, int block, int column,
                         const float* normalizer, const float* entropies, vec slope, vec weight, float* delta) {
  int64_t from = column;
  for (size_t k = 0; k < plan.choices.size(); from += int64_t{plan.choices[k]} * block, ++k) {
    const float* allowed = sample.allowed ? sample.allowed + from : nullptr;
    const vec choice = load(sample.action + int64_t(k) * block + column);
    const vec lse = load(normalizer + k * block + column), entropy = load(entropies + k * block + column);
    for (int a = 0; a < plan.choices[k]; ++a) {
      const vec log_prob = allowed_logit(logit + from, allowed, int64_t{a} * block) - lse;
      const vec p = exponential(log_prob);
      const vec of_entropy = log_prob > -1e30f ? weight * p * (log_prob + entropy) : vec{};
      store(delta + from + int64_t{a} * block, slope * ((choice == float(a) ? all(1.0f) : vec{}) - p) + of_entropy);
    }
  }
}

constexpr float LOG_SQRT_2_PI = 0.918938533f;

// 1 / sigma of each dimension, in a vector each, [size][W]
inline const float* precisions(const Plan& plan, const float* parameters, Scratch& scratch) {
  float* found = scratch.take(int64_t{plan.size} * W);
  for (int i = 0; i < plan.size; ++i) store(found + i * W, exponential(all(-parameters[plan.log_std + i])));
  return found;
}

inline Judged judge_gaussian(const Plan& plan, const float* parameters, const float* precision, const float* mean,
                             const Sample& sample, int block, int column) {
  Judged found{};
  for (int i = 0; i < plan.size; ++i) {
    const int64_t at = int64_t{i} * block + column;
    const vec log_std = all(parameters[plan.log_std + i]);
    const vec z = (load(sample.action + at) - load(mean + at)) * load(precision + i * W);
    found.log_prob += -0.5f * z * z - log_std - LOG_SQRT_2_PI;
    found.entropy += log_std + (0.5f + LOG_SQRT_2_PI);
  }
  return found;
}

// The gradient of log sigma is added to `log_std_delta` [size][W]. What is past the last row has no action: its z may be so
// large that 0 times its square is not 0.
inline void back_gaussian(const Plan& plan, const float* precision, const float* mean, const Sample& sample, int block,
                          int column, vec slope, vec weight, float* delta, float* log_std_delta) {
  const vec counts = load(sample.weight + column);
  for (int i = 0; i < plan.size; ++i) {
    const int64_t at = int64_t{i} * block + column;
    const vec inverse = load(precision + i * W), away = load(sample.action + at) - load(mean + at);
    const vec z = counts > 0.0f ? away * inverse : vec{};
    store(delta + at, slope * z * inverse);
    float* const total = log_std_delta + i * W;
    store(total, load(total) + (slope * (z * z - 1.0f) - weight));
  }
}

// ---------------------------------------------------------------- the loss
// Of W samples each: they add to the metrics and return dL/d ln pi(a), or dL/dv.
inline vec lose_policy(const Loss& loss, const Sample& sample, int column, const Judged& judged, vec* metrics) {
  const vec weight = load(sample.weight + column), advantage = load(sample.advantage + column);
  vec slope, surrogate;
  if (loss.surrogate == Surrogate::clipped) {
    const vec log_ratio = judged.log_prob - load(sample.old_log_prob + column);
    const vec whole = exponential(log_ratio), moved = whole - 1.0f;
    // As losses/policy.py has it: e^20 at most, and NaN where the old probability is 0.
    const vec infinite = all(__builtin_inff());
    const vec ratio = log_ratio < infinite ? smaller(whole, all(485165195.0f)) : log_ratio - log_ratio;
    const vec kept = ratio * advantage;
    const vec clipped = smaller(larger(ratio, all(loss.ratio_low)), all(loss.ratio_high)) * advantage;
    surrogate = clipped < kept ? -clipped : -kept;
    slope = clipped < kept ? vec{} : -kept;
    metrics[APPROX_KL] += weight > 0.0f ? weight * (moved - log_ratio) : vec{};
    const vec distance = moved < 0.0f ? -moved : moved;
    metrics[CLIP_FRACTION] += distance > loss.clip_range ? weight : vec{};
  } else {
    surrogate = -judged.log_prob * advantage;
    slope = -advantage;
  }
  metrics[POLICY_LOSS] += weight > 0.0f ? weight * surrogate : vec{};
  metrics[ENTROPY] += weight > 0.0f ? weight * judged.entropy : vec{};
  return weight > 0.0f ? weight * slope : vec{};
}

inline vec lose_value(const Loss& loss, const Sample& sample, int column, vec value, vec& metric) {
  const vec weight = load(sample.weight + column), target = load(sample.target + column), error = value - target;
  vec squared = error * error, slope = 2.0f * error;
  if (loss.clip_value) {
    const vec old = load(sample.old_value + column), change = value - old;
    const vec kept = smaller(larger(change, all(-loss.value_range)), all(loss.value_range));
    const vec clipped = old + kept - target, other = clipped * clipped;
    const vec share = squared > other ? all(1.0f) : (squared == other ? all(0.5f) : vec{});
    const vec inside = kept == change ? all(1.0f) : vec{};
    slope = squared != squared ? squared : share * slope + (1.0f - share) * inside * (2.0f * clipped);
    squared = larger(squared, other);
  }
  metric += weight > 0.0f ? weight * squared : vec{};
  return weight > 0.0f ? loss.value_weight * weight * slope : vec{};
}

// ---------------------------------------------------------------- a block of rows of a batch
// Observations as a chain reads them, [block][padded(inputs)]
inline const float* gather(const Plan& plan, const float* observation, const int64_t* index, int rows, int block,
                           Scratch& scratch) {
  const int64_t row = padded(plan.inputs);
  float* const found = scratch.take(row * block);
  for (int b = 0; b < block; ++b) {
    float* to = found + b * row;
    if (b >= rows || plan.inputs < row) fill(b < rows ? to + row - LINE : to, 0.0f, b < rows ? LINE : row);
    if (b >= rows) continue;
    const float* from = observation + (index ? index[b] : b) * plan.inputs;
    for (int i = 0; i < plan.inputs; ++i) to[i] = from[i];
  }
  return found;
}

inline float* column_of(const float* from, const int64_t* index, int rows, int block, Scratch& scratch) {
  float* to = scratch.take(block);
  for (int b = 0; b < block; ++b) to[b] = b < rows && from ? from[index[b]] : 0.0f;
  return to;
}

inline Sample gather_sample(const Plan& plan, const Loss& loss, const Batch& batch, const int64_t* index, int rows,
                            int block, Scratch& scratch) {
  Sample found;
  found.weight = scratch.take(block);
  for (int b = 0; b < block; ++b) found.weight[b] = b < rows ? loss.sample_weight : 0.0f;
  const int actions = plan.actions();
  found.action = scratch.take(int64_t{actions} * block);
  for (int k = 0; k < actions; ++k)
    for (int b = 0; b < block; ++b) {
      const int64_t at = b < rows ? index[b] * actions + k : 0;
      found.action[k * block + b] =
          b >= rows ? 0.0f : (plan.gaussian() ? batch.action[at] : static_cast<float>(batch.choice[at]));
    }
  found.allowed = batch.mask ? scratch.take(int64_t{plan.size} * block) : nullptr;
  if (batch.mask)
    for (int a = 0; a < plan.size; ++a)
      for (int b = 0; b < block; ++b)
        found.allowed[a * block + b] = b < rows && !batch.mask[index[b] * plan.size + a] ? 0.0f : 1.0f;
  found.old_log_prob = column_of(batch.old_log_prob, index, rows, block, scratch);
  found.old_value = column_of(batch.old_value, index, rows, block, scratch);
  found.advantage = column_of(batch.advantage, index, rows, block, scratch);
  found.target = column_of(batch.target, index, rows, block, scratch);
  return found;
}

// A head's delta, [padded(size)][block]: nothing past the last number.
inline float* take_delta(int64_t size, int block, Scratch& scratch) {
  float* delta = scratch.take(padded(size) * block);
  fill(delta + size * block, 0.0f, (padded(size) - size) * block);
  return delta;
}

// Puts the gradient of the rows `index` into `sums` (padded), or adds it, and adds their metrics.
inline void gradient_of_block(const Plan& plan, const Loss& loss, const Weights& weights, const Batch& batch,
                              const int64_t* index, int given, int block, float* sums, bool add, double* metrics,
                              Scratch scratch) {
  const float* parameters = weights.parameters;
  const float* input = gather(plan, batch.observation, index, given, block, scratch);
  const Sample sample = gather_sample(plan, loss, batch, index, given, block, scratch);
  const int rows = weights.products == Products::floats ? given : block;  // tiles are filled
  const int64_t widest = padded(plan.widest);
  const bool shared = !plan.trunk.empty();
  float* seen_delta = shared ? scratch.take(padded(plan.trunk.back().outputs) * block) : nullptr;
  vec totals[METRICS] = {};
  Trace trunk, trace;
  const float* seen = forward(plan.trunk, weights, input, rows, block, trunk, scratch);
  {
    Scratch own = scratch;  // the critic takes the same memory: it is in cache
    const float* numbers = forward(plan.actor, weights, seen, rows, block, trace, own);
    float* delta = take_delta(plan.size, block, own);
    float *normalizer = own.take(int64_t{plan.actions()} * block), *entropies = own.take(int64_t{plan.actions()} * block);
    const float* precision = plan.gaussian() ? precisions(plan, parameters, own) : nullptr;
    float* log_std_delta = own.take(int64_t{plan.size} * W);
    fill(log_std_delta, 0.0f, int64_t{plan.size} * W);
    for (int c = 0; c < block; c += W) {
      const Judged judged = plan.gaussian() ? judge_gaussian(plan, parameters, precision, numbers, sample, block, c)
                                            : judge_choices(plan, numbers, sample, block, c, normalizer, entropies);
      const vec slope = lose_policy(loss, sample, c, judged, totals);
      const vec weight = loss.entropy_weight * load(sample.weight + c);
      if (plan.gaussian())
        back_gaussian(plan, precision, numbers, sample, block, c, slope, weight, delta, log_std_delta);
      else
        back_choices(plan, numbers, sample, block, c, normalizer, entropies, slope, weight, delta);
    }
    if (plan.gaussian())
      for (int i = 0; i < plan.size; ++i) {
        float& total = sums[plan.log_std_sums + i];
        total = (add ? total : 0.0f) + sum(load(log_std_delta + i * W));
      }
    backward(plan.actor, weights, seen, trace, delta, seen_delta, false, rows, block, widest, sums, add, own);
  }
  {
    Scratch own = scratch;
    const float* value = forward(plan.critic, weights, seen, rows, block, trace, own);
    float* delta = take_delta(1, block, own);
    for (int c = 0; c < block; c += W)
      store(delta + c, lose_value(loss, sample, c, load(value + c), totals[VALUE_LOSS]));
    backward(plan.critic, weights, seen, trace, delta, seen_delta, true, rows, block, widest, sums, add, own);
  }
  for (int m = 0; m < METRICS; ++m) metrics[m] += sum(totals[m]);
  if (shared)
    backward(plan.trunk, weights, input, trunk, seen_delta, nullptr, false, rows, block, widest, sums, add, scratch);
}

}  // namespace
