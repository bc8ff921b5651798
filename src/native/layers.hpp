// The three products of a layer and a block of samples: its output, and the gradients of its weight and of its input.
// Where bfloat16 is asked for, layers whose sizes fill tiles take them in it.
#pragma once

#include "plan.hpp"
#include "tiles.hpp"
#include "vectors.hpp"

namespace {

using namespace upslope;

struct Scratch {  // hands out pieces of one allocation
  float* next;
  float* take(int64_t floats) {
    float* piece = next;
    next += padded(floats);
    return piece;
  }
};

inline void fill(float* x, float value, int64_t n) {
  for (int64_t i = 0; i < n; i += W) store(x + i, all(value));
}

// ---------------------------------------------------------------- weights as products read them
// m [depth][columns] in panels, one after another; columns are filled up with zeros.
inline void pack_copied(const float* m, int64_t depth, int64_t columns, float* to) {
  for (int64_t j = 0; j < columns; j += PANEL) {
    const int64_t width = padded(columns) - j < PANEL ? padded(columns) - j : PANEL;
    const int64_t there = columns - j < width ? columns - j : width, whole = there / W * W;
    for (int64_t k = 0; k < depth; ++k, to += width) {
      const float* from = m + k * columns + j;
      for (int64_t c = 0; c < whole; c += W) store(to + c, load(from + c));
      for (int64_t c = whole; c < width; ++c) to[c] = c < there ? from[c] : 0.0f;
    }
  }
}

// The same of m turned, m [columns][depth].
inline void pack_turned(const float* m, int64_t depth, int64_t columns, float* to) {
  for (int64_t j = 0; j < columns; j += PANEL) {
    const int64_t width = padded(columns) - j < PANEL ? padded(columns) - j : PANEL;
    const int64_t there = columns - j < width ? columns - j : width, whole = there / W * W, deep = depth / W * W;
    const float* from = m + j * depth;
    turn([=](int64_t c, int64_t k) { return load(from + c * depth + k); }, whole, deep, to, width);
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t c = k < deep ? whole : 0; c < width; ++c) to[k * width + c] = c < there ? from[c * depth + k] : 0.0f;
    to += depth * width;
  }
}

// Whether the weight is one panel as it is.
inline bool one_panel(const Layer& layer) { return layer.inputs % LINE == 0 && layer.inputs <= PANEL; }

#ifdef UPSLOPE_HALVES
// Halves are half as long: the other half of the place is for a part of the weight, turned.
inline void pack_halves(const Layer& layer, const float* weight, float* to) {
  const int64_t inputs = layer.inputs, outputs = layer.outputs, all = inputs * outputs;
  float* const turned = to + all;
  Half* const first = reinterpret_cast<Half*>(to);
  for (int64_t i = 0; i < inputs; i += DEEP_TILE) {
    turn([=](int64_t o, int64_t k) { return load(weight + o * inputs + i + k); }, outputs, DEEP_TILE, turned, outputs);
    pack_right(turned, outputs, DEEP_TILE, outputs, inputs, first + i * TILE);
  }
  pack_right(weight, inputs, outputs, inputs, outputs, first + all);
}
#endif

void pack_layer(const Layer& layer, const float* parameters, bool further, [[maybe_unused]] bool halved, float* packed) {
  const float *weight = parameters + layer.weight, *bias = parameters + layer.bias;
  float* const to = packed + layer.packed;
  if (layer.few()) {
    for (int64_t o = 0; o < layer.outputs; ++o)
      pack_copied(weight + o * layer.inputs, 1, layer.inputs, to + o * padded(layer.inputs));
    return;
  }
  for (int64_t o = 0; o < layer.forward(); ++o) to[o] = o < layer.outputs ? bias[o] : 0.0f;
#ifdef UPSLOPE_HALVES
  if (halved) return pack_halves(layer, weight, to + layer.forward());
#endif
  pack_turned(weight, layer.inputs, layer.outputs, to + layer.forward());
  if (further && !one_panel(layer)) pack_copied(weight, layer.outputs, layer.inputs, to + layer.backward());
}

// ---------------------------------------------------------------- products of a layer that has more than a few outputs
// c [rows][padded(columns)] = (bias | 0 | c) + a [rows][depth] v, where v [depth][columns] is packed
inline void multiply(const float* a, int64_t a_row, int rows, int64_t depth, const float* v, float* c, int64_t columns,
                     const float* bias, bool add) {
  columns = padded(columns);
  for (int64_t j = 0; j < columns; j += PANEL) {
    const int64_t width = columns - j < PANEL ? columns - j : PANEL;
    product({a, a_row, 1}, rows, static_cast<int>(depth), v + j * depth, width, c + j, columns, width,
            bias ? bias + j : nullptr, add);
  }
}

#ifdef UPSLOPE_HALVES
inline Half* take_halves(Scratch& scratch, int64_t numbers) {
  return reinterpret_cast<Half*>(scratch.take(numbers / HALVES));
}
#endif

// output [rows][padded(outputs)] = bias + input weight^T
inline void outputs_of(const Layer& layer, const Weights& weights, const float* input, int rows, float* output,
                       [[maybe_unused]] Scratch scratch) {
  const float *bias = weights.packed + layer.packed, *weight = bias + layer.forward();
#ifdef UPSLOPE_HALVES
  if (weights.halved(layer)) {
    const int64_t inputs = layer.inputs, outputs = layer.outputs;
    for (int b = 0; b < rows; ++b)
      for (int64_t o = 0; o < outputs; o += W) store(output + b * outputs + o, load(bias + o));
    const Half* left = pack_left(input, inputs, rows, inputs, take_halves(scratch, inputs * rows));
    return halved_product(weights.products, left, reinterpret_cast<const Half*>(weight), rows, inputs, outputs, output, outputs);
  }
#endif
  multiply(input, padded(layer.inputs), rows, layer.inputs, weight, output, layer.outputs, bias, false);
}

// sums [inputs][row] = (0 | sums) + input^T delta
inline void weight_gradient(const Layer& layer, [[maybe_unused]] const Weights& weights, const float* input,
                            const float* delta, int rows, float* sums, bool add, [[maybe_unused]] Scratch scratch) {
  const int64_t row = layer.row(), inputs = layer.inputs;
#ifdef UPSLOPE_HALVES
  if (weights.halved(layer)) {
    if (!add) fill(sums, 0.0f, inputs * row);
    float* turned = scratch.take(inputs * rows);
    turn([=](int64_t b, int64_t i) { return load(input + b * inputs + i); }, rows, inputs, turned, rows);
    const Half* left = pack_left(turned, rows, inputs, rows, take_halves(scratch, inputs * rows));
    const Half* right = pack_right(delta, row, rows, row, rows, take_halves(scratch, rows * row));
    return halved_product(weights.products, left, right, inputs, rows, row, sums, row);
  }
#endif
  product({input, 1, padded(inputs)}, layer.inputs, rows, delta, row, sums, row, row, nullptr, add);
}

// input_delta [rows][padded(inputs)] = (0 | input_delta) + delta weight
inline void input_gradient(const Layer& layer, const Weights& weights, const float* delta, int rows, float* input_delta,
                           bool add, [[maybe_unused]] Scratch scratch) {
  const float* packed = weights.packed + layer.packed;
#ifdef UPSLOPE_HALVES
  if (weights.halved(layer)) {
    const int64_t inputs = layer.inputs, outputs = layer.outputs;
    if (!add) fill(input_delta, 0.0f, rows * inputs);
    const Half* left = pack_left(delta, outputs, rows, outputs, take_halves(scratch, outputs * rows));
    const Half* right = reinterpret_cast<const Half*>(packed + layer.forward()) + inputs * outputs;
    return halved_product(weights.products, left, right, rows, outputs, inputs, input_delta, inputs);
  }
#endif
  const float* weight = one_panel(layer) ? weights.parameters + layer.weight : packed + layer.backward();
  multiply(delta, padded(layer.outputs), rows, layer.outputs, weight, input_delta, layer.inputs, nullptr, add);
}

// ---------------------------------------------------------------- products of a head, whose numbers are [output][block]
inline void head_outputs(const Layer& layer, const Weights& weights, const float* input, int rows, int block,
                         float* output, Scratch scratch) {
  const int64_t row = padded(layer.inputs), wide = padded(layer.outputs);
  if (layer.few()) {
    const float *weight = weights.packed + layer.packed, *bias = weights.parameters + layer.bias;
    for (int o = 0; o < layer.outputs; ++o)
      dots(weight + o * row, input, rows, block, row, bias[o], output + int64_t{o} * block);
    return;
  }
  float* by_sample = scratch.take(block * wide);
  outputs_of(layer, weights, input, rows, by_sample, scratch);
  const int last = rows - 1;  // past it, a sample is one that counts for nothing
  turn([=](int64_t b, int64_t o) { return load(by_sample + (b < last ? b : last) * wide + o); }, block, wide, output, block);
}

// The gradients of a head's weight and bias of few outputs: sums [outputs][row] = (0 | sums) + delta input
inline void few_gradient(const Layer& layer, const float* input, const float* delta, int rows, int block, float* sums,
                         bool add) {
  const int64_t row = layer.row(), wide = padded(layer.inputs);
  product({delta, block, 1}, layer.outputs, rows, input, wide, sums, row, wide, nullptr, add);
  for (int o = 0; o < layer.outputs; ++o) {
    vec total{};
    for (int b = 0; b < block; b += W) total += load(delta + int64_t{o} * block + b);
    float& bias = sums[o * row + layer.inputs];
    bias = (add ? bias : 0.0f) + sum(total);
  }
}

inline void few_input_gradient(const Layer& layer, const Weights& weights, const float* delta, int rows, int block,
                               float* input_delta, bool add) {
  const int64_t wide = padded(layer.inputs);
  product({delta, 1, block}, rows, layer.outputs, weights.packed + layer.packed, wide, input_delta, wide, wide, nullptr,
          add);
}

}  // namespace
