// Vectors of W floats, products of matrices, transposition, exp, log and tanh. Compiled once per instruction set, each in
// its own unnamed namespace; nothing here may come from a header whose functions another file also compiles.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define UPSLOPE_W 16
#define UPSLOPE_ROWS 6
#define UPSLOPE_COLUMNS 4
#elif defined(__AVX2__)
#define UPSLOPE_W 8
#define UPSLOPE_ROWS 6
#define UPSLOPE_COLUMNS 2
#else
#define UPSLOPE_W 4
#define UPSLOPE_ROWS 4
#define UPSLOPE_COLUMNS 2
#endif

namespace {

constexpr int W = UPSLOPE_W;
constexpr int PANEL = UPSLOPE_COLUMNS * W;  // columns of a weight that lie together, as a product reads them
typedef float vec __attribute__((vector_size(W * 4), may_alias));
typedef float loose __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(W * 4), may_alias));

inline vec load(const float* p) { return *reinterpret_cast<const loose*>(p); }
inline void store(float* p, vec x) { *reinterpret_cast<loose*>(p) = x; }
inline vec all(float x) { return x - vec{}; }
inline ints bits(vec x) { return reinterpret_cast<ints&>(x); }
inline vec floats(ints x) { return reinterpret_cast<vec&>(x); }
// Of NaN and a number, `a`: these instructions return their second operand then. (The forms with a mask that lets all
// pass spare a warning of GCC 12.)
#if defined(__AVX512F__)
inline vec smaller(vec a, vec b) { return _mm512_maskz_min_ps(0xffff, b, a); }
inline vec larger(vec a, vec b) { return _mm512_maskz_max_ps(0xffff, b, a); }
#elif defined(__AVX2__)
inline vec smaller(vec a, vec b) { return _mm256_min_ps(b, a); }
inline vec larger(vec a, vec b) { return _mm256_max_ps(b, a); }
#else
inline vec smaller(vec a, vec b) { return b < a ? b : a; }
inline vec larger(vec a, vec b) { return b > a ? b : a; }
#endif

inline float sum(vec x) {  // in a fixed order: halves are added to each other
  float part[W];
  store(part, x);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  return part[0];
}

inline vec reciprocal(vec x) {
#if defined(__AVX512F__)
  const vec guess = _mm512_maskz_rcp14_ps(0xffff, x);  // 14 bits, then one step of Newton's method
  return guess + guess * (1.0f - x * guess);
#else
  return 1.0f / x;
#endif
}

// ---------------------------------------------------------------- several vectors at once
// A long chain of operations on one vector leaves the processor waiting; four chains side by side take half the time.
constexpr int N = 4;
struct Group {
  vec part[N];
};

template <class F>
inline Group each(F f, const Group& a) {
  return {f(a.part[0]), f(a.part[1]), f(a.part[2]), f(a.part[3])};
}
template <class F>
inline Group each(F f, const Group& a, const Group& b) {
  return {f(a.part[0], b.part[0]), f(a.part[1], b.part[1]), f(a.part[2], b.part[2]), f(a.part[3], b.part[3])};
}
inline Group operator+(const Group& a, const Group& b) { return each([](vec x, vec y) { return x + y; }, a, b); }
inline Group operator*(const Group& a, const Group& b) { return each([](vec x, vec y) { return x * y; }, a, b); }
inline Group operator-(const Group& a, const Group& b) { return each([](vec x, vec y) { return x - y; }, a, b); }
inline Group operator+(const Group& a, float b) { return each([b](vec x) { return x + b; }, a); }
inline Group operator*(const Group& a, float b) { return each([b](vec x) { return x * b; }, a); }
inline Group reciprocal(const Group& a) { return each([](vec x) { return reciprocal(x); }, a); }

inline vec within(vec x, float low, float high) { return smaller(larger(x, all(low)), all(high)); }
inline Group within(const Group& a, float low, float high) {
  return each([=](vec x) { return within(x, low, high); }, a);
}
inline vec to_exponent(vec x) { return floats(bits(x) << 23); }
inline Group to_exponent(const Group& a) { return each([](vec x) { return to_exponent(x); }, a); }

// ---------------------------------------------------------------- exp, log, tanh
// y = n ln 2 + r, |r| <= ln 2 / 2; e^r - 1 = r + r^2 q(r), where q is the polynomial of degree 4 that fits best by least
// squares at Chebyshev's points, weighted for relative error, which is below 2e-8.
template <class T>
struct Power {
  T expm1;  // e^r - 1
  T scale;  // 2^n
};

template <class T>
inline Power<T> power(const T& y) {
  constexpr float magic = 12582912.0f + 127.0f;  // adding it rounds to a whole number, left in the low bits
  const T shifted = y * 1.44269504f + magic;
  const T n = shifted + -magic;
  const T r = y + n * -0.693147182f;
  T p = r * 0.00139411108f + 0.00836676080f;
  p = p * r + 0.0416663513f;
  p = p * r + 0.166665405f;
  p = p * r + 0.5f;
  return {p * (r * r) + r, to_exponent(shifted)};
}

// (e^2x - 1) / (e^2x + 1), accurate also near 0. The denominator is the numerator + 2, which an adder finds that is not busy
// multiplying.
template <class T>
inline T hyperbolic_tangent(const T& x) {
  const Power<T> e = power(within(x * 2.0f, -20.0f, 20.0f));
  const T above = e.expm1 * e.scale + (e.scale + -1.0f);
  return above * reciprocal(above + 2.0f);
}

template <class T>
inline T sigmoid(const T& x) {
  const Power<T> e = power(within(x * -1.0f, -87.0f, 87.0f));
  return reciprocal(e.expm1 * e.scale + e.scale + 1.0f);
}

inline vec exponential(vec y) {  // 0 below the smallest normal number, infinity above the largest
  const auto e = power(within(y, -87.0f, 88.3f));
  const vec infinite = all(__builtin_inff());
  return y < -87.0f ? vec{} : (y > 88.3f ? infinite : e.expm1 * e.scale + e.scale);
}

// ln(m 2^e) for m from sqrt(1/2) to sqrt(2), given m - 1: ln m = 2 artanh((m - 1) / (m + 1))
inline vec log_of(vec m_less_1, vec m, ints e) {
  const vec f = m_less_1 / (m + 1.0f), g = f * f;
  vec p = g * (2.0f / 9) + (2.0f / 7);
  p = p * g + (2.0f / 5);
  p = p * g + (2.0f / 3);
  return __builtin_convertvector(e, vec) * 0.693147181f + (f * g * p + 2.0f * f);
}

inline vec logarithm(vec x) {  // of positive normal numbers
  const ints e = (bits(x) - 0x3f3504f3) >> 23;
  const vec m = floats(bits(x) - (e << 23));
  return log_of(m - 1.0f, m, e);
}

// -ln(1 - u) of u in [0, 1), given 1 - u as well, each rounded once: accurate at both ends
inline vec wait(vec u, vec rest) {
  const ints e = (bits(rest) - 0x3f3504f3) >> 23;  // as in `logarithm`; m - 1 is -u exactly where e is 0
  const vec m = floats(bits(rest) - (e << 23));
  return -log_of(e == 0 ? -u : m - 1.0f, m, e);
}

// x[i] = f(x[i]) for n numbers, a multiple of W, four vectors at a time.
template <class F>
inline void apply(F f, float* x, int64_t n) {
  for (; n >= N * W; n -= N * W, x += N * W) {
    const Group y = f(Group{load(x), load(x + W), load(x + 2 * W), load(x + 3 * W)});
    for (int i = 0; i < N; ++i) store(x + i * W, y.part[i]);
  }
  for (; n > 0; n -= W, x += W) store(x, f(load(x)));
}

// ---------------------------------------------------------------- matrices
struct Strided {  // element (r, k) of a matrix at data[r * row + k * column]
  const float* data;
  int64_t row, column;
};

// c[r][.] = (bias[.] | 0 | c[r][.]) + sum over k of a(r, k) v[k][.], for R rows and C vectors of columns, held in registers.
template <int R, int C>
inline void tile(const Strided& a, int depth, const float* v, int64_t v_row, float* c, int64_t c_row, const float* bias,
                 bool add) {
  vec sums[R][C];
  for (int r = 0; r < R; ++r)
    for (int q = 0; q < C; ++q) sums[r][q] = add ? load(c + r * c_row + q * W) : (bias ? load(bias + q * W) : vec{});
  const float* from = a.data;
  for (int k = 0; k < depth; ++k, from += a.column, v += v_row) {
    vec right[C];
    for (int q = 0; q < C; ++q) right[q] = load(v + q * W);
    for (int r = 0; r < R; ++r) {
      const vec left = all(from[r * a.row]);
      for (int q = 0; q < C; ++q) sums[r][q] += left * right[q];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int q = 0; q < C; ++q) store(c + r * c_row + q * W, sums[r][q]);
}

template <int R>
inline void band(const Strided& a, int depth, const float* v, int64_t v_row, float* c, int64_t c_row, int64_t columns,
                 const float* bias, bool add) {
  auto from = [bias](int64_t j) { return bias ? bias + j : nullptr; };
  int64_t j = 0;
  for (; j + UPSLOPE_COLUMNS * W <= columns; j += UPSLOPE_COLUMNS * W)
    tile<R, UPSLOPE_COLUMNS>(a, depth, v + j, v_row, c + j, c_row, from(j), add);
  if constexpr (UPSLOPE_COLUMNS > 2)
    for (; j + 2 * W <= columns; j += 2 * W) tile<R, 2>(a, depth, v + j, v_row, c + j, c_row, from(j), add);
  for (; j < columns; j += W) tile<R, 1>(a, depth, v + j, v_row, c + j, c_row, from(j), add);
}

// The last `rows` <= R of a matrix, in one band.
template <int R>
inline void last_band(const Strided& a, int rows, int depth, const float* v, int64_t v_row, float* c, int64_t c_row,
                      int64_t columns, const float* bias, bool add) {
  if (rows == R) return band<R>(a, depth, v, v_row, c, c_row, columns, bias, add);
  if constexpr (R > 1) last_band<R - 1>(a, rows, depth, v, v_row, c, c_row, columns, bias, add);
}

inline void bands(Strided a, int rows, int depth, const float* v, int64_t v_row, float* c, int64_t c_row,
                  int64_t columns, const float* bias, bool add) {
  constexpr int R = UPSLOPE_ROWS, TALL = 2 * R;
  int r = 0;
  const bool one = columns == W, two = columns == 2 * W && UPSLOPE_COLUMNS > 2;
  if (one || two)  // few vectors a row: more rows at once keep the adders busy
    for (; r + TALL <= rows; r += TALL, a.data += TALL * a.row, c += TALL * c_row)
      if (one)
        tile<TALL, 1>(a, depth, v, v_row, c, c_row, bias, add);
      else if constexpr (UPSLOPE_COLUMNS > 2)
        tile<TALL, 2>(a, depth, v, v_row, c, c_row, bias, add);
  for (; r + R <= rows; r += R, a.data += R * a.row, c += R * c_row)
    band<R>(a, depth, v, v_row, c, c_row, columns, bias, add);
  if (r < rows) last_band<R - 1>(a, rows - r, depth, v, v_row, c, c_row, columns, bias, add);
}

// c [rows][columns] = (bias[column] | 0 | c) + a v; columns are a multiple of W.
inline void product(Strided a, int rows, int depth, const float* v, int64_t v_row, float* c, int64_t c_row,
                    int64_t columns, const float* bias, bool add) {
  constexpr int DEEP = 1024;  // rows of v that stay in the second cache for all rows of a
  for (int k = 0; k < depth; k += DEEP)
    bands({a.data + k * a.column, a.row, a.column}, rows, depth - k < DEEP ? depth - k : DEEP, v + k * v_row, v_row, c,
          c_row, columns, bias, add || k > 0);
}

// ---------------------------------------------------------------- transposition
template <int... I>
struct Lanes {};
template <int N, int... I>
struct MakeLanes : MakeLanes<N - 1, N - 1, I...> {};
template <int... I>
struct MakeLanes<0, I...> {
  using type = Lanes<I...>;
};

template <int S, int... I>
inline void exchange(vec& a, vec& b, Lanes<I...>) {  // the blocks of S lanes off the diagonal of (a, b)
  const vec low = __builtin_shufflevector(a, b, ((I & S) ? W + I - S : I)...);
  const vec high = __builtin_shufflevector(a, b, ((I & S) ? W + I : I + S)...);
  a = low, b = high;
}

template <int S>
inline void exchange_all(vec (&x)[W]) {
  for (int i = 0; i < W; ++i)
    if (!(i & S)) exchange<S>(x[i], x[i + S], typename MakeLanes<W>::type{});
  if constexpr (S > 1) exchange_all<S / 2>(x);
}

// to [columns][to_row] = a matrix [rows][columns] turned, whose W numbers from row r, column j on are value(r, j). Both
// sizes are multiples of W.
template <class F>
inline void turn(F value, int64_t rows, int64_t columns, float* to, int64_t to_row) {
  for (int64_t i = 0; i < rows; i += W)
    for (int64_t j = 0; j < columns; j += W) {
      vec x[W];
#pragma GCC unroll 16
      for (int k = 0; k < W; ++k) x[k] = value(i + k, j);
      exchange_all<W / 2>(x);
#pragma GCC unroll 16
      for (int k = 0; k < W; ++k) store(to + (j + k) * to_row + i, x[k]);
    }
}

// Lane i of the first of S vectors becomes the sum of all lanes of vector i, for each i < W.
template <int S>
inline vec sums_of(vec (&x)[W]) {
  for (int i = 0; i < S; ++i) {
    exchange<S>(x[i], x[i + S], typename MakeLanes<W>::type{});
    x[i] += x[i + S];
  }
  if constexpr (S > 1) return sums_of<S / 2>(x);
  return x[0];
}

// to[r] = start + the sum over c of a[c] b[r][c], for r < room, a multiple of W; past the last of the `rows` that b has,
// it is that one's. Columns are a multiple of W.
inline void dots(const float* a, const float* b, int rows, int room, int64_t columns, float start, float* to) {
  for (int r = 0; r < room; r += W) {
    const float* row[W];
    for (int i = 0; i < W; ++i) row[i] = b + (r + i < rows ? r + i : rows - 1) * columns;
    vec part[W] = {};
    for (int64_t c = 0; c < columns; c += W) {
      const vec left = load(a + c);
      for (int i = 0; i < W; ++i) part[i] += left * load(row[i] + c);
    }
    store(to + r, sums_of<W / 2>(part) + start);
  }
}

}  // namespace
