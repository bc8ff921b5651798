// Recurrent cells over packed sequences as Python sees them; threads take blocks of segments.
#include <nanobind/stl/vector.h>

#include <numeric>
#include <vector>

#include "binding.hpp"
#include "pool.hpp"

using namespace upslope;
using namespace nb::literals;

namespace {

using In = Rows<const float>;
using Out = Rows<float>;
using Counts = std::vector<int64_t>;

struct Shape {
  int gates, size;
  int64_t rows, segments;
  std::vector<int64_t> offsets;

  Shape(int gates, const In& weight, const In& start, int memory, const Counts& counts)
      : gates(gates), size(int(weight.shape(1))), segments(start.shape(0)), offsets(counts.size()) {
    need(size > 0 && weight.shape(0) == size_t(gates) * size, "the weight is of another shape");
    need(start.shape(1) == size_t(memory) * size, "start has another width");
    int64_t before = segments;
    for (const int64_t n : counts) need(n > 0 && n <= before, "counts must be positive and never grow"), before = n;
    need(counts.empty() ? segments == 0 : counts.front() == segments, "counts and start name other segments");
    std::exclusive_scan(counts.begin(), counts.end(), offsets.begin(), int64_t{0});
    rows = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  }

  template <class T>
  auto* data(const Rows<T>& array, int parts) const {
    need(int64_t(array.shape(0)) == rows && array.shape(1) == size_t(parts) * size, "an array is of another shape");
    return array.data();
  }
};

// Neither the blocks nor what is done with a row depend on the number of threads.
void run(Kernels::Cell* Kernels::* cell, const Shape& shape, Recurrence r, const Counts& counts, const float* weight,
         bool forward, int threads) {
  const nb::gil_scoped_release released;
  const Kernels& with = *kernels;
  const int64_t wide = padded(shape.size), parts = shape.gates;
  const Floats packed = zeros(parts * wide * wide);
  with.pack(weight, shape.gates, shape.size, forward, packed.get());
  r.size = shape.size, r.steps = int64_t(counts.size());
  r.counts = counts.data(), r.offsets = shape.offsets.data(), r.weight = packed.get();
  constexpr int64_t FEW = 6, MANY = 24;  // segments of a block: multiples of the rows that a product holds in registers
  const int64_t block = std::clamp((shape.segments + 4 * FEW - 1) / (4 * FEW) * FEW, FEW, MANY);
  const int tasks = int((shape.segments + block - 1) / block);
  threads = std::clamp(threads, 1, std::max(tasks, 1));
  std::vector<Floats> scratch;
  for (int i = 0; i < threads; ++i) scratch.push_back(zeros((block * (parts + 2) + 2 * parts + 4) * wide));
  auto work = [&](int task, int worker) {
    (with.*cell)(r, task * block, std::min((task + 1) * block, shape.segments), scratch[worker].get());
  };
  in_parallel(tasks, threads, work);
}

void lstm_forward(const Counts& counts, int threads, In projected, In weight, In start, Out hidden, Out gates,
                  Out cells) {
  const Shape shape(4, weight, start, 2, counts);
  Recurrence r{};
  r.projected = shape.data(projected, 4), r.start = start.data();
  r.hidden = shape.data(hidden, 1), r.gates = shape.data(gates, 4), r.saved = shape.data(cells, 1);
  run(&Kernels::lstm_forward, shape, r, counts, weight.data(), true, threads);
}

void lstm_backward(const Counts& counts, int threads, In d_hidden, In weight, In start, Out hidden, Out gates,
                   Out cells, Out d_gates, Out before) {
  const Shape shape(4, weight, start, 2, counts);
  Recurrence r{};
  r.d_hidden = shape.data(d_hidden, 1), r.start = start.data();
  r.hidden = shape.data(hidden, 1), r.gates = shape.data(gates, 4), r.saved = shape.data(cells, 1);
  r.d_gates = shape.data(d_gates, 4), r.before = shape.data(before, 1);
  run(&Kernels::lstm_backward, shape, r, counts, weight.data(), false, threads);
}

void gru_forward(const Counts& counts, int threads, In projected, In weight, Vector<const float> bias, In start,
                 Out hidden, Out gates, Out inner) {
  const Shape shape(3, weight, start, 1, counts);
  need(bias.shape(0) == weight.shape(0), "the bias is of another size");
  Recurrence r{};
  r.projected = shape.data(projected, 3), r.bias = bias.data(), r.start = start.data();
  r.hidden = shape.data(hidden, 1), r.gates = shape.data(gates, 3), r.saved = shape.data(inner, 1);
  run(&Kernels::gru_forward, shape, r, counts, weight.data(), true, threads);
}

void gru_backward(const Counts& counts, int threads, In d_hidden, In weight, In start, Out hidden, Out gates,
                  Out inner, Out d_gates, Out d_products, Out before) {
  const Shape shape(3, weight, start, 1, counts);
  Recurrence r{};
  r.d_hidden = shape.data(d_hidden, 1), r.start = start.data();
  r.hidden = shape.data(hidden, 1), r.gates = shape.data(gates, 3), r.saved = shape.data(inner, 1);
  r.d_gates = shape.data(d_gates, 3), r.d_products = shape.data(d_products, 3), r.before = shape.data(before, 1);
  run(&Kernels::gru_backward, shape, r, counts, weight.data(), false, threads);
}

}  // namespace

void upslope::bind_memory(nb::module_& m) {
  m.def("lstm_forward", &lstm_forward, "counts"_a, "threads"_a, "projected"_a, "weight"_a, "start"_a, "hidden"_out,
        "gates"_out, "cells"_out);
  m.def("lstm_backward", &lstm_backward, "counts"_a, "threads"_a, "d_hidden"_a, "weight"_a, "start"_a, "hidden"_out,
        "gates"_out, "cells"_out, "d_gates"_out, "before"_out);
  m.def("gru_forward", &gru_forward, "counts"_a, "threads"_a, "projected"_a, "weight"_a, "bias"_a, "start"_a,
        "hidden"_out, "gates"_out, "inner"_out);
  m.def("gru_backward", &gru_backward, "counts"_a, "threads"_a, "d_hidden"_a, "weight"_a, "start"_a, "hidden"_out,
        "gates"_out, "inner"_out, "d_gates"_out, "d_products"_out, "before"_out);
}
