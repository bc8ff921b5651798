// A random order, the same as torch.randperm's: Fisher and Yates' shuffle by the words of Mersenne Twister (Matsumoto and
// Nishimura 1998, "Mersenne twister: a 623-dimensionally equidistributed uniform pseudo-random number generator"). Not the
// standard library's, which is no faster for an instruction set that one kernel has and another has not.
#pragma once

#include <cstdint>

namespace {

class Words {
 public:
  static constexpr int SOME = 624;  // words at a time

  explicit Words(uint32_t seed) {
    state_[0] = seed;
    for (uint32_t i = 1; i < SOME; ++i) state_[i] = 1812433253u * (state_[i - 1] ^ state_[i - 1] >> 30) + i;
  }

  void next(uint32_t* to) {
    constexpr int M = 397;
    uint32_t* const s = state_;
    auto twist = [s](int k, int after, int from) {
      const uint32_t y = (s[k] & 0x80000000u) | (s[after] & 0x7fffffffu);
      s[k] = s[from] ^ y >> 1 ^ ((y & 1u) * 0x9908b0dfu);
    };
    for (int k = 0; k < SOME - M; ++k) twist(k, k + 1, k + M);
    for (int k = SOME - M; k < SOME - 1; ++k) twist(k, k + 1, k + M - SOME);
    twist(SOME - 1, 0, M - 1);
    for (int k = 0; k < SOME; ++k) {
      uint32_t y = s[k];
      y ^= y >> 11;
      y ^= y << 7 & 0x9d2c5680u;
      y ^= y << 15 & 0xefc60000u;
      to[k] = y ^ y >> 18;
    }
  }

 private:
  uint32_t state_[SOME];
};

// Puts the numbers of the `valid` of n rows into `rows`, shuffled, and returns how many there are. Row i changes places with
// row i + w mod (count - i), w the next word.
int64_t shuffle(const bool* valid, int64_t n, uint32_t seed, int64_t* rows) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) rows[count] = i, count += valid[i];
  Words words(seed);
  uint32_t other[Words::SOME];
  for (int64_t from = 0; from < count; from += Words::SOME) {
    const int64_t here = count - from < Words::SOME ? count - from : Words::SOME;
    words.next(other);
    // By a division of doubles, side by side: exact, since a quotient below a whole number is below it by 1 / m or more.
    for (int64_t i = 0; i < here; ++i) {
      const double w = double(other[i]), m = double(count - from - i);
      other[i] = uint32_t(w - m * double(int64_t(w / m)));
    }
    for (int64_t i = from; i < from + here; ++i) {
      int64_t &a = rows[i], &b = rows[i + other[i - from]];
      const int64_t kept = a;
      a = b, b = kept;
    }
  }
  return count;
}

}  // namespace
