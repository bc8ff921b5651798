// The next token of a few texts, as Python sees it: a linear layer whose weight is packed once, and attention of one query.
#include <nanobind/stl/optional.h>

#include "binding.hpp"
#include "pool.hpp"

namespace upslope {

using namespace nb::literals;

namespace {

using Weight = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;                 // any strides
using Kept = nb::ndarray<const float, nb::ndim<4>, nb::device::cpu>;                   // [n][heads][length][size]

// x -> x weight^T + bias, for weights [outputs][inputs] that stay as they are at the start.
class PackedLinear {
 public:
  PackedLinear(const Weight& weight, const std::optional<Vector<const float>>& bias)
      : chosen_(kernels), outputs_(weight.shape(0)), inputs_(weight.shape(1)) {
    need(outputs_ > 0 && inputs_ > 0, "the weight is empty");
    need(!bias || int64_t(bias->shape(0)) == outputs_, "the bias is of another size");
    packed_ = zeros(chosen_->packed_floats(inputs_, outputs_));
    if (bias) {
      bias_ = zeros(outputs_);
      std::copy_n(bias->data(), outputs_, bias_.get());
    }
    const nb::gil_scoped_release released;
    chosen_->pack_panels(weight.data(), weight.stride(0), weight.stride(1), inputs_, outputs_, packed_.get());
  }

  int64_t outputs() const { return outputs_; }

  void apply(Rows<const float> x, Rows<float> out, int threads) const {
    const int64_t rows = x.shape(0);
    need(int64_t(x.shape(1)) == inputs_, "x is of another width");
    need(int64_t(out.shape(0)) == rows && int64_t(out.shape(1)) == outputs_, "out is of another shape");
    const nb::gil_scoped_release released;
    auto work = [&](int task, int) {
      chosen_->multiply_panel(x.data(), rows, inputs_, outputs_, packed_.get(), bias_.get(), task, out.data());
    };
    in_parallel(int(chosen_->packed_floats(inputs_, outputs_) / inputs_ / chosen_->panel), threads, work);
  }

 private:
  const Kernels* chosen_;  // the panels are as wide as its vectors
  int64_t outputs_, inputs_;
  Floats packed_, bias_;
};

// out[n][h] = softmax(scale q k^T) v over the places that `seen` [n][length] marks, or all. Heads of keys are shared by as
// many heads of queries that follow each other.
void attend(Array<const float, nb::ndim<3>> query, Kept keys, Kept values, std::optional<Rows<const bool>> seen,
            Array<float, nb::ndim<3>> out, float scale, int threads) {
  const int64_t n = query.shape(0), count = query.shape(1), size = query.shape(2);
  const int64_t shared = keys.shape(1), length = keys.shape(2);
  const auto fits = [&](const Kept& x) {
    return int64_t(x.shape(0)) == n && int64_t(x.shape(1)) == shared && int64_t(x.shape(2)) == length &&
           int64_t(x.shape(3)) == size && x.stride(3) == 1 && x.stride(2) == size;
  };
  need(fits(keys) && fits(values), "keys and values are of another shape, or do not lie row after row");
  need(shared > 0 && length > 0 && count % shared == 0, "the heads of queries are no multiple of those of keys");
  need(int64_t(out.shape(0)) == n && int64_t(out.shape(1)) == count && int64_t(out.shape(2)) == size,
       "out is of another shape");
  need(!seen || (int64_t(seen->shape(0)) == n && int64_t(seen->shape(1)) == length), "seen is of another shape");
  const Heads heads{length, size, scale};
  threads = std::max(threads, 1);
  const int64_t room = padded(length);
  const Floats scores = zeros(room * threads);
  const nb::gil_scoped_release released;
  auto work = [&](int row, int worker) {
    for (int64_t h = 0; h < count; ++h) {
      const int64_t at = (int64_t(row) * count + h) * size, kept = h / (count / shared);
      kernels->attend(heads, query.data() + at, keys.data() + row * keys.stride(0) + kept * keys.stride(1),
                      values.data() + row * values.stride(0) + kept * values.stride(1),
                      seen ? reinterpret_cast<const uint8_t*>(seen->data()) + row * length : nullptr,
                      scores.get() + worker * room, out.data() + at);
    }
  };
  in_parallel(int(n), threads, work);
}

}  // namespace

void bind_decoding(nb::module_& m) {
  nb::class_<PackedLinear>(m, "PackedLinear")
      .def(nb::init<const Weight&, const std::optional<Vector<const float>>&>(), "weight"_a, "bias"_a.none())
      .def_prop_ro("outputs", &PackedLinear::outputs)
      .def("apply", &PackedLinear::apply, "x"_a, "out"_out, "threads"_a);
  m.def("attend", &attend, "query"_a, "keys"_a, "values"_a, "seen"_a.none(), "out"_out, "scale"_a, "threads"_a);
}

}  // namespace upslope
