// The three products of a layer and a block of samples: its output, and the gradients of its weight and of its input.
// Where tiles are asked for, the layers that fit them take them in bfloat16.
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

struct Weights {
  const float* parameters;
  const float* packed;  // for tiles; null where products are float32's
};

inline void fill(float* x, float value, int64_t n) {
  for (int64_t i = 0; i < n; i += W) store(x + i, all(value));
}

#ifdef UPSLOPE_TILES
inline bool on_tiles(const Layer& layer, const Weights& weights, int block) {
  return weights.packed && layer.tiled() && block % DEEP_TILE == 0;
}

inline Half* take_halves(Scratch& scratch, int64_t numbers) {
  return reinterpret_cast<Half*>(scratch.take(numbers / HALVES));
}

// A tiled layer's weight [outputs][inputs] as a left factor, or `turned`.
inline const Half* packed_weight(const Layer& layer, const Weights& weights, bool turned) {
  const Half* packed = reinterpret_cast<const Half*>(weights.packed + layer.packed);
  return packed + (turned ? int64_t{layer.inputs} * layer.outputs : 0);
}

// The weights of all tiled layers, each in both forms.
void pack_weights(const Plan& plan, const float* parameters, float* to) {
  float* const turned = to + plan.packed;  // 16 lines of a weight, turned
  for (const Chain* chain : {&plan.trunk, &plan.actor, &plan.critic})
    for (const Layer& layer : *chain) {
      if (!layer.tiled()) continue;
      const float* weight = parameters + layer.weight;
      Half* packed = reinterpret_cast<Half*>(to + layer.packed);
      pack_left(weight, layer.inputs, layer.outputs, layer.inputs, packed);
      packed += int64_t{layer.inputs} * layer.outputs;
      for (int64_t i = 0; i < layer.inputs; i += TILE, packed += int64_t{TILE} * layer.outputs) {
        auto value = [=](int64_t o, int64_t k) { return load(weight + o * layer.inputs + i + k); };
        turn(value, layer.outputs, TILE, turned, layer.outputs);
        pack_left(turned, layer.outputs, TILE, layer.outputs, packed);
      }
    }
}
#endif

// output [outputs][block] = bias + weight input
inline void outputs_of(const Layer& layer, const Weights& weights, const float* input, int block, float* output,
                       [[maybe_unused]] Scratch scratch) {
  const float* bias = weights.parameters + layer.bias;
#ifdef UPSLOPE_TILES
  if (on_tiles(layer, weights, block)) {
    for (int o = 0; o < layer.outputs; ++o) fill(output + int64_t{o} * block, bias[o], block);
    const Half* right =
        pack_right(input, block, layer.inputs, block, take_halves(scratch, int64_t{layer.inputs} * block));
    const Half* left = packed_weight(layer, weights, false);
    return tiled_product(left, right, layer.outputs, layer.inputs, block, output, block);
  }
#endif
  product({weights.parameters + layer.weight, layer.inputs, 1}, layer.outputs, layer.inputs, input, block, output, block,
          block, bias, false);
}

// sums [inputs + 1][row] = (0 | sums) + input delta^T, given the input and a row of ones, and delta turned, [block][row]
inline void weight_gradient(const Layer& layer, [[maybe_unused]] const Weights& weights, const float* input,
                            const float* turned, int block, float* sums, bool add, [[maybe_unused]] Scratch scratch) {
  const int64_t row = layer.row();
#ifdef UPSLOPE_TILES
  if (on_tiles(layer, weights, block)) {
    const int64_t rows = layer.inputs;
    if (!add) fill(sums, 0.0f, rows * row);
    const Half* left = pack_left(input, block, rows, block, take_halves(scratch, rows * block));
    const Half* right = pack_right(turned, row, block, row, take_halves(scratch, block * row));
    tiled_product(left, right, rows, block, row, sums, row);
    return product({input + rows * block, block, 1}, 1, block, turned, row, sums + rows * row, row, row, nullptr, add);
  }
#endif
  product({input, block, 1}, layer.inputs + 1, block, turned, row, sums, row, row, nullptr, add);
}

// input_delta [inputs][block] = (0 | input_delta) + weight^T delta
inline void input_gradient(const Layer& layer, const Weights& weights, const float* delta, int block, float* input_delta,
                           bool add, [[maybe_unused]] Scratch scratch) {
#ifdef UPSLOPE_TILES
  if (on_tiles(layer, weights, block)) {
    if (!add) fill(input_delta, 0.0f, int64_t{layer.inputs} * block);
    const Half* right =
        pack_right(delta, block, layer.outputs, block, take_halves(scratch, int64_t{layer.outputs} * block));
    const Half* left = packed_weight(layer, weights, true);
    return tiled_product(left, right, layer.inputs, layer.outputs, block, input_delta, block);
  }
#endif
  product({weights.parameters + layer.weight, 1, layer.inputs}, layer.inputs, layer.outputs, delta, block, input_delta,
          block, block, nullptr, add);
}

}  // namespace
