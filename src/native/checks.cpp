// Whether what environments gave is what they promised, as Python sees it. Small arrays come here at every step, so they
// are read through the buffer protocol, which takes a tenth of a microsecond where an nb::ndarray takes four.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <vector>

#include "binding.hpp"

namespace upslope {

using namespace nb::literals;

namespace {

// The numbers of an object, where it lends them side by side in memory; nothing otherwise.
class Lent {
 public:
  explicit Lent(nb::handle from, bool writable = false) {
    const int how = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    lent_ = PyObject_GetBuffer(from.ptr(), &view_, how) == 0;
    if (!lent_) PyErr_Clear();
  }
  ~Lent() {
    if (lent_) PyBuffer_Release(&view_);
  }
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;

  bool of(char type) const { return lent_ && view_.format[0] == type && view_.format[1] == '\0'; }
  bool counts(Py_ssize_t n) const { return lent_ && view_.ndim == 1 && view_.shape[0] == n; }
  bool rows_of(const Lent& row, Py_ssize_t n) const {  // whether the shape is [n, *row's]
    return lent_ && row.lent_ && view_.ndim == row.view_.ndim + 1 && view_.shape[0] == n &&
           std::memcmp(view_.shape + 1, row.view_.shape, row.view_.ndim * sizeof(Py_ssize_t)) == 0;
  }
  bool like(const Lent& other, Py_ssize_t n, Py_ssize_t others) const {  // of its type and shape, but for n rows, not others'
    if (!lent_ || !other.lent_ || view_.ndim < 1 || view_.ndim != other.view_.ndim) return false;
    return view_.shape[0] == n && other.view_.shape[0] == others && std::strcmp(view_.format, other.view_.format) == 0 &&
           std::memcmp(view_.shape + 1, other.view_.shape + 1, (view_.ndim - 1) * sizeof(Py_ssize_t)) == 0;
  }
  Py_ssize_t bytes() const { return view_.len; }
  template <class T>
  T* data() const {
    return static_cast<T*>(view_.buf);
  }
  Py_ssize_t size() const { return lent_ ? view_.len / view_.itemsize : -1; }

 private:
  Py_buffer view_;
  bool lent_;
};

template <class T>
bool all_inside(bool (*inside)(const T*, int64_t, const T*, const T*, int64_t), const Lent& x, const Lent& low,
                const Lent& high) {
  constexpr T most = std::numeric_limits<T>::max();
  const Py_ssize_t m = low.size(), some = (1 + 256 / std::max<Py_ssize_t>(m, 1)) * m;
  std::vector<T> bounds(2 * some);  // those of some rows, so that many numbers are compared at once
  T *const least = bounds.data(), *const greatest = least + some;
  for (Py_ssize_t i = 0; i < some; ++i) {
    least[i] = std::max(low.data<T>()[i % m], -most);
    greatest[i] = std::min(high.data<T>()[i % m], most);
  }
  return inside(x.data<T>(), x.size(), least, greatest, some);
}

// Whether x is of shape [n, *low's] and of the bounds' type, float32 or float64, and all of it finite and within them.
bool inside(nb::handle x, Py_ssize_t n, nb::handle low, nb::handle high) {
  const Lent seen(x), least(low), most(high);
  const char type = least.of('f') ? 'f' : 'd';
  need(least.of(type) && most.of(type) && least.size() == most.size(), "bounds are floats of one type and shape");
  if (!seen.of(type) || !seen.rows_of(least, n)) return false;
  return type == 'f' ? all_inside(kernels->inside_floats, seen, least, most)
                     : all_inside(kernels->inside_doubles, seen, least, most);
}

template <class T>
bool take_rewards(const T* from, const bool* counted, float* to, Py_ssize_t n) {
  bool fine = true;
  for (Py_ssize_t i = 0; i < n; ++i) {
    to[i] = counted[i] ? float(from[i]) : 0.0f;
    fine &= std::isfinite(to[i]);
  }
  return fine;
}

// Copies rewards, 0 where a step does not count, and ends of n environments: what ended in a step that counts, and truncated
// only what did not terminate; `own_ended` is all that ended. Returns how many did, or -1 where these are not finite numbers
// and truth values, one for each; what is copied means nothing then.
Py_ssize_t take_signals(nb::handle reward, nb::handle terminated, nb::handle truncated, nb::handle counted,
                        nb::handle own_reward, nb::handle own_terminated, nb::handle own_truncated, nb::handle own_ended) {
  const Lent to(own_reward, true), over(own_terminated, true), cut(own_truncated, true), any(own_ended, true), counts(counted);
  const Py_ssize_t n = counts.size();
  need(to.of('f') && over.of('?') && cut.of('?') && any.of('?') && counts.of('?') && to.counts(n) && over.counts(n) &&
           cut.counts(n) && any.counts(n),
       "own arrays are float32 and bool of one length");
  const Lent from(reward), ended(terminated), stopped(truncated);
  if (!from.counts(n) || !ended.counts(n) || !stopped.counts(n) || !ended.of('?') || !stopped.of('?')) return -1;
  const bool *where = counts.data<bool>(), *first = ended.data<bool>(), *second = stopped.data<bool>();
  bool fine = false;
  if (from.of('f')) fine = take_rewards(from.data<float>(), where, to.data<float>(), n);
  if (from.of('d')) fine = take_rewards(from.data<double>(), where, to.data<float>(), n);
  if (!fine) return -1;
  Py_ssize_t found = 0;
  for (Py_ssize_t i = 0; i < n; ++i) {
    over.data<bool>()[i] = first[i] & where[i];
    cut.data<bool>()[i] = second[i] & where[i] & !first[i];
    found += any.data<bool>()[i] = first[i] | second[i];
  }
  return found;
}

// Copies what the environments numbered in `rows` [n] gave, each of `parts` [n, ...], to their places in each of `firsts`
// [N, ...], and notes it in `first` [N]; or in `seconds` and `second`, where it is noted already. Changes nothing and returns
// false where an array is not of int32 numbers below N, or not side by side in memory, or not like its whole, or where an
// environment is noted in both.
bool place(nb::handle rows, const nb::list& parts, nb::handle first, const nb::list& firsts, nb::handle second,
           const nb::list& seconds) {
  const Lent where(rows), noted[] = {Lent(first, true), Lent(second, true)};
  const nb::list* const wholes[] = {&firsts, &seconds};
  const Py_ssize_t n = where.size(), all = noted[0].size();
  if (!where.of('i') || n < 1) return false;
  for (int k : {0, 1})
    if (!noted[k].of('?') || !noted[k].counts(all) || wholes[k]->size() != parts.size()) return false;
  const int32_t* row = where.data<int32_t>();
  bool* const there[] = {noted[0].data<bool>(), noted[1].data<bool>()};
  for (Py_ssize_t i = 0; i < n; ++i)
    if (row[i] < 0 || row[i] >= all || (there[0][row[i]] && there[1][row[i]])) return false;
  std::deque<Lent> from, to[2];
  for (size_t j = 0; j < parts.size(); ++j) {
    from.emplace_back(parts[j]);
    for (int k : {0, 1})
      if (!to[k].emplace_back((*wholes[k])[j], true).like(from.back(), all, n)) return false;
  }
  std::vector<int> which(n);
  for (Py_ssize_t i = 0; i < n; ++i) which[i] = there[0][row[i]];
  for (size_t j = 0; j < from.size(); ++j) {
    const Py_ssize_t bytes = from[j].bytes() / n;
    for (Py_ssize_t i = 0; i < n; ++i)
      std::memcpy(to[which[i]][j].data<char>() + row[i] * bytes, from[j].data<char>() + i * bytes, bytes);
  }
  for (Py_ssize_t i = 0; i < n; ++i) there[which[i]][row[i]] = true;
  return true;
}

// Puts float32 numbers x [n, ...] into `out`, each within the bounds of its place, [...]; false where they are of another
// type or shape. NaN stays.
bool clip(nb::handle x, nb::handle low, nb::handle high, nb::handle out) {
  const Lent from(x), least(low), most(high), to(out, true);
  const Py_ssize_t m = least.size();
  if (!from.of('f') || !least.of('f') || !most.of('f') || !to.of('f') || most.size() != m || m < 1 ||
      from.size() != to.size() || from.size() % m != 0)
    return false;
  const float *at = from.data<float>(), *l = least.data<float>(), *h = most.data<float>();
  float* into = to.data<float>();
  for (Py_ssize_t row = 0; row < from.size(); row += m)
    for (Py_ssize_t j = 0; j < m; ++j) {
      const float number = at[row + j];
      into[row + j] = number < l[j] ? l[j] : (number > h[j] ? h[j] : number);
    }
  return true;
}

}  // namespace

void bind_checks(nb::module_& m) {
  m.def("inside", &inside, "x"_a, "n"_a, "low"_a, "high"_a);
  m.def("take_signals", &take_signals, "reward"_a, "terminated"_a, "truncated"_a, "counted"_a, "own_reward"_a,
        "own_terminated"_a, "own_truncated"_a, "own_ended"_a);
  m.def("place", &place, "rows"_a, "parts"_a, "first"_a, "firsts"_a, "second"_a, "seconds"_a);
  m.def("clip", &clip, "x"_a, "low"_a, "high"_a, "out"_a);
}

}  // namespace upslope
