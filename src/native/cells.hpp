// LSTM and GRU through time, for a block of segments; the equations are in policies/cells.py. Rows stay as they come,
// [row][feature], and vectors run over features, so that a few segments cost little; in scratch each gate is padded to
// a line of cache. A block keeps its memory in cache from step to step and waits for no other.
#pragma once

#include "blocks.hpp"

namespace {

using namespace upslope;

// `parts` of `size` numbers each, one after another, to where each has room for `wide`.
inline void spread(const float* from, int parts, int size, int64_t wide, float* to) {
  for (int p = 0; p < parts; ++p)
    for (int i = 0; i < size; ++i) to[p * wide + i] = from[p * size + i];
}

inline void gather_parts(const float* from, int parts, int size, int64_t wide, float* to) {
  for (int p = 0; p < parts; ++p)
    for (int i = 0; i < size; ++i) to[p * size + i] = from[p * wide + i];
}

void pack(const float* weight, int gates, int size, bool turned, float* packed) {
  const int64_t wide = padded(size), columns = turned ? gates * wide : wide, depth = turned ? size : gates * wide;
  for (int64_t g = 0; g < gates; ++g)
    for (int64_t j = 0; j < size; ++j)
      for (int64_t k = 0; k < size; ++k) {
        const int64_t row = turned ? k : g * wide + j, column = turned ? g * wide + j : k;
        const int64_t panel = column / PANEL * PANEL, width = columns - panel < PANEL ? columns - panel : PANEL;
        packed[panel * depth + row * width + column - panel] = weight[(g * size + j) * size + k];
      }
}

// How many of the segments first .. last - 1 still go on at step t
inline int alive(const Recurrence& r, int64_t t, int64_t first, int64_t last) {
  const int64_t end = r.counts[t] < last ? r.counts[t] : last;
  return end > first ? static_cast<int>(end - first) : 0;
}

struct Tanh {
  template <class T>
  auto operator()(const T& x) const { return hyperbolic_tangent(x); }
};
struct Sigmoid {
  template <class T>
  auto operator()(const T& x) const { return sigmoid(x); }
};

// ---------------------------------------------------------------- LSTM: gates i, f, g, o; memory h, c
void lstm_forward(const Recurrence& r, int64_t first, int64_t last, float* scratch_floats) {
  Scratch scratch{scratch_floats};
  const int size = r.size;
  const int64_t wide = padded(size), row = 4 * wide, most = last - first;
  float *gates = scratch.take(most * row), *h = scratch.take(most * wide), *c = scratch.take(most * wide);
  for (int64_t i = 0; i < most * row; ++i) gates[i] = 0;
  for (int64_t i = 0; i < most * wide; ++i) h[i] = c[i] = 0;
  for (int64_t b = 0; b < most; ++b) {
    spread(r.start + (first + b) * 2 * size, 1, size, wide, h + b * wide);
    spread(r.start + (first + b) * 2 * size + size, 1, size, wide, c + b * wide);
  }
  for (int64_t t = 0; t < r.steps; ++t) {
    const int n = alive(r, t, first, last);
    if (n == 0) return;
    const int64_t at = r.offsets[t] + first;
    for (int b = 0; b < n; ++b) spread(r.projected + (at + b) * 4 * size, 4, size, wide, gates + b * row);
    multiply(h, wide, n, size, r.weight, gates, row, nullptr, true);
    for (int b = 0; b < n; ++b) {
      float *i = gates + b * row, *f = i + wide, *g = f + wide, *o = g + wide, *own_h = h + b * wide, *own_c = c + b * wide;
      apply(Sigmoid{}, i, 2 * wide);
      apply(Tanh{}, g, wide);
      apply(Sigmoid{}, o, wide);
      for (int64_t k = 0; k < wide; k += W) {
        const vec cell = load(f + k) * load(own_c + k) + load(i + k) * load(g + k);
        store(own_c + k, cell);
        store(own_h + k, cell);
      }
      apply(Tanh{}, own_h, wide);
      for (int64_t k = 0; k < wide; k += W) store(own_h + k, load(o + k) * load(own_h + k));
      gather_parts(i, 4, size, wide, r.gates + (at + b) * 4 * size);
      gather_parts(own_c, 1, size, wide, r.saved + (at + b) * size);
      gather_parts(own_h, 1, size, wide, r.hidden + (at + b) * size);
    }
  }
}

void lstm_backward(const Recurrence& r, int64_t first, int64_t last, float* scratch_floats) {
  Scratch scratch{scratch_floats};
  const int size = r.size;
  const int64_t wide = padded(size), row = 4 * wide, most = last - first;
  float *delta = scratch.take(most * row), *dh = scratch.take(most * wide), *dc = scratch.take(most * wide);
  float *gate = scratch.take(row), *squash = scratch.take(wide), *past = scratch.take(wide), *own = scratch.take(wide);
  for (int64_t i = 0; i < most * wide; ++i) dh[i] = dc[i] = 0;
  for (int64_t i = 0; i < row; ++i) gate[i] = 0;
  for (int64_t i = 0; i < wide; ++i) squash[i] = past[i] = own[i] = 0;
  for (int64_t t = r.steps - 1; t >= 0; --t) {
    const int n = alive(r, t, first, last);
    if (n == 0) continue;
    const int64_t at = r.offsets[t] + first, earlier = t > 0 ? r.offsets[t - 1] + first : 0;
    for (int b = 0; b < n; ++b) {
      const float* start = r.start + (first + b) * 2 * size;
      spread(r.gates + (at + b) * 4 * size, 4, size, wide, gate);
      spread(r.saved + (at + b) * size, 1, size, wide, squash);
      spread(r.d_hidden + (at + b) * size, 1, size, wide, own);
      spread(t > 0 ? r.saved + (earlier + b) * size : start + size, 1, size, wide, past);
      gather_parts(t > 0 ? r.hidden + (earlier + b) * size : start, 1, size, wide, r.before + (at + b) * size);
      apply(Tanh{}, squash, wide);
      float *to = delta + b * row, *own_h = dh + b * wide, *own_c = dc + b * wide;
      for (int64_t k = 0; k < wide; k += W) {
        const vec i = load(gate + k), f = load(gate + wide + k), g = load(gate + 2 * wide + k);
        const vec o = load(gate + 3 * wide + k), s = load(squash + k);
        const vec h = load(own_h + k) + load(own + k);
        const vec c = load(own_c + k) + h * o * (1.0f - s * s);
        store(to + k, g * i * (1.0f - i) * c);
        store(to + wide + k, load(past + k) * f * (1.0f - f) * c);
        store(to + 2 * wide + k, i * (1.0f - g * g) * c);
        store(to + 3 * wide + k, s * o * (1.0f - o) * h);
        store(own_c + k, c * f);
      }
      gather_parts(to, 4, size, wide, r.d_gates + (at + b) * 4 * size);
    }
    multiply(delta, row, n, row, r.weight, dh, wide, nullptr, false);
  }
}

// ---------------------------------------------------------------- GRU: gates r, z, n; memory h
void gru_forward(const Recurrence& r, int64_t first, int64_t last, float* scratch_floats) {
  Scratch scratch{scratch_floats};
  const int size = r.size;
  const int64_t wide = padded(size), row = 3 * wide, most = last - first;
  float *products = scratch.take(most * row), *h = scratch.take(most * wide);
  float *gate = scratch.take(row), *bias = scratch.take(row);
  for (int64_t i = 0; i < most * wide; ++i) h[i] = 0;
  for (int64_t i = 0; i < row; ++i) gate[i] = bias[i] = 0;
  spread(r.bias, 3, size, wide, bias);
  for (int64_t b = 0; b < most; ++b) spread(r.start + (first + b) * size, 1, size, wide, h + b * wide);
  for (int64_t t = 0; t < r.steps; ++t) {
    const int n = alive(r, t, first, last);
    if (n == 0) return;
    const int64_t at = r.offsets[t] + first;
    for (int b = 0; b < n; ++b)
      for (int64_t k = 0; k < row; k += W) store(products + b * row + k, load(bias + k));
    multiply(h, wide, n, size, r.weight, products, row, nullptr, true);
    for (int b = 0; b < n; ++b) {
      const float *product = products + b * row, *inner = product + 2 * wide;
      float *z = gate + wide, *fresh = z + wide, *own_h = h + b * wide;
      spread(r.projected + (at + b) * 3 * size, 3, size, wide, gate);
      for (int64_t k = 0; k < 2 * wide; k += W) store(gate + k, load(gate + k) + load(product + k));
      apply(Sigmoid{}, gate, 2 * wide);
      for (int64_t k = 0; k < wide; k += W) store(fresh + k, load(fresh + k) + load(gate + k) * load(inner + k));
      apply(Tanh{}, fresh, wide);
      for (int64_t k = 0; k < wide; k += W) {
        const vec candidate = load(fresh + k);
        store(own_h + k, candidate + load(z + k) * (load(own_h + k) - candidate));
      }
      gather_parts(gate, 3, size, wide, r.gates + (at + b) * 3 * size);
      gather_parts(inner, 1, size, wide, r.saved + (at + b) * size);
      gather_parts(own_h, 1, size, wide, r.hidden + (at + b) * size);
    }
  }
}

void gru_backward(const Recurrence& r, int64_t first, int64_t last, float* scratch_floats) {
  Scratch scratch{scratch_floats};
  const int size = r.size;
  const int64_t wide = padded(size), row = 3 * wide, most = last - first;
  float *products = scratch.take(most * row), *dh = scratch.take(most * wide), *delta = scratch.take(row);
  float *gate = scratch.take(row), *inner = scratch.take(wide), *past = scratch.take(wide), *own = scratch.take(wide);
  for (int64_t i = 0; i < most * wide; ++i) dh[i] = 0;
  for (int64_t i = 0; i < row; ++i) gate[i] = 0;
  for (int64_t i = 0; i < wide; ++i) inner[i] = past[i] = own[i] = 0;
  for (int64_t t = r.steps - 1; t >= 0; --t) {
    const int n = alive(r, t, first, last);
    if (n == 0) continue;
    const int64_t at = r.offsets[t] + first, earlier = t > 0 ? r.offsets[t - 1] + first : 0;
    for (int b = 0; b < n; ++b) {
      const float* before = t > 0 ? r.hidden + (earlier + b) * size : r.start + (first + b) * size;
      spread(r.gates + (at + b) * 3 * size, 3, size, wide, gate);
      spread(r.saved + (at + b) * size, 1, size, wide, inner);
      spread(r.d_hidden + (at + b) * size, 1, size, wide, own);
      spread(before, 1, size, wide, past);
      gather_parts(before, 1, size, wide, r.before + (at + b) * size);
      float *to = products + b * row, *own_h = dh + b * wide;
      for (int64_t k = 0; k < wide; k += W) {
        const vec reset = load(gate + k), z = load(gate + wide + k), fresh = load(gate + 2 * wide + k);
        const vec h = load(own_h + k) + load(own + k);
        const vec d_fresh = (1.0f - fresh * fresh) * (1.0f - z) * h;
        const vec d_reset = d_fresh * load(inner + k) * reset * (1.0f - reset);
        const vec d_z = (load(past + k) - fresh) * z * (1.0f - z) * h;
        store(to + k, d_reset);
        store(to + wide + k, d_z);
        store(to + 2 * wide + k, d_fresh * reset);
        store(delta + k, d_reset);
        store(delta + wide + k, d_z);
        store(delta + 2 * wide + k, d_fresh);
        store(own_h + k, h * z);
      }
      gather_parts(delta, 3, size, wide, r.d_gates + (at + b) * 3 * size);
      gather_parts(to, 3, size, wide, r.d_products + (at + b) * 3 * size);
    }
    multiply(products, row, n, row, r.weight, dh, wide, nullptr, true);
  }
}

}  // namespace
