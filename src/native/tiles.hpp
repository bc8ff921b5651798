// Products of matrices in bfloat16: a float32 is rounded to its first 8 of 24 bits, and sums are float32's. On the processor's
// tiles (AMX), or else in AVX-512's registers, twice as many numbers at once as float32's. Only where it is asked for, and only
// on processors that have either: see `halves` in module.cpp.
#pragma once

#include "plan.hpp"
#include "vectors.hpp"

#if defined(__AVX512F__) && defined(UPSLOPE_BF16)
#define UPSLOPE_HALVES
#ifdef UPSLOPE_AMX
#define UPSLOPE_TILES
#endif
#endif

#ifdef UPSLOPE_HALVES
namespace {

using Half = uint16_t;
constexpr int TILE = 16, DEEP_TILE = 32;  // rows of a tile, also columns of a product; numbers that it sums over
constexpr int HALVES = 2;                 // of a float's memory

// The sum over k of left(r, k) right(k, c) takes k two by two. Which two are together is free, if both factors agree: here
// k and k + 16 of each 32, so that two vectors of either become one line of a tile by the same few operations.
inline void pair(vec first, vec second, Half* to) {
  typedef uint32_t words __attribute__((vector_size(W * 4), may_alias));
  auto rounded = [](vec x) {  // NaN stays; one of a float's larger numbers may not
    const ints number = x == x;
    return (reinterpret_cast<words&>(x) + (reinterpret_cast<const words&>(number) & 0x8000u)) & 0xffff0000u;
  };
  *reinterpret_cast<words*>(to) = rounded(first) >> 16 | rounded(second);
}

// m [rows][depth] as a left factor, tile after tile along a row of them
inline const Half* pack_left(const float* m, int64_t row, int64_t rows, int64_t depth, Half* to) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < depth; k += DEEP_TILE) {
      const float* from = m + r * row + k;
      pair(load(from), load(from + W), to + r / TILE * TILE * depth + k * TILE + r % TILE * DEEP_TILE);
    }
  return to;
}

// m [depth][columns], or a part of one that is `whole` deep, as a right factor, tile after tile along a column of them
inline const Half* pack_right(const float* m, int64_t row, int64_t depth, int64_t columns, int64_t whole, Half* to) {
  for (int64_t k = 0; k < depth; k += DEEP_TILE)
    for (int64_t t = 0; t < TILE; ++t)
      for (int64_t c = 0; c < columns; c += TILE) {
        const float* from = m + (k + t) * row + c;
        pair(load(from), load(from + TILE * row), to + c * whole + k * TILE + t * DEEP_TILE);
      }
  return to;
}

// c [rows][columns] += left right; all sizes are multiples of 32.
__attribute__((target("avx512bf16"), noinline)) void dotted_product(const Half* left, const Half* right, int64_t rows,
                                                                    int64_t depth, int64_t columns, float* c, int64_t c_row) {
  constexpr int R = 8, C = 2;
  for (int64_t i = 0; i < rows; i += R)
    for (int64_t j = 0; j < columns; j += C * TILE) {
      float* const to = c + i * c_row + j;
      vec sums[R][C];
      for (int r = 0; r < R; ++r)
        for (int q = 0; q < C; ++q) sums[r][q] = load(to + r * c_row + q * TILE);
      const Half *a = left + i / TILE * TILE * depth + i % TILE * DEEP_TILE, *b = right + j * depth;
      for (int64_t k = 0; k < depth; k += DEEP_TILE, a += TILE * DEEP_TILE)
        for (int64_t t = 0; t < TILE; ++t, b += DEEP_TILE) {
          __m512bh line[C];
          for (int q = 0; q < C; ++q) line[q] = (__m512bh)_mm512_loadu_si512(b + q * TILE * depth);
          for (int r = 0; r < R; ++r) {
            int32_t two;
            __builtin_memcpy(&two, a + r * DEEP_TILE + t * HALVES, sizeof two);
            for (int q = 0; q < C; ++q) sums[r][q] = _mm512_dpbf16_ps(sums[r][q], (__m512bh)_mm512_set1_epi32(two), line[q]);
          }
        }
      for (int r = 0; r < R; ++r)
        for (int q = 0; q < C; ++q) store(to + r * c_row + q * TILE, sums[r][q]);
    }
}

#ifdef UPSLOPE_TILES
// The same.
__attribute__((target("amx-tile,amx-bf16"), noinline)) void tiled_product(const Half* left, const Half* right, int64_t rows,
                                                                          int64_t depth, int64_t columns, float* c,
                                                                          int64_t c_row) {
  asm volatile("" ::: "memory");  // a compiler need not know that tiles read and write memory
  const int64_t line = c_row * int64_t{sizeof(float)}, across = TILE * depth;
  for (int64_t i = 0; i < rows; i += 2 * TILE)
    for (int64_t j = 0; j < columns; j += 2 * TILE) {
      float *first = c + i * c_row + j, *second = first + TILE * c_row;
      _tile_loadd(0, first, line);
      _tile_loadd(1, first + TILE, line);
      _tile_loadd(2, second, line);
      _tile_loadd(3, second + TILE, line);
      for (int64_t k = 0; k < depth; k += DEEP_TILE) {
        const Half *a = left + i * depth + k * TILE, *b = right + j * depth + k * TILE;
        _tile_loadd(4, a, 64);
        _tile_loadd(5, a + across, 64);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + across, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, first, line);
      _tile_stored(1, first + TILE, line);
      _tile_stored(2, second, line);
      _tile_stored(3, second + TILE, line);
    }
  asm volatile("" ::: "memory");
}

// A thread has tiles between these two: eight, each of 16 lines of 64 bytes.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t lines[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
const TileShapes shapes;  // constant, so that a compiler which does not know that it is read keeps it

__attribute__((target("amx-tile,amx-bf16"), noinline)) void begin_tiles() { _tile_loadconfig(&shapes); }
__attribute__((target("amx-tile,amx-bf16"), noinline)) void end_tiles() { _tile_release(); }
#endif

inline void halved_product(upslope::Products how, const Half* left, const Half* right, int64_t rows, int64_t depth,
                           int64_t columns, float* c, int64_t c_row) {
#ifdef UPSLOPE_TILES
  if (how == upslope::Products::tiles) return tiled_product(left, right, rows, depth, columns, c, c_row);
#endif
  dotted_product(left, right, rows, depth, columns, c, c_row);
}

}  // namespace
#endif
