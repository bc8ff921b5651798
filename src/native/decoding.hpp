// What the next token of a few texts takes, in kernels of one instruction set: products of few rows with a weight that was
// packed for it, and attention of one query over keys and values that were kept.
#pragma once

#include <cstdint>

#include "plan.hpp"
#include "vectors.hpp"

namespace {

using upslope::Heads;

int64_t packed_floats(int64_t inputs, int64_t outputs) { return (outputs + PANEL - 1) / PANEL * PANEL * inputs; }

// weight element (output, input) at weight[output * row + input * column] -> panels, the last filled up with zeros.
void pack_panels(const float* weight, int64_t row, int64_t column, int64_t inputs, int64_t outputs, float* packed) {
  for (int64_t from = 0; from < outputs; from += PANEL)
    for (int64_t k = 0; k < inputs; ++k)
      for (int64_t j = from; j < from + PANEL; ++j) *packed++ = j < outputs ? weight[j * row + k * column] : 0.0f;
}

// out [rows][outputs] = x [rows][inputs] weight^T + bias, the outputs of panel `number` only.
void multiply_panel(const float* x, int64_t rows, int64_t inputs, int64_t outputs, const float* packed, const float* bias,
                    int64_t number, float* out) {
  constexpr int64_t most = 4 * UPSLOPE_ROWS;
  const int64_t from = number * PANEL, here = outputs - from < PANEL ? outputs - from : PANEL;
  alignas(64) float sums[most * PANEL];
  packed += from * inputs;
  for (int64_t r = 0; r < rows; r += most) {
    const int64_t some = rows - r < most ? rows - r : most;
    product(Strided{x + r * inputs, inputs, 1}, int(some), int(inputs), packed, PANEL, sums, PANEL, PANEL, nullptr, false);
    for (int64_t i = 0; i < some; ++i)
      for (int64_t j = 0; j < here; ++j)
        out[(r + i) * outputs + from + j] = sums[i * PANEL + j] + (bias ? bias[from + j] : 0.0f);
  }
}

// For one query of one row: out = sum_j p_j v_j, p = softmax of scale q k_j over the places j that are seen.
// `scores` has room for the length, padded to W.
void attend(const Heads& heads, const float* query, const float* keys, const float* values, const uint8_t* seen,
            float* scores, float* out) {
  const int64_t length = heads.length, size = heads.size, whole = size / W * W;
  vec most = all(-__builtin_inff());
  for (int64_t j = 0; j < length; j += W) {
    vec part[W] = {};
    float rest[W] = {};
    for (int64_t i = 0; i < W && j + i < length; ++i) {
      const float* key = keys + (j + i) * size;
      for (int64_t d = 0; d < whole; d += W) part[i] += load(query + d) * load(key + d);
      for (int64_t d = whole; d < size; ++d) rest[i] += query[d] * key[d];
    }
    exchange_all<W / 2>(part);
    vec total = load(rest);
    for (int i = 0; i < W; ++i) total += part[i];
    store(scores + j, total * heads.scale);
    for (int64_t i = 0; i < W; ++i)
      if (j + i >= length || (seen && !seen[j + i])) scores[j + i] = -__builtin_inff();
    most = larger(most, load(scores + j));
  }
  float peak[W], top = -__builtin_inff();
  store(peak, most);
  for (int i = 0; i < W; ++i) top = peak[i] > top ? peak[i] : top;
  vec total{};
  for (int64_t j = 0; j < length; j += W) {
    const vec p = exponential(load(scores + j) - top);
    store(scores + j, p);
    total += p;
  }
  const float scale = 1.0f / sum(total);
  constexpr int C = 4;  // vectors of the output that are held in registers, twice: two chains of sums
  int64_t d = 0;
  for (; d + C * W <= size; d += C * W) {
    vec even[C] = {}, odd[C] = {};
    const float* value = values + d;
    int64_t j = 0;
    for (; j + 2 <= length; j += 2, value += 2 * size)
      for (int c = 0; c < C; ++c) {
        even[c] += load(value + c * W) * scores[j];
        odd[c] += load(value + size + c * W) * scores[j + 1];
      }
    for (int c = 0; c < C && j < length; ++c) even[c] += load(value + c * W) * scores[j];
    for (int c = 0; c < C; ++c) store(out + d + c * W, (even[c] + odd[c]) * scale);
  }
  for (; d < size; ++d) {
    float found = 0;
    for (int64_t j = 0; j < length; ++j) found += values[j * size + d] * scores[j];
    out[d] = found * scale;
  }
}

}  // namespace
